"""Pictures as labelling tools export them: shapes, each with a label; masks are drawn when asked for.

What is an area is read: polygons, boxes (maybe turned), ellipses, and masks in each tool's own coding. Lines and points
have no area.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sa2va.data.annotations.coco import decode_segmentation, unite
from sa2va.masks.mask import Mask, Size
from sa2va.runtime import logger

#: Draws a shape into a picture of a size (height, width); picklable, for the workers of a data loader.
Drawing = Callable[[Size], Mask]
# So many corners stand for an ellipse: on a radius of a thousand pixels they are off by less than a tenth of one.
_ELLIPSE_CORNERS = 256
#: Text files are recognised by what their beginning holds.
_HEAD = 1 << 16


@dataclass(frozen=True)
class LabelledPicture:
    """One picture with its shapes.

    Attributes:
        name: for messages and ids. image: the file. size: (height, width) in pixels as the annotations say; None where
            they do not. shapes: label and drawing of each.
    """

    name: str
    image: Path
    size: Size | None
    shapes: tuple[tuple[str, Drawing], ...]

    def mask(self, drawings: Sequence[Drawing], size: Size) -> Mask:
        """The union of shapes. size: (height, width). ValueError naming the picture for a malformed one, or for none.

        A shape that lies outside of its picture was meant for another one.
        """
        try:
            mask = unite((drawing(size) for drawing in drawings), size)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        if mask.area == 0:
            labels = {label for label, drawing in self.shapes if drawing in drawings}
            raise ValueError(
                f"{self.name}: what is labelled {', '.join(sorted(labels))!r} covers no pixel of the picture"
            )
        return mask


@dataclass
class Shapes:
    """Shapes of one file as they are read, and how many of each kind are no areas or only boxes."""

    skipped: Counter[str] = field(default_factory=Counter)
    boxes: int = 0

    def warn(self, where: str) -> None:
        """Say what was left out, and that boxes are taken for masks."""
        if self.skipped:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.skipped.items()))
            logger.warning("%s: left out what has no area: %s", where, kinds)
        if self.boxes:
            logger.warning(
                "%s: %d boxes are taken as masks, as they are: a model learns from them to answer with rectangles",
                where,
                self.boxes,
            )


def polygon(points: Iterable[Any]) -> Drawing:
    """A polygon of corners (x, y) in pixels. ValueError or TypeError for anything else, or fewer than three."""
    corners = np.array([[float(number) for number in point] for point in points], dtype=float)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
        raise ValueError(f"expected three corners (x, y) or more, got {len(corners)}")
    if not np.isfinite(corners).all():
        raise ValueError("expected corners in pixels, got an infinite one")
    return partial(_draw_polygon, tuple(corners.ravel().tolist()))


def box(x0: float, y0: float, x1: float, y1: float, degrees: float = 0, pivot: tuple[float, float] | None = None):
    """A box of two opposite corners, turned clockwise about its centre, or about a pivot."""
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=float)
    return polygon(_turned(corners, degrees, corners.mean(axis=0) if pivot is None else np.array(pivot)))


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0) -> Drawing:
    """An ellipse about (x, y), turned clockwise."""
    angles = np.linspace(0, 2 * math.pi, _ELLIPSE_CORNERS, endpoint=False)
    corners = np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)
    return polygon(_turned(corners, degrees, np.array([x, y])))


def placed(mask: np.ndarray, left: int, top: int, size: Size) -> Mask:
    """A mask of a part of a picture, bool (H, W), whose first pixel is at (left, top)."""
    height, width = mask.shape
    if left < 0 or top < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError(
            f"a mask of {height} x {width} pixels at x={left}, y={top} does not fit into a picture of "
            f"{size[0]} x {size[1]}"
        )
    canvas = np.zeros(size, dtype=bool)
    canvas[top : top + height, left : left + width] = mask
    return Mask.from_array(canvas)


def head(path: Path) -> str:
    """How a file begins; "" for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD).decode("utf-8-sig", errors="replace")
    except OSError:
        return ""


def _draw_polygon(points: tuple[float, ...], size: Size) -> Mask:
    return decode_segmentation([list(points)], size)


def _turned(corners: np.ndarray, degrees: float, pivot: np.ndarray) -> np.ndarray:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # y points down, so that this turns clockwise on the screen.
    return (corners - pivot) @ np.array([[cos, sin], [-sin, cos]]) + pivot if degrees else corners
