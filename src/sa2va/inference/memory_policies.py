"""What objects remember of a clip, and what they read of it when they are looked for in the next frame.

Objects that were prompted together share one memory, an immutable value: ``prompt`` and ``track`` give a new one.

* [`RecentMemory`], SAM 2's: all prompted frames and the six last ones; or only the nearest of these.
* [`sa2va.inference.local_memory.LocalMemory`]: these, and only around the object.
* [`DistractorAwareMemory`], DAM4SAM's (arXiv 2411.17576, 2509.13864): the last frame and every fifth one in which the
  object is seen, and *anchors*, frames in which it was told well from something that looks like it.
* [`TreeMemory`], SAM2Long's (arXiv 2410.16268, from the paper alone): several hypotheses of where the object went, each
  with a memory of its own.

The last two pick frames for every object by itself. Shape legend: K objects, N hypotheses, C model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import log
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMaskDecoder

from sa2va.inference.local_memory import NEAR, LocalMemory
from sa2va.masks.mask_ops import largest_component
from sa2va.model.mask_decoder import (
    FrameFeatures,
    MaskPrediction,
    decode_candidates,
    no_prompt_tokens,
    with_candidate,
)
from sa2va.model.memory import FrameMemory, MemoryBank, attend, encode_memory, remember, track_frame

MemoryPolicy = Literal["recent", "near", "local", "distractor-aware", "tree"]

# DAM4SAM: frames between two that are kept; how many of these and of the anchors are kept. What an anchor needs: the
# predicted IoU, how near its area is to the median of the last ones, and how much of the box around the mask and the
# distractor the mask's own box fills at most.
_STRIDE, _SPACED, _ANCHORS = 5, 2, 3
_SURE_IOU, _AREA_BAND, _AREAS, _BOX_SHARE = 0.8, 0.2, 10, 0.7

# SAM2Long: hypotheses of an object; predicted IoU from which a frame is remembered; object score below which nobody is
# sure and hypotheses must differ.
_PATHS, _LEAST_IOU, _SURE_PRESENCE = 3, 0.3, 2.0


def _picking() -> MemoryBank:
    """An empty bank that picks frames."""
    return MemoryBank(ranked=True)


class ObjectMemory(Protocol):
    """The memory of K objects that were prompted together."""

    def prompt(
        self, sam2: Sam2VideoModel, features: FrameFeatures, prediction: MaskPrediction, index: int
    ) -> ObjectMemory:
        """With one more prompted frame, on which the K objects were decoded so."""
        ...

    def track(
        self,
        sam2: Sam2VideoModel,
        decoder: Sam2VideoMaskDecoder,
        features: FrameFeatures,
        index: int,
        *,
        backward: bool = False,
    ) -> tuple[MaskPrediction, ObjectMemory]:
        """The K objects on one more frame, and the memory with it."""
        ...

    def select(self, rows_K: Tensor) -> ObjectMemory:
        """The memory of some of the objects, by int64 row."""
        ...

    def without_tracked(self) -> ObjectMemory:
        """Only the prompted frames: where propagation in the other direction starts."""
        ...

    def first_prompted(self) -> ObjectMemory:
        """Of the prompted frames only the first: where a new window starts, so that memory does not grow with them."""
        ...


@dataclass(frozen=True)
class RecentMemory:
    """SAM 2's own: all prompted frames and the last ones.

    Attributes:
        bank: of all objects. near: read the nearest of its frames only.
    """

    bank: MemoryBank = field(default_factory=MemoryBank)
    near: bool = False

    def prompt(
        self, sam2: Sam2VideoModel, features: FrameFeatures, prediction: MaskPrediction, index: int
    ) -> RecentMemory:
        """See [`ObjectMemory`]."""
        return replace(self, bank=self.bank.add_prompted(encode_memory(sam2, features, prediction, index)))

    def track(
        self,
        sam2: Sam2VideoModel,
        decoder: Sam2VideoMaskDecoder,
        features: FrameFeatures,
        index: int,
        *,
        backward: bool = False,
    ) -> tuple[MaskPrediction, RecentMemory]:
        """See [`ObjectMemory`]."""
        read = self.bank.near(index, **NEAR) if self.near else self.bank
        prediction = track_frame(sam2, decoder, read, features, index, backward=backward)
        return prediction, replace(self, bank=remember(sam2, self.bank, features, prediction, index))

    def select(self, rows_K: Tensor) -> RecentMemory:
        """See [`ObjectMemory`]."""
        return replace(self, bank=self.bank.select(rows_K))

    def without_tracked(self) -> RecentMemory:
        """See [`ObjectMemory`]."""
        return replace(self, bank=self.bank.without_tracked())

    def first_prompted(self) -> RecentMemory:
        """See [`ObjectMemory`]."""
        return replace(self, bank=self.bank.first_prompted())


@dataclass(frozen=True)
class WatchedObject:
    """What one object remembers: its frames, the anchors among them, and the areas of its last masks."""

    bank: MemoryBank = field(default_factory=_picking)
    anchors: tuple[FrameMemory, ...] = ()
    areas: tuple[int, ...] = ()

    @property
    def read(self) -> MemoryBank:
        """Anchors are read as prompted frames are, without their time."""
        return replace(self.bank, prompted=(*self.bank.prompted, *self.anchors))

    def admit(self, memory: FrameMemory, prediction: MaskPrediction, *, pointers: int) -> WatchedObject:
        """With a tracked frame, of which ``prediction`` is the only row."""
        masks = (prediction.candidates[0] > 0).cpu().numpy()
        best = int(prediction.best[0])
        mask, others = masks[best], np.delete(masks, best, axis=0)
        kept = [one.index for one in self.bank.tracked if one.features is not None]
        if not mask.any() or float(prediction.presence[0]) <= 0:
            return replace(self, bank=self.bank.add_picked(memory, kept, pointers=pointers))
        # What was the last frame until now stays only where it is one of the spaced ones.
        keep = [*[index for index in kept if index % _STRIDE == 0][-_SPACED:], memory.index]
        bank = self.bank.add_picked(memory, keep, pointers=pointers)
        area = int(mask.sum())
        anchors = self.anchors
        if (
            float(prediction.iou[0]) > _SURE_IOU
            and self._is_usual(area)
            and all(abs(memory.index - anchor.index) >= _STRIDE for anchor in anchors)
            and any(_is_distractor(mask, other) for other in others)
        ):
            anchors = (*anchors, memory)[-_ANCHORS:]
        return replace(self, bank=bank, anchors=anchors, areas=(*self.areas, area)[-_AREAS:])

    def _is_usual(self, area: int) -> bool:
        if not self.areas:
            return True
        usual = float(np.median(self.areas))
        return abs(area - usual) <= _AREA_BAND * usual


def _is_distractor(mask: np.ndarray, other: np.ndarray) -> bool:
    """Whether another candidate, bool (s, s), points well beyond the mask: at something else that looks like it."""
    beyond = other & ~mask
    if not beyond.any():
        return False
    return _box_area(mask) <= _BOX_SHARE * _box_area(mask | largest_component(beyond))


def _box_area(mask: np.ndarray) -> int:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1))


@dataclass(frozen=True)
class DistractorAwareMemory:
    """DAM4SAM's: frames are picked for each object by whether it is seen, and told from what looks like it."""

    objects: tuple[WatchedObject, ...] = ()

    def prompt(
        self, sam2: Sam2VideoModel, features: FrameFeatures, prediction: MaskPrediction, index: int
    ) -> DistractorAwareMemory:
        """See [`ObjectMemory`]."""
        memories = _rows(encode_memory(sam2, features, prediction, index))
        objects = self.objects or (WatchedObject(),) * len(memories)
        pairs = zip(objects, memories, strict=True)
        return DistractorAwareMemory(tuple(replace(one, bank=one.bank.add_prompted(memory)) for one, memory in pairs))

    def track(
        self,
        sam2: Sam2VideoModel,
        decoder: Sam2VideoMaskDecoder,
        features: FrameFeatures,
        index: int,
        *,
        backward: bool = False,
    ) -> tuple[MaskPrediction, DistractorAwareMemory]:
        """See [`ObjectMemory`]."""
        banks = [one.read for one in self.objects]
        prediction, _ = _decode(sam2, decoder, banks, features, index, backward=backward)
        memories = _rows(encode_memory(sam2, features, prediction, index))
        pointers = sam2.config.max_object_pointers_in_encoder - 1
        objects = tuple(
            one.admit(memory, prediction[row : row + 1], pointers=pointers)
            for row, (one, memory) in enumerate(zip(self.objects, memories, strict=True))
        )
        return prediction, DistractorAwareMemory(objects)

    def select(self, rows_K: Tensor) -> DistractorAwareMemory:
        """See [`ObjectMemory`]."""
        return DistractorAwareMemory(tuple(self.objects[row] for row in rows_K.tolist()))

    def without_tracked(self) -> DistractorAwareMemory:
        """See [`ObjectMemory`]."""
        return DistractorAwareMemory(tuple(WatchedObject(one.bank.without_tracked()) for one in self.objects))

    def first_prompted(self) -> DistractorAwareMemory:
        """See [`ObjectMemory`]."""
        return DistractorAwareMemory(tuple(replace(one, bank=one.bank.first_prompted()) for one in self.objects))


@dataclass(frozen=True)
class _Path:
    """One hypothesis of where an object went, and the sum of the logarithms of its predicted IoUs."""

    bank: MemoryBank = field(default_factory=_picking)
    score: float = 0.0


@dataclass(frozen=True)
class TreeMemory:
    """SAM2Long's: up to three hypotheses per object; each frame each proposes three masks, and the best three go on.

    The mask of a frame is that of the hypothesis that is best by then, so that frames leave as they come; SAM2Long
    waits for the end of the clip.
    """

    objects: tuple[tuple[_Path, ...], ...] = ()

    def prompt(
        self, sam2: Sam2VideoModel, features: FrameFeatures, prediction: MaskPrediction, index: int
    ) -> TreeMemory:
        """See [`ObjectMemory`]."""
        memories = _rows(encode_memory(sam2, features, prediction, index))
        objects = self.objects or ((_Path(),),) * len(memories)
        return TreeMemory(
            tuple(
                tuple(replace(path, bank=path.bank.add_prompted(memory)) for path in paths)
                for paths, memory in zip(objects, memories, strict=True)
            )
        )

    def track(
        self,
        sam2: Sam2VideoModel,
        decoder: Sam2VideoMaskDecoder,
        features: FrameFeatures,
        index: int,
        *,
        backward: bool = False,
    ) -> tuple[MaskPrediction, TreeMemory]:
        """See [`ObjectMemory`]."""
        banks = [path.bank for paths in self.objects for path in paths]
        decoded, tokens = _decode(sam2, decoder, banks, features, index, backward=backward)
        ious, presence = decoded.ious.float().cpu().numpy(), decoded.presence.float().cpu().numpy()
        chosen, scores, start = [], [], 0
        for paths in self.objects:
            end = start + len(paths)
            own = best_branches([path.score for path in paths], ious[start:end], presence[start:end])
            chosen.append([(start + row, candidate) for row, candidate, _ in own])
            scores.append([score for *_, score in own])
            start = end
        flat = torch.tensor([branch for own in chosen for branch in own], device=decoded.best.device)
        prediction = with_candidate(sam2, decoded[flat[:, 0]], tokens[flat[:, 0]], flat[:, 1])
        memories = iter(_rows(encode_memory(sam2, features, prediction, index)))
        pointers, slots = sam2.config.max_object_pointers_in_encoder - 1, sam2.num_maskmem - 1
        objects = []
        for own, own_scores in zip(chosen, scores, strict=True):
            paths = []
            for (row, candidate), score in zip(own, own_scores, strict=True):
                good = bool(ious[row, candidate] > _LEAST_IOU and presence[row] > 0)
                bank = _with_good(banks[row], next(memories), good, slots=slots, pointers=pointers)
                paths.append(_Path(bank, score - own_scores[0]))
            objects.append(tuple(paths))
        firsts = np.cumsum([0, *(len(own) for own in chosen[:-1])])
        return prediction[torch.from_numpy(firsts).to(flat.device)], TreeMemory(tuple(objects))

    def select(self, rows_K: Tensor) -> TreeMemory:
        """See [`ObjectMemory`]."""
        return TreeMemory(tuple(self.objects[row] for row in rows_K.tolist()))

    def without_tracked(self) -> TreeMemory:
        """See [`ObjectMemory`]."""
        return TreeMemory(tuple((_Path(paths[0].bank.without_tracked()),) for paths in self.objects))

    def first_prompted(self) -> TreeMemory:
        """See [`ObjectMemory`]."""
        return TreeMemory(
            tuple(tuple(replace(path, bank=path.bank.first_prompted()) for path in paths) for paths in self.objects)
        )


def best_branches(scores: Sequence[float], ious_N3: np.ndarray, presence_N: np.ndarray) -> list[tuple[int, int, float]]:
    """The hypotheses of an object that go on: (row, candidate mask, score), best first.

    Where no hypothesis is sure whether the object is there, those that go on must differ in their predicted IoU, as
    different masks do.
    """
    branches = sorted(
        (
            (row, candidate, score + log(max(float(iou), 0.0) + 1e-6))
            for row, (score, ious) in enumerate(zip(scores, ious_N3, strict=True))
            for candidate, iou in enumerate(ious)
        ),
        key=lambda branch: -branch[2],
    )
    if float(np.abs(presence_N).max()) < _SURE_PRESENCE:
        different = {round(float(ious_N3[row, mask]), 2): (row, mask, score) for row, mask, score in reversed(branches)}
        branches = sorted(different.values(), key=lambda branch: -branch[2])
    return branches[:_PATHS]


def _with_good(bank: MemoryBank, memory: FrameMemory, good: bool, *, slots: int, pointers: int) -> MemoryBank:
    """The bank with one more frame; of frames that are not good only the pointer is kept."""
    kept = [one.index for one in bank.tracked if one.features is not None]
    return bank.add_picked(memory, ([*kept, memory.index] if good else kept)[-slots:], pointers=pointers)


def _decode(
    sam2: Sam2VideoModel,
    decoder: Sam2VideoMaskDecoder,
    banks: Sequence[MemoryBank],
    features: FrameFeatures,
    index: int,
    *,
    backward: bool,
) -> tuple[MaskPrediction, Tensor]:
    """One row for each bank, of one object each: they hold different frames and are read one by one."""
    conditioned = torch.cat([attend(sam2, bank, features.top, index, backward=backward) for bank in banks])
    frame_N = torch.zeros(len(banks), dtype=torch.long, device=conditioned.device)
    return decode_candidates(
        sam2,
        decoder,
        features,
        no_prompt_tokens(sam2, len(banks)),
        frame_of_prompt_N=frame_N,
        conditioned_NChw=conditioned,
    )


def _rows(memory: FrameMemory) -> list[FrameMemory]:
    """The memory of each object by itself."""
    assert memory.features is not None
    pairs = zip(memory.features.split(1), memory.pointer.split(1), strict=True)
    return [FrameMemory(memory.index, features, pointer) for features, pointer in pairs]


def memory_of(policy: MemoryPolicy) -> ObjectMemory:
    """An empty memory.

    Raises:
        ValueError: no such policy.
    """
    memories: dict[str, ObjectMemory] = {
        "recent": RecentMemory(),
        "near": RecentMemory(near=True),
        "local": LocalMemory(),
        "distractor-aware": DistractorAwareMemory(),
        "tree": TreeMemory(),
    }
    if policy not in memories:
        raise ValueError(f"memory must be one of {', '.join(map(repr, memories))}; got {policy!r}")
    return memories[policy]
