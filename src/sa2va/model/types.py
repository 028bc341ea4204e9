"""Inputs and outputs of a forward pass, shared by data and model.

Shape legend: B samples, L tokens, D hidden width, V vocabulary, F grounding frames of all samples together, S
grounding side, R regions of one sample, N object-frame pairs of all samples together, P clicks of a pair, s = S/4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sa2va.model.mask_decoder import MaskPrediction


@dataclass(frozen=True)
class Batch:
    """Samples, right-padded to one length.

    Attributes:
        input_ids: (B, L) int64.
        attention_mask: (B, L) bool, False on padding.
        labels: (B, L) int64, ``IGNORED_LABEL`` where nothing is learned; None at inference.
        pixel_values: of all samples in order, None for text alone: uint8 (tiles, side, side, 3) for InternVL, float32
            (patches, width), normalised, for Qwen.
        image_grid_thw: (images, 3) int64 patch grids (Qwen families).
        tiles_per_sample: number of tiles of each sample (InternVL; needed with regions).
        regions: per sample a bool (R, cells, cells) of visual prompts on its last tile, or None.
        grounding_pixels: uint8 (F, S, S, 3) squashed frames for SAM 2, of all samples in order.
        frames_per_sample: number of grounding frames of each sample.
        masks: per sample a bool (objects, frames, H, W) of targets, in the order of its ``[SEG]`` tokens; None at
            inference.
        annotated: per sample a bool (objects, frames), where its targets are known, or None where they all are.
        points: (N, P, 2) float (x, y) in pixels of the grounding side: clicks that prompt SAM 2 instead of ``[SEG]``,
            one set per object-frame pair in the order of the predictions. With them the language model does not run,
            and ``masks`` says how many objects a sample has.
        point_labels: (N, P) int64; 1 inside, 0 outside, 2 and 3 the corners of a box, -1 padding.
        sample_ids: names for error messages.
        extras: targets of auxiliary losses by their names, one entry per sample; the model does not read them.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None
    tiles_per_sample: tuple[int, ...] | None = None
    regions: tuple[Tensor | None, ...] | None = None
    grounding_pixels: Tensor | None = None
    frames_per_sample: tuple[int, ...] | None = None
    masks: tuple[Tensor | None, ...] | None = None
    annotated: tuple[Tensor | None, ...] | None = None
    points: Tensor | None = None
    point_labels: Tensor | None = None
    sample_ids: tuple[str, ...] | None = None
    extras: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on a device."""

        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; torch's data loader calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> Batch:
        def moved(value):
            if isinstance(value, Tensor):
                return move(value)
            if isinstance(value, tuple):
                items = [moved(item) for item in value]
                return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
            if isinstance(value, Mapping):
                return {name: moved(item) for name, item in value.items()}
            return value

        return replace(self, **{each.name: moved(getattr(self, each.name)) for each in fields(self)})

    def name(self, sample: int) -> str:
        """What to call a sample in an error."""
        return self.sample_ids[sample] if self.sample_ids else f"sample {sample} of the batch"


@dataclass(frozen=True)
class Sa2VAOutput:
    """Result of a forward pass.

    Attributes:
        logits: (B, L, V) next-token logits; or (M, V), those of the M positions whose next token has a label, row by
            row; None for a batch of clicks.
        masks: predictions of all N object-frame pairs, or None without ``[SEG]``. Pairs are ordered by sample, then
            by object (in the order of its ``[SEG]``), then by frame.
        objects_per_sample: number of ``[SEG]`` tokens, or of clicked objects, of each sample.
        seg_states: (K, D) state of every ``[SEG]``, sample by sample; None for a batch of clicks.
    """

    logits: Tensor | None
    masks: MaskPrediction | None
    objects_per_sample: tuple[int, ...]
    seg_states: Tensor | None = None


class EqualClips(NamedTuple):
    """The clips of a batch that have one length, to be unrolled together.

    Attributes:
        frames_TB: rows of the frames that B clips show at T moments.
        pairs_KT: rows of the object-frame pairs of their K objects. clip_of_object_K: which of the clips shows each.
    """

    frames_TB: Tensor
    pairs_KT: Tensor
    clip_of_object_K: Tensor


def equal_clips(objects: tuple[int, ...], frames: tuple[int, ...], device: torch.device) -> Iterator[EqualClips]:
    """The clips with objects, by length; pictures are clips of one frame.

    Args:
        objects, frames: how many of them each sample has.
    """
    pair_object, pair_frame = object_frame_pairs(objects, frames, device)
    length_of_object = torch.tensor(frames, device=device).repeat_interleave(torch.tensor(objects, device=device))
    for length in length_of_object.unique().tolist():
        pairs_KT = (length_of_object[pair_object] == length).nonzero()[:, 0].view(-1, length)
        starts_B, clip_of_object_K = pair_frame[pairs_KT[:, 0]].unique(return_inverse=True)
        yield EqualClips(starts_B + torch.arange(length, device=device)[:, None], pairs_KT, clip_of_object_K)


def object_frame_pairs(
    objects: tuple[int, ...], frames: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """For every object-frame pair: the row of its object, and the row of its frame."""
    prompt, frame, first_object, first_frame = [], [], 0, 0
    for object_count, frame_count in zip(objects, frames, strict=True):
        for row in range(first_object, first_object + object_count):
            prompt += [row] * frame_count
            frame += range(first_frame, first_frame + frame_count)
        first_object, first_frame = first_object + object_count, first_frame + frame_count
    return torch.tensor(prompt, device=device, dtype=torch.long), torch.tensor(frame, device=device, dtype=torch.long)
