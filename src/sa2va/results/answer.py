"""What the model gives back: answers and frames, with exits to JSON, COCO, supervision and pictures.

Plain frozen data: no tensors, no model. Masks are kept as COCO run-length text, so that a long video's results stay
small; arrays are made when asked for. Coordinates are pixels, boxes (x0, y0, x1, y1) with exclusive ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sa2va.atomic import replacing
from sa2va.masks.mask import Size
from sa2va.masks.segment import Segment, segment_from_record, segment_record
from sa2va.results.exports import coco_results, detections
from sa2va.results.history import Turn
from sa2va.untrusted import STUMBLES, parse_json, stumbled
from sa2va.visualization.colors import FILL
from sa2va.visualization.overlay import overlay

if TYPE_CHECKING:
    import supervision
    from PIL import Image


class _PictureResult:
    """Exits shared by everything that holds the segments of one picture."""

    segments: tuple[Segment, ...]

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    @property
    def masks(self) -> NDArray[np.bool_]:
        """All masks, bool (N, H, W), in the order of ``segments``; (0, H, W), or (0, 0, 0) of unknown size, for none.

        Raises:
            ValueError: the segments span several frames.
        """
        if not self.segments:
            height, width = getattr(self, "size", None) or (0, 0)
            return np.zeros((0, height, width), np.bool_)
        return np.stack([segment.mask.array for segment in self.segments])

    def to_coco(self, image_id: int = 1, category_id: int | Mapping[str, int] = 1) -> list[dict[str, Any]]:
        """Results in COCO's form, one per object that is seen; for a whole data set see ``sa2va.writers.CocoWriter``.

        Lists of many pictures are simply joined: ``COCO(truth).loadRes([*one.to_coco(1), *other.to_coco(2)])`` gives
        them ids of their own. There is no ``bbox``, since with one pycocotools takes the box's area for the mask's.
        ``phrase`` and ``object_id`` are extra keys.

        Args:
            image_id: of this picture in the truth.
            category_id: of all objects; or that of each phrase (``"object"`` for those without one).

        Raises:
            ValueError: a phrase without a category, or segments that span several frames.
        """
        return coco_results(self.segments, image_id, category_id)

    def to_supervision(self) -> supervision.Detections:
        """``supervision.Detections`` of the objects that are seen.

        ``confidence`` is the score, ``tracker_id`` the segment's id, ``class_id`` counts the distinct phrases, which
        are in ``data["phrase"]`` and, where its label annotators look, in ``data["class_name"]``.

        Raises:
            ImportError: supervision is not installed.
        """
        return detections(self.segments)

    def draw(
        self,
        image: str | Path | Image.Image | NDArray[np.uint8],
        *,
        alpha: float = FILL,
        contour: bool = True,
        labels: bool = True,
    ) -> Image.Image:
        """The picture with its segments drawn over it; see ``sa2va.visualization.overlay.overlay``."""
        return overlay(image, self.segments, alpha=alpha, contour=contour, labels=labels)


@dataclass(frozen=True, repr=False)
class Answer(_PictureResult):
    """What the model said, and the masks it gave.

    Attributes:
        text: the answer without special tokens.
        raw_text: the answer as generated.
        segments: the objects it points to, in the order of the text.
        reason: why there is no mask, when one was asked for.
        size: (height, width) of the picture.
        history: the turns so far, this one last; pass it on to continue the conversation.
    """

    text: str
    raw_text: str
    segments: tuple[Segment, ...] = ()
    reason: str | None = None
    size: Size | None = None
    history: tuple[Turn, ...] = ()

    def to_json(self, path: str | Path | None = None, indent: int | None = None) -> str:
        """The answer as JSON text, also written to ``path`` when given.

        Schema::

            {"text": str, "raw_text": str, "reason": str | null, "size": [h, w] | null,
             "segments": [{"id": int, "phrase": str, "span": [start, end] | null, "score": float, "presence": float,
                           "box": [x0, y0, x1, y1] | null, "area": int | null, "color": [r, g, b] | null,
                           "masks": [{"size": [h, w], "counts": str}, ...]}, ...],
             "history": [{"question": str, "answer": str}, ...]}

        ``box`` and ``area`` describe a picture's one mask (box null: the mask is empty); for a clip both are null.
        """
        return _dump(self.record, path, indent)

    @property
    def record(self) -> dict[str, Any]:
        """What ``to_json`` writes, as JSON-ready values."""
        return {
            "text": self.text,
            "raw_text": self.raw_text,
            "reason": self.reason,
            "size": self.size,
            "segments": [segment_record(segment) for segment in self.segments],
            "history": [{"question": turn.question, "answer": turn.answer} for turn in self.history],
        }

    @classmethod
    def from_json(cls, text: str) -> Answer:
        """The inverse of ``to_json`` (which leaves probabilities out). Raises ValueError for other text."""
        with _reading("Answer.to_json"):
            record = parse_json(text)
            return cls(
                text=record["text"],
                raw_text=record["raw_text"],
                segments=tuple(segment_from_record(segment) for segment in record["segments"]),
                reason=record["reason"],
                size=_size(record["size"]),
                history=tuple(Turn(turn["question"], turn["answer"]) for turn in record["history"]),
            )

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else f"{self.text[:57]}..."
        reason = f", reason={self.reason!r}" if self.reason else ""
        return f"Answer({text!r}, segments={len(self.segments)}{reason})"


@dataclass(frozen=True, repr=False)
class Frame(_PictureResult):
    """One frame of a track.

    Attributes:
        index: number of the frame in its source, from 0.
        time: seconds since the source's first frame; None where there is no clock (a folder of pictures).
        size: (height, width) in pixels.
        segments: every tracked object, each with one mask; an object out of sight has an empty one.
    """

    index: int
    time: float | None
    size: Size
    segments: tuple[Segment, ...] = ()

    def to_json(self, path: str | Path | None = None, indent: int | None = None) -> str:
        """``{"index": int, "time": float | null, "size": [h, w], "segments": [...]}``, segments as in ``Answer``."""
        record = {
            "index": self.index,
            "time": self.time,
            "size": self.size,
            "segments": [segment_record(segment) for segment in self.segments],
        }
        return _dump(record, path, indent)

    @classmethod
    def from_json(cls, text: str) -> Frame:
        """The inverse of ``to_json``. Raises ValueError for other text."""
        with _reading("Frame.to_json"):
            record = parse_json(text)
            height, width = record["size"]
            segments = tuple(segment_from_record(segment) for segment in record["segments"])
            return cls(record["index"], record["time"], (height, width), segments)

    def __repr__(self) -> str:
        return f"Frame({self.index}, time={self.time}, segments={len(self.segments)})"


def _size(values: list[int] | None) -> Size | None:
    if values is None:
        return None
    height, width = values
    return height, width


@contextmanager
def _reading(writer: str) -> Iterator[None]:
    try:
        yield
    except STUMBLES as error:
        raise ValueError(f"expected JSON written by {writer}: {stumbled(error)}") from error


def _dump(record: dict[str, Any], path: str | Path | None, indent: int | None) -> str:
    text = json.dumps(record, indent=indent, ensure_ascii=False, allow_nan=False)
    if path is not None:
        with replacing(Path(path)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return text
