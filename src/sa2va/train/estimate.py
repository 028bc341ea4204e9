"""Estimate the memory of a run per process before it starts.

Weights, gradients and optimizer state are exact. Activations are counted from the shapes of the largest of the encoded
samples at hand, layer by layer, and are good to a factor of about two: kernels differ in what they keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sa2va.data.encode import Encoded
from sa2va.model.configuration import STRIDE
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.train.config import TrainConfig
from sa2va.train.trainable import PlanRow

#: Tensors as wide as the model that a transformer layer keeps: norms, queries, attention output, residuals.
_WIDE_PER_LAYER = 8
#: The same for the hidden width of its feed-forward part: gate, up, activation, product.
_HIDDEN_PER_LAYER = 4
#: Feature maps that SAM 2's decoder keeps per mask, at the feature grid; and with recomputation of its two layers.
_MAPS_PER_MASK, _MAPS_RECOMPUTED = 40, 8


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes in one process. Attributes: weights; gradients; optimizer; activations (rough)."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(
    model: Sa2VAModel, plan: tuple[PlanRow, ...], probes: tuple[Encoded, ...], config: TrainConfig
) -> MemoryEstimate:
    """The memory of a run without sharding.

    Args:
        plan: what is trained. probes: encoded samples; the largest stands for all.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    width = 2 if config.precision == "bf16" else 4
    full = {row.part for row in plan if row.trained}
    activations = max(_of_sample(model, probe, full, config) for probe in probes) * config.batch_size * width
    return MemoryEstimate(weights, 4 * trained, 8 * trained, activations)


def _of_sample(model: Sa2VAModel, sample: Encoded, trained: set[Any], config: TrainConfig) -> int:
    """Numbers that the backward pass of one sample reads."""
    recompute = config.checkpoint_activations
    masks = 0 if sample.masks is None else sample.masks.shape[0] * sample.masks.shape[1]
    stacks = [_text(model, sample)]
    if "vision" in trained and sample.pixel_values is not None:
        stacks.append(_vision(model, sample))
    if "image_encoder" in trained and sample.grounding is not None:
        stacks += _image_encoder(model, len(sample.grounding))
    if recompute:  # the input of each layer, and the inside of one at a time
        layers = sum(stack.depth * stack.tokens * stack.width for stack in stacks) + max(s.inside for s in stacks)
    else:
        layers = sum(stack.depth * stack.inside for stack in stacks)
    logits = 3 * int((sample.labels >= 0).sum()) * model.config.get_text_config().vocab_size
    return layers + logits + masks * _decoder(model, recompute)


@dataclass(frozen=True)
class _Stack:
    """Transformer layers of one size."""

    tokens: int
    depth: int
    width: int
    hidden: int

    @property
    def inside(self) -> int:
        """Numbers that one layer keeps."""
        return self.tokens * (_WIDE_PER_LAYER * self.width + _HIDDEN_PER_LAYER * self.hidden)


def _text(model: Sa2VAModel, sample: Encoded) -> _Stack:
    text: Any = model.config.get_text_config()
    return _Stack(len(sample.ids), text.num_hidden_layers, text.hidden_size, text.intermediate_size)


def _vision(model: Sa2VAModel, sample: Encoded) -> _Stack:
    vision: Any = model.config.vlm_config.vision_config  # type: ignore[union-attr]
    if sample.image_grid_thw is not None:
        tokens, depth = int(sample.image_grid_thw.prod(dim=1).sum()), vision.depth
    else:
        assert sample.pixel_values is not None
        patches = vision.image_size[0] // vision.patch_size[0]
        tokens, depth = len(sample.pixel_values) * (patches**2 + 1), vision.num_hidden_layers
    return _Stack(tokens, depth, vision.hidden_size, vision.intermediate_size)


def _image_encoder(model: Sa2VAModel, frames: int) -> list[_Stack]:
    """Hiera: four stages, each with a quarter of the cells and twice the channels of the one before."""
    sam2: Any = model.config.sam2_config
    backbone = sam2.vision_config.backbone_config
    cells = frames * (sam2.image_size // 4) ** 2
    stages = zip(backbone.blocks_per_stage, backbone.embed_dim_per_stage, strict=True)
    return [_Stack(cells // 4**k, blocks, dim, 4 * dim) for k, (blocks, dim) in enumerate(stages)]


def _decoder(model: Sa2VAModel, recompute: bool) -> int:
    """SAM 2's mask decoder for one mask: maps at the feature grid, their upscaling, four masks."""
    sam2: Any = model.config.sam2_config
    cells, width = (sam2.image_size // STRIDE) ** 2, sam2.mask_decoder_config.hidden_size
    upscaled = 4 * (4 * cells) * (width // 4) + 3 * (16 * cells) * (width // 8)
    return (_MAPS_RECOMPUTED if recompute else _MAPS_PER_MASK) * cells * width + upscaled + 4 * 16 * cells
