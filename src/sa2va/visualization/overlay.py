"""Images of results: overlays with labels, DAVIS palette masks, cut-outs and contact sheets.

An overlay leaves every pixel outside the masks as it was (labels aside), keeps one colour per object, and mixes colours
evenly where masks overlap, so that the order of the objects does not matter. Work is done inside the objects' boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sa2va.masks.mask import Mask, Segment
from sa2va.masks.mask_ops import components
from sa2va.media.image import load_image, load_pixels
from sa2va.visualization.colors import FILL, Color, ObjectColors
from sa2va.visualization.colors import color as color
from sa2va.visualization.labels import Label, LabelLayout, fitting_font, shortened

Picture = str | Path | Image.Image | NDArray[np.uint8]  # all that load_image takes
Bools = NDArray[np.bool_]
Bits = NDArray[np.uint8]  # (h, ceil(w / 8)): eight pixels of a row in a byte, the leftmost in the lowest bit
Words = NDArray[np.uint64]  # rows of bits one after another, see ``_Lines``

#: Outside of every contour: it stands out where the scene is light, and the colour inside it where the scene is dark.
_DARK = (16, 16, 16)
#: Pixels along the longer side of a box in which the largest part of an object is looked for.
_COARSE = 48
#: What stands for each byte of bits in the three channels of its eight pixels: 255 inside, 0 outside.
_BYTES = np.repeat(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 3, axis=1) * 255
#: A label stays where its object is at least so thick, as a share of its greatest thickness.
_THICK = 0.7


def overlay(
    image: Picture,
    segments: Sequence[Segment],
    *,
    alpha: float = FILL,
    contour: bool = True,
    labels: bool = True,
) -> Image.Image:
    """Draw segments over an image. For the frames of a clip use [`ClipOverlay`].

    Args:
        image: PIL image or RGB uint8 array (H, W, 3); not changed.
        segments: each with one mask of the picture's size. Empty masks are not drawn. One that has no colour yet gets
            one that stands out from it and from what is around it.
        alpha: opacity of the fill, 0..1. Pixels outside the masks keep their values.
        contour: draw a dark line along the inside of each outline and a coloured one inside that, their widths fitted
            to the picture; where an object is too thin for both, the coloured one.
        labels: write each phrase (the id where there is none) on a plate beside the largest part of its object, clear
            of other plates where there is room. A "?" marks objects whose score is under 0.2.

    Returns:
        RGB image of the same size.

    Raises:
        ValueError: a mask of another size, several masks in one segment, or an alpha outside 0..1.
    """
    return ClipOverlay(alpha=alpha, contour=contour, labels=labels).draw(image, segments)


class ClipOverlay:
    """Draws segments over the frames of a clip: objects keep their colours, and labels stay in place if possible.

    Args:
        alpha, contour, labels: see [`overlay`].

    Raises:
        ValueError: an alpha outside 0..1.
    """

    def __init__(self, *, alpha: float = FILL, contour: bool = True, labels: bool = True):
        if not 0 <= alpha <= 1:
            raise ValueError(f"expected an alpha from 0 to 1, got {alpha}")
        self._alpha, self._contour = alpha, contour
        self._colors = ObjectColors()
        self._labels = LabelLayout() if labels else None

    def draw(self, image: Picture, segments: Sequence[Segment]) -> Image.Image:
        """Draw segments over the next frame; see [`overlay`]."""
        canvas = np.array(load_pixels(image), order="C")
        self.paint(canvas, segments)
        return Image.fromarray(canvas)

    def paint(self, canvas: NDArray[np.uint8], segments: Sequence[Segment]) -> None:
        """[`draw`] in place.

        Args:
            canvas: RGB uint8 (H, W, 3), contiguous.
        """
        _check_sizes(segments, (canvas.shape[1], canvas.shape[0]))
        colored = self._colors.apply(canvas, segments)
        layers = [layer for segment in colored if (layer := _layer(segment)) is not None]
        _fill(canvas, layers, self._alpha)
        if self._contour:
            for layer in layers:
                _outline(canvas, layer)
        if self._labels is not None:
            self._labels.draw(canvas, [layer.label(self._labels.anchor(layer.id)) for layer in layers])


@dataclass(frozen=True)
class _Layer:
    """One object, cut to its box: ``pixels`` is bool (h, w) with its corner at (x, y), and ``bits`` the same.

    ``x`` is a multiple of eight, so that the bytes of different layers cover the same pixels.
    """

    id: int
    text: str
    color: Color
    x: int
    y: int
    pixels: Bools
    bits: Bits

    def part(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What lies under it of a picture's rows (H, 3 W), as a view."""
        height, width = self.pixels.shape
        return rows[self.y : self.y + height, 3 * self.x : 3 * (self.x + width)]

    def bits_of(self, plane: Bits) -> Bits:
        """What lies under it of a picture's bits, as a view."""
        height, columns = self.bits.shape
        return plane[self.y : self.y + height, self.x // 8 : self.x // 8 + columns]

    def covers(self, places: NDArray[np.int64], width: int) -> tuple[slice, Bools]:
        """Which of some places in a picture, ascending, it covers: a slice of them, and which of those."""
        height, columns = self.pixels.shape
        first, last = np.searchsorted(places, [self.y * width, (self.y + height) * width])
        row, column = np.divmod(places[first:last] - (self.y * width + self.x), width)
        covered = column < columns  # one left of it has become a column far to the right
        covered[covered] = self.pixels[row[covered], column[covered]]
        return slice(first, last), covered

    def label(self, anchor: tuple[float, float] | None) -> Label:
        """Its label, at its largest part; at the one nearest to an earlier place where that is not much smaller."""
        step = -(-max(self.pixels.shape) // _COARSE)
        near = None if anchor is None else ((anchor[0] - self.x) / step, (anchor[1] - self.y) / step)
        part = _main_part(self.pixels[::step, ::step], near)
        x, y, radius = _thick_place(part, near)
        rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        x0, y0, x1, y1 = (int(n) * step + corner for n, corner in zip(box, (self.x, self.y) * 2, strict=True))
        middle = (self.x + (x + 0.5) * step, self.y + (y + 0.5) * step)
        return Label(self.text, f"#{self.id}", self.color, (x0, y0, x1, y1), self.id, middle, radius * step)


def _check_sizes(segments: Sequence[Segment], size: tuple[int, int]) -> None:
    for segment in segments:
        if segment.mask.size != (size[1], size[0]):
            raise ValueError(
                f"expected masks of the picture's size (h, w) {(size[1], size[0])}, got {segment.mask.size}"
            )


def _layer(segment: Segment) -> _Layer | None:
    mask = segment.mask
    if mask.box is None or segment.color is None:
        return None
    x0, y0, x1, y1 = (int(n) for n in mask.box)
    # A margin of one pixel or more lets the contour see the background around the object.
    left, top = max(x0 - 1, 0) // 8 * 8, max(y0 - 1, 0)
    right, bottom = min((x1 + 8) // 8 * 8, mask.size[1]), min(y1 + 1, mask.size[0])
    pixels = np.ascontiguousarray(mask.crop((left, top, right, bottom)))
    text = (segment.phrase or f"#{segment.id}") + (" ?" if segment.doubtful else "")
    bits = np.packbits(pixels, axis=1, bitorder="little")
    return _Layer(segment.id, text, segment.color, left, top, pixels, bits)


def _fill(canvas: NDArray[np.uint8], layers: Sequence[_Layer], alpha: float) -> None:
    """Blend each layer into the picture; where several overlap, the mean of their colours."""
    opacity = round(alpha * 256)
    shared = _shared(layers, canvas.shape[:2])
    flat, rows = canvas.reshape(-1, 3), canvas.reshape(len(canvas), -1)  # numpy's loops are fast along long rows only
    before, sums = flat[shared], np.zeros((len(shared), 4), np.uint16)
    for layer in layers:
        under = layer.part(rows)
        blended = _blended(under, np.tile(np.array(layer.color, np.uint16), layer.pixels.shape[1]), opacity)
        # Only inside, by bytes of ones and zeros: faster than to copy where a mask is true.
        blended ^= under
        blended &= _BYTES.take(layer.bits, axis=0).reshape(len(under), -1)[:, : under.shape[1]]
        under ^= blended
        if len(shared):
            at, covered = layer.covers(shared, canvas.shape[1])
            sums[at][covered] += np.array((*layer.color, 1), np.uint16)
    if len(shared):
        means = (sums[:, :3] / sums[:, 3:]).round().astype(np.uint16)
        flat[shared] = _blended(before, means, opacity)


def _shared(layers: Sequence[_Layer], size: tuple[int, int]) -> NDArray[np.int64]:
    """Where several layers overlap in a picture (height, width), counted row by row."""
    height, width = size
    once, twice = np.zeros((2, height, -(-width // 8)), np.uint8)
    for layer in layers:
        under = layer.bits_of(once)
        layer.bits_of(twice)[:] |= under & layer.bits
        under |= layer.bits
    return np.flatnonzero(np.unpackbits(twice, axis=1, count=width, bitorder="little").view(np.bool_))


def _blended(pixels: NDArray[np.uint8], colors: NDArray[np.uint16], opacity: int) -> NDArray[np.uint8]:
    """Pixels mixed with colours (the same shape, or rows of it), whose share is ``opacity`` / 256."""
    mixed = pixels.astype(np.uint16)
    mixed *= np.uint16(256 - opacity)
    mixed += colors * np.uint16(opacity) + np.uint16(128)
    mixed >>= 8
    return mixed.astype(np.uint8)


def _outline(canvas: NDArray[np.uint8], layer: _Layer) -> None:
    """Two lines along the inside of a layer's outline: a dark one, and its colour inside that."""
    unit = min(canvas.shape[:2]) / 300
    lines = _Lines.of(layer)
    inside, within = lines.inside, lines.within
    core = lines.shrunk(inside, within, max(1, round(unit * 0.5)))
    thin = inside & ~lines.grown(core, max(1, round(unit * 0.5)) + 1)  # one more reaches into corners
    bright = (core & ~lines.shrunk(core, within, max(1, round(unit * 0.75)))) | thin
    dark = inside & ~core & ~thin
    flat = canvas.reshape(-1, 3)
    flat[lines.places(dark, layer, canvas.shape[1])] = _DARK
    flat[lines.places(bright, layer, canvas.shape[1])] = layer.color


@dataclass(frozen=True)
class _Lines:
    """The bits of a layer's rows, one row after another in words of 64.

    After each row comes at least one word of zeros: what grows beyond one row's end does not get to the next row's
    beginning in the few steps that a contour takes.

    Attributes:
        inside: the object's bits. within: those of all pixels.
        words: how many there are per row.
    """

    inside: Words
    within: Words
    words: int

    @classmethod
    def of(cls, layer: _Layer) -> _Lines:
        height, columns = layer.bits.shape
        words = -(-columns // 8) + 1
        bits = np.zeros((2, height, 8 * words), np.uint8)
        bits[0, :, :columns] = layer.bits
        bits[1, :, :columns] = np.packbits(np.ones(layer.pixels.shape[1], np.bool_), bitorder="little")
        inside, within = bits.view("<u8").reshape(2, -1)
        return cls(inside, within, words)

    def shrunk(self, inside: Words, within: Words, steps: int) -> Words:
        """Without its outermost pixels, so many deep; what is beyond the array (not ``within`` it) counts as inside."""
        return inside & ~self.grown(~inside & within, steps)

    def grown(self, inside: Words, steps: int) -> Words:
        """So many pixels more on every side. Taking corners in every other step makes octagons, which look round."""
        for step in range(steps):
            grown: Words = inside | (inside << 1).view(np.uint64) | (inside >> 1).view(np.uint64)
            grown[1:] |= inside[:-1] >> 63
            grown[:-1] |= inside[1:] << 63
            rows = grown.copy() if step % 2 else inside
            grown[self.words :] |= rows[: -self.words]
            grown[: -self.words] |= rows[self.words :]
            inside = grown
        return inside

    def places(self, inside: Words, layer: _Layer, width: int) -> NDArray[np.int64]:
        """Where some of a layer's pixels are in a picture of a width, counted row by row."""
        found = np.flatnonzero(np.unpackbits(inside.view(np.uint8), bitorder="little").view(np.bool_))
        return found + found // (64 * self.words) * (width - 64 * self.words) + (layer.y * width + layer.x)


def _main_part(pixels: Bools, near: tuple[float, float] | None) -> Bools:
    """The largest connected part; the one nearest to a point (x, y) among those at least half as large."""
    labels, count = components(pixels, connectivity=8)
    if count == 0:  # finer than the grid
        return np.ones_like(pixels)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    chosen = int(areas.argmax())
    if near is not None and count > 1:
        large = np.flatnonzero(areas >= areas.max() / 2)
        chosen = min(large.tolist(), key=lambda number: _distances(labels == number + 1, near).min())
    return labels == chosen + 1


def _thick_place(part: Bools, near: tuple[float, float] | None) -> tuple[int, int, int]:
    """Where a part is thickest: x, y, and how many steps it is from there to the outside.

    Of the places that are nearly as thick, the nearest to a point (x, y), or to the middle of the part.
    """
    depth = _steps_to_outside(part)
    rows, columns = np.nonzero(part)
    target = near or (float(columns.mean()), float(rows.mean()))
    thick = depth >= max(1, _THICK * depth.max())
    rows, columns = np.nonzero(thick)
    best = int(_distances(thick, target).argmin())
    return int(columns[best]), int(rows[best]), int(depth[rows[best], columns[best]])


def _steps_to_outside(part: Bools) -> NDArray[np.int64]:
    """How many pixels it is, along rows and columns, from each to the nearest outside; beyond the array is outside."""
    steps = np.pad(np.where(part, sum(part.shape), 0), 1)
    for axis, length in enumerate(steps.shape):
        places = np.arange(length).reshape(-1, 1) if axis == 0 else np.arange(length)
        for turn in (slice(None), slice(None, None, -1)):  # from the one end, then from the other
            turned = np.flip(steps, axis) if turn.step else steps
            steps = np.minimum.accumulate(turned - places, axis=axis) + places
            steps = np.flip(steps, axis) if turn.step else steps
    return steps[1:-1, 1:-1]


def _distances(pixels: Bools, point: tuple[float, float]) -> NDArray[np.float64]:
    """Squared distances of the pixels to a point (x, y), in reading order."""
    rows, columns = np.nonzero(pixels)
    return (columns - point[0]) ** 2 + (rows - point[1]) ** 2


def davis_palette() -> list[int]:
    """The 256 colours of DAVIS and PASCAL VOC, flat RGB: the index bits, distributed to the channels from the top."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.int64)
    for level in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> (3 * level + channel)) & 1) << (7 - level)
    return palette.ravel().tolist()


def palette_png(
    masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]],
    indices: Sequence[int] | None = None,
    colors: Sequence[Color | None] | None = None,
) -> Image.Image:
    """A mode-P image of object indices; 0 is background.

    Args:
        masks: bool (N, H, W), N at least 1. Where they overlap the later one is kept.
        indices: the index of each mask, 1..255; 1, 2, ... N when left out.
        colors: the palette's entry for each mask, RGB 0..255, so that it looks as in overlays. Entries without one
            are those of DAVIS.

    Raises:
        ValueError: no mask, masks that are not bool, an index outside 1..255, or colours of another number.
    """
    if len(masks) == 0 or any(mask.dtype != np.bool_ or mask.ndim != 2 for mask in masks):
        raise ValueError("expected one or more bool masks (H, W)")
    indices = range(1, len(masks) + 1) if indices is None else indices
    if len(indices) != len(masks) or not all(0 < index < 256 for index in indices):
        raise ValueError(f"expected one index from 1 to 255 for each of {len(masks)} masks, got {list(indices)[:10]}")
    index_map = np.zeros(masks[0].shape, np.uint8)
    for mask, index in zip(masks, indices, strict=True):
        index_map[mask] = index
    palette = davis_palette()
    for index, own in zip(indices, colors or [None] * len(indices), strict=True):
        if own is not None:
            palette[3 * index : 3 * index + 3] = own
    picture = Image.fromarray(index_map)
    picture.putpalette(palette)
    return picture


def cutout(image: Picture, mask: Mask | NDArray[np.bool_] | NDArray[np.floating]) -> Image.Image:
    """Cut an object out: RGBA, transparent (and black) outside the mask.

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
    """Arrange images in a grid on white, row by row; each is fitted to the size of the first, keeping its aspect ratio.

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
