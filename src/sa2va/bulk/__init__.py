"""Many pictures at once: a folder, a bucket or a manifest answered row by row, on one machine or a cluster.

``sa2va batch`` is its command; [`Answerer`] is for pipelines of one's own. It is imported when it is first used, so
that processes which only read and decode need not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sa2va.bulk.answerer import Answerer

__all__ = ["Answerer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sa2va.bulk' has no attribute {name!r}")
    return getattr(import_module("sa2va.bulk.answerer"), name)
