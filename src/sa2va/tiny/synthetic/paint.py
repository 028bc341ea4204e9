"""Pixels of the synthetic world: objects drawn as supersampled polygons, backgrounds, and their composition.

A pixel belongs to an object when at least half of it is covered by the object and by no object nearer to the viewer, so
masks are exact at the output size. Letters in shapes: N objects, H height, W width; h, w size of a sprite.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from sa2va.tiny.synthetic.geometry import BASE, HOLE
from sa2va.tiny.synthetic.shapes import KINDS

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (245, 135, 20),
    "yellow": (248, 225, 50),
    "green": (45, 150, 60),
    "cyan": (60, 215, 225),
    "blue": (40, 75, 215),
    "purple": (130, 45, 175),
    "pink": (250, 145, 195),
    "brown": (120, 72, 38),
    "white": (247, 247, 247),
    "black": (22, 22, 22),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
_OVERSAMPLING = 4
Box = tuple[int, int, int, int]  # y0, y1, x0, x1


@dataclass(frozen=True, eq=False)
class Sprite:
    """An object ready to be laid on a picture.

    Attributes:
        color: float32 (h, w, 3), 0..255.
        alpha: float32 (h, w, 1), 0..1, share of the pixel that is covered.
        solid: bool (h, w), at least half covered.
        origin: (y, x) of the sprite's first pixel, counted from the pixel that holds the object's centre.
    """

    color: np.ndarray
    alpha: np.ndarray
    solid: np.ndarray
    origin: tuple[int, int]


@dataclass(frozen=True)
class PaintStyle:
    """How one object is drawn: ``rgb`` 0..255, ``angle`` and ``grain`` (of the texture) in radians, ``light`` -1..1
    for shading along x and y."""

    kind: str
    color: str
    texture: str
    rgb: tuple[float, float, float]
    angle: float
    mirror: bool
    grain: float
    light: tuple[float, float]


def draw(style: PaintStyle, radius: float, unit: float, shift: tuple[float, float] = (0.0, 0.0)) -> Sprite:
    """Draw an object.

    Args:
        style: what to draw.
        radius: half of the longer side in pixels, before rotation.
        unit: the picture's shorter side in pixels; textures never get finer than a share of it.
        shift: (y, x) of the centre inside its pixel, 0..1.
    """
    kind = KINDS[style.kind]
    cos, sin = math.cos(style.angle) * radius, math.sin(style.angle) * radius
    sign = -1.0 if style.mirror else 1.0
    turn = np.array([[cos * sign, sin * sign], [-sin, cos]])
    outlines = [(part.points @ turn + (shift[1], shift[0]), part.tone) for part in kind.parts]
    points = np.concatenate([outline for outline, tone in outlines if tone != HOLE])
    low, high = np.floor(points.min(axis=0)).astype(int), np.ceil(points.max(axis=0)).astype(int) + 1
    alpha, tone = _rasterise(outlines, low, (int(high[0] - low[0]), int(high[1] - low[1])))
    yy, xx = np.mgrid[low[1] : high[1], low[0] : high[0]].astype(np.float32) + np.float32(0.5)
    color = _colors(style, tone, yy - shift[0], xx - shift[1], radius, unit)
    return Sprite(color, alpha[..., None] / np.float32(255), alpha >= 128, (int(low[1]), int(low[0])))


def _rasterise(outlines: list[tuple[np.ndarray, int]], low: np.ndarray, size: tuple[int, int]):
    """Coverage uint8 (h, w) and tone uint8 (h, w), or None where the whole object has its own colour."""
    large = (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING)
    coverage = Image.new("L", large, 0)
    pen = ImageDraw.Draw(coverage)
    shaded = any(tone not in (BASE, HOLE) for _, tone in outlines)
    tones = Image.new("L", large, BASE) if shaded else None
    tone_pen = ImageDraw.Draw(tones) if tones else None
    for outline, tone in outlines:
        # Pillow fills the pixel at every integer corner, so half a subpixel is taken off to centre the outline.
        corners = ((outline - low) * _OVERSAMPLING - 0.5).ravel().tolist()
        pen.polygon(corners, fill=0 if tone == HOLE else 255)
        if tone_pen:
            tone_pen.polygon(corners, fill=BASE if tone == HOLE else tone)
    reduced = np.asarray(coverage.reduce(_OVERSAMPLING))
    return reduced, np.asarray(tones.reduce(_OVERSAMPLING)) if tones else None


def _colors(style: PaintStyle, tone: np.ndarray | None, yy: np.ndarray, xx: np.ndarray, radius: float, unit: float):
    """Float32 (h, w, 3): the colour with its texture, its darker and lighter parts, and soft shading."""
    rgb = np.array(style.rgb, dtype=np.float32)
    color = np.broadcast_to(rgb, (*yy.shape, 3))
    if style.texture != "plain":
        other = _texture(style, yy, xx, radius, unit)[..., None]
        color = rgb + other * (np.array(COLORS[second_color(style.color)], dtype=np.float32) - rgb) * np.float32(0.85)
    if tone is not None:
        level = tone[..., None].astype(np.float32) / BASE
        if style.color in ("black", "white"):  # dark parts of a black object could not be seen: they are made light
            level = 1 + abs(level - 1) * (1 if style.color == "black" else -1)
        color = np.where(level <= 1, color * level, color + (255 - color) * (level - 1))
    shade = 1 + (style.light[0] * xx + style.light[1] * yy) * np.float32(0.16 / radius)
    return np.clip(color * shade[..., None], 0, 255)


def second_color(color: str) -> str:
    """The colour a texture puts beside a named colour: ``"black"`` on light ones, ``"white"`` on dark ones."""
    return "black" if sum(COLORS[color]) > 382 else "white"


def _texture(style: PaintStyle, yy: np.ndarray, xx: np.ndarray, radius: float, unit: float) -> np.ndarray:
    """Share 0..1 of the texture's second colour at each pixel, float32 (h, w)."""
    cos, sin = math.cos(style.grain), math.sin(style.grain)
    u, v = xx * cos + yy * sin, yy * cos - xx * sin
    if style.texture == "striped":
        period = max(0.5 * radius, 0.044 * unit)
        wave = np.cos(u * np.float32(2 * math.pi / period)) - 0.45
    elif style.texture == "checkered":
        period = max(0.9 * radius, 0.07 * unit)
        wave = np.sin(u * np.float32(2 * math.pi / period)) * np.sin(v * np.float32(2 * math.pi / period)) * 2
    else:
        period = max(0.6 * radius, 0.05 * unit)
        wave = np.cos(u * np.float32(2 * math.pi / period)) + np.cos(v * np.float32(2 * math.pi / period)) - 0.8
    return np.clip(wave * np.float32(period / 4) + 0.5, 0, 1)


def place(sprite: Sprite, center: tuple[int, int], size: tuple[int, int]) -> tuple[Box, Box] | None:
    """Where a sprite lies: its box in the picture and the part of the sprite that is inside; None when outside."""
    top, left = center[0] + sprite.origin[0], center[1] + sprite.origin[1]
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + sprite.solid.shape[0], size[0]), min(left + sprite.solid.shape[1], size[1])
    if y0 >= y1 or x0 >= x1:
        return None
    return (y0, y1, x0, x1), (y0 - top, y1 - top, x0 - left, x1 - left)


def lay(picture: np.ndarray, sprite: Sprite, center: tuple[int, int]) -> None:
    """Blend a sprite into the uint8 picture (H, W, 3) in place."""
    spot = place(sprite, center, (picture.shape[0], picture.shape[1]))
    if spot is None:
        return
    (y0, y1, x0, x1), (v0, v1, u0, u1) = spot
    under = picture[y0:y1, x0:x1]
    alpha = sprite.alpha[v0:v1, u0:u1]
    picture[y0:y1, x0:x1] = under + (sprite.color[v0:v1, u0:u1] - under) * alpha


def silhouettes(
    sprites: Sequence[Sprite | None], centers: Sequence[tuple[int, int]], size: tuple[int, int]
) -> np.ndarray:
    """Whole outlines before occlusion, bool (N, H, W); a sprite that is None is not there."""
    masks = np.zeros((len(sprites), *size), dtype=bool)
    for mask, sprite, center in zip(masks, sprites, centers, strict=True):
        spot = place(sprite, center, size) if sprite else None
        if sprite and spot:
            (y0, y1, x0, x1), (v0, v1, u0, u1) = spot
            mask[y0:y1, x0:x1] = sprite.solid[v0:v1, u0:u1]
    return masks


def visible_parts(outlines: np.ndarray) -> np.ndarray:
    """Cut each outline by all later ones, which lie nearer to the viewer: bool (N, H, W) or (N, F, H, W)."""
    visible = outlines.copy()
    covered = np.zeros_like(outlines[0])
    for index in range(len(outlines) - 1, -1, -1):
        visible[index] &= ~covered
        covered |= outlines[index]
    return visible


def palette_color(name: str, rng: random.Random) -> tuple[float, float, float]:
    """A shade of a named colour, RGB 0..255."""
    red, green, blue = COLORS[name]
    return (red + rng.uniform(-12, 12), green + rng.uniform(-12, 12), blue + rng.uniform(-12, 12))
