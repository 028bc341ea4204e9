"""What objects remember when another model carries their masks, see [`sa2va.model.propagator`]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMaskDecoder

from sa2va.model.mask_decoder import FrameFeatures, MaskPrediction
from sa2va.model.propagator import FrameOutput, ObjectOutputs, follow, remember_frame

if TYPE_CHECKING:
    from sa2va.model.propagator import PropagatorModel


@dataclass(frozen=True)
class PropagatorMemory:
    """The memory of K objects that were prompted together: all prompted frames and the last others, as for SAM 2.

    Where [`ObjectMemory`][sa2va.inference.memory_policies.ObjectMemory] names SAM 2 and its features, these are the
    propagator and those of its own encoder.
    """

    objects: tuple[ObjectOutputs, ...] = ()

    def prompt(
        self, sam2: PropagatorModel, features: FrameFeatures, prediction: MaskPrediction, index: int
    ) -> PropagatorMemory:
        """See [`sa2va.inference.memory_policies.ObjectMemory`]."""
        outputs = remember_frame(sam2, features, prediction, prompted=True)
        objects = self.objects or (ObjectOutputs({}, {}),) * len(outputs)
        pairs = zip(objects, outputs, strict=True)
        return PropagatorMemory(tuple(replace(one, prompted={**one.prompted, index: own}) for one, own in pairs))

    def track(
        self,
        sam2: PropagatorModel,
        decoder: Sam2VideoMaskDecoder,
        features: FrameFeatures,
        index: int,
        *,
        backward: bool = False,
    ) -> tuple[MaskPrediction, PropagatorMemory]:
        """See [`sa2va.inference.memory_policies.ObjectMemory`]; a propagator decodes with its own decoder only."""
        prediction = follow(sam2, self.objects, features, index, backward=backward)
        outputs = remember_frame(sam2, features, prediction, prompted=False)
        objects = tuple(
            replace(one, tracked=_within_reach(sam2, {**one.tracked, index: own}, index))
            for one, own in zip(self.objects, outputs, strict=True)
        )
        return prediction, PropagatorMemory(objects)

    def select(self, rows_K: Tensor) -> PropagatorMemory:
        """See [`sa2va.inference.memory_policies.ObjectMemory`]."""
        return PropagatorMemory(tuple(self.objects[row] for row in rows_K.tolist()))

    def without_tracked(self) -> PropagatorMemory:
        """See [`sa2va.inference.memory_policies.ObjectMemory`]."""
        return PropagatorMemory(tuple(replace(one, tracked={}) for one in self.objects))

    def first_prompted(self) -> PropagatorMemory:
        """See [`sa2va.inference.memory_policies.ObjectMemory`]."""
        return PropagatorMemory(
            tuple(replace(one, prompted=dict(list(one.prompted.items())[:1])) for one in self.objects)
        )


def _within_reach(propagator: PropagatorModel, tracked: Mapping[int, FrameOutput], last: int) -> dict[int, FrameOutput]:
    """Of tracked frames what can still be read after the last: pointers, and of the nearest ones the memory too."""
    pointers, slots = propagator.config.max_object_pointers_in_encoder - 1, propagator.num_maskmem - 1
    return {
        index: output if abs(last - index) < slots else {"object_pointer": output["object_pointer"]}
        for index, output in tracked.items()
        if abs(last - index) < pointers
    }
