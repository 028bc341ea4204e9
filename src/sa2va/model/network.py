"""The whole network: the hidden states of a vision-language model at ``[SEG]`` prompt SAM 2.

One forward pass serves training and inference: tokens and pixels go in, text logits and mask logits come out. Pictures
travel as uint8, a quarter of the bytes of float32, through data loaders and to the device, and are normalised there, in
float32 and in the order of the released code, bit for bit.

Shape legend: B samples, L tokens, D hidden width, C width of SAM 2, K objects, F frames, S grounding side, N
object-frame pairs.

Source: Sa2VA (arXiv 2501.04001, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel, Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMaskDecoder

from sa2va.model import language
from sa2va.model.configuration import Sa2VAConfig
from sa2va.model.families import IGNORED_LABEL
from sa2va.model.generation import Generated, GenerationOptions, PromptReader, Reading, RowBatch
from sa2va.model.language import PromptCache, VisualTokens
from sa2va.model.mask_decoder import (
    FrameFeatures,
    MaskPrediction,
    decode_masks,
    encode_frames,
    language_tokens,
    point_tokens,
)
from sa2va.model.memory import propagate
from sa2va.model.types import Batch, Sa2VAOutput, equal_clips, object_frame_pairs

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# The released models keep the statistics of SAM 2's pixels in bfloat16.
_GROUNDING_MEAN, _GROUNDING_STD = (
    torch.tensor(values).bfloat16().float().tolist() for values in (_IMAGENET_MEAN, _IMAGENET_STD)
)


class MaskProjection(nn.Module):
    """Two layers from a ``[SEG]`` state (..., D) to a mask prompt (..., C)."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(hidden_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, width)

    def forward(self, states: Tensor) -> Tensor:
        return self.linear_2(self.linear_1(states).relu())


class Sa2VANetwork(PreTrainedModel):
    """A vision-language model, SAM 2, and the projection between them: tensors in, tensors out.

    Users load the subclass [`sa2va.Sa2VAModel`], which adds files and the released interface.

    Attributes:
        vlm: the transformers vision-language model.
        sam2: a ``Sam2VideoModel``; its parts are used, its ``forward`` never is.
        projection: from the hidden state at ``[SEG]`` to a mask prompt.
        original_mask_decoder: SAM 2's own mask decoder, in Sa2VA-i checkpoints; None elsewhere. ``sam2.mask_decoder``
            is the fine-tuned one.
    """

    config_class = Sa2VAConfig
    config: Sa2VAConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Sa2VAConfig):
        super().__init__(config)
        self.vlm = AutoModelForImageTextToText.from_config(config.vlm_config)
        self.sam2 = Sam2VideoModel(config.sam2_config)
        hidden_size = config.vlm_config.get_text_config().hidden_size
        self.projection = MaskProjection(hidden_size, config.sam2_config.mask_decoder_config.hidden_size)
        self.original_mask_decoder = (
            Sam2VideoMaskDecoder(config.sam2_config.mask_decoder_config) if config.original_mask_decoder else None
        )
        self._no_split_modules = [
            *(self.vlm._no_split_modules or ()),
            "Sam2MultiScaleBlock",
            "Sam2VideoMemoryAttentionLayer",
            "Sam2VideoMaskDecoder",
        ]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vlm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.vlm.get_output_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        # The parts initialise themselves; the projection keeps torch's default, as in the reference.
        if not isinstance(module, nn.Linear):
            super()._init_weights(module)

    def encode_images(self, pixel_values: Tensor, image_grid_thw: Tensor | None = None, **layout: Any) -> VisualTokens:
        """Run the vision tower once, for all prompts about the same images.

        Args:
            pixel_values: as in [`Batch`].
            image_grid_thw: patch grids (Qwen families).
            layout: ``tiles_per_sample`` and ``regions`` (InternVL families).
        """
        device: Any = self.get_input_embeddings().weight.device
        pixel_values = pixel_values.to(device)
        if image_grid_thw is not None:
            image_grid_thw = image_grid_thw.to(device)
        else:
            pixel_values = normalized_tiles(pixel_values)
        return language.encode_images(self.vlm, pixel_values, image_grid_thw, **layout)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        visual: VisualTokens | None = None,
        *,
        options: GenerationOptions | None = None,
        is_finished: Callable[[list[int]], bool],
        on_token: Callable[[int, int], None] | None = None,
        draft: Sequence[int] = (),
    ) -> list[Generated]:
        """Answer prompts about the same images as one batch.

        Args:
            prompts: token ids of each prompt, image tokens expanded.
            visual: the features of the images, shared by all prompts.
            options: how answers are decoded; None means greedily.
            is_finished: called with the new tokens of a row; whether they end the answer.
            on_token: called with (row, token) for every new token.
            draft: token ids of an answer that may be the one to come; see [`Reading`].

        Raises:
            FloatingPointError: the logits are NaN or infinite.
        """
        kept = PromptCache()
        readings = [
            Reading(
                prompt,
                visual,
                options or GenerationOptions(),
                is_finished,
                None if on_token is None else partial(on_token, number),
                kept,
                draft,
            )
            for number, prompt in enumerate(prompts)
        ]
        family = self.config.family
        rows = PromptReader(self.vlm, family, self.config.seg_token_id).read(readings)
        return RowBatch(self.vlm, family).write(rows)

    def encode_frames(self, frames_FSS3: Tensor) -> FrameFeatures:
        """Run SAM 2's image encoder once, for all prompts and objects.

        Args:
            frames_FSS3: uint8 (F, S, S, 3), resized to the square input without keeping the aspect ratio.
        """
        frames_FSS3 = frames_FSS3.to(self.sam2.no_memory_embedding.device)
        return encode_frames(self.sam2, normalized_frames(frames_FSS3))

    def forward(
        self,
        batch: Batch,
        *,
        prompted: Callable[[int], Sequence[int]] | None = None,
        labelled_only: bool = False,
    ) -> Sa2VAOutput:
        """Text logits of every token and mask logits of every ``[SEG]``; for a batch of clicks, mask logits only.

        Args:
            batch: samples, see [`Batch`].
            prompted: from the number of frames of a clip to the frames that are prompted, the first among them; SAM 2's
                memory propagates the masks to the others, as at inference. None prompts every frame and uses no memory
                (the released training recipe).
            labelled_only: compute logits only where the next token has a label, which is all that training reads.

        Raises:
            ValueError: the numbers of image tokens and features, or of ``[SEG]`` tokens and target masks, differ in a
                sample; or a sample with ``[SEG]`` has no grounding frames.
        """
        if batch.points is not None and batch.point_labels is not None:
            objects = tuple(0 if masks is None else len(masks) for masks in batch.masks or ())
            tokens = point_tokens(self.sam2, batch.points, batch.point_labels)
            return Sa2VAOutput(None, self._predict_masks(batch, tokens, objects, prompted), objects)
        visual = None
        if batch.pixel_values is not None:
            visual = self.encode_images(
                batch.pixel_values,
                batch.image_grid_thw,
                tiles_per_sample=batch.tiles_per_sample,
                regions=batch.regions,
            )
        states = language.run_language_model(
            self.vlm,
            self.config.family,
            language.embed_tokens(self.vlm, batch.input_ids, visual),
            language.positions(self.vlm, batch.input_ids, batch.attention_mask, batch.image_grid_thw),
            batch.attention_mask,
            visual=visual,
            is_image_BL=language.image_tokens(self.vlm, batch.input_ids),
        )
        is_seg = (batch.input_ids == self.config.seg_token_id) & batch.attention_mask
        objects = tuple(is_seg.sum(dim=1).tolist())
        _check_objects(batch, objects)
        seg_states = states.seg[is_seg]
        tokens = language_tokens(self.sam2, self.projection(seg_states))
        pair_object, _ = object_frame_pairs(objects, _frames(batch, objects), tokens.device)
        masks = self._predict_masks(batch, tokens[pair_object], objects, prompted)
        normed = states.normed
        if labelled_only and batch.labels is not None:
            normed = normed[:, :-1][batch.labels[:, 1:] != IGNORED_LABEL]
        return Sa2VAOutput(self.vlm.lm_head(normed), masks, objects, seg_states)

    def _predict_masks(
        self,
        batch: Batch,
        tokens_NPC: Tensor,
        objects: tuple[int, ...],
        prompted: Callable[[int], Sequence[int]] | None,
    ) -> MaskPrediction | None:
        """Masks of all object-frame pairs, ordered by sample, object, frame, from one set of prompt tokens each."""
        if batch.grounding_pixels is None or not sum(objects):
            return None
        frames = _frames(batch, objects)
        features = self.encode_frames(batch.grounding_pixels)
        if prompted is None:
            _, pair_frame = object_frame_pairs(objects, frames, tokens_NPC.device)
            return decode_masks(self.sam2, self.sam2.mask_decoder, features, tokens_NPC, frame_of_prompt_N=pair_frame)
        parts, order = [], []
        for clips in equal_clips(objects, frames, tokens_NPC.device):
            steps = propagate(
                self.sam2,
                self.sam2.mask_decoder,
                [features[frames_B] for frames_B in clips.frames_TB],
                tokens_NPC[clips.pairs_KT],
                prompted(len(clips.frames_TB)),
                clip_of_object_K=clips.clip_of_object_K,
            )
            parts.append(_concatenate(list(steps)))
            order.append(clips.pairs_KT.T.flatten())
        return _concatenate(parts)[torch.cat(order).argsort()]


def _check_objects(batch: Batch, objects: tuple[int, ...]) -> None:
    for sample, count in enumerate(objects):
        if (
            batch.grounding_pixels is not None
            and batch.frames_per_sample
            and count
            and not batch.frames_per_sample[sample]
        ):
            raise ValueError(f"{batch.name(sample)} has {count} [SEG] tokens but no grounding frames")
        if batch.masks is None:
            continue
        target = batch.masks[sample]
        given = 0 if target is None else len(target)
        if given != count:
            raise ValueError(
                f"{batch.name(sample)} has {count} [SEG] tokens but {given} masks; "
                "each [SEG] of the answers needs exactly one mask"
            )


def _frames(batch: Batch, objects: tuple[int, ...]) -> tuple[int, ...]:
    """Grounding frames of each sample."""
    return batch.frames_per_sample or (1 if batch.grounding_pixels is not None else 0,) * len(objects)


def _concatenate(parts: Sequence[MaskPrediction]) -> MaskPrediction:
    return MaskPrediction(
        *(torch.cat([getattr(part, name) for part in parts]) for name in MaskPrediction.__dataclass_fields__)
    )


def normalized_tiles(tiles_NHW3: Tensor) -> Tensor:
    """Tiles for the vision tower of an InternVL model: uint8 RGB (N, H, W, 3) to float32 (N, 3, H, W).

    Raises:
        ValueError: no such pictures.
    """
    return _normalized(tiles_NHW3, _IMAGENET_MEAN, _IMAGENET_STD)


def normalized_frames(frames_FSS3: Tensor) -> Tensor:
    """Squashed frames for SAM 2: uint8 RGB (F, S, S, 3) to float32 (F, 3, S, S).

    Raises:
        ValueError: no such pictures.
    """
    return _normalized(frames_FSS3, _GROUNDING_MEAN, _GROUNDING_STD)


def _normalized(pictures_NHW3: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    shape, dtype = tuple(pictures_NHW3.shape), pictures_NHW3.dtype
    if dtype != torch.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise ValueError(
            f"expected pictures as uint8 (pictures, height, width, 3), got {dtype} {shape}; "
            "the processor resizes them, and the model normalises what it is given"
        )
    values = pictures_NHW3.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    mean_C11, std_C11 = (torch.tensor(numbers, device=values.device)[:, None, None] for numbers in (mean, std))
    return values.div_(255).sub_(mean_C11).div_(std_C11)
