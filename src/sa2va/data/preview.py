"""Preview of training data: a contact sheet of images with their masks and conversations."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sa2va.atomic import check_target, remove_leftovers, replacing
from sa2va.data.annotations.annotated_images import file_of
from sa2va.data.encode import EncodeOptions, encode_sample
from sa2va.data.sample import SEG, Sample
from sa2va.processing.processor import Sa2VAProcessor

_TINTS = ((255, 60, 60), (60, 130, 255), (40, 210, 90), (255, 170, 0), (200, 70, 255), (0, 210, 220), (255, 90, 180))
_PAPER, _INK = (250, 250, 248), (30, 30, 30)
_GAP, _LINE, _LETTER = 8, 14, 6.2  # pixels between parts, per line of text, per letter
_FONT_SIZE = 11
_MOST_FRAMES = 8


def preview(samples: Iterable[Sample], path: str | Path, columns: int = 4, width: int = 320) -> Path:
    """Write a PNG that shows samples side by side.

    Args:
        samples: what to show, validated first. A clip shows up to eight frames, evenly spread; only they are decoded.
        path: the PNG to write.
        columns: samples in a row.
        width: pixels per sample.

    Returns:
        The path written. Masks of turn k have the colour of its number; regions are outlined in white.
    """
    samples = list(samples)
    check_target(path, *(file_of(frame) for sample in samples for frame in sample.frames))
    remove_leftovers(Path(path))
    cards = [_card(sample.validate(), width) for sample in samples]
    if not cards:
        raise ValueError("preview needs at least one sample, got none")
    rows = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    heights = [max(card.height for card in row) + 2 * _GAP for row in rows]
    sheet = Image.new("RGB", (min(columns, len(cards)) * (width + _GAP) + _GAP, sum(heights)), (205, 205, 200))
    for row, top in zip(rows, np.cumsum([0, *heights[:-1]]).tolist(), strict=True):
        for column, card in enumerate(row):
            sheet.paste(card, (_GAP + column * (width + _GAP), top + _GAP))
    with replacing(Path(path)) as temporary:
        sheet.save(temporary, format="PNG")
    return Path(path)


def as_trained(sample: Sample, processor: Sa2VAProcessor, options: EncodeOptions | None = None) -> Sample:
    """A sample as training sees it: squashed to SAM 2's square, masks as coarse as targets are, only turns that fit.

    Args:
        sample: any. processor: of the model. options: how samples become tensors.

    Returns:
        A sample to look at, whose id also says how many tokens it has.

    Raises:
        ValueError: it is wrong, or its first turn is too long.
    """
    encoded = encode_sample(sample, processor, options)
    kept = len(sample.turns) - encoded.turns_dropped
    dropped = f", {encoded.turns_dropped} turns dropped" if encoded.turns_dropped else ""
    squashed = replace(
        sample,
        id=f"{sample.id} ({len(encoded.ids)} tokens{dropped})",
        turns=sample.turns[:kept],
        tags=sample.tags[:kept],
    )
    if encoded.masks is None or encoded.grounding is None:
        return squashed
    zoom = processor.grounding_side // encoded.masks.shape[-1]
    masks = encoded.masks.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    annotated = None if encoded.annotated is None else encoded.annotated.numpy()
    return replace(
        squashed,
        frames=tuple(encoded.grounding.numpy()),
        masks=tuple((masks > 0.5).numpy()),
        annotated=annotated,
    )


def _card(sample: Sample, width: int) -> Image.Image:
    """One sample: its frames in a grid, then its turns."""
    picture = _pictures(sample, width)
    lines = _lines(sample, int((width - 2 * _GAP) / _LETTER))
    top = picture.height if picture else 0
    card = Image.new("RGB", (width, top + _LINE * len(lines) + 2 * _GAP), _PAPER)
    if picture:
        card.paste(picture, ((width - picture.width) // 2, 0))
    pen, font = ImageDraw.Draw(card), ImageFont.load_default(size=_FONT_SIZE)
    for number, (line, color) in enumerate(lines):
        pen.text((_GAP, top + _GAP + number * _LINE), line, fill=color, font=font)
    return card


def _pictures(sample: Sample, width: int) -> Image.Image | None:
    if sample.size is None:
        return None
    shown = np.unique(np.linspace(0, len(sample.frames) - 1, _MOST_FRAMES).round().astype(int))
    across = 1 if len(shown) == 1 else 4
    tile_width = (width + 2) // across - 2
    tile_height = max(1, round(sample.size[0] * tile_width / sample.size[1]))
    step = (tile_width + 2, tile_height + 2)
    grid = Image.new("RGB", (across * step[0] - 2, -(-len(shown) // across) * step[1] - 2), _PAPER)
    for place, index in enumerate(shown.tolist()):
        tile = Image.fromarray(_tinted(sample, sample.picture(index), index))
        tile = tile.resize((tile_width, tile_height), Image.Resampling.LANCZOS)
        grid.paste(tile, (place % across * step[0], place // across * step[1]))
    return grid


def _tinted(sample: Sample, picture: np.ndarray, frame: int) -> np.ndarray:
    """The picture, blown up when small so that outlines stay thin, with each mask tinted and outlined."""
    zoom = max(1, 384 // max(picture.shape[:2]))
    canvas = picture.repeat(zoom, axis=0).repeat(zoom, axis=1).astype(np.float32)
    shapes = [(mask[frame], tint, 0.18) for mask, (_, tint) in zip(sample.masks, _owners(sample), strict=True)]
    shapes += [(region, (255, 255, 255), 0.0) for region in sample.regions]
    for mask, tint, strength in shapes:
        large = mask.repeat(zoom, axis=0).repeat(zoom, axis=1)
        canvas[large] += (np.array(tint) - canvas[large]) * strength
        canvas[_outline(large)] = tint
    return canvas.round().astype(np.uint8)


def _outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask that touch its outside, two pixels thick."""
    inner = mask
    for _ in range(2):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _owners(sample: Sample) -> list[tuple[int, tuple[int, int, int]]]:
    """For each mask: the turn it belongs to, and a colour of its own."""
    turns = [turn for turn, text in enumerate(sample.turns) for _ in range(text.answer.count(SEG))]
    return [(turn, _TINTS[number % len(_TINTS)]) for number, turn in enumerate(turns)]


def _lines(sample: Sample, letters: int) -> list[tuple[str, tuple[int, int, int]]]:
    """Text lines with their colours: a heading, then every turn in the colour of its first mask."""
    colors: dict[int, tuple[int, int, int]] = {}
    for turn, tint in _owners(sample):
        colors.setdefault(turn, tint)
    name = sample.id if sample.id.startswith(f"{sample.source}/") else f"{sample.source} {sample.id}"
    lines = [(name, (120, 120, 120))]
    for number, turn in enumerate(sample.turns):
        said = sample.tags[number] if sample.tags else ""
        tag = f" ({said})" if said.lower() not in turn.question.lower() else ""
        # Darkened tints stay readable on paper.
        red, green, blue = colors.get(number, _INK)
        color = (red * 3 // 4, green * 3 // 4, blue * 3 // 4)
        for text in (f"{number + 1}. {turn.question}{tag}", f"   > {turn.answer}"):
            lines += [(line, color) for line in textwrap.wrap(text, letters, subsequent_indent="     ")]
    return lines
