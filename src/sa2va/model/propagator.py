"""Models that carry masks through a video: SAM 2 and 2.1, SAM 3's tracker, and EdgeTAM, as transformers has them.

All are one design, SAM 2's, with other image encoders and memories: from frames and masks on some of them they say
where the objects are on the others. Their own methods for one object on one frame are called; what an object remembers
is kept as data, since their session grows with the video and is changed in place.

Shape legend: K objects, C model width, S side of the model's picture, s of its low-resolution masks, h and w of its
coarsest features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from sa2va.model.mask_decoder import MASK_LOGIT, FrameFeatures, MaskPrediction
from sa2va.model.network import IMAGENET, normalized

if TYPE_CHECKING:
    from transformers import EdgeTamVideoModel, Sam2VideoModel, Sam3TrackerVideoModel

    PropagatorModel = Sam2VideoModel | Sam3TrackerVideoModel | EdgeTamVideoModel

#: What an object remembers of a frame, under transformers' names: its pointer, and its memory's features and places.
FrameOutput = Mapping[str, Tensor]

#: Mean and deviation of the pixels that the models were trained with.
_STATISTICS = {
    "sam2_video": IMAGENET,
    "edgetam_video": IMAGENET,
    "sam3_tracker_video": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class DrawnMasks(MaskPrediction):
    """Masks that were given instead of decoded.

    Attributes:
        masks: (K, S, S) float 0 or 1.
    """

    masks: Tensor

    def __getitem__(self, rows: slice | Tensor) -> DrawnMasks:
        return DrawnMasks(**vars(super().__getitem__(rows)), masks=self.masks[rows])


@dataclass(frozen=True)
class ObjectOutputs:
    """What one object remembers, by frame: those it was prompted on, and the last others."""

    prompted: Mapping[int, FrameOutput]
    tracked: Mapping[int, FrameOutput]


def encode_for_propagator(propagator: PropagatorModel, frames_FSS3: Tensor) -> FrameFeatures:
    """Run its image encoder once over uint8 frames (F, S, S, 3)."""
    pixels = normalized(frames_FSS3.to(propagator.device), *_STATISTICS[propagator.config.model_type])
    encoder: Any = propagator.vision_encoder
    seen = encoder(pixels.to(propagator.dtype))
    return FrameFeatures(*seen.fpn_hidden_states[:3])


def draw(propagator: PropagatorModel, features: FrameFeatures, masks_KSS: Tensor) -> DrawnMasks:
    """Take given masks as the output of one frame.

    Args:
        features: of exactly one frame. masks_KSS: float 0 or 1.
    """
    masks = masks_KSS.to(features.top.dtype)
    fine = _fine_features(propagator, features)
    outputs: list[Any] = [propagator._use_mask_as_output(features.top, fine, mask[None, None]) for mask in masks]
    return DrawnMasks(**_prediction(outputs), masks=masks)


def follow(
    propagator: PropagatorModel,
    objects: Sequence[ObjectOutputs],
    features: FrameFeatures,
    index: int,
    *,
    backward: bool = False,
) -> MaskPrediction:
    """Where objects are on one more frame, by what they remember.

    Unlike with the checkpoint's own SAM 2, all logits of an object with a low score are far below 0: so these models
    were trained, and so they remember what is out of sight.

    Args:
        features: of exactly one frame. index: its place in the video.
        backward: time runs towards frame 0.
    """
    session = Sam2VideoInferenceSession(
        inference_device=propagator.device, inference_state_device=propagator.device, dtype=propagator.dtype
    )
    session.output_dict_per_obj = {
        row: {"cond_frame_outputs": one.prompted, "non_cond_frame_outputs": one.tracked}
        for row, one in enumerate(objects)
    }
    # Three classes whose methods are called alike, though each names types of its own.
    model: Any = propagator
    place = model.vision_encoder.neck.position_encoding(features.top.shape, features.top.device, features.top.dtype)
    fine, multimask = _fine_features(propagator, features), propagator._use_multimask(False, None)
    outputs: list[Any] = []
    for row in range(len(objects)):
        conditioned = model._prepare_memory_conditioned_features(
            inference_session=session,
            frame_idx=index,
            obj_idx=row,
            is_initial_conditioning_frame=False,
            current_vision_features=_flat(features.top),
            current_vision_positional_embeddings=_flat(place),
            num_total_frames=0,  # not read in streams
            track_in_reverse_time=backward,
            streaming=True,
        )
        outputs.append(model._single_frame_forward(image_embeddings=[*fine, conditioned], multimask_output=multimask))
    return MaskPrediction(**_prediction(outputs))


def remember_frame(
    propagator: PropagatorModel, features: FrameFeatures, prediction: MaskPrediction, *, prompted: bool
) -> list[FrameOutput]:
    """What each object of a prediction remembers of its frame.

    Args:
        prompted: the frame was prompted; of its masks only the outlines are remembered then.
    """
    side: Any = propagator.config.image_size
    if isinstance(prediction, DrawnMasks):
        sharp, presence = (2 * prediction.masks[:, None] - 1) * MASK_LOGIT, prediction.masks.flatten(1).amax(1)
    else:
        low = prediction.logits[:, None].float()
        sharp = F.interpolate(low, size=(side, side), mode="bilinear", align_corners=False).to(features.top.dtype)
        presence = prediction.presence
    outputs = []
    for row, pointer in enumerate(prediction.pointer):
        memory, place = propagator._encode_new_memory(
            _flat(features.top), sharp[row : row + 1], presence[row].view(1, 1), is_mask_from_pts=prompted
        )
        outputs.append({"maskmem_features": memory, "maskmem_pos_enc": place, "object_pointer": pointer[None]})
    return outputs


def _fine_features(propagator: PropagatorModel, features: FrameFeatures) -> list[Tensor]:
    """The finer two of the pyramid, as the mask decoder reads them."""
    decoder = propagator.mask_decoder
    return [decoder.conv_s0(features.fine), decoder.conv_s1(features.middle)]


def _flat(grid_1Chw: Tensor) -> Tensor:
    """(1, C, h, w) -> (h * w, 1, C)."""
    return grid_1Chw.flatten(2).permute(2, 0, 1)


def _prediction(outputs: Sequence[Any]) -> dict[str, Tensor]:
    """Outputs of one object each as the fields of a prediction of all; of three masks the best was chosen."""
    candidates = torch.cat([output.pred_masks.flatten(0, 1)[:1, None] for output in outputs])
    return {
        "candidates": candidates,
        "ious": torch.stack([output.iou_scores.max() for output in outputs])[:, None],
        "best": torch.zeros(len(outputs), dtype=torch.long, device=candidates.device),
        "presence": torch.stack([output.object_score_logits.flatten()[0] for output in outputs]),
        "pointer": torch.stack([output.object_pointer.flatten() for output in outputs]),
    }
