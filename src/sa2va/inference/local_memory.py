"""Many objects at little cost: each is looked for around the place where it should be by now.

Only the nearest frames are read, as by ``memory="near"``. Half the height and width of the picture around the place
where an object should be, moving on as it did, is looked at cell by cell, the rest coarsely
([`sa2va.model.local_attention`]). What is found so is not taken where it is not seen, or reaches out of that window:
what lies there was seen too coarsely to tell it from the object, and a wrong mask that is remembered stays. Such an
object is looked for again, in the whole picture; so is, from the start, one that was not seen or is too large for its
window, and each in every sixteenth frame.
"""

from __future__ import annotations

from collections.abc import Sequence
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

#: How many frames' spatial memory is read, and how many of them are prompted ones at most.
NEAR = {"prompted": 2, "frames": 4}
#: In every how many frames objects are looked for in the whole picture.
WHOLE_EVERY = 16
#: Blocks that an object must leave free in its window, on both sides together.
_MARGIN = 1


@dataclass(frozen=True)
class Place:
    """Where an object was in a frame, in blocks: its box, the middle of its mask (None where that is empty), and the
    first block of the window in which it is looked for next. ``fits``: it was seen and is small enough for the window.
    """

    top: int
    bottom: int
    left: int
    right: int
    middle: tuple[float, float] | None
    corner: tuple[int, int]
    fits: bool

    def holds(self, found: Place, side: int) -> bool:
        """Whether what was found lies in the window of so many blocks."""
        row, column = self.corner
        return row <= found.top and found.bottom <= row + side and column <= found.left and found.right <= column + side


@dataclass(frozen=True)
class Places:
    """Where K objects were in a frame."""

    index: int
    objects: tuple[Place, ...]

    @classmethod
    def of(cls, index: int, prediction: MaskPrediction, grid: int, before: Places | None = None) -> Places:
        """Where objects are by their masks.

        Args:
            grid: cells along the side of a frame's features.
            before: where they were in the frame before, or another one near to it.
        """
        blocks = grid // block_side(grid)
        side = blocks // 2
        masks_K1ss = (prediction.logits > 0)[:, None].float()
        taken = F.adaptive_max_pool2d(masks_K1ss, blocks)[:, 0] > 0
        rows_K, columns_K = taken.any(dim=2).tolist(), taken.any(dim=1).tolist()
        middles_K2 = _middles(masks_K1ss[:, 0], blocks).tolist()
        seen_K = (prediction.presence > 0).tolist()
        objects = []
        for row, (seen, rows, columns, (y, x)) in enumerate(zip(seen_K, rows_K, columns_K, middles_K2, strict=True)):
            (top, bottom), (left, right) = _extent(rows), _extent(columns)
            middle = (y, x) if any(rows) else None
            start = before.objects[row].middle if before else None
            down = across = 0.0
            if before and start and middle:
                steps = max(1, abs(index - before.index))
                down, across = ((now - then) / steps for now, then in zip(middle, start, strict=True))
            corner = (_first(top, bottom, down, blocks), _first(left, right, across, blocks))
            fits = seen and max(bottom - top, right - left) + _MARGIN <= side
            objects.append(Place(top, bottom, left, right, middle, corner, fits))
        return cls(index, tuple(objects))

    def select(self, rows: Sequence[int]) -> Places:
        return Places(self.index, tuple(self.objects[row] for row in rows))


def _middles(masks_Kss: Tensor, blocks: int) -> Tensor:
    """The mean place (K, 2) of each mask's cells, row and column in blocks; 0 where it is empty."""
    places = (torch.arange(masks_Kss.shape[-1], device=masks_Kss.device) + 0.5) * (blocks / masks_Kss.shape[-1])
    rows, columns = masks_Kss.sum(2) @ places, masks_Kss.sum(1) @ places
    return torch.stack([rows, columns], dim=1) / masks_Kss.sum((1, 2)).clamp(min=1)[:, None]


def _extent(taken: list[bool]) -> tuple[int, int]:
    """The first that is taken and the one after the last; the middle where none is."""
    places = [place for place, one in enumerate(taken) if one] or [len(taken) // 2]
    return places[0], places[-1] + 1


def _first(start: int, end: int, motion: float, blocks: int) -> int:
    """Where a window of half the blocks begins whose middle is that of an extent that moves on, inside the picture."""
    return min(max(round((start + end - blocks // 2) / 2 + motion), 0), blocks - blocks // 2)


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
        near, grid, device = self.bank.near(index, **NEAR), features.top.shape[-1], features.top.device
        last = min(self.places, key=lambda places: abs(places.index - index))

        def look(rows: list[int], windows_K2: Tensor | None = None) -> MaskPrediction:
            bank = near.select(torch.tensor(rows, device=device))
            conditioned = attend(sam2, bank, features.top, index, backward=backward, windows_K2=windows_K2)
            tokens = no_prompt_tokens(sam2, len(rows))
            return decode_masks(sam2, decoder, features, tokens, conditioned_NChw=conditioned)

        rows = range(len(last.objects))
        whole = [row for row in rows if not last.objects[row].fits or index % WHOLE_EVERY == 0]
        around = [row for row in rows if row not in whole]
        order, parts = [], []
        if around:
            found = look(around, torch.tensor([last.objects[row].corner for row in around], device=device))
            places, side = Places.of(index, found, grid).objects, grid // block_side(grid) // 2
            seen = (found.presence > 0).tolist()
            good = [at for at, row in enumerate(around) if seen[at] and last.objects[row].holds(places[at], side)]
            order += [around[at] for at in good]
            parts.append(found[torch.tensor(good, dtype=torch.long, device=device)])
            whole += [row for row in around if row not in order]
        if whole:
            order += whole
            parts.append(look(whole))
        prediction = MaskPrediction.cat(parts)[torch.tensor(order, device=device).argsort()]
        bank = remember(sam2, self.bank, features, prediction, index)
        kept = {memory.index for memory in (*bank.prompted, *bank.tracked) if memory.features is not None}
        every = (*self.places, Places.of(index, prediction, grid, last))
        return prediction, LocalMemory(bank, tuple(one for one in every if one.index in kept))

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
