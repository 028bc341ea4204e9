"""A picture or clip of the synthetic world with everything that is true about it: the ground on which phrases stand.

Letters in shapes: N objects (later ones lie nearer to the viewer), F frames, H height, W width.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from math import radians

import numpy as np

from sa2va.tiny.synthetic.paint import Box, PaintStyle, palette_color
from sa2va.tiny.synthetic.shapes import KINDS
from sa2va.tiny.synthetic.splits import Look, Split

SIZES: dict[str, tuple[float, float]] = {"small": (0.075, 0.095), "medium": (0.13, 0.16), "large": (0.21, 0.26)}
#: In a distant picture what is small may be half as large.
DISTANT_SIZES = {**SIZES, "small": (0.04, 0.095)}
_LEAST_VISIBLE = 0.5  # share of an object that must stay in sight
_LEAST_AREA = 0.0016  # visible area as a share of the squared shorter side: 26 pixels at 128


@dataclass(frozen=True)
class Thing:
    """One object: its look, size class, radius (half its longer side, pixels), and how it moves in a clip.

    ``held`` is True when the look is held out from training.
    """

    look: Look
    size: str
    radius: float
    held: bool
    motion: str = "still"


@dataclass(frozen=True, eq=False)
class DrawnScene:
    """Frames and truth.

    Attributes:
        frames: uint8 (F, H, W, 3).
        things: N objects.
        masks: bool (N, F, H, W), visible parts.
        outlines: bool (N, F, H, W), whole objects inside the picture, before occlusion.
        paths: float (N, F, 2), centre (x, y) in pixels in each frame, seen or not.
        split: the split whose looks the scene may show.
    """

    frames: np.ndarray
    things: tuple[Thing, ...]
    masks: np.ndarray
    outlines: np.ndarray
    paths: np.ndarray
    split: Split

    @property
    def clip(self) -> bool:
        """Whether there is more than one frame."""
        return len(self.frames) > 1

    @property
    def unit(self) -> int:
        """The shorter side in pixels; all margins are shares of it."""
        return min(self.frames.shape[1:3])

    @cached_property
    def areas(self) -> np.ndarray:
        """Visible pixels, int (N, F)."""
        return self.masks.sum(axis=(2, 3))

    @cached_property
    def centers(self) -> list[tuple[float, float]]:
        """Middle (x, y) of each object's visible box in the first frame in which it is seen."""
        first = [int((areas > 0).argmax()) for areas in self.areas]
        boxes = [box_of(mask[frame]) for mask, frame in zip(self.masks, first, strict=True)]
        return [((x0 + x1) / 2, (y0 + y1) / 2) for y0, y1, x0, x1 in boxes]

    @cached_property
    def hidden(self) -> np.ndarray:
        """``hidden[i, j]``: the most pixels of object i that object j, nearer to the viewer, covers in a frame."""
        count = len(self.things)
        hidden = np.zeros((count, count), dtype=int)
        for low in range(count):
            for high in range(low + 1, count):
                hidden[low, high] = (self.outlines[low] & self.outlines[high]).sum(axis=(1, 2)).max()
        return hidden


def random_style(look: Look, rng: random.Random) -> PaintStyle:
    """How an object of this look is drawn this time: rotation, shade, light."""
    kind = KINDS[look.kind]
    return PaintStyle(
        kind=look.kind,
        color=look.color,
        texture=look.texture,
        rgb=palette_color(look.color, rng),
        angle=radians(rng.uniform(-kind.turn, kind.turn)),
        mirror=kind.mirror and rng.random() < 0.5,
        grain=rng.choice((0.0, 0.0, 0.8, 1.57, 2.36)) + rng.uniform(-0.15, 0.15),
        light=(rng.uniform(-1, 1), rng.uniform(-1, 1)),
    )


def random_radius(size: str, unit: int, rng: random.Random, distant: bool = False) -> float:
    """A radius in pixels of the size class ``small``, ``medium`` or ``large``; the ranges lie far apart."""
    return rng.uniform(*(DISTANT_SIZES if distant else SIZES)[size]) * unit


def enough_in_sight(visible: np.ndarray, whole: np.ndarray, unit: int) -> np.ndarray:
    """Whether objects with so many visible pixels of so many whole ones can be recognised."""
    return (visible >= _LEAST_VISIBLE * whole) & (visible >= _LEAST_AREA * unit**2)


def box_of(mask: np.ndarray) -> Box:
    """The box (y0, y1, x0, x1), ends excluded, of a bool mask (H, W) that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
