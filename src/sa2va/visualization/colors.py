"""Colours of objects: distinct from the object and its surroundings, and the same in all outputs."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sa2va.masks.mask import Mask, Segment

Color = tuple[int, int, int]
Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

#: Opacity of an overlay's fill: light enough that the object keeps its own colours.
FILL = 0.3

# Each was picked to be as far as possible from those before it, in Lab space, for the worst of normal, red-, green- and
# blue-blind eyes; so the few colours that most pictures need are also the ones furthest apart.
_PALETTE: tuple[Color, ...] = (
    (30, 135, 225),  # blue
    (255, 180, 0),  # amber
    (240, 0, 90),  # crimson
    (105, 0, 255),  # violet
    (0, 240, 210),  # turquoise
    (195, 240, 135),  # pale lime
    (165, 60, 135),  # plum
    (195, 75, 0),  # rust
    (255, 165, 255),  # pink
    (90, 90, 240),  # indigo
    (195, 0, 180),  # magenta
    (255, 120, 150),  # salmon
)
# Pixels looked at along the longer side of a box, and how far around an object its surroundings reach, in its own size.
_SAMPLES, _AROUND = 32, 0.4
# A colour counts by the near end of its distances to the pixels, not by their mean: a chequered hat has two colours.
_NEAR = 0.2


def color(number: int) -> Color:
    """The RGB colour of an object without an image: one of a dozen by id, then evenly spread hues."""
    if 0 < number <= len(_PALETTE):
        return _PALETTE[number - 1]
    hue = number * 0.6180339887 % 1.0  # the golden ratio never comes back near a hue it has just used
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.15 * (number % 4), 1.0 - 0.15 * (number // 2 % 3))
    return round(red * 255), round(green * 255), round(blue * 255)


class ObjectColors:
    """Colours of the objects of an image or clip: each is chosen when its object first appears, and kept."""

    def __init__(self) -> None:
        self._chosen: dict[int, Color] = {}

    def apply(self, pixels: NDArray[np.uint8], segments: Sequence[Segment]) -> tuple[Segment, ...]:
        """The segments with their colours; those that have not appeared yet have none.

        Args:
            pixels: the picture, RGB uint8 (H, W, 3). segments: each with one mask of the picture's size.
        """
        for segment in segments:
            if segment.color is not None:
                self._chosen.setdefault(segment.id, segment.color)
        for segment in segments:
            if segment.id not in self._chosen and (samples := _samples(pixels, segment.mask)) is not None:
                self._chosen[segment.id] = self._choose(*samples)
        return tuple(replace(segment, color=self._chosen.get(segment.id)) for segment in segments)

    def _choose(self, inside: Ints, around: Ints) -> Color:
        taken = set(self._chosen.values())
        free = [candidate for candidate in _PALETTE if candidate not in taken]
        if not free:
            return color(len(taken) + 1)
        fitness = _fitness(np.array(free), inside, around, np.array([*taken]).reshape(-1, 3))
        return free[int(fitness.argmax())]


def _samples(pixels: NDArray[np.uint8], mask: Mask) -> tuple[Ints, Ints] | None:
    """Colours of an object and of what is around it, 0..255 (N, 3); a grid of pixels stands for all. None for an empty
    mask."""
    box = mask.box
    if box is None:
        return None
    height, width = mask.size
    x0, y0, x1, y1 = map(int, box)
    margin = max(8, round(_AROUND * max(x1 - x0, y1 - y0)))
    left, top, right, bottom = (
        max(x0 - margin, 0),
        max(y0 - margin, 0),
        min(x1 + margin, width),
        min(y1 + margin, height),
    )
    step = max(1, max(right - left, bottom - top) // _SAMPLES)
    part = mask.crop((left, top, right, bottom))
    colors = pixels[top:bottom, left:right]
    inside = colors[::step, ::step][part[::step, ::step]]
    around = colors[::step, ::step][~part[::step, ::step]]
    if len(inside) == 0:  # finer than the grid
        inside = colors[part]
    return inside, around


def _fitness(candidates: Ints, inside: Ints, around: Ints, taken: Ints) -> Floats:
    """How well colours mark an object, (N,) in units of Oklab distance; all arguments are RGB, (., 3)."""
    own = inside.mean(axis=0)
    line, filled = _lab(candidates), _lab((1 - FILL) * own + FILL * candidates)
    surroundings = _lab(around)
    apart = np.stack([_near(line, _lab(inside)), _near(line, surroundings), _near(line, _lab(taken), share=0.0)])
    # A fill that takes the colour out of an object, or gives it that of its surroundings, hides what it should show.
    faded = np.maximum(_chroma(_lab(own)) - _chroma(filled), 0)
    return apart.min(axis=0) + _near(filled, surroundings) - 1.5 * faded


def _near(colors: Floats, samples: Floats, share: float = _NEAR) -> Floats:
    """The distance of each Lab colour to the nearer ones of some others, (N,); far where there are none."""
    if len(samples) == 0:
        return np.full(len(colors), 100.0)
    return np.quantile(np.linalg.norm(samples[None] - colors[:, None], axis=2), share, axis=1)


def _chroma(lab: Floats) -> Floats:
    return np.hypot(lab[..., 1], lab[..., 2])


def _lab(rgb: NDArray[Any]) -> Floats:
    """Oklab of sRGB colours 0..255, (..., 3), times 100: equal distances look about equally large, in blue as well."""
    value = np.asarray(rgb, np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return 100 * np.cbrt(linear @ _TO_CONES) @ _TO_LAB


# Ottosson (2020), https://bottosson.github.io/posts/oklab/
_TO_CONES = np.array(
    [
        [0.4122214708, 0.2119034982, 0.0883024619],
        [0.5363325363, 0.6806995451, 0.2817188376],
        [0.0514459929, 0.1073969566, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 1.9779984951, 0.0259040371],
        [0.7936177850, -2.4285922050, 0.7827717662],
        [-0.0040720468, 0.4505937099, -0.8086757660],
    ]
)
