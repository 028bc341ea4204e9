"""SAM 2 on single frames: image features, and masks decoded from prompts; differentiable and stateless.

SAM 2's forward pass in transformers runs under inference mode, loops over objects and takes no language prompt. Here
its submodules are borrowed and the control flow is ours: every prompt is one row of a batch, whatever frame it looks
at.

Shape legend: F frames, N prompts (each of one frame), P sparse prompt tokens, C model width, S side of the grounding
image, h = w = S/16, s = S/4 side of a low-resolution mask.

Source: SAM 2 (arXiv 2408.00714, section 4); Sa2VA (arXiv 2501.04001, section 3.2) for the language prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMaskDecoder

#: Logits that stand for "surely inside" and "surely outside" when a given mask replaces a decoded one.
MASK_LOGIT = 10.0
#: SAM 2 bounds the logits of a mask that it is prompted with.
_MOST_PROMPT_LOGIT = 32.0


@dataclass(frozen=True)
class FrameFeatures:
    """The feature pyramid of F frames, before the mask decoder's own 1x1 convolutions.

    Attributes:
        fine: (F, C, S/4, S/4). middle: (F, C, S/8, S/8). top: (F, C, S/16, S/16); same dtype as SAM 2's weights.
    """

    fine: Tensor
    middle: Tensor
    top: Tensor

    def __len__(self) -> int:
        return self.top.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory, bytes."""
        return self.fine.nbytes + self.middle.nbytes + self.top.nbytes

    def __getitem__(self, index: int | slice | Tensor) -> FrameFeatures:
        """The features of some frames; an integer keeps the frame axis."""
        rows = slice(index, index + 1 or None) if isinstance(index, int) else index
        return FrameFeatures(self.fine[rows], self.middle[rows], self.top[rows])

    @classmethod
    def cat(cls, parts: Sequence[FrameFeatures]) -> FrameFeatures:
        """The frames of several."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("fine", "middle", "top")))


@dataclass(frozen=True)
class MaskPrediction:
    """What the decoder says for N prompts; all three candidate masks and which of them was chosen.

    Attributes:
        candidates: (N, 3, s, s) mask logits; (N, 1, s, s) where no others were wanted. ious: (N, 3) predicted IoU in
            0..1. best: (N,) int64 index of the highest.
        presence: (N,) object-score logit; above 0 the object is thought to be in the frame.
        pointer: (N, C) object pointer for the memory, already replaced by "no object" where presence <= 0.
    """

    candidates: Tensor
    ious: Tensor
    best: Tensor
    presence: Tensor
    pointer: Tensor

    @property
    def logits(self) -> Tensor:
        """(N, s, s) logits of the chosen mask."""
        return self.candidates[torch.arange(len(self.best), device=self.best.device), self.best]

    @property
    def iou(self) -> Tensor:
        """(N,) predicted IoU of the chosen mask."""
        return self.ious.gather(1, self.best[:, None])[:, 0]

    @property
    def is_finite(self) -> Tensor:
        """(N,) bool, whether the chosen mask and its scores are without NaN and infinity."""
        finite = self.logits.isfinite().flatten(1).all(dim=1)
        return finite & self.iou.isfinite() & self.presence.isfinite()

    def __getitem__(self, rows: slice | Tensor) -> MaskPrediction:
        return MaskPrediction(
            self.candidates[rows], self.ious[rows], self.best[rows], self.presence[rows], self.pointer[rows]
        )

    @classmethod
    def cat(cls, parts: Sequence[MaskPrediction]) -> MaskPrediction:
        """The prompts of several."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def split(self, counts: Sequence[int]) -> list[MaskPrediction]:
        """The first ``counts[0]`` prompts, the next ``counts[1]``, and so on."""
        ends = [*accumulate(counts)]
        return [self[end - count : end] for count, end in zip(counts, ends, strict=True)]


def grounding_side(sam2: Sam2VideoModel) -> int:
    """Side of the square picture that SAM 2 sees, pixels."""
    side = sam2.image_size
    assert isinstance(side, int)  # the config class also allows other shapes, which no SAM 2 has
    return side


def encode_frames(sam2: Sam2VideoModel, pixels_F3SS: Tensor) -> FrameFeatures:
    """Run SAM 2's image encoder once over normalised frames.

    The neck of transformers also builds four position maps per frame that nothing here reads, so its convolutions are
    called directly.

    Args:
        pixels_F3SS: normalised float pixels; cast to the encoder's dtype.
    """
    encoder = sam2.vision_encoder
    side = grounding_side(sam2)
    if pixels_F3SS.ndim != 4 or pixels_F3SS.shape[1:] != (3, side, side):
        raise ValueError(f"grounding pixels must be (frames, 3, {side}, {side}); got {tuple(pixels_F3SS.shape)}")
    convs = encoder.neck.convs  # from the coarsest level to the finest
    stages = encoder.backbone(pixels_F3SS.to(convs[0].weight.dtype)).intermediate_hidden_states
    coarse, top, middle, fine = (
        conv(stage.permute(0, 3, 1, 2)) for conv, stage in zip(convs, reversed(stages), strict=True)
    )
    top = top + F.interpolate(coarse, scale_factor=2.0, mode="nearest")
    return FrameFeatures(fine, middle, top)


def language_tokens(sam2: Sam2VideoModel, prompts_NC: Tensor) -> Tensor:
    """Sparse prompt tokens (N, 3, C) of language embeddings: two "not a point" tokens, then the embedding."""
    padding = no_prompt_tokens(sam2, len(prompts_NC))
    return torch.cat([padding, prompts_NC[:, None].to(padding.dtype)], dim=1)


def no_prompt_tokens(sam2: Sam2VideoModel, count: int) -> Tensor:
    """Sparse prompt tokens (N, 2, C) that prompt nothing: what a tracked frame is decoded with."""
    return sam2.prompt_encoder.not_a_point_embed.weight.expand(count, 2, -1)


def point_tokens(sam2: Sam2VideoModel, points_NP2: Tensor, labels_NP: Tensor) -> Tensor:
    """Sparse prompt tokens (N, P+1, C) of clicks.

    Args:
        points_NP2: float (x, y) in pixels of the S x S grounding image.
        labels_NP: int; 1 inside, 0 outside, 2 and 3 the corners of a box, -1 padding.
    """
    tokens = sam2.prompt_encoder._embed_points(points_NP2[:, None].float(), labels_NP[:, None], pad=True)
    return tokens[:, 0].to(sam2.no_memory_embedding.dtype)


def mask_prompt(sam2: Sam2VideoModel, logits_NHW: Tensor) -> Tensor:
    """Dense prompt (N, C, h, w) of rough masks, as SAM 2 is prompted with masks to correct.

    Args:
        logits_NHW: of any size; those of a mask that is just drawn are [`MASK_LOGIT`] inside and its negative outside.
    """
    side = grounding_side(sam2) // 4
    bounded = logits_NHW[:, None].float().clamp(-_MOST_PROMPT_LOGIT, _MOST_PROMPT_LOGIT)
    if bounded.shape[-2:] != (side, side):
        bounded = F.interpolate(bounded, size=(side, side), mode="bilinear", antialias=True)
    return sam2.prompt_encoder.mask_embed(bounded.to(sam2.no_memory_embedding.dtype))


class DecodingOptions(TypedDict, total=False):
    """Keywords of [`decode_masks`] and [`decode_candidates`].

    Attributes:
        frame_of_prompt_N: int64 frame index of each prompt; None where all prompts look at the only frame.
        conditioned_NChw: image features that memory attention has seen, one per prompt; None decodes without memory.
        dense_NChw: rough masks, see [`mask_prompt`]; None prompts without.
        multimask: three candidates; False for the one mask of a prompt that leaves no doubt which object it means.
    """

    frame_of_prompt_N: Tensor | None
    conditioned_NChw: Tensor | None
    dense_NChw: Tensor | None
    multimask: bool


def decode_masks(
    sam2: Sam2VideoModel,
    decoder: Sam2VideoMaskDecoder,
    features: FrameFeatures,
    sparse_NPC: Tensor,
    **options: Unpack[DecodingOptions],
) -> MaskPrediction:
    """Decode N prompts, each on its own frame, as one batch; see [`decode_candidates`]."""
    return decode_candidates(sam2, decoder, features, sparse_NPC, **options)[0]


def decode_candidates(
    sam2: Sam2VideoModel,
    decoder: Sam2VideoMaskDecoder,
    features: FrameFeatures,
    sparse_NPC: Tensor,
    *,
    frame_of_prompt_N: Tensor | None = None,
    conditioned_NChw: Tensor | None = None,
    dense_NChw: Tensor | None = None,
    multimask: bool = True,
) -> tuple[MaskPrediction, Tensor]:
    """Decode N prompts, each on its own frame, as one batch, and keep what [`with_candidate`] needs.

    Unlike transformers, logits are not blanked where the object score is low: the released weights were trained
    without.

    Args:
        decoder: the mask decoder to use; a Sa2VA-i checkpoint has two.
        features: of F frames.
        sparse_NPC: sparse prompt tokens, see [`language_tokens`].
        frame_of_prompt_N, conditioned_NChw, dense_NChw, multimask: see [`DecodingOptions`].

    Returns:
        the prediction, and (N, 3, C) the decoder's output token of each candidate mask.
    """
    count = len(sparse_NPC)
    if frame_of_prompt_N is None:
        if len(features) != 1:
            raise ValueError(f"{len(features)} frames need frame_of_prompt_N to say which prompt looks at which frame")
        frame_of_prompt_N = torch.zeros(count, dtype=torch.long, device=sparse_NPC.device)
    if conditioned_NChw is None:
        top = features.top + sam2.no_memory_embedding.reshape(1, -1, 1, 1)
        conditioned_NChw = top[frame_of_prompt_N]
    fine = decoder.conv_s0(features.fine)[frame_of_prompt_N]
    middle = decoder.conv_s1(features.middle)[frame_of_prompt_N]
    candidates, ious, tokens, presence = decoder(
        image_embeddings=conditioned_NChw,
        image_positional_embeddings=dense_position(sam2, conditioned_NChw).expand(count, -1, -1, -1),
        sparse_prompt_embeddings=sparse_NPC[:, None],
        dense_prompt_embeddings=(
            sam2.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1) if dense_NChw is None else dense_NChw
        ),
        multimask_output=multimask,
        high_resolution_features=[fine, middle],
    )
    candidates, ious, tokens = candidates[:, 0], ious[:, 0], tokens[:, 0]
    presence = presence[:, 0, 0]
    best = ious.argmax(dim=1)
    token = tokens[torch.arange(count, device=best.device), best]
    return MaskPrediction(candidates, ious, best, presence, _gated_pointer(sam2, token, presence > 0)), tokens


def with_candidate(
    sam2: Sam2VideoModel, prediction: MaskPrediction, tokens_N3C: Tensor, candidate_N: Tensor
) -> MaskPrediction:
    """The same prediction with other masks chosen, int64 0 to 2 for each; see [`decode_candidates`]."""
    token = tokens_N3C[torch.arange(len(candidate_N), device=candidate_N.device), candidate_N]
    pointer = _gated_pointer(sam2, token, prediction.presence > 0)
    return replace(prediction, best=candidate_N, pointer=pointer)


def mask_as_prediction(
    sam2: Sam2VideoModel, decoder: Sam2VideoMaskDecoder, features: FrameFeatures, masks_NSS: Tensor
) -> MaskPrediction:
    """Take given masks as the output of one frame: only the object pointer is computed.

    Args:
        features: of exactly one frame.
        masks_NSS: float 0/1 masks at the grounding side.
    """
    count = len(masks_NSS)
    masks = masks_NSS[:, None].to(features.top.dtype)
    logits = (2 * masks - 1) * MASK_LOGIT
    side = grounding_side(sam2) // 4
    low = F.interpolate(logits.float(), size=(side, side), mode="bilinear", antialias=True).to(logits.dtype)
    top = features.top.expand(count, -1, -1, -1)
    _, _, tokens, presence = decoder(
        image_embeddings=top,
        image_positional_embeddings=dense_position(sam2, top).expand(count, -1, -1, -1),
        sparse_prompt_embeddings=no_prompt_tokens(sam2, count)[:, None],
        dense_prompt_embeddings=sam2.prompt_encoder.mask_embed(sam2.mask_downsample(masks)),
        multimask_output=False,
        high_resolution_features=[
            decoder.conv_s0(features.fine).expand(count, -1, -1, -1),
            decoder.conv_s1(features.middle).expand(count, -1, -1, -1),
        ],
    )
    present = masks.flatten(1).any(dim=1)
    pointer = _gated_pointer(sam2, tokens[:, 0, 0], (presence[:, 0, 0] > 0) & present)
    return MaskPrediction(
        candidates=low,
        ious=low.new_ones(count, 1),
        best=torch.zeros(count, dtype=torch.long, device=low.device),
        presence=(2 * present.to(low.dtype) - 1) * MASK_LOGIT,
        pointer=pointer,
    )


def upsample_logits(logits_Nss: Tensor, side: int | None, size: tuple[int, int]) -> Tensor:
    """Low-resolution logits (N, s, s) -> a picture's (height, width): (N, H, W) float32.

    Args:
        side: the grounding side to pass through in a bilinear step of its own, as the released code does; None goes to
            the picture in one step, as Sa2VA-i does, which gives other values near edges.
    """
    logits = logits_Nss[:, None].float()
    if side is not None:
        logits = F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[:, 0]


def dense_position(sam2: Sam2VideoModel, like_NChw: Tensor) -> Tensor:
    """(1, C, h, w) random-Fourier position code of the feature grid, computed in float32, in the features' dtype."""
    height, width = like_NChw.shape[-2:]
    matrix = sam2.shared_image_embedding.positional_embedding.float()
    y, x = torch.meshgrid(
        (torch.arange(height, device=matrix.device) + 0.5) / height,
        (torch.arange(width, device=matrix.device) + 0.5) / width,
        indexing="ij",
    )
    angles = 2 * math.pi * ((2 * torch.stack([x, y], dim=-1) - 1) @ matrix)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1)[None].to(like_NChw.dtype)


def _gated_pointer(sam2: Sam2VideoModel, token_NC: Tensor, present_N: Tensor) -> Tensor:
    """Object pointers, replaced by the learned "no object" pointer where the object is absent."""
    pointer = sam2.object_pointer_proj(token_NC)
    return torch.where(present_N[:, None], pointer, sam2.no_object_pointer.to(pointer.dtype))
