"""Collate encoded samples: right padding, the pixels of all samples in order, and how many each sample has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sa2va.data.encode import Encoded, encode_sample
from sa2va.data.sample import SEG, Sample
from sa2va.model.families import IGNORED_LABEL
from sa2va.model.types import Batch
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.results.history import Turn

_COMPANION_ID = "(companion)"
_COMPANION_SIDE = 64


@dataclass(frozen=True)
class Collator:
    """Collates encoded samples into a [`Batch`]. Text, images, clips and regions may be mixed; clicks may not.

    Attributes:
        pad_id: token id of padding.
    """

    pad_id: int

    @classmethod
    def of(cls, processor: Sa2VAProcessor) -> Collator:
        """The collator that pads as the processor's tokenizer does; with its end-of-text where it has no pad token."""
        pad_id: Any = processor.tokenizer.pad_token_id
        return cls(processor.eos_ids[0] if pad_id is None else pad_id)

    def __call__(self, samples: Sequence[Encoded]) -> Batch:
        """
        Raises:
            ValueError: no samples, or clicks beside conversations.
        """
        clicked = [sample.points is not None for sample in samples]
        if not samples or any(clicked) != all(clicked):
            raise ValueError(
                f"expected samples that are all conversations or all clicks, got {len(samples)} samples, "
                f"{sum(clicked)} of them clicks; encode the whole batch in one way"
            )
        lengths = torch.tensor([len(sample.ids) for sample in samples])
        has_masks = any(sample.masks is not None for sample in samples)
        partly = any(sample.annotated is not None for sample in samples)
        has_regions = any(sample.regions is not None for sample in samples)
        tiles = tuple(0 if sample.pixel_values is None else len(sample.pixel_values) for sample in samples)
        extras = dict.fromkeys(name for sample in samples for name in sample.extras)
        grids = _joined([sample.image_grid_thw for sample in samples])
        return Batch(
            input_ids=_padded([sample.ids for sample in samples], self.pad_id),
            attention_mask=torch.arange(int(lengths.max()))[None] < lengths[:, None],
            labels=_padded([sample.labels for sample in samples], IGNORED_LABEL),
            pixel_values=_joined([sample.pixel_values for sample in samples]),
            image_grid_thw=grids,
            tiles_per_sample=tiles if grids is None and any(tiles) else None,
            regions=tuple(sample.regions for sample in samples) if has_regions else None,
            grounding_pixels=_joined([sample.grounding for sample in samples]),
            frames_per_sample=tuple(0 if sample.grounding is None else len(sample.grounding) for sample in samples),
            masks=tuple(sample.masks for sample in samples) if has_masks else None,
            annotated=tuple(sample.annotated for sample in samples) if partly else None,
            points=_joined([_pairs(sample.points) for sample in samples]),
            point_labels=_joined([_pairs(sample.point_labels) for sample in samples]),
            extras={name: tuple(sample.extras.get(name) for sample in samples) for name in extras},
            sample_ids=tuple(sample.id for sample in samples),
        )


@dataclass(frozen=True)
class CompanionCollator:
    """Collates as ``collator`` does; a batch of conversations without masks gets ``companion`` as its last row.

    So that every process runs every part of the model in the same order: DeepSpeed puts gradients together in the order
    in which they arrive (ZeRO 2) and gathers weights where modules run (ZeRO 3). A process whose batch leaves out SAM 2
    or the vision tower would add its gradients to those of other parameters, or wait for ever. The companion, a grey
    picture with one object that is nowhere, counts nothing.
    """

    collator: Collator
    companion: Encoded

    @classmethod
    def of(cls, processor: Sa2VAProcessor) -> CompanionCollator:
        """For batches of this processor."""
        sample = Sample(
            id=_COMPANION_ID,
            frames=(np.full((_COMPANION_SIDE, _COMPANION_SIDE, 3), 128, dtype=np.uint8),),
            turns=(Turn("Where?", SEG),),
            masks=(np.zeros((1, _COMPANION_SIDE, _COMPANION_SIDE), dtype=bool),),
        )
        encoded = encode_sample(sample, processor)
        unlearnt = torch.full_like(encoded.labels, IGNORED_LABEL)
        return cls(Collator.of(processor), replace(encoded, labels=unlearnt))

    def __call__(self, samples: Sequence[Encoded]) -> Batch:
        """See [`Collator.__call__`]."""
        if any(sample.masks is not None for sample in samples):
            return self.collator(samples)
        return self.collator([*samples, self.companion])


def has_companion(batch: Batch) -> bool:
    """Whether the masks of a batch are those of a companion, and count nothing."""
    return bool(batch.sample_ids) and batch.sample_ids[-1] == _COMPANION_ID


def _padded(rows: Sequence[Tensor], value: int) -> Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None


def _pairs(clicks_KFP: Tensor | None) -> Tensor | None:
    return None if clicks_KFP is None else clicks_KFP.flatten(0, 1)
