"""What the model gives back: masks, segments, answers and frames, with exits to JSON, COCO, supervision and pictures.

Plain frozen data: no tensors, no model. Masks are kept as COCO run-length text, so that a long video's results stay
small; arrays are made when asked for. Coordinates are pixels, boxes (x0, y0, x1, y1) with exclusive ends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sa2va.atomic import replacing
from sa2va.masks.mask import Mask, Size
from sa2va.reading import STUMBLES, parse_json, stumbled
from sa2va.visualization.colors import FILL

if TYPE_CHECKING:
    import supervision
    from PIL import Image


#: Scores below this are marked wherever a result is shown.
DOUBTFUL = 0.2


@dataclass(frozen=True, repr=False)
class Segment:
    """One object.

    Attributes:
        id: stable within an answer or a track.
        phrase: the words that name it; "" when there are none.
        masks: one per frame; a picture has one.
        score: the model's own estimate of the mask's IoU, 0..1.
        presence: probability that the object is there at all, 0..1.
        span: first and (exclusive) last character of the phrase in ``Answer.text``.
        probabilities: float32 (T, H, W), 0..1, when they were asked for. Left out of JSON and of comparisons.
        color: RGB, 0..255, in which every output shows the object; None before it is first seen in a picture. Left out
            of comparisons.
    """

    id: int
    phrase: str
    masks: tuple[Mask, ...]
    score: float
    presence: float
    span: tuple[int, int] | None = None
    probabilities: NDArray[np.float32] | None = field(default=None, compare=False)
    color: tuple[int, int, int] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.masks or any(mask.size != self.masks[0].size for mask in self.masks):
            raise ValueError(f"expected one or more masks of one size, got {[mask.size for mask in self.masks]}")
        if not (math.isfinite(self.score) and math.isfinite(self.presence)):
            raise ValueError(f"expected finite scores, got score {self.score} and presence {self.presence}")

    @property
    def mask(self) -> Mask:
        """The only mask. Raises ValueError when the segment spans several frames."""
        if len(self.masks) != 1:
            raise ValueError(f"expected a segment of one picture, got {len(self.masks)} frames; use .masks[frame]")
        return self.masks[0]

    @property
    def doubtful(self) -> bool:
        """Whether the model itself thinks little of the masks: a score under 0.2."""
        return self.score < DOUBTFUL

    def __repr__(self) -> str:
        return (
            f"Segment(id={self.id}, phrase={self.phrase!r}, score={self.score:.2f}, presence={self.presence:.2f}, "
            f"masks={len(self.masks)})"
        )


@dataclass(frozen=True)
class Turn:
    """One question and its answer, special tokens included: what the model must be shown to go on talking."""

    question: str
    answer: str


class _Picture:
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
        from sa2va.results.exports import coco_results

        return coco_results(self.segments, image_id, category_id)

    def to_supervision(self) -> supervision.Detections:
        """``supervision.Detections`` of the objects that are seen.

        ``confidence`` is the score, ``tracker_id`` the segment's id, ``class_id`` counts the distinct phrases, which
        are in ``data["phrase"]`` and, where its label annotators look, in ``data["class_name"]``.

        Raises:
            ImportError: supervision is not installed.
        """
        from sa2va.results.exports import detections

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
        from sa2va.visualization.overlay import overlay

        return overlay(image, self.segments, alpha=alpha, contour=contour, labels=labels)


@dataclass(frozen=True, repr=False)
class Answer(_Picture):
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
        record = {
            "text": self.text,
            "raw_text": self.raw_text,
            "reason": self.reason,
            "size": self.size,
            "segments": [segment_record(segment) for segment in self.segments],
            "history": [{"question": turn.question, "answer": turn.answer} for turn in self.history],
        }
        return _dump(record, path, indent)

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
                size=_pair(record["size"]),
                history=tuple(Turn(turn["question"], turn["answer"]) for turn in record["history"]),
            )

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else f"{self.text[:57]}..."
        reason = f", reason={self.reason!r}" if self.reason else ""
        return f"Answer({text!r}, segments={len(self.segments)}{reason})"


@dataclass(frozen=True, repr=False)
class Frame(_Picture):
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


def segment_record(segment: Segment) -> dict[str, Any]:
    """A segment as JSON-ready values; the schema is in ``Answer.to_json``."""
    single = segment.masks[0] if len(segment.masks) == 1 else None
    return {
        "id": int(segment.id),
        "phrase": segment.phrase,
        "span": segment.span,
        "score": float(segment.score),
        "presence": float(segment.presence),
        "box": single.box if single else None,
        "area": single.area if single else None,
        "color": segment.color,
        "masks": [mask.rle for mask in segment.masks],
    }


def segment_from_record(record: dict[str, Any]) -> Segment:
    """The inverse of ``segment_record``; ``box`` and ``area`` are derived again, not trusted."""
    return Segment(
        id=record["id"],
        phrase=record["phrase"],
        masks=tuple(Mask.from_rle(mask) for mask in record["masks"]),
        score=record["score"],
        presence=record["presence"],
        span=_pair(record["span"]),
        color=_color(record.get("color")),  # JSON of earlier versions has none
    )


def _pair(values: list[int] | None) -> tuple[int, int] | None:
    if values is None:
        return None
    first, second = values
    return first, second


def _color(values: list[int] | None) -> tuple[int, int, int] | None:
    if values is None:
        return None
    red, green, blue = map(int, values)
    return red, green, blue


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
