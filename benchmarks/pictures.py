"""What looking again gives on pictures: small objects with and without ``zoom=True``, look-alikes with ``instances=True``.

    python benchmarks/pictures.py                   # tiny, 24 pictures each, one thread

Small objects: drawn pictures of 1280 x 960 with five objects of 6 to 12 pixels radius, one of which is asked for by
colour and kind. Look-alikes: drawn pictures of 512 x 512 with two to six objects that one plural phrase means, and three
others. Prints mean and cumulative IoU, how many counts are right, and passes of the models a picture.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import hypot
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from sa2va import Answer, Sa2VA
from sa2va.tiny.synthetic.background import background, readable_colors
from sa2va.tiny.synthetic.drawn_scene import random_style
from sa2va.tiny.synthetic.lexicon import KIND_NOUNS
from sa2va.tiny.synthetic.paint import draw, lay, silhouettes
from sa2va.tiny.synthetic.shapes import KINDS
from sa2va.tiny.synthetic.splits import LOOKS, Look


@dataclass(frozen=True)
class Drawn:
    """A picture, a phrase about it, and the masks bool (N, H, W) of the objects that it means."""

    image: Image.Image
    phrase: str
    masks: np.ndarray


def paint(
    rng: random.Random, looks: list[Look], radii: list[float], size: tuple[int, int]
) -> tuple[Image.Image, np.ndarray]:
    """Objects apart from each other on a background of flat colour, gradient, noise or texture; and their masks."""
    canvas = background(rng, np.random.default_rng(rng.getrandbits(63)), size)
    spots: list[tuple[float, float, float]] = []
    for look, radius in zip(looks, radii, strict=True):
        reach = radius * KINDS[look.kind].reach
        while True:
            y, x = (rng.uniform(reach + 2, side - reach - 2) for side in size)
            if all(hypot(y - v, x - u) > reach + other + 4 for v, u, other in spots):
                spots.append((y, x, reach))
                break
    centers = [(int(y), int(x)) for y, x, _ in spots]
    sprites = [
        draw(random_style(look, rng), radius, 0.6 * radius, (y % 1, x % 1))
        for look, radius, (y, x, _) in zip(looks, radii, spots, strict=True)
    ]
    for sprite, center in zip(sprites, centers, strict=True):
        lay(canvas, sprite, center)
    return Image.fromarray(canvas), silhouettes(sprites, centers, size)


def casting(rng: random.Random, count: int) -> list[Look]:
    """Plain looks that differ in kind and in colour."""
    looks: list[Look] = []
    plain = [look for (_, split), many in LOOKS.items() if split == "train" for look in many if look.texture == "plain"]
    while len(looks) < count:
        look = rng.choice(plain)
        if all(look.kind != other.kind and look.color != other.color for other in looks):
            looks.append(look)
    return looks


def small_object(index: int) -> Drawn:
    """Five small objects, one of them asked for."""
    rng = random.Random(f"small/{index}")
    looks = casting(rng, 5)
    image, masks = paint(rng, looks, [rng.uniform(6, 12) for _ in looks], (960, 1280))
    return Drawn(image, f"the {looks[0].color} {KIND_NOUNS[looks[0].kind].one}", masks[:1])


def look_alikes(index: int) -> Drawn:
    """Two to six objects that look alike and three others."""
    rng = random.Random(f"alike/{index}")
    count = rng.randint(2, 6)
    first, *others = casting(rng, 4)
    while not (noun := KIND_NOUNS[first.kind].many):
        first, *others = casting(rng, 4)
    looks = [first] * count + others
    image, masks = paint(rng, looks, [rng.uniform(26, 46) for _ in looks], (512, 512))
    return Drawn(image, f"all the {first.color} {noun}", masks[:count])
