"""Points of polygons in the unit square, from which all outlines of the synthetic world are put together.

x points right, y down. A [`ShapePart`] is a filled polygon with a tone, or a hole cut into the parts before it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BASE = 128  # the object's own colour; 0 is black, 255 white, between are shades of the colour
HOLE = -1


class ShapePart(NamedTuple):
    """A polygon (n, 2) drawn with ``tone``: 0 (black) .. 128 (the object's colour) .. 255 (white), or ``HOLE``."""

    points: np.ndarray
    tone: int = BASE


def polygon(*points: tuple[float, float], tone: int = BASE) -> ShapePart:
    """A polygon through the given corners."""
    return ShapePart(np.array(points, dtype=np.float64), tone)


def rectangle(x0: float, y0: float, x1: float, y1: float, tone: int = BASE) -> ShapePart:
    """An upright rectangle with the corners (x0, y0) and (x1, y1)."""
    return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1), tone=tone)


def arc(cx: float, cy: float, rx: float, ry: float, start: float, stop: float, count: int = 20) -> np.ndarray:
    """Points (count, 2) on an ellipse from angle ``start`` to ``stop`` in degrees (0 = right, 90 = down)."""
    angles = np.radians(np.linspace(start, stop, count))
    return np.stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)], axis=1)


def ellipse(cx: float, cy: float, rx: float, ry: float, tone: int = BASE) -> ShapePart:
    """An upright ellipse."""
    return ShapePart(arc(cx, cy, rx, ry, 0, 345, 24), tone)


def radial(count: int, outer: float = 1.0, inner: float | None = None, start: float = -90.0) -> ShapePart:
    """A regular polygon with ``count`` corners, or a star when an ``inner`` radius is given."""
    if inner is None:
        return ShapePart(arc(0, 0, outer, outer, start, start + 360 - 360 / count, count))
    angles = np.radians(start + np.arange(2 * count) * 180 / count)
    radii = np.where(np.arange(2 * count) % 2 == 0, outer, inner)
    return ShapePart(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1))


def stroke(x0: float, y0: float, x1: float, y1: float, width: float = 0.4, tone: int = BASE) -> ShapePart:
    """A straight bar of the given width with flat ends at the two points."""
    step = np.array([x1 - x0, y1 - y0], dtype=np.float64)
    side = np.array([-step[1], step[0]]) / np.hypot(*step) * (width / 2)
    start, stop = np.array([x0, y0]), np.array([x1, y1])
    return ShapePart(np.stack([start + side, stop + side, stop - side, start - side]), tone)


def band(
    cx: float, cy: float, rx: float, ry: float, start: float, stop: float, width: float = 0.4, tone: int = BASE
) -> ShapePart:
    """A curved bar of the given width whose middle runs along an arc, angles as in [`arc`]."""
    half = width / 2
    outer = arc(cx, cy, rx + half, ry + half, start, stop)
    inner = arc(cx, cy, rx - half, ry - half, stop, start)
    return ShapePart(np.concatenate([outer, inner]), tone)


def fit(parts: tuple[ShapePart, ...]) -> tuple[ShapePart, ...]:
    """Move and scale parts so that their bounding box is centred on 0 and its longer side is 2."""
    points = np.concatenate([part.points for part in parts if part.tone != HOLE])
    low, high = points.min(axis=0), points.max(axis=0)
    scale = 2.0 / (high - low).max()
    return tuple(ShapePart((part.points - (low + high) / 2) * scale, part.tone) for part in parts)
