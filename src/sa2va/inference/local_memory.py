"""Many objects at little cost: each is looked for around the place where it was.

Only the nearest frames are read, as by ``memory="near"``. Half the height and width of the picture around an object is
looked at cell by cell, the rest coarsely ([`sa2va.model.local_attention`]). An object is looked for in the whole
picture in every eighth frame, after a frame in which it was not seen, and when it is too large for its window.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMaskDecoder

from sa2va.model.local_attention import block_side
from sa2va.model.mask_decoder import (
    FrameFeatures,
    MaskPrediction,
    decode_masks,
    no_prompt_tokens,
)
from sa2va.model.memory import MemoryBank, attend, encode_memory, remember

#: Prompted and tracked frames whose spatial memory is read.
NEAR = {"prompted": 2, "tracked": 2}
#: In every how many frames objects are looked for in the whole picture.
WHOLE_EVERY = 8
#: Blocks that an object must leave free in its window, on both sides together.
_MARGIN = 1


@dataclass(frozen=True)
class Places:
    """Where K objects were in a frame: their windows' first blocks, and whether each was seen and fits into its own."""

    index: int
    corners: tuple[tuple[int, int], ...]
    fits: tuple[bool, ...]

    @classmethod
    def of(cls, index: int, prediction: MaskPrediction, grid: int) -> Places:
        blocks = grid // block_side(grid)
        masks_K1bb = (prediction.logits > 0)[:, None].float()
        taken = F.adaptive_max_pool2d(masks_K1bb, blocks)[:, 0] > 0
        corners, fits = [], []
        seen = (prediction.presence > 0).tolist()
        for here, rows, columns in zip(seen, taken.any(dim=2).tolist(), taken.any(dim=1).tolist(), strict=True):
            (top, bottom), (left, right) = _extent(rows), _extent(columns)
            corners.append((_first(top, bottom, blocks), _first(left, right, blocks)))
            fits.append(here and max(bottom - top, right - left) + _MARGIN <= blocks // 2)
        return cls(index, tuple(corners), tuple(fits))

    def select(self, rows: list[int]) -> Places:
        return Places(self.index, tuple(self.corners[row] for row in rows), tuple(self.fits[row] for row in rows))


def _extent(taken: list[bool]) -> tuple[int, int]:
    """The first that is taken and the one after the last; the middle where none is."""
    places = [place for place, one in enumerate(taken) if one] or [len(taken) // 2]
    return places[0], places[-1] + 1


def _first(start: int, end: int, blocks: int) -> int:
    """Where a window of half the blocks begins whose middle is that of an extent, inside the picture."""
    return min(max((start + end - blocks // 2) // 2, 0), blocks - blocks // 2)


@dataclass(frozen=True)
class LocalMemory:
    """The memory of K objects that were prompted together, read around them.

    Attributes:
        bank: of all objects.
        places: where they were, in the frames of the bank.
    """

    bank: MemoryBank = field(default_factory=MemoryBank)
    places: tuple[Places, ...] = ()

    def prompt(
        self, sam2: Sam2VideoModel, features: FrameFeatures, prediction: MaskPrediction, index: int
    ) -> LocalMemory:
        """See [`sa2va.inference.memory_policies.ObjectMemory`]."""
        bank = self.bank.add_prompted(encode_memory(sam2, features, prediction, index))
        return LocalMemory(bank, (*self.places, Places.of(index, prediction, features.top.shape[-1])))

    def track(
        self,
        sam2: Sam2VideoModel,
        decoder: Sam2VideoMaskDecoder,
        features: FrameFeatures,
        index: int,
        *,
        backward: bool = False,
    ) -> tuple[MaskPrediction, LocalMemory]:
        """See [`sa2va.inference.memory_policies.ObjectMemory`]."""
        near = self.bank.near(index, **NEAR)
        last = min(self.places, key=lambda places: abs(places.index - index))
        rows = range(len(last.fits))
        whole = [row for row in rows if not last.fits[row] or index % WHOLE_EVERY == 0]
        around = [row for row in rows if row not in whole]
        device, conditioned = features.top.device, []
        if whole:
            bank = near.select(torch.tensor(whole, device=device))
            conditioned.append(attend(sam2, bank, features.top, index, backward=backward))
        if around:
            bank = near.select(torch.tensor(around, device=device))
            windows = torch.tensor(last.select(around).corners, device=device)
            conditioned.append(attend(sam2, bank, features.top, index, backward=backward, windows_K2=windows))
        tokens = no_prompt_tokens(sam2, len(rows))
        found = decode_masks(sam2, decoder, features, tokens, conditioned_NChw=torch.cat(conditioned))
        prediction = found[torch.tensor([*whole, *around], device=device).argsort()]
        bank = remember(sam2, self.bank, features, prediction, index)
        kept = {memory.index for memory in (*bank.prompted, *bank.tracked) if memory.features is not None}
        places = (*self.places, Places.of(index, prediction, features.top.shape[-1]))
        return prediction, LocalMemory(bank, tuple(one for one in places if one.index in kept))

    def select(self, rows_K: Tensor) -> LocalMemory:
        """See [`sa2va.inference.memory_policies.ObjectMemory`]."""
        rows = rows_K.tolist()
        return LocalMemory(self.bank.select(rows_K), tuple(places.select(rows) for places in self.places))

    def without_tracked(self) -> LocalMemory:
        """See [`sa2va.inference.memory_policies.ObjectMemory`]."""
        return self._of(self.bank.without_tracked())

    def first_prompted(self) -> LocalMemory:
        """See [`sa2va.inference.memory_policies.ObjectMemory`]."""
        return self._of(self.bank.first_prompted())

    def _of(self, bank: MemoryBank) -> LocalMemory:
        """With fewer of its frames."""
        kept = {memory.index for memory in (*bank.prompted, *bank.tracked)}
        return LocalMemory(bank, tuple(places for places in self.places if places.index in kept))
