"""Boxes and clicks of users as SAM 2's own prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sa2va.masks.mask import Size
from sa2va.model.mask_decoder import MASK_LOGIT
from sa2va.processing.regions import Box, box_inside, checked_box, checked_mask

#: How SAM 2 marks clicks: a place that says nothing, outside, inside, and the two corners of a box.
NOWHERE, OUTSIDE, INSIDE, BOX_CORNERS = -1, 0, 1, [2, 3]


@dataclass(frozen=True)
class Clicks:
    """One object, marked by a box, by clicks, or by both.

    Attributes:
        box: its corners in pixels of the frame, if there is one. points: float32 (P, 2), (x, y) in pixels. labels: 1
            inside or 0 outside, for each.
    """

    box: Box | None
    points: np.ndarray
    labels: list[int]

    @classmethod
    def of(
        cls,
        box: Sequence[float] | None = None,
        points: Sequence[Sequence[float]] | None = None,
        labels: Sequence[int] | None = None,
    ) -> Clicks:
        """What a user has given. Raises ValueError for malformed coordinates or labels."""
        corners = None if box is None else checked_box(box)
        if points is None:
            return cls(corners, np.empty((0, 2), np.float32), [])
        return cls(corners, *_checked(points, labels))

    def tensors(self, size: Size, side: int) -> tuple[Tensor, Tensor]:
        """Points float32 (1, P, 2) in pixels of the grounding image, and their labels int64 (1, P).

        Args:
            size: (height, width) of the frame. side: of the grounding image.

        Raises:
            ValueError: they do not fit the frame.
        """
        points, labels = self.points, self.labels
        if len(points):
            _check_inside(points, size)
        if self.box is not None:
            corners = np.array(box_inside(self.box, size), np.float32).reshape(2, 2)
            points, labels = np.concatenate([corners, points]), [*BOX_CORNERS, *labels]
        if not labels:
            points, labels = np.zeros((1, 2), np.float32), [NOWHERE]
        scale = side / np.array([size[1], size[0]], np.float32)
        return torch.from_numpy(points * scale)[None], torch.tensor([labels])


def drawn_logits(mask: np.ndarray, size: Size) -> Tensor:
    """A rough mask, bool (H, W), as logits float32 (1, H, W). Raises ValueError for an empty or misshapen one."""
    inside = checked_mask(np.asarray(mask), size)
    if not inside.any():
        raise ValueError(f"the mask is empty: none of its {size[0]} x {size[1]} pixels is set; draw at least one")
    return (2 * torch.from_numpy(inside)[None].float() - 1) * MASK_LOGIT


def _checked(points: Sequence[Sequence[float]], labels: Sequence[int] | None) -> tuple[np.ndarray, list[int]]:
    clicks: np.ndarray
    try:
        clicks = np.asarray(points, np.float32)
    except (TypeError, ValueError, OverflowError):
        clicks = np.empty(0)
    if clicks.ndim != 2 or clicks.shape[1] != 2 or not len(clicks) or not np.isfinite(clicks).all():
        raise ValueError(f"points are one or more pairs (x, y) of numbers; got {points}")
    marks = [INSIDE] * len(clicks) if labels is None else list(labels)
    if len(marks) != len(clicks):
        raise ValueError(f"{len(clicks)} points need as many labels; got {len(marks)}")
    if not all(mark in (OUTSIDE, INSIDE) for mark in marks):
        raise ValueError(f"labels are 1 (inside) or 0 (outside); got {marks}")
    return clicks, [int(mark) for mark in marks]


def _check_inside(points: np.ndarray, size: Size) -> None:
    """Refuse points that are not pixels of a frame."""
    height, width = size
    shown = [(float(x), float(y)) for x, y in points]
    if points.min() >= 0 and points.max() <= 1 and (points % 1).any():
        raise ValueError(
            f"the points {shown} look like shares of the frame; points are (x, y) in pixels: "
            f"multiply x by {width} and y by {height}"
        )
    if points.min() < 0 or (points >= (width, height)).any():
        raise ValueError(
            f"the points {shown} are not all inside the frame of {height} x {width} pixels (height x width)"
        )
