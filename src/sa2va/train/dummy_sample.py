"""A dummy sample for batches without masks, so that all processes run the same parts of the model in the same order.

DeepSpeed puts gradients together in the order in which they arrive (ZeRO 2) and gathers weights where modules run
(ZeRO 3). A process whose batch leaves out SAM 2 or the vision tower would add its gradients to those of other
parameters, or wait for ever. The companion, a grey picture with one object that is nowhere, counts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sa2va.data.collate import Collator
from sa2va.data.encode import Encoded, encode_sample
from sa2va.data.sample import SEG, Sample
from sa2va.model.families import IGNORED_LABEL
from sa2va.model.types import Batch
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.results.history import Turn

_ID = "(companion)"
_SIDE = 64


@dataclass(frozen=True)
class CompanionCollator:
    """Collates as ``collator`` does; a batch of conversations without masks gets ``companion`` as its last row."""

    collator: Collator
    companion: Encoded

    @classmethod
    def of(cls, processor: Sa2VAProcessor) -> CompanionCollator:
        """For batches of this processor."""
        sample = Sample(
            id=_ID,
            frames=(np.full((_SIDE, _SIDE, 3), 128, dtype=np.uint8),),
            turns=(Turn("Where?", SEG),),
            masks=(np.zeros((1, _SIDE, _SIDE), dtype=bool),),
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
    return bool(batch.sample_ids) and batch.sample_ids[-1] == _ID
