"""Labels on images: a font that has the glyphs, and a free place near the object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]

# Pillow's own font covers English. For other scripts, fonts that systems commonly have (found by name, by Pillow).
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "wqy-zenhei.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "msyh.ttc",
)
_NO_CHARACTER = "\uffff"


@dataclass(frozen=True)
class Label:
    """What to write: ``text``, or ``fallback`` where no font has its letters; beside ``box`` (x0, y0, x1, y1).

    ``key`` tells which label of the frame before it is; None for none. ``middle`` (x, y) is where the object is thick,
    and ``radius`` how far it reaches from there.
    """

    text: str
    fallback: str
    color: tuple[int, int, int]
    box: tuple[int, int, int, int]
    key: int | None = None
    middle: tuple[float, float] | None = None
    radius: float = 0.0

    def holds(self, plate: tuple[float, float], *, already: bool) -> bool:
        """Whether the object is so large that a plate in it hides little; with some give where one is in it."""
        radius = self.radius * 1.4 if already else self.radius
        return plate[1] < radius and plate[0] < 2 * radius


# What it costs to leave the side of its object where a label has been, in the units of ``_cost``, and how far a plate
# may lag behind its object, in letter sizes: labels stand still while masks flicker, and follow objects smoothly.
_MOVING, _SLACK = 0.4, 0.35


class LabelLayout:
    """Where the labels of one clip are; each stays on its side of its object unless that gets much worse."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[int, Box]] = {}  # by key: side, as an index into ``_sides``, and plate
        self._anchors: dict[int, tuple[float, float]] = {}

    def anchor(self, key: int) -> tuple[float, float] | None:
        """Where in its object a label was last written at, (x, y); None before its first frame."""
        return self._anchors.get(key)

    def draw(self, canvas: NDArray[np.uint8], labels: Sequence[Label]) -> None:
        """Write the labels into a picture, RGB uint8 (H, W, 3), in place.

        One that no place or size makes readable is left out.
        """
        height, width = canvas.shape[:2]
        size = round(min(max(0.032 * (width * height) ** 0.5, 10), 44))
        taken: list[Box] = []
        for label in labels:
            text, length = _fitted(label.text, label.fallback, size, min(width, 22 * size) - 0.6 * size)
            plate = (length + 0.6 * size, size * 1.4)
            if not text or plate[1] > height:
                continue
            others = [other.box for other in labels if other is not label]
            place = self._place(label, plate, (width, height), taken, others)
            taken.append(place)
            left, top, right, bottom = map(int, place)
            written, inside = _plate(text, size, label.color, (right - left + 1, bottom - top + 1))
            under = canvas.reshape(height, -1)[top : bottom + 1, 3 * left : 3 * (right + 1)]
            np.copyto(under, written, where=inside)

    def _place(
        self,
        label: Label,
        plate: tuple[float, float],
        size: tuple[int, int],
        taken: Sequence[Box],
        others: Sequence[Box],
    ) -> Box:
        """The place that covers least of what matters, or where the label has been if that is nearly as good."""
        places = [_inside(x, y, plate, size) for x, y in _sides(plate, label)]
        costs = _costs(places, label.box, plate[1] * 0.15, taken, others)
        side, last = self._places.get(label.key, (None, None)) if label.key is not None else (None, None)
        held = label.holds(plate, already=side == 0)
        costs[0] = costs[0] - _hidden(np.array(label.box), np.array(places[0])) if held else math.inf
        if side is not None:
            costs[side] -= _MOVING
        best = int(costs.argmin())
        place = places[best]
        if best == side and last is not None:
            slack = plate[1] * _SLACK
            x, y = (min(max(last[axis], place[axis] - slack), place[axis] + slack) for axis in (0, 1))
            place = _inside(x, y, plate, size)
        if label.key is not None:
            self._places[label.key] = (best, place)
            if best == 0:
                self._anchors[label.key] = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
            elif label.middle is not None:
                self._anchors[label.key] = label.middle
        return place


def _sides(plate: tuple[float, float], label: Label) -> list[tuple[float, float]]:
    """Left upper corners of a plate in a large object; above, below or beside its box, or inside that.

    The preferred ones come first.
    """
    (width, height), (x0, y0, x1, y1) = plate, label.box
    gap = height * 0.15
    middle_x, middle_y = (x0 + x1 - width) / 2, (y0 + y1 - height) / 2
    thick_x, thick_y = label.middle or ((x0 + x1) / 2, (y0 + y1) / 2)
    return [
        (thick_x - width / 2, thick_y - height / 2),
        (x0, y0 - height - gap),
        (middle_x, y0 - height - gap),
        (x1 - width, y0 - height - gap),
        (x0, y1 + gap),
        (middle_x, y1 + gap),
        (x1 + gap, middle_y),
        (x0 - width - gap, middle_y),
        (x0 + gap, y0 + gap),
        (middle_x, middle_y),
        (x0 + gap, y1 - height - gap),
        # Crowds: further rows of plates above and below.
        *((x0, y0 - row * (height + gap)) for row in (2, 3, 4)),
        *((x0, y1 + gap + row * (height + gap)) for row in (1, 2, 3)),
    ]


def _costs(
    places: Sequence[Box], box: Box, gap: float, taken: Sequence[Box], others: Sequence[Box]
) -> NDArray[np.float64]:
    """How bad places are.

    In fractions hidden: of another plate (both become unreadable), of the object, of its neighbours. So a plate may lie
    on a large object but not on a small one. A little for distance keeps it by its object.
    """
    x0, y0, x1, y1 = box
    left, top, right, bottom = at = np.array(places, np.float64).T
    away_x, away_y = np.maximum(x0 - right, left - x1), np.maximum(y0 - bottom, top - y1)
    away = np.maximum(away_x, 0) + np.maximum(away_y, 0)
    hidden = _hidden(np.array([box, *others, *taken], np.float64).T[:, None], at[:, :, None])
    weights = np.array([1.0] * (1 + len(others)) + [20.0] * len(taken))
    return hidden @ weights + 0.05 * np.maximum(away - 2 * gap, 0) * 0.15 / gap


def _inside(x: float, y: float, plate: tuple[float, float], size: tuple[int, int]) -> Box:
    """The plate moved into the picture, on whole pixels so that it does not shimmer in videos."""
    left = round(min(max(x, 0), size[0] - plate[0]))
    top = round(min(max(y, 0), size[1] - plate[1]))
    return max(left, 0), max(top, 0), min(left + round(plate[0]), size[0]) - 1, min(top + round(plate[1]), size[1]) - 1


def _hidden(box: NDArray[Any], cover: NDArray[Any]) -> NDArray[np.float64]:
    """The share of boxes that others cover, 0..1; their first axis is x0, y0, x1, y1."""
    common_x = np.minimum(box[2], cover[2]) - np.maximum(box[0], cover[0])
    common_y = np.minimum(box[3], cover[3]) - np.maximum(box[1], cover[1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return np.maximum(common_x, 0) * np.maximum(common_y, 0) / np.maximum(area, 1)


@lru_cache(maxsize=1024)
def _fitted(text: str, fallback: str, size: int, width: float) -> tuple[str, float]:
    """The text, or its fallback where no font has its letters, cut to a width; and how long that is, in pixels."""
    written = text if _has_letters(text, size) else fallback
    font = fitting_font(written, size)
    written = shortened(written, font, width)
    return written, font.getlength(written)


@lru_cache(maxsize=256)
def _plate(
    text: str, size: int, color: tuple[int, int, int], sides: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A plate with its text, RGB uint8 (h, 3 w), and what of it is inside its rounded corners, bool (h, 3 w)."""
    width, height = sides
    shape = Image.new("1", sides)
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, width - 1, height - 1), radius=size * 0.25, fill=1)
    plate = Image.new("RGB", sides, color)
    middle = ((width - 1) / 2, (height - 1) / 2)
    ImageDraw.Draw(plate).text(middle, text, fill=_ink(color), font=fitting_font(text, size), anchor="mm")
    return np.asarray(plate).reshape(height, -1), np.repeat(np.asarray(shape), 3, axis=1)


def _ink(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever stands out more (relative luminance 0.18 is where the two are equal)."""
    linear = [(value / 255) ** 2.2 for value in color]
    return (0, 0, 0) if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18 else (255, 255, 255)


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def fitting_font(text: str, size: int) -> Font:
    """Pillow's own font, or the first of the system's that has all letters of ``text``; Pillow's when none has."""
    return next((font for font in _fonts(size) if _covers(font, text)), _fonts(size)[0])


def shortened(text: str, font: Font, width: float) -> str:
    """The text on one line, cut with dots so that it is at most ``width`` pixels long; "" when nothing fits."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    for end in range(len(text), 0, -1):
        if font.getlength(cut := text[:end].rstrip() + "...") <= width:
            return cut
    return ""


def _has_letters(text: str, size: int) -> bool:
    return any(_covers(font, text) for font in _fonts(size))


@lru_cache(maxsize=8)
def _fonts(size: int) -> tuple[Font, ...]:
    fonts: list[Font] = [ImageFont.load_default(size)]
    for name in _SYSTEM_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(fonts)


@lru_cache(maxsize=4096)
def _covers(font: Font, text: str) -> bool:
    """Whether the font draws every letter as something else than its sign for "missing"."""
    missing = _glyph(font, _NO_CHARACTER)
    return all(character.isspace() or _glyph(font, character) != missing for character in text)


def _glyph(font: Font, character: str) -> bytes:
    return bytes(cast(Any, font.getmask(character)))
