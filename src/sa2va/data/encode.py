"""Encode a sample as tensors: token ids and labels, pixels for both towers, target masks; or clicks for SAM 2 alone.

Nothing is cut silently: a conversation that is too long loses whole turns from its end, and one that still does not fit
is refused with its name. Shapes: L tokens, K objects, F frames, S grounding side, s = S/4, R regions, P clicks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sa2va.data.clicks import random_clicks
from sa2va.data.sample import SEG, Sample
from sa2va.media.frames import first_indices, uniform_indices
from sa2va.processing.processor import EncodedTurns, Sa2VAProcessor, VisionInputs, squashed_frames
from sa2va.processing.regions import region_cells
from sa2va.results.history import Turn


@dataclass(frozen=True)
class EncodeOptions:
    """How samples become tensors.

    Attributes:
        max_length: largest number of tokens of a conversation.
        key_frames: largest number of frames of a clip that the language model sees.
        drawn_frames: largest number of frames of a clip that SAM 2 is trained on, drawn anew each time the clip is
            shown; None takes all (released).
        key_frame_policy: ``"uniform"`` over the clip, or the ``"first"`` ones.
        targets: a cell of a target mask is its nearest pixel (``"nearest"``, released), or the fraction of its area
            that the object covers (``"area"``), which teaches small images borders finer than a cell.
        picture_pixels: smallest and largest number of pixels of an image in Qwen families; the defaults are the
            released ones. InternVL families use tiles.
        frame_pixels: the same of a frame of a clip.
    """

    max_length: int = 8192
    key_frames: int = 5
    drawn_frames: int | None = None
    key_frame_policy: Literal["uniform", "first"] = "uniform"
    targets: Literal["nearest", "area"] = "nearest"
    picture_pixels: tuple[int, int] = (512 * 28 * 28, 2048 * 28 * 28)
    frame_pixels: tuple[int, int] = (128 * 28 * 28, 512 * 28 * 28)


@dataclass(frozen=True, eq=False)
class Encoded:
    """One sample, ready to be collated.

    Attributes:
        id: name of the sample. ids, labels: (L,) int64; none of either for clicks.
        pixel_values, image_grid_thw: what the vision tower takes, see ``VisionInputs``.
        regions: bool (R, cells, cells). grounding: uint8 (F, S, S, 3), only where there are masks.
        masks: bool (K, F, s, s) targets at the side of predicted masks, in the order of ``[SEG]``; float32 0..1 where
            ``EncodeOptions.targets`` is ``"area"``.
        annotated: bool (K, F), where targets are known; None where they all are.
        points, point_labels: float32 (K, F, P, 2) and int64 (K, F, P) clicks, as in ``Batch``.
        turns_dropped: turns that ``max_length`` took from the end.
        extras: targets of auxiliary losses, by their names.
    """

    id: str
    ids: Tensor
    labels: Tensor
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None
    regions: Tensor | None = None
    grounding: Tensor | None = None
    masks: Tensor | None = None
    annotated: Tensor | None = None
    points: Tensor | None = None
    point_labels: Tensor | None = None
    turns_dropped: int = 0
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """What the model sees of a sample, for targets of auxiliary losses.

    Attributes:
        turns: those that fit. objects: number of their ``[SEG]``; the first masks of the sample are theirs.
        key_frames: indices of the frames that the language model sees. drawn_frames: of those that SAM 2 draws.
        cells: visual tokens along a side of a tile, or of a frame of a clip; None in families whose frames are no
            squares of cells.
        grid: columns and rows of tiles. The visual tokens of a picture of several are those of the tiles, row by row,
            then those of the thumbnail.
        question_tokens: takes (turn, character after some words of its question) and returns the position of the last
            token of these words, for each of a list.
    """

    turns: tuple[Turn, ...]
    objects: int
    key_frames: tuple[int, ...]
    drawn_frames: tuple[int, ...]
    cells: int | None
    grid: tuple[int, int]
    question_tokens: Callable[[Sequence[tuple[int, int]]], list[int]]


#: What an auxiliary loss learns of a sample: tensors in any nesting of tuples and mappings, or None for nothing.
MakeTargets = Callable[[Sample, Shown], Any]


class SampleRejected(ValueError):
    """A valid sample that cannot be used for training; the message names it and says why. Callers count these."""


def encode_sample(
    sample: Sample,
    processor: Sa2VAProcessor,
    options: EncodeOptions | None = None,
    rng: np.random.Generator | None = None,
    *,
    extras: Mapping[str, MakeTargets] | None = None,
) -> Encoded:
    """Encode a conversation with its images, masks and regions.

    The language model sees the key frames of a clip; SAM 2 draws only frames in which some mask is known.

    Args:
        rng: draws the frames of a clip where ``drawn_frames`` are fewer than it has; None draws them with seed 0.
        extras: what makes the targets of auxiliary losses, by their names.

    Raises:
        SampleRejected: not even its first turn fits ``max_length``.
        ValueError: the sample is wrong, e.g. its ``[SEG]`` and masks differ in number; the message names it.
    """
    options = options or EncodeOptions()
    sample.validate()
    keys = key_frames(len(sample.frames), options) if sample.video else list(range(len(sample.frames)))
    drawn = _drawn_frames(sample, options, rng) if sample.masks else []
    images = {index: Image.fromarray(sample.picture(index)) for index in {*keys, *drawn}}
    shown = [images[index] for index in keys]
    budget = options.frame_pixels if sample.video else options.picture_pixels
    vision = processor.vision(shown, video=sample.video, budget=budget) if shown else None
    cells = processor.cells or 16
    grid = processor.tile_grid(shown[0].size) if shown and not sample.video else (1, 1)
    regions = [region_cells(region, sample.size or (0, 0), cells) for region in sample.regions]
    turns, kept = _fitting_ids(sample, processor, vision, regions, options.max_length)
    ids = turns.ids
    objects = min(len(sample.masks), _count_seg(kept))
    masks_KFHW = np.stack(sample.masks[:objects]) if objects else None
    annotated_KF = None if sample.annotated is None or not objects else sample.annotated[:objects]
    if ids.count(processor.seg_token_id) != objects:
        raise ValueError(
            f"sample {sample.id!r} of source {sample.source!r}: {ids.count(processor.seg_token_id)} {SEG} tokens but "
            f"{objects} masks; write {SEG} in answers only, once per mask"
        )
    question_tokens = partial(processor.question_tokens, kept, turns)
    shown_parts = Shown(kept, objects, tuple(keys), tuple(drawn), processor.cells, grid, question_tokens)
    return Encoded(
        id=sample.id,
        ids=torch.tensor(ids),
        labels=torch.tensor(turns.labels),
        pixel_values=vision.pixel_values if vision else None,
        image_grid_thw=vision.image_grid_thw if vision else None,
        regions=torch.from_numpy(np.stack(regions)) if regions else None,
        grounding=squashed_frames([images[index] for index in drawn], processor.grounding_side) if objects else None,
        masks=None if masks_KFHW is None else _targets(masks_KFHW[:, drawn], processor.grounding_side, options),
        annotated=None if annotated_KF is None else torch.from_numpy(annotated_KF[:, drawn]),
        turns_dropped=len(sample.turns) - len(kept),
        extras={name: make(sample, shown_parts) for name, make in (extras or {}).items()},
    )


def encode_clicks(
    sample: Sample, processor: Sa2VAProcessor, rng: np.random.Generator, options: EncodeOptions | None = None
) -> Encoded:
    """Encode a sample's images and masks with random clicks and boxes, without its text, to train SAM 2 alone.

    Equal masks count once; objects that the first frame does not show cannot be clicked on and are left out. Of a clip
    that is not annotated throughout, the frames count in which all its masks are known.

    Raises:
        SampleRejected: no object is left.
    """
    sample.validate()
    if sample.annotated is None:
        frames = list(range(len(sample.frames)))
    else:
        frames = np.flatnonzero(sample.annotated.all(axis=0)).tolist()
    known = [mask[frames] for mask in sample.masks] if frames else []
    unique = {mask.tobytes(): mask for mask in known if mask[0].any()}
    if not unique:
        raise SampleRejected(f"sample {sample.id!r} of source {sample.source!r}: its first frame shows no object")
    masks = list(unique.values())
    side = processor.grounding_side
    clicks = [[random_clicks(frame, side, rng) for frame in mask] for mask in masks]
    nothing = torch.empty(0, dtype=torch.int64)
    return Encoded(
        id=sample.id,
        ids=nothing,
        labels=nothing,
        grounding=squashed_frames([Image.fromarray(sample.picture(frame)) for frame in frames], side),
        masks=_targets(np.stack(masks), side, options or EncodeOptions()),
        points=torch.from_numpy(np.array([[points for points, _ in row] for row in clicks], dtype=np.float32)),
        point_labels=torch.from_numpy(np.array([[labels for _, labels in row] for row in clicks], dtype=np.int64)),
    )


def resize_masks(masks_KFHW: Tensor, side: int) -> Tensor:
    """Masks (K, F, H, W) at another side, (K, F, side, side), each cell from the pixel that torch calls nearest."""
    if masks_KFHW.shape[-2:] == (side, side):
        return masks_KFHW
    rows, columns = (_nearest(length, side) for length in masks_KFHW.shape[-2:])
    return masks_KFHW[..., rows[:, None], columns]


def _nearest(length: int, side: int) -> Tensor:
    # As in F.interpolate(mode="nearest"), in float32; reading only these cells is much faster on bools.
    return (torch.arange(side, dtype=torch.float32) * (length / side)).floor().long().clamp(max=length - 1)


def _targets(masks_KFHW: np.ndarray, grounding_side: int, options: EncodeOptions) -> Tensor:
    masks, side = torch.from_numpy(masks_KFHW), grounding_side // 4
    if options.targets == "nearest":
        return resize_masks(masks, side)
    return F.adaptive_avg_pool2d(masks.float(), side)


def key_frames(count: int, options: EncodeOptions) -> list[int]:
    """Indices of the frames of a clip that the language model sees."""
    choose = uniform_indices if options.key_frame_policy == "uniform" else first_indices
    return choose(count, min(options.key_frames, count))


def _drawn_frames(sample: Sample, options: EncodeOptions, rng: np.random.Generator | None) -> list[int]:
    known = sample.annotated
    frames = np.arange(len(sample.frames)) if known is None else np.flatnonzero(known.any(axis=0))
    if options.drawn_frames is None or options.drawn_frames >= len(frames):
        return frames.tolist()
    chosen = (rng or np.random.default_rng(0)).choice(frames, options.drawn_frames, replace=False)
    return sorted(chosen.tolist())


def _fitting_ids(
    sample: Sample,
    processor: Sa2VAProcessor,
    vision: VisionInputs | None,
    regions: Sequence[np.ndarray],
    max_length: int,
) -> tuple[EncodedTurns, tuple[Turn, ...]]:
    """As many first turns as fit."""
    turns = sample.turns
    while turns:
        try:
            encoded = processor.encode_turns(turns, vision, regions or None)
        except ValueError as error:
            raise ValueError(f"sample {sample.id!r} of source {sample.source!r}: {error}") from error
        if len(encoded.ids) <= max_length:
            return encoded, turns
        shortest, turns = len(encoded.ids), turns[:-1]
    raise SampleRejected(
        f"sample {sample.id!r} of source {sample.source!r}: its first turn alone has {shortest} tokens, more than "
        f"max_length {max_length}"
    )


def _count_seg(turns: Sequence[Turn]) -> int:
    return sum(turn.answer.count(SEG) for turn in turns)
