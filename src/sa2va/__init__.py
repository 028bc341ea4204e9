"""Ask about images and videos; get text and pixel-exact masks back.

Names are imported when they are first used, so that ``import sa2va`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sa2va import _auto

__version__ = "0.2.0"

_HOMES = {
    "Sa2VA": "sa2va.predictor",
    "VideoTracker": "sa2va.inference.tracker",
    "Answer": "sa2va.results.answer",
    "Frame": "sa2va.results.answer",
    "Mask": "sa2va.masks.mask",
    "Segment": "sa2va.masks.mask",
    "Track": "sa2va.inference.video_result",
    "Reply": "sa2va.inference.replies",
    "Request": "sa2va.inference.replies",
    "Sa2VAConfig": "sa2va.model.configuration",
    "Sa2VAModel": "sa2va.modeling_sa2va",
    "Sa2VAProcessor": "sa2va.processing.processor",
}
__all__ = [
    "Answer",
    "Frame",
    "Mask",
    "Reply",
    "Request",
    "Sa2VA",
    "Sa2VAConfig",
    "Sa2VAModel",
    "Sa2VAProcessor",
    "Segment",
    "Track",
    "VideoTracker",
]

if TYPE_CHECKING:
    from sa2va.inference.replies import Reply, Request
    from sa2va.inference.tracker import VideoTracker
    from sa2va.inference.video_result import Track
    from sa2va.masks.mask import Mask, Segment
    from sa2va.model.configuration import Sa2VAConfig
    from sa2va.modeling_sa2va import Sa2VAModel
    from sa2va.predictor import Sa2VA
    from sa2va.processing.processor import Sa2VAProcessor
    from sa2va.results.answer import Answer, Frame

_auto.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sa2va' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
