"""ComfyUI's values and this package's: pictures, masks, boxes, clicks; and the objects that nodes hand on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management as memory
import comfy.utils
import numpy as np
import torch
from torch import Tensor

from sa2va import Answer, Segment

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


@dataclass(frozen=True)
class Objects:
    """What was found, frame by frame.

    Attributes:
        frames: the segments of each, with one mask each; an object has the same ``id`` in all of them.
        size: (height, width) in pixels.
    """

    frames: tuple[tuple[Segment, ...], ...]
    size: tuple[int, int]

    @classmethod
    def of(cls, answer: Answer, frames: int, size: tuple[int, int]) -> Objects:
        """The segments of an answer about so many frames."""
        return cls(
            tuple(
                tuple(replace(one, masks=(one.masks[number],), probabilities=None) for one in answer.segments)
                for number in range(frames)
            ),
            size,
        )

    @property
    def mask(self) -> Tensor:
        """MASK: all objects together, float32 (B, H, W); with soft edges where they were asked for."""
        return as_masks([_union(frame, self.size) for frame in self.frames])

    @property
    def boxes(self) -> list[list[dict[str, Any]]]:
        """BOUNDING_BOX: those of each frame, in pixels; with the words that were found there, and the model's score."""
        return [
            [
                _box(segment.mask.box) | {"label": segment.phrase, "score": float(segment.score)}
                for segment in frame
                if segment.mask.box is not None
            ]
            for frame in self.frames
        ]

    @property
    def box(self) -> dict[str, int] | None:
        """BOUNDING_BOX: the one around everything in all frames; None where there is nothing."""
        found = [segment.mask.box for frame in self.frames for segment in frame if segment.mask.box is not None]
        return _box((*np.min(found, axis=0)[:2], *np.max(found, axis=0)[2:])) if found else None

    @property
    def each(self) -> list[Objects]:
        """Every object alone."""
        numbers = sorted({segment.id for frame in self.frames for segment in frame})
        return [self.only([number]) for number in numbers]

    def only(self, wanted: Iterable[int | str]) -> Objects:
        """The objects with these numbers or phrases."""
        chosen = set(wanted)
        frames = (tuple(one for one in frame if chosen & {one.id, one.phrase.casefold()}) for frame in self.frames)
        return replace(self, frames=tuple(frames))

    def first(self, count: int) -> Objects:
        """At most so many objects of those that were found first; 0 for all."""
        numbers = dict.fromkeys(segment.id for frame in self.frames for segment in frame)
        return self.only(list(numbers)[:count]) if count else self


def _box(corners: Sequence[float]) -> dict[str, int]:
    x0, y0, x1, y1 = map(int, corners)
    return {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}


def _union(segments: Sequence[Segment], size: tuple[int, int]) -> np.ndarray:
    opacity = np.zeros(size, np.float32)
    for segment in segments:
        np.maximum(opacity, segment.mask.array if segment.alpha is None else segment.alpha, out=opacity)
    return opacity


def as_masks(masks: Sequence[np.ndarray]) -> Tensor:
    """Arrays (H, W), bool or float of 0..1, as MASK."""
    return torch.from_numpy(np.stack(masks).astype(np.float32)).to(memory.intermediate_device())


def as_images(pictures: Iterable[Any]) -> Tensor:
    """Pictures of one size as IMAGE."""
    stacked = np.stack([np.asarray(picture, np.uint8) for picture in pictures])
    return torch.from_numpy(stacked.astype(np.float32) / 255).to(memory.intermediate_device())


def as_pictures(image: Tensor) -> np.ndarray:
    """IMAGE, float (B, H, W, 3 or 4) of 0..1, as uint8 RGB (B, H, W, 3)."""
    return (image[..., :3] * 255).round().clamp(0, 255).to("cpu", torch.uint8).numpy()


def as_arrays(mask: Tensor) -> np.ndarray:
    """MASK, float (B, H, W) or (H, W) of 0..1, as float32 (B, H, W)."""
    return mask.reshape(-1, *mask.shape[-2:]).to("cpu", torch.float32).numpy()


def phrases_of(text: str) -> list[str]:
    """One phrase a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


@dataclass(frozen=True)
class Marks:
    """Boxes and clicks on a picture, as ComfyUI's own nodes write them.

    Attributes:
        boxes: of each frame, or those of all. points: x and y in pixels. labels: 1 inside the object, 0 outside.
    """

    boxes: tuple[tuple[Box, ...], ...]
    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]

    @classmethod
    def parse(cls, boxes: Any, positive: str | None, negative: str | None) -> Marks:
        """Read them.

        Args:
            boxes: BOUNDING_BOX: a box, a list of them, or one list for each frame.
            positive, negative: clicks as JSON, ``[{"x": 10, "y": 20}, ...]``.

        Raises:
            ValueError: they are something else.
        """
        inside, outside = _clicks(positive), _clicks(negative)
        try:
            frames = tuple(tuple(_corners(box) for box in frame) for frame in _by_frame(boxes))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"a box has x, y, width and height in pixels; got {boxes!r:.200}") from error
        return cls(frames, (*inside, *outside), (1,) * len(inside) + (0,) * len(outside))

    def __bool__(self) -> bool:
        return any(self.boxes) or bool(self.points)

    def prompts(self, frame: int) -> list[dict[str, Any]]:
        """Arguments for each object marked in a frame: all clicks mark one, within the box if there is one."""
        clicks = {"points": self.points, "labels": self.labels} if self.points else {}
        boxes = self.boxes[min(frame, len(self.boxes) - 1)] if self.boxes else ()
        if not boxes:
            return [clicks] if clicks else []
        return [{"box": box, **clicks} for box in boxes]


def _by_frame(boxes: Any) -> list[Any]:
    if not boxes:
        return []
    listed = [boxes] if isinstance(boxes, dict) else boxes
    return [listed] if isinstance(listed[0], dict) else listed


def _corners(box: dict[str, float]) -> Box:
    return box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]


def _clicks(text: str | None) -> list[tuple[float, float]]:
    if not text or not text.strip():
        return []
    try:
        return [(float(one["x"]), float(one["y"])) for one in json.loads(text)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'clicks are JSON such as [{{"x": 10, "y": 20}}]; got {text!r:.200}') from error


class Progress:
    """ComfyUI's progress bar of a node, which also stops the node when the user cancels the run."""

    def __init__(self, total: int):
        self._bar = comfy.utils.ProgressBar(total)

    def step(self, _: Any = None) -> None:
        """One more is done. Raises ComfyUI's own exception if the run was cancelled."""
        memory.throw_exception_if_processing_interrupted()
        self._bar.update(1)
