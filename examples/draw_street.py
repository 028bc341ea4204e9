"""Draw the example picture and clip: a street with a house, a tree, a dog, and a red car that drives by.

    python examples/draw_street.py OUT_FOLDER

writes ``picture.png`` and ``clip/00.jpg`` ... ``clip/11.jpg``, 480 x 320 pixels.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT, FRAMES = 480, 320, 12
#: Everything is drawn this much larger and shrunk, for smooth edges.
SCALE = 3
Color = tuple[int, int, int]


class Pen:
    """Draws in the coordinates of the finished picture, moved by (x, y)."""

    def __init__(self, image: Image.Image, x: float = 0, y: float = 0):
        self._image, self._draw, self._x, self._y = image, ImageDraw.Draw(image), x, y

    def at(self, x: float, y: float) -> Pen:
        """A pen whose origin is (x, y) from this one's."""
        return Pen(self._image, self._x + x, self._y + y)

    def _points(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        return [((x + self._x) * SCALE, (y + self._y) * SCALE) for x, y in points]

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Color, radius: float = 0) -> None:
        self._draw.rounded_rectangle(self._points((x0, y0), (x1, y1)), radius * SCALE, fill)

    def disk(self, x: float, y: float, width: float, height: float, fill: Color) -> None:
        self._draw.ellipse(self._points((x - width / 2, y - height / 2), (x + width / 2, y + height / 2)), fill)

    def shape(self, fill: Color, *points: tuple[float, float]) -> None:
        self._draw.polygon(self._points(*points), fill)

    def line(self, fill: Color, width: float, *points: tuple[float, float]) -> None:
        self._draw.line(self._points(*points), fill, round(width * SCALE), joint="curve")


def street(car_x: float, tail: float = 0.0) -> Image.Image:
    """The scene. car_x: left end of the car, pixels. tail: how far the dog's tail swings, -1..1."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE))
    pen = Pen(image)
    backdrop(pen)
    house(pen.at(40, 70))
    tree(pen.at(365, 205))
    dog(pen.at(250, 176), tail)
    car(pen.at(car_x, 212))
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def backdrop(pen: Pen) -> None:
    """Sky, sun, hills, lawn, pavement and road."""
    for y in range(0, 170, 2):
        share = y / 170
        pen.box(0, y, WIDTH, y + 2, (round(120 + 90 * share), round(180 + 45 * share), round(235 + 10 * share)))
    pen.disk(420, 45, 44, 44, (255, 225, 120))
    for x, y, width in ((110, 40, 60), (150, 48, 50), (290, 62, 70), (325, 55, 40)):
        pen.disk(x, y, width, width / 3, (246, 249, 252))
    pen.disk(90, 215, 420, 170, (126, 172, 120))
    pen.disk(400, 222, 460, 150, (108, 158, 108))
    pen.box(0, 165, WIDTH, 215, (142, 188, 96))
    pen.box(0, 205, WIDTH, 232, (196, 190, 180))
    pen.box(0, 230, WIDTH, HEIGHT, (92, 94, 100))
    pen.box(0, 228, WIDTH, 233, (222, 218, 210))
    for x in range(-20, WIDTH, 80):
        pen.box(x, 290, x + 44, 295, (236, 232, 214))


def house(pen: Pen) -> None:
    pen.box(104, 0, 120, 40, (150, 82, 66))
    pen.shape((158, 70, 58), (-14, 52), (70, -14), (154, 52))
    pen.box(0, 50, 140, 136, (240, 222, 186))
    pen.box(56, 86, 84, 136, (104, 72, 52), radius=2)
    pen.disk(79, 112, 4, 4, (232, 200, 96))
    for x in (14, 98):
        pen.box(x, 72, x + 28, 102, (250, 250, 248))
        pen.box(x + 3, 75, x + 25, 99, (130, 178, 208))
        pen.box(x + 13, 75, x + 15, 99, (250, 250, 248))
    pen.box(0, 134, 140, 138, (200, 180, 148))


def tree(pen: Pen) -> None:
    pen.shape((112, 78, 50), (-9, 6), (-6, -60), (6, -60), (10, 6))
    for x, y, size, shade in (
        (-26, -76, 56, 0),
        (26, -80, 58, 6),
        (0, -104, 66, 14),
        (-8, -70, 50, 20),
        (14, -92, 40, 30),
    ):
        pen.disk(x, y, size, size * 0.92, (50 + shade, 118 + shade, 58 + shade // 2))


def dog(pen: Pen, tail: float) -> None:
    brown, dark = (150, 100, 58), (108, 70, 40)
    pen.line(dark, 5, (4, 18), (-8, 8 - 3 * tail), (-12, -2 - 8 * tail))
    for x in (8, 16, 36, 43):
        pen.box(x, 22, x + 6, 44, dark if x in (16, 36) else brown, radius=2)
    pen.disk(27, 19, 50, 22, brown)
    pen.disk(47, 10, 18, 22, brown)
    pen.disk(55, 2, 24, 20, brown)
    pen.disk(66, 6, 16, 10, (170, 122, 78))
    pen.disk(73, 4, 5, 5, (30, 26, 24))
    pen.shape(dark, (46, -4), (44, 14), (54, 4))
    pen.disk(58, -1, 4, 4, (24, 20, 18))
    pen.line((200, 60, 60), 3, (42, 2), (50, 14))


def car(pen: Pen) -> None:
    red, dark = (204, 34, 38), (150, 20, 28)
    pen.disk(70, 62, 150, 10, (70, 72, 78))
    pen.shape(red, (22, 28), (42, 2), (92, 2), (116, 28))
    pen.shape((176, 212, 232), (32, 26), (46, 7), (66, 7), (66, 26))
    pen.shape((176, 212, 232), (71, 26), (71, 7), (89, 7), (106, 26))
    pen.box(2, 25, 140, 54, red, radius=9)
    pen.box(4, 44, 138, 54, dark, radius=5)
    pen.box(133, 30, 141, 39, (255, 240, 176), radius=3)
    pen.box(1, 30, 7, 38, (255, 130, 90), radius=2)
    pen.box(74, 31, 84, 34, dark, radius=1)
    for x in (32, 110):
        pen.disk(x, 54, 30, 30, (34, 34, 38))
        pen.disk(x, 54, 15, 15, (188, 190, 194))


def write_examples(folder: str | Path) -> list[Path]:
    """Write the picture and the frames of the clip. Returns their paths."""
    folder = Path(folder)
    (folder / "clip").mkdir(parents=True, exist_ok=True)
    street(66).save(folder / "picture.png", optimize=True)
    paths = [folder / "picture.png"]
    for number in range(FRAMES):
        frame = street(-60 + 40 * number, tail=math.sin(2.4 * number))
        paths.append(folder / "clip" / f"{number:02d}.jpg")
        frame.save(paths[-1], quality=84)
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder")
    for path in write_examples(parser.parse_args().folder):
        print(path)
