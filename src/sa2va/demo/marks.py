"""What a visitor marks in a picture: a point, a box, or a stroke of the brush."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

#: Most corners of a stroke that are looked at, and clicks that stand for it.
_MOST_POINTS, _STROKE_CLICKS = 2000, 4


@dataclass(frozen=True)
class Mark:
    """A marked part of a picture.

    Attributes:
        kind: point, box (its first and last point are corners) or stroke.
        points: (x, y) in pixels, inside the picture. size: (height, width) of the picture.
        radius: of the brush, in pixels.
    """

    kind: Literal["point", "box", "stroke"]
    points: tuple[tuple[float, float], ...]
    size: tuple[int, int]
    radius: float = 0.0

    @classmethod
    def from_page(cls, data: Any, size: tuple[int, int]) -> Mark:
        """A mark from what the browser sends: shares of the picture's width and height.

        Raises:
            ValueError: it is malformed.
        """
        try:
            kind, radius = data["kind"], float(data.get("radius", 0))
            shares = [(float(x), float(y)) for x, y in data["points"][:_MOST_POINTS]]
        except (TypeError, ValueError, KeyError, AttributeError):
            raise ValueError("a mark is a kind and points") from None
        numbers = [radius, *(value for point in shares for value in point)]
        if kind not in ("point", "box", "stroke") or not shares or not all(map(math.isfinite, numbers)):
            raise ValueError("a mark is a point, a box or a stroke, with finite numbers")
        height, width = size
        points = [(min(max(x, 0), 1) * (width - 1), min(max(y, 0), 1) * (height - 1)) for x, y in shares]
        return cls(kind, tuple(points), size, min(max(radius, 0), 1) * width)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The box (x0, y0, x1, y1) around all of it, at least a pixel wide and high, ends exclusive."""
        xs, ys = [x for x, _ in self.points], [y for _, y in self.points]
        return min(xs), min(ys), max(xs) + 1, max(ys) + 1

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Its pixels, bool (H, W); of a point the one pixel."""
        height, width = self.size
        canvas = Image.new("1", (width, height))
        pen = ImageDraw.Draw(canvas)
        if self.kind == "box":
            x0, y0, x1, y1 = self.box
            pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=1)
        else:
            pen.line(self.points, fill=1, width=max(1, round(2 * self.radius)))
            for x, y in self.points:
                pen.ellipse((x - self.radius, y - self.radius, x + self.radius, y + self.radius), fill=1)
                pen.point((x, y), fill=1)
        return np.asarray(canvas)

    @property
    def clicks(self) -> list[tuple[float, float]]:
        """A few of its points, for SAM 2."""
        count = min(len(self.points), _STROKE_CLICKS)
        return [self.points[index] for index in np.linspace(0, len(self.points) - 1, count).round().astype(int)]
