"""Many pictures at once: a folder, a bucket or a manifest answered row by row, on one machine or a cluster.

``sa2va batch`` is its command; [`Answerer`] is for pipelines of one's own.
"""

from __future__ import annotations

from sa2va.bulk.answerer import Answerer

__all__ = ["Answerer"]
