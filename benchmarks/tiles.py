"""How well a model finds objects of several sizes, by how many tiles it may cut a picture into.

    python benchmarks/tiles.py                          # the packaged tiny, pictures of 320 x 240 pixels
    python benchmarks/tiles.py runs/mine --width 160 --height 120 --radii 14 7 --tiles 1 6

Plain circles, squares and triangles in clear colours on flat and noisy grounds, drawn here and not by the synthetic
world, three in a picture; each is asked for by colour and shape, e.g. "the red circle". Prints the mean IoU of each
radius, objects and tile limits, and how many tiles a picture of this size then has.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from math import cos, hypot, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from sa2va import Sa2VA
from sa2va.processing.processor import tile_image

COLORS = {
    "red": (214, 40, 45),
    "blue": (45, 80, 210),
    "green": (40, 150, 65),
    "yellow": (246, 222, 60),
    "purple": (128, 50, 172),
}
#: Corners of each shape on the unit circle; a square of corner radius 1.25 has about the area of the circle.
CORNERS = {"circle": (64, 1.0, 0.0), "square": (4, 1.25, pi / 4), "triangle": (3, 1.25, pi / 2)}
OBJECTS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny")
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--radii", type=int, nargs="+", default=[26, 12])
    parser.add_argument("--tiles", type=int, nargs="+", default=[1, 4, 12])
    parser.add_argument("--pictures", type=int, default=24, help="of each radius")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sa2va, size = Sa2VA.from_pretrained(options.model), (options.width, options.height)
    settings, side = sa2va.processor.settings, sa2va.processor.tile_side
    if side is None:
        parser.error(f"{options.model} cuts no tiles; only InternVL families do")
    print(f"{options.model}, {size[0]} x {size[1]} pixels, {options.pictures * OBJECTS} requests of each radius\n")
    print(f"| max_tiles | tiles | {' | '.join(f'radius {radius}' for radius in options.radii)} |")
    print(f"|---|---|{'---|' * len(options.radii)}")
    for most in options.tiles:
        sa2va.processor.settings = replace(settings, max_tiles=most)
        tiles = len(tile_image(Image.new("RGB", size), side, most))
        means = [mean_iou(sa2va, size, radius, options.pictures, options.seed) for radius in options.radii]
        print(f"| {most} | {tiles} | {' | '.join(f'{mean:.3f}' for mean in means)} |", flush=True)


def mean_iou(sa2va: Sa2VA, size: tuple[int, int], radius: int, count: int, seed: int) -> float:
    ious = []
    for picture, objects in drawn_pictures(size, radius, count, seed):
        phrases, truths = zip(*objects.items(), strict=True)
        for answer, truth in zip(sa2va.segment(picture, phrases), truths, strict=True):
            mask = np.logical_or.reduce([np.zeros_like(truth), *(s.mask.array for s in answer.segments)])
            ious.append((mask & truth).sum() / (mask | truth).sum())
    return float(np.mean(ious))


def drawn_pictures(
    size: tuple[int, int], radius: int, count: int, seed: int
) -> Iterator[tuple[Image.Image, dict[str, np.ndarray]]]:
    """Pictures, and what is in each: phrases with their masks (H, W)."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        ground = np.full((size[1], size[0], 3), rng.integers(150, 210))
        if rng.random() < 0.5:
            ground = ground + rng.normal(0, 12, ground.shape)
        picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
        pen, objects = ImageDraw.Draw(picture), {}
        colors = rng.permutation(list(COLORS)).tolist()
        for color, (x, y) in zip(colors, _places(size, radius, rng), strict=False):
            shape = rng.choice(list(CORNERS))
            corners, reach, turn = CORNERS[shape]
            angles = [turn + 2 * pi * k / corners for k in range(corners)]
            outline = [(x + reach * radius * cos(a), y - reach * radius * sin(a)) for a in angles]
            mask = Image.new("1", size)
            ImageDraw.Draw(mask).polygon(outline, fill=1)
            pen.polygon(outline, fill=COLORS[color])
            objects[f"the {color} {shape}"] = np.asarray(mask)
        yield picture, objects


def _places(size: tuple[int, int], radius: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres that keep objects inside the picture and apart."""
    margin, places = 1.3 * radius, []
    while len(places) < OBJECTS:
        x, y = (rng.uniform(margin, length - margin) for length in size)
        if all(hypot(x - other[0], y - other[1]) > 2 * margin for other in places):
            places.append((x, y))
    return places


if __name__ == "__main__":
    main()
