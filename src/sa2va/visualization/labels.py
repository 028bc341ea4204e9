"""Labels on images: a font that has the glyphs, and a free place near the object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

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

    def draw(self, canvas: Image.Image, labels: Sequence[Label]) -> None:
        """Write the labels into the picture, in place. One that no place or size makes readable is left out."""
        width, height = canvas.size
        size = round(min(max(0.032 * (width * height) ** 0.5, 10), 44))
        pen = ImageDraw.Draw(canvas)
        taken: list[Box] = []
        for label in labels:
            text = label.text if _has_letters(label.text, size) else label.fallback
            font = fitting_font(text, size)
            pad = size * 0.3
            text = shortened(text, font, min(width, 22 * size) - 2 * pad)
            plate = (font.getlength(text) + 2 * pad, size * 1.4)
            if not text or plate[1] > height:
                continue
            others = [other.box for other in labels if other is not label]
            place = self._place(label, plate, canvas.size, taken, others)
            taken.append(place)
            pen.rounded_rectangle(place, radius=size * 0.25, fill=label.color)
            middle = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
            pen.text(middle, text, fill=_ink(label.color), font=font, anchor="mm")

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
        costs = [_cost(place, label.box, plate[1] * 0.15, taken, others) for place in places]
        side, last = self._places.get(label.key, (None, None)) if label.key is not None else (None, None)
        held = label.holds(plate, already=side == 0)
        costs[0] = costs[0] - _hidden(label.box, places[0]) if held else math.inf
        if side is not None:
            costs[side] -= _MOVING
        best = min(range(len(places)), key=costs.__getitem__)
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


def _cost(place: Box, box: Box, gap: float, taken: Sequence[Box], others: Sequence[Box]) -> float:
    """How bad a place is.

    In fractions hidden: of another plate (both become unreadable), of the object, of its neighbours. So a plate may lie
    on a large object but not on a small one. A little for distance keeps it by its object.
    """
    x0, y0, x1, y1 = box
    away = max(x0 - place[2], place[0] - x1, 0) + max(y0 - place[3], place[1] - y1, 0)
    plates = sum(_hidden(other, place) for other in taken)
    neighbours = sum(_hidden(other, place) for other in others)
    return 20 * plates + _hidden(box, place) + neighbours + 0.05 * max(away - 2 * gap, 0) * 0.15 / gap


def _inside(x: float, y: float, plate: tuple[float, float], size: tuple[int, int]) -> Box:
    """The plate moved into the picture, on whole pixels so that it does not shimmer in videos."""
    left = round(min(max(x, 0), size[0] - plate[0]))
    top = round(min(max(y, 0), size[1] - plate[1]))
    return max(left, 0), max(top, 0), min(left + round(plate[0]), size[0]) - 1, min(top + round(plate[1]), size[1]) - 1


def _hidden(box: Box, cover: Box) -> float:
    """The share of a box that another one covers, 0..1."""
    common_x = max(min(box[2], cover[2]) - max(box[0], cover[0]), 0)
    common_y = max(min(box[3], cover[3]) - max(box[1], cover[1]), 0)
    return common_x * common_y / max((box[2] - box[0]) * (box[3] - box[1]), 1)


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
