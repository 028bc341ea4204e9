"""What the model returns: answers and frames, with exports to JSON, COCO, supervision and images.

Plain frozen data: no tensors, no model, no pixels (notebooks show results over pictures that are opened again). Masks
are kept as COCO run-length text, so that a long video's results stay small; arrays are made when asked for. Coordinates
are pixels, boxes (x0, y0, x1, y1) with exclusive ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sa2va.atomic import replacing
from sa2va.masks.mask import Segment, Size, segment_from_record, segment_record
from sa2va.media.open import Origin
from sa2va.results.exports import coco_results, detections
from sa2va.results.history import Turn
from sa2va.results.notebook import figure_html, note_html, picture_html, text_html
from sa2va.untrusted import STUMBLES, parse_json, stumbled
from sa2va.visualization.colors import FILL
from sa2va.visualization.overlay import overlay

if TYPE_CHECKING:
    import supervision
    from PIL import Image


class _PictureResult:
    """What answers and frames share: the segments of one image, and their exports."""

    segments: tuple[Segment, ...]

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    @property
    def masks(self) -> NDArray[np.bool_]:
        """All masks, bool (N, H, W), in the order of ``segments``. N may be 0; H and W too, if the size is unknown.

        Raises:
            ValueError: the segments span several frames.
        """
        if not self.segments:
            height, width = getattr(self, "size", None) or (0, 0)
            return np.zeros((0, height, width), np.bool_)
        return np.stack([segment.mask.array for segment in self.segments])

    def to_coco(self, image_id: int = 1, category_id: int | Mapping[str, int] = 1) -> list[dict[str, Any]]:
        """COCO results, one per visible object; for a whole dataset use [`sa2va.writers.CocoWriter`].

        Results of several images may be joined: ``COCO(truth).loadRes([*one.to_coco(1), *other.to_coco(2)])`` numbers
        them. ``bbox`` is left out, because pycocotools would take its area for the mask's. ``phrase`` and ``object_id``
        are extra keys.

        Args:
            image_id: the image's id in the ground truth.
            category_id: one for all objects, or a mapping from phrases (``"object"`` if there is none) to ids.

        Raises:
            ValueError: a phrase has no category, or the segments span several frames.
        """
        return coco_results(self.segments, image_id, category_id)

    def to_supervision(self, *, compact: bool = False) -> supervision.Detections:
        """The visible objects as ``supervision.Detections``.

        ``confidence`` is the score and ``tracker_id`` the segment's id. ``class_id`` numbers the distinct phrases,
        which are in ``data["phrase"]`` and, for supervision's label annotators, in ``data["class_name"]``.

        Args:
            compact: masks as ``supervision.CompactMask``, run lengths in a small part of the memory, not as an array.

        Raises:
            ImportError: supervision is not installed, or too old for compact masks.
        """
        return detections(self.segments, compact=compact)

    def draw(
        self,
        image: str | Path | Image.Image | NDArray[np.uint8],
        *,
        alpha: float = FILL,
        contour: bool = True,
        labels: bool = True,
    ) -> Image.Image:
        """The image with its segments drawn over it.

        Args:
            image: the image the answer is about, as for [`sa2va.media.image.load_image`].
            alpha: opacity of the fill, 0..1.
            contour: draw outlines.
            labels: write phrases; "?" marks a score below 0.2.
        """
        return overlay(image, self.segments, alpha=alpha, contour=contour, labels=labels)


@dataclass(frozen=True, repr=False)
class Answer(_PictureResult):
    """The model's answer about an image, a short video or a text: its words and the objects they refer to.

    Attributes:
        text: the answer without special tokens.
        raw_text: the answer as generated.
        segments: the objects it refers to, in the order of the text.
        reason: why there is no mask although one was asked for.
        size: (height, width) of the image in pixels.
        history: the turns so far, this one last; pass it on to continue the conversation.
        origin: where the picture can be had again, for notebooks. Not in JSON, and ignored in comparisons.

    Examples:
        >>> from sa2va import Answer, Sa2VA
        >>> model = Sa2VA.from_pretrained("tiny")
        >>> answer = model.segment("shapes.png", "the yellow cloud")
        >>> [segment.phrase for segment in answer]
        ['the yellow cloud']
        >>> answer.masks.shape
        (1, 256, 256)
        >>> answer.draw("shapes.png").save("overlay.png")
        >>> Answer.from_json(answer.to_json()) == answer
        True
    """

    text: str
    raw_text: str
    segments: tuple[Segment, ...] = ()
    reason: str | None = None
    size: Size | None = None
    history: tuple[Turn, ...] = ()
    origin: Origin | None = field(default=None, compare=False)

    def to_json(self, path: str | Path | None = None, indent: int | None = None) -> str:
        """The answer as JSON text, which is also written to ``path`` if that is given.

        ```text
        {"text": str, "raw_text": str, "reason": str | null, "size": [h, w] | null,
         "segments": [{"id": int, "phrase": str, "span": [start, end] | null, "score": float, "presence": float,
                       "box": [x0, y0, x1, y1] | null, "area": int | null, "color": [r, g, b] | null,
                       "masks": [{"size": [h, w], "counts": str}, ...]}, ...],
         "history": [{"question": str, "answer": str}, ...]}
        ```

        ``box`` and ``area`` are those of an image's one mask (the box of an empty mask is null). Both are null for a
        video.
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
        """Read what [`to_json`] wrote, which leaves probabilities out. Raises ValueError for anything else."""
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

    def _repr_html_(self) -> str:
        """The picture with its masks and the text with its phrases in their colours; a clip as a sheet of frames.

        A picture that was opened from a file, or that the caller still holds, is shown; grey stands for another one.
        """
        picture = picture_html(self.origin, self.segments, self.size)
        reason = note_html(self.reason) if self.reason else ""
        return figure_html(picture, text_html(self.text, self.segments), reason)


@dataclass(frozen=True, repr=False)
class Frame(_PictureResult):
    """One frame of a video with the objects tracked in it.

    Attributes:
        index: number of the frame in its source, from 0.
        time: seconds since the source's first frame; None for sources without timestamps (a folder of images).
        size: (height, width) in pixels.
        segments: every tracked object, each with one mask, which is empty while the object is out of sight.
        origin: where its pixels can be had again, for notebooks. Not in JSON, and ignored in comparisons.

    Examples:
        >>> from sa2va import Sa2VA
        >>> model = Sa2VA.from_pretrained("tiny")
        >>> track = model.track("shapes.mp4", "the orange hat", sampling={"max_frames": 2})
        >>> frame = next(track)
        >>> frame
        Frame(0, time=0.0, segments=1)
        >>> frame.segments[0].mask.size
        (256, 256)
    """

    index: int
    time: float | None
    size: Size
    segments: tuple[Segment, ...] = ()
    origin: Origin | None = field(default=None, compare=False)

    def to_json(self, path: str | Path | None = None, indent: int | None = None) -> str:
        """The frame as JSON text, which is also written to ``path`` if that is given.

        ``{"index": int, "time": float | null, "size": [h, w], "segments": [...]}``, segments as in [`Answer.to_json`].
        """
        record = {
            "index": self.index,
            "time": self.time,
            "size": self.size,
            "segments": [segment_record(segment) for segment in self.segments],
        }
        return _dump(record, path, indent)

    @classmethod
    def from_json(cls, text: str) -> Frame:
        """Read what [`to_json`] wrote. Raises ValueError for anything else."""
        with _reading("Frame.to_json"):
            record = parse_json(text)
            height, width = record["size"]
            segments = tuple(segment_from_record(segment) for segment in record["segments"])
            return cls(record["index"], record["time"], (height, width), segments)

    def __repr__(self) -> str:
        return f"Frame({self.index}, time={self.time}, segments={len(self.segments)})"

    def _repr_html_(self) -> str:
        """The frame with its masks, over grey where its pixels cannot be had again (a camera's)."""
        time = "" if self.time is None else f", {self.time:.2f} s"
        picture = picture_html(self.origin, self.segments, self.size, self.index)
        return figure_html(picture, text_html("", self.segments), note_html(f"frame {self.index}{time}"))


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
