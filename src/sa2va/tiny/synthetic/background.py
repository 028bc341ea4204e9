"""Backgrounds of the synthetic world: flat, gradient, noise, clutter of thin lines, and photograph-like textures."""

from __future__ import annotations

import colorsys
import random

import numpy as np
from PIL import Image, ImageDraw

from sa2va.tiny.synthetic.paint import COLORS

BACKGROUNDS = ("flat", "gradient", "noise", "clutter", "smooth", "photo")
_CONTRAST = 95.0  # least distance in RGB of an object's colour from every part of the background


def background(rng: random.Random, noise: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A picture without objects, uint8 (H, W, 3)."""
    name = rng.choice(BACKGROUNDS)
    base = _muted(rng)
    if name == "flat":
        return np.full((*size, 3), base, dtype=np.uint8)
    if name == "gradient":
        return _gradient(base, _near(base, rng, 70), rng, size)
    if name == "noise":
        return _grain(np.full((*size, 3), base, dtype=np.uint8), noise, rng.choice((1, 2, 3)), rng.uniform(0.15, 0.35))
    if name == "clutter":
        return _clutter(_gradient(base, _near(base, rng, 35), rng, size), base, rng)
    if name == "smooth":
        return _clouds(base, noise, size, (rng.choice((3, 4, 6)),) * 2, 45)
    rough = _clouds(base, noise, size, rng.choice(((14, 4), (4, 14), (12, 12), (24, 6))), 60)
    return _grain(rough, noise, 1, 0.08)


def readable_colors(picture: np.ndarray) -> list[str]:
    """Colour names that stand out from every part of a background, at least four."""
    small = Image.fromarray(picture).resize((6, 6), Image.Resampling.BOX)
    cells = np.asarray(small, dtype=np.float32).reshape(-1, 3)
    palette = np.array(list(COLORS.values()), dtype=np.float32)
    distance = np.sqrt(((palette[:, None] - cells[None]) ** 2).sum(axis=2)).min(axis=1)
    order = np.argsort(-distance)
    names = list(COLORS)
    return [names[index] for rank, index in enumerate(order) if rank < 4 or distance[index] > _CONTRAST]


def _muted(rng: random.Random) -> tuple[int, int, int]:
    """A colour of low saturation and any brightness but the extremes."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.02, 0.38), rng.uniform(0.35, 0.87))
    return (int(red * 255), int(green * 255), int(blue * 255))


def _near(base: tuple[int, int, int], rng: random.Random, spread: int) -> tuple[int, int, int]:
    lift = rng.uniform(-spread, spread)
    red, green, blue = (int(min(235, max(15, channel + lift + rng.uniform(-20, 20)))) for channel in base)
    return (red, green, blue)


def _gradient(first: tuple[int, int, int], last: tuple[int, int, int], rng: random.Random, size: tuple[int, int]):
    height, width = size
    slope = rng.uniform(-1, 1), rng.uniform(-1, 1)
    ramp = slope[0] * np.linspace(-1, 1, height, dtype=np.float32)[:, None] + slope[1] * np.linspace(
        -1, 1, width, dtype=np.float32
    )
    ramp = (ramp / max(abs(slope[0]) + abs(slope[1]), 1e-3) + 1) / 2
    start, stop = np.array(first, dtype=np.float32), np.array(last, dtype=np.float32)
    return (start + ramp[..., None] * (stop - start)).astype(np.uint8)


def _grain(picture: np.ndarray, noise: np.random.Generator, cell: int, strength: float) -> np.ndarray:
    """Add grey noise in square cells of ``cell`` pixels; ``strength`` is its amplitude as a share of 255."""
    height, width = picture.shape[:2]
    rough = noise.integers(0, 256, (-(-height // cell), -(-width // cell)), dtype=np.uint8)
    if cell > 1:
        rough = rough.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]
    offset = ((rough.astype(np.float32) - 127.5) * strength).astype(np.int16)
    return np.clip(picture + offset[..., None], 0, 255).astype(np.uint8)


def _clouds(base: tuple[int, int, int], noise: np.random.Generator, size: tuple[int, int], cells, spread: int):
    """Smooth blotches: a coarse random grid blown up, on brightness mostly and a little on colour."""
    grid = noise.integers(-spread, spread + 1, (*cells, 1)) + noise.integers(-12, 13, (*cells, 3)) + np.array(base)
    coarse = Image.fromarray(np.clip(grid, 10, 245).astype(np.uint8))
    return np.array(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _clutter(picture: np.ndarray, base: tuple[int, int, int], rng: random.Random) -> np.ndarray:
    """Thin lines over a picture, one pixel wide at 128 pixels."""
    height, width = picture.shape[:2]
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(8, 24)):
        ends = [rng.uniform(0, limit) for limit in (width, height, width, height)]
        pen.line(ends, fill=_near(base, rng, 80), width=max(1, round(min(height, width) / 128)))
    return np.array(image)


def speckle(pictures: np.ndarray, noise: np.random.Generator, strength: float) -> np.ndarray:
    """Camera noise on uint8 pictures (F, H, W, 3), other in every frame; ``strength`` is a share of 255."""
    rough = noise.integers(0, 256, pictures.shape[:3], dtype=np.uint8)
    offset = ((rough.astype(np.float32) - 127.5) * strength).astype(np.int16)
    return np.clip(pictures + offset[..., None], 0, 255).astype(np.uint8)
