"""Pictures of results: overlays with labels, DAVIS palette masks, cut-outs and contact sheets.

An overlay leaves every pixel outside the masks as it was (labels aside), keeps one colour per object id, and mixes
colours evenly where masks overlap, so that the order of the objects does not matter.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sa2va.labels import Label, draw_labels, fitting_font, shortened
from sa2va.mask import Mask
from sa2va.mask_ops import erode
from sa2va.processing.pictures import load_image
from sa2va.results import Segment

Color = tuple[int, int, int]
Picture = str | Path | Image.Image | NDArray[np.uint8]  # all that load_image takes

# Each was picked to be as far as possible from those before it, in Lab space, for the worst of normal, red-, green- and
# blue-blind eyes; so the few colours that most pictures need are also the ones furthest apart.
_BASE_COLORS: tuple[Color, ...] = (
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


def color(object_id: int) -> Color:
    """The RGB colour of an object id, the same in every picture: a dozen picked ones, then evenly spread hues."""
    if 0 < object_id <= len(_BASE_COLORS):
        return _BASE_COLORS[object_id - 1]
    hue = object_id * 0.6180339887 % 1.0  # the golden ratio never comes back near a hue it has just used
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.15 * (object_id % 4), 1.0 - 0.15 * (object_id // 2 % 3))
    return round(red * 255), round(green * 255), round(blue * 255)


def overlay(
    image: Picture,
    segments: Sequence[Segment],
    *,
    alpha: float = 0.5,
    contour: bool = True,
    labels: bool = True,
) -> Image.Image:
    """The picture with its segments drawn over it.

    Args:
        image: PIL image or RGB uint8 array (H, W, 3); not changed.
        segments: each with one mask of the picture's size. Empty masks are not drawn.
        alpha: opacity of the fill, 0..1. Pixels outside the masks keep their values.
        contour: draw a line along the inside of each outline, its width fitted to the picture.
        labels: write each phrase (the id where there is none) on a plate beside its mask, clear of other plates where
            there is room.

    Returns:
        RGB image of the same size.

    Raises:
        ValueError: a mask of another size, several masks in one segment, or an alpha outside 0..1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"expected an alpha from 0 to 1, got {alpha}")
    canvas = load_image(image).copy()
    layers = [layer for segment in segments if (layer := _layer(segment, canvas.size)) is not None]
    if not layers:
        return canvas
    _fill(canvas, layers, alpha)
    if contour:
        width = max(1, round(min(canvas.size) / 300))
        for layer in layers:
            line = layer.pixels & ~erode(layer.pixels, width)
            canvas.paste(layer.color, (layer.x, layer.y), Image.fromarray(line.astype(np.uint8) * 255))
    if labels:
        draw_labels(canvas, [Label(layer.text, f"#{layer.id}", layer.color, layer.box) for layer in layers])
    return canvas


@dataclass(frozen=True)
class _Layer:
    """One object, cut to its box: ``pixels`` is bool (h, w) with its corner at (x, y)."""

    id: int
    text: str
    color: Color
    x: int
    y: int
    pixels: NDArray[np.bool_]

    @property
    def box(self) -> tuple[int, int, int, int]:
        height, width = self.pixels.shape
        return self.x, self.y, self.x + width, self.y + height


def _layer(segment: Segment, size: tuple[int, int]) -> _Layer | None:
    mask = segment.mask
    if mask.size != (size[1], size[0]):
        raise ValueError(f"expected masks of the picture's size (h, w) {(size[1], size[0])}, got {mask.size}")
    if mask.box is None:
        return None
    x0, y0, x1, y1 = (int(n) for n in mask.box)
    # A margin of one pixel lets the contour see the background around the object.
    left, top = max(x0 - 1, 0), max(y0 - 1, 0)
    pixels = np.ascontiguousarray(mask.array[top : y1 + 1, left : x1 + 1])
    return _Layer(segment.id, segment.phrase or f"#{segment.id}", color(segment.id), left, top, pixels)


def _fill(canvas: Image.Image, layers: Sequence[_Layer], alpha: float) -> None:
    """Mix the colours of all layers into one sheet, evenly where they overlap, and lay it on once."""
    boxes = np.array([layer.box for layer in layers])
    (left, top), (right, bottom) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    sheet = Image.new("RGB", (right - left, bottom - top))
    depth = np.zeros((bottom - top, right - left), np.uint8)
    # The k-th colour on a pixel enters with weight 1/k, which leaves the plain mean of all.
    weights = np.array([0] + [round(255 / k) for k in range(1, 256)], np.uint8)
    for layer in layers:
        x, y = layer.x - left, layer.y - top
        height, width = layer.pixels.shape
        part = depth[y : y + height, x : x + width]
        np.add(part, 1, out=part, where=layer.pixels & (part < 255))
        share = np.where(layer.pixels, weights[part], np.uint8(0))
        sheet.paste(layer.color, (x, y), Image.fromarray(share))
    opacity = np.where(depth > 0, np.uint8(round(alpha * 255)), np.uint8(0))
    canvas.paste(sheet, (left, top), Image.fromarray(opacity))


def davis_palette() -> list[int]:
    """The 256 colours of DAVIS and PASCAL VOC, flat RGB: the bits of the index, dealt to the channels from the top."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.int64)
    for level in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> (3 * level + channel)) & 1) << (7 - level)
    return palette.ravel().tolist()


def palette_png(
    masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]],
    indices: Sequence[int] | None = None,
) -> Image.Image:
    """A mode-P picture of object indices with the DAVIS palette; 0 is background.

    Args:
        masks: bool (N, H, W), N at least 1. Where they overlap the later one is kept.
        indices: the index of each mask, 1..255; 1, 2, ... N when left out.

    Raises:
        ValueError: no mask, masks that are not bool, or an index outside 1..255.
    """
    if len(masks) == 0 or any(mask.dtype != np.bool_ or mask.ndim != 2 for mask in masks):
        raise ValueError("expected one or more bool masks (H, W)")
    indices = range(1, len(masks) + 1) if indices is None else indices
    if len(indices) != len(masks) or not all(0 < index < 256 for index in indices):
        raise ValueError(f"expected one index from 1 to 255 for each of {len(masks)} masks, got {list(indices)[:10]}")
    index_map = np.zeros(masks[0].shape, np.uint8)
    for mask, index in zip(masks, indices, strict=True):
        index_map[mask] = index
    picture = Image.fromarray(index_map)
    picture.putpalette(davis_palette())
    return picture


def cutout(image: Picture, mask: Mask | NDArray[np.bool_] | NDArray[np.floating]) -> Image.Image:
    """The object alone: RGBA, transparent (and black) outside the mask.

    Args:
        image: PIL image or RGB uint8 array (H, W, 3).
        mask: a Mask, a bool array, or float opacity 0..1 (H, W), e.g. from ``mask_ops.feather``.

    Raises:
        ValueError: another size than the picture's.
    """
    picture = load_image(image)
    opacity = mask.array if isinstance(mask, Mask) else mask
    if opacity.shape != (picture.height, picture.width):
        raise ValueError(f"expected a mask (h, w) {(picture.height, picture.width)}, got {opacity.shape}")
    alpha = np.round(np.clip(opacity, 0, 1) * np.float32(255)).astype(np.uint8)
    pixels = np.dstack([np.asarray(picture), alpha])
    pixels[alpha == 0] = 0
    return Image.fromarray(pixels)


def contact_sheet(
    images: Sequence[Image.Image | NDArray[np.uint8]],
    columns: int,
    labels: Sequence[str] | None = None,
) -> Image.Image:
    """Pictures in a grid on white, row by row; each is shrunk to the size of the first, keeping its shape.

    Args:
        images: PIL images or RGB uint8 arrays (H, W, 3), at least one.
        columns: pictures per row.
        labels: one line of text under each picture.

    Raises:
        ValueError: no pictures, fewer than one column, or labels of another number.
    """
    if not images or columns < 1:
        raise ValueError(f"expected at least one picture and one column, got {len(images)} and {columns}")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"expected one label per picture, got {len(labels)} for {len(images)}")
    pictures = [load_image(image) for image in images]
    width, height = pictures[0].size
    gap, text_size = max(4, width // 40), max(10, width // 22)
    line = round(text_size * 1.5) if labels is not None else 0
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for number, picture in enumerate(pictures):
        x, y = gap + number % columns * (width + gap), gap + number // columns * (height + line + gap)
        picture.thumbnail((width, height))
        sheet.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
        if labels is not None:
            font = fitting_font(labels[number], text_size)
            text = shortened(labels[number], font, width)
            pen.text((x + width / 2, y + height + line / 2), text, fill=(40, 40, 40), font=font, anchor="mm")
    return sheet
