"""Released tensor names and ours: one table per part, read in both directions.

A rule pairs released names with native ones. Names are templates: ``{i}``, ``{j}`` stand for a number, ``{p}`` for
weight or bias, ``{rest}`` for anything. Most rules rename; a few also reshape, through an [`Op`] that has an exact
inverse. Native names are those of [`Sa2VAModel`]: ``vlm.*`` (transformers' classes), ``sam2.*`` (``Sam2VideoModel``),
``projection.*``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

_FIELDS = {"i": r"\d+", "j": r"\d+", "p": r"weight|bias", "rest": r".+"}


@dataclass(frozen=True)
class Op:
    """Two named tensor functions, each the other's inverse."""

    to_native: Callable[[list[Tensor]], list[Tensor]]
    to_released: Callable[[list[Tensor]], list[Tensor]]


SAME = Op(to_native=list, to_released=list)


@dataclass(frozen=True)
class Rule:
    """Released name templates and the native ones that hold the same numbers."""

    released: tuple[str, ...]
    native: tuple[str, ...]
    op: Op = SAME

    @cached_property
    def released_patterns(self) -> list[re.Pattern[str]]:
        return [_pattern(template) for template in self.released]

    @cached_property
    def native_patterns(self) -> list[re.Pattern[str]]:
        return [_pattern(template) for template in self.native]


@dataclass(frozen=True)
class Move:
    """A rule applied to actual names."""

    released: tuple[str, ...]
    native: tuple[str, ...]
    op: Op


def rename(released: str, native: str) -> Rule:
    """A rule that changes the name only."""
    return Rule((released,), (native,))


def plan_to_native(rules: Sequence[Rule], names: Iterable[str]) -> tuple[list[Move], list[str]]:
    """How released names become native ones: the moves, and the names no rule knows."""
    return _plan(rules, names, lambda rule: rule.released_patterns)


def plan_to_released(rules: Sequence[Rule], names: Iterable[str]) -> tuple[list[Move], list[str]]:
    """How native names become released ones: the moves, and the names no rule knows."""
    return _plan(rules, names, lambda rule: rule.native_patterns)


def _plan(
    rules: Sequence[Rule], names: Iterable[str], patterns: Callable[[Rule], list[re.Pattern[str]]]
) -> tuple[list[Move], list[str]]:
    moves: dict[tuple, Move] = {}
    unknown = []
    for name in names:
        match = next(
            (
                (number, rule, found.groupdict())
                for number, rule in enumerate(rules)
                for pattern in patterns(rule)
                if (found := pattern.fullmatch(name))
            ),
            None,
        )
        if match is None:
            unknown.append(name)
            continue
        number, rule, fields = match
        fill = lambda templates, fields=fields: tuple(t.format(**fields) for t in templates)  # noqa: E731
        moves[number, tuple(fields.items())] = Move(fill(rule.released), fill(rule.native), rule.op)
    return list(moves.values()), unknown


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    for field, expression in _FIELDS.items():
        escaped = escaped.replace(re.escape("{" + field + "}"), f"(?P<{field}>{expression})")
    return re.compile(escaped)


# --- tensor functions -------------------------------------------------------------------------------------------------

THREE_BLOCKS = Op(
    to_native=lambda tensors: list(tensors[0].chunk(3)),
    to_released=lambda tensors: [torch.cat(tensors)],
)
ROWS = Op(
    to_native=lambda tensors: [torch.cat(tensors)],
    to_released=lambda tensors: list(tensors[0].split(1)),
)
TWO_COPIES = Op(
    to_native=lambda tensors: [tensors[0], tensors[0]],
    to_released=lambda tensors: [tensors[0]],
)


def grouped_qkv(heads: int, kv_heads: int, head_dim: int) -> Op:
    """InternLM2 interleaves, per key-value head: its query heads, then the key, then the value."""
    group = heads // kv_heads

    def to_native(tensors: list[Tensor]) -> list[Tensor]:
        rows = tensors[0].view(kv_heads, group + 2, head_dim, -1)
        query, key, value = rows.split([group, 1, 1], dim=1)
        return [part.reshape(-1, rows.shape[-1]) for part in (query, key, value)]

    def to_released(tensors: list[Tensor]) -> list[Tensor]:
        parts = [t.view(kv_heads, -1, head_dim, t.shape[-1]) for t in tensors]
        return [torch.cat(parts, dim=1).flatten(0, 2)]

    return Op(to_native, to_released)


# --- tables -----------------------------------------------------------------------------------------------------------


def internvl_rules(text: Any) -> list[Rule]:
    """Vision tower, projector and language model of the InternVL families.

    Args:
        text: the native text config; of ``model_type`` ``"llama"`` where the release holds InternLM2.
    """
    if text.model_type != "llama":
        return [*_INTERNVIT, *_LANGUAGE_MODEL]
    return [*_INTERNVIT, *_internlm2(text.num_attention_heads, text.num_key_value_heads, text.head_dim)]


_TOWER = "vlm.model.vision_tower."
_LAYER = "vision_model.encoder.layers.{i}."
_OUR_LAYER = _TOWER + "encoder.layer.{i}."
_INTERNVIT = [
    rename("vision_model.embeddings.class_embedding", _TOWER + "embeddings.cls_token"),
    rename("vision_model.embeddings.position_embedding", _TOWER + "embeddings.position_embeddings"),
    rename("vision_model.embeddings.patch_embedding.{p}", _TOWER + "embeddings.patch_embeddings.projection.{p}"),
    rename(_LAYER + "norm1.{p}", _OUR_LAYER + "layernorm_before.{p}"),
    rename(_LAYER + "norm2.{p}", _OUR_LAYER + "layernorm_after.{p}"),
    rename(_LAYER + "ls1", _OUR_LAYER + "lambda_1"),
    rename(_LAYER + "ls2", _OUR_LAYER + "lambda_2"),
    rename(_LAYER + "attn.q_norm.weight", _OUR_LAYER + "attention.q_norm.weight"),
    rename(_LAYER + "attn.k_norm.weight", _OUR_LAYER + "attention.k_norm.weight"),
    rename(_LAYER + "attn.proj.{p}", _OUR_LAYER + "attention.projection_layer.{p}"),
    rename(_LAYER + "mlp.fc1.{p}", _OUR_LAYER + "mlp.fc1.{p}"),
    rename(_LAYER + "mlp.fc2.{p}", _OUR_LAYER + "mlp.fc2.{p}"),
    Rule(
        (_LAYER + "attn.qkv.{p}",),
        tuple(_OUR_LAYER + f"attention.{part}_proj.{{p}}" for part in "qkv"),
        THREE_BLOCKS,
    ),
    rename("mlp1.0.{p}", "vlm.model.multi_modal_projector.layer_norm.{p}"),
    rename("mlp1.1.{p}", "vlm.model.multi_modal_projector.linear_1.{p}"),
    rename("mlp1.3.{p}", "vlm.model.multi_modal_projector.linear_2.{p}"),
]
_LANGUAGE_MODEL = [
    rename("language_model.model.{rest}", "vlm.model.language_model.{rest}"),
    rename("language_model.lm_head.weight", "vlm.lm_head.weight"),
]


def _internlm2(heads: int, kv_heads: int, head_dim: int) -> list[Rule]:
    layer, ours = "language_model.model.layers.{i}.", "vlm.model.language_model.layers.{i}."
    return [
        rename("language_model.model.tok_embeddings.weight", "vlm.model.language_model.embed_tokens.weight"),
        rename("language_model.model.norm.weight", "vlm.model.language_model.norm.weight"),
        rename("language_model.output.weight", "vlm.lm_head.weight"),
        rename(layer + "attention.wo.weight", ours + "self_attn.o_proj.weight"),
        rename(layer + "attention_norm.weight", ours + "input_layernorm.weight"),
        rename(layer + "ffn_norm.weight", ours + "post_attention_layernorm.weight"),
        rename(layer + "feed_forward.w1.weight", ours + "mlp.gate_proj.weight"),
        rename(layer + "feed_forward.w3.weight", ours + "mlp.up_proj.weight"),
        rename(layer + "feed_forward.w2.weight", ours + "mlp.down_proj.weight"),
        Rule(
            (layer + "attention.wqkv.weight",),
            tuple(ours + f"self_attn.{part}_proj.weight" for part in "qkv"),
            grouped_qkv(heads, kv_heads, head_dim),
        ),
    ]


#: Qwen families: the release wraps the transformers class in one more attribute.
QWEN_RULES = [rename("model.{rest}", "vlm.{rest}")]


def modern_qwen_name(name: str) -> str:
    """A released Qwen name as transformers 4.52 to 4.57 spell it; older and later releases write fewer levels."""
    name = re.sub(r"^(model\.)*visual\.", "model.model.visual.", name)
    name = re.sub(r"^(model\.)*(language_model\.)?lm_head\.", "model.lm_head.", name)
    part = r"(?=(layers|embed_tokens|norm)\.)"
    return re.sub(rf"^(model\.)*(language_model\.)?(model\.)?{part}", "model.model.language_model.", name)


#: The two linear layers from a ``[SEG]`` state to a mask prompt.
PROJECTION_RULES = [
    rename("text_hidden_fcs.0.{p}", "projection.linear_1.{p}"),
    rename("text_hidden_fcs.2.{p}", "projection.linear_2.{p}"),
]


def sam2_rules(released: str = "grounding_encoder.sam2_model.", native: str = "sam2.", *, two_decoders: bool = False):
    """SAM 2 from Meta's names to ``Sam2VideoModel``'s.

    Args:
        released, native: prefixes of the names; Meta's own files have none.
        two_decoders: a Sa2VA-i checkpoint, where ``sam_mask_decoder`` is SAM 2's original decoder and the fine-tuned
            one is ``sam_mask_decoder_modified``.
    """
    rules = [rename(released + ours, native + theirs) for ours, theirs in _SAM2]
    rules += [
        Rule(
            (released + "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",),
            (
                native + "shared_image_embedding.positional_embedding",
                native + "prompt_encoder.shared_embedding.positional_embedding",
            ),
            TWO_COPIES,
        ),
        Rule(
            tuple(released + f"sam_prompt_encoder.point_embeddings.{row}.weight" for row in range(4)),
            (native + "prompt_encoder.point_embed.weight",),
            ROWS,
        ),
    ]
    tuned = "sam_mask_decoder_modified." if two_decoders else "sam_mask_decoder."
    rules += _decoder_rules(released + tuned, native + "mask_decoder.")
    if two_decoders:
        rules += _decoder_rules(released + "sam_mask_decoder.", "original_mask_decoder.")
    return rules


def _decoder_rules(released: str, native: str) -> list[Rule]:
    return [rename(released + theirs, native + ours) for theirs, ours in _MASK_DECODER]


def _mlp(theirs: str, ours: str, depth: int) -> list[tuple[str, str]]:
    """Meta numbers the layers of an MLP; transformers names the first and the last."""
    names = ["proj_in", *(f"layers.{i}" for i in range(depth - 2)), "proj_out"]
    return [(f"{theirs}.layers.{i}.{{p}}", f"{ours}.{name}.{{p}}") for i, name in enumerate(names)]


def _attention(theirs: str, ours: str) -> list[tuple[str, str]]:
    parts = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "out_proj": "o_proj"}
    return [(f"{theirs}.{their}.{{p}}", f"{ours}.{our}.{{p}}") for their, our in parts.items()]


def _norms(theirs: str, ours: str, count: int) -> list[tuple[str, str]]:
    return [(f"{theirs}norm{n}.{{p}}", f"{ours}layer_norm{n}.{{p}}") for n in range(1, count + 1)]


_TRUNK, _BACKBONE = "image_encoder.trunk.", "vision_encoder.backbone."
_BLOCK, _OUR_BLOCK = _TRUNK + "blocks.{i}.", _BACKBONE + "blocks.{i}."
_MEMORY_LAYER = "memory_attention.layers.{i}."
_FUSER, _OUR_FUSER = "memory_encoder.fuser.layers.{i}.", "memory_encoder.memory_fuser.layers.{i}."
_DOWN, _OUR_DOWN = "memory_encoder.mask_downsampler.", "memory_encoder.mask_downsampler."
_SAM2: list[tuple[str, str]] = [
    ("maskmem_tpos_enc", "memory_temporal_positional_encoding"),
    ("no_mem_embed", "no_memory_embedding"),
    ("no_mem_pos_enc", "no_memory_positional_encoding"),
    ("no_obj_ptr", "no_object_pointer"),
    ("mask_downsample.{p}", "mask_downsample.{p}"),
    # SAM 2.1 only
    ("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"),
    ("obj_ptr_tpos_proj.{p}", "temporal_positional_encoding_projection_layer.{p}"),
    # image encoder
    (_TRUNK + "pos_embed", _BACKBONE + "pos_embed"),
    (_TRUNK + "pos_embed_window", _BACKBONE + "pos_embed_window"),
    (_TRUNK + "patch_embed.proj.{p}", _BACKBONE + "patch_embed.projection.{p}"),
    *_norms(_BLOCK, _OUR_BLOCK, 2),
    (_BLOCK + "attn.qkv.{p}", _OUR_BLOCK + "attn.qkv.{p}"),
    (_BLOCK + "attn.proj.{p}", _OUR_BLOCK + "attn.proj.{p}"),
    (_BLOCK + "proj.{p}", _OUR_BLOCK + "proj.{p}"),
    *_mlp(_BLOCK + "mlp", _OUR_BLOCK + "mlp", 2),
    ("image_encoder.neck.convs.{i}.conv.{p}", "vision_encoder.neck.convs.{i}.{p}"),
    # memory attention
    *_attention(_MEMORY_LAYER + "self_attn", _MEMORY_LAYER + "self_attn"),
    *_attention(_MEMORY_LAYER + "cross_attn_image", _MEMORY_LAYER + "cross_attn_image"),
    (_MEMORY_LAYER + "linear1.{p}", _MEMORY_LAYER + "linear1.{p}"),
    (_MEMORY_LAYER + "linear2.{p}", _MEMORY_LAYER + "linear2.{p}"),
    *_norms(_MEMORY_LAYER, _MEMORY_LAYER, 3),
    ("memory_attention.norm.{p}", "memory_attention.layer_norm.{p}"),
    # memory encoder: (conv, norm, activation) four times, then the last convolution
    *((f"{_DOWN}encoder.{3 * n}.{{p}}", f"{_OUR_DOWN}layers.{n}.conv.{{p}}") for n in range(4)),
    *((f"{_DOWN}encoder.{3 * n + 1}.{{p}}", f"{_OUR_DOWN}layers.{n}.layer_norm.{{p}}") for n in range(4)),
    (_DOWN + "encoder.12.{p}", _OUR_DOWN + "final_conv.{p}"),
    ("memory_encoder.pix_feat_proj.{p}", "memory_encoder.feature_projection.{p}"),
    (_FUSER + "g_weight", _OUR_FUSER + "scale"),
    (_FUSER + "dwconv.{p}", _OUR_FUSER + "depthwise_conv.{p}"),
    (_FUSER + "norm.{p}", _OUR_FUSER + "layer_norm.{p}"),
    (_FUSER + "pwconv1.{p}", _OUR_FUSER + "pointwise_conv1.{p}"),
    (_FUSER + "pwconv2.{p}", _OUR_FUSER + "pointwise_conv2.{p}"),
    ("memory_encoder.out_proj.{p}", "memory_encoder.projection.{p}"),
    # prompt encoder
    ("sam_prompt_encoder.not_a_point_embed.weight", "prompt_encoder.not_a_point_embed.weight"),
    ("sam_prompt_encoder.no_mask_embed.weight", "prompt_encoder.no_mask_embed.weight"),
    ("sam_prompt_encoder.mask_downscaling.0.{p}", "prompt_encoder.mask_embed.conv1.{p}"),
    ("sam_prompt_encoder.mask_downscaling.1.{p}", "prompt_encoder.mask_embed.layer_norm1.{p}"),
    ("sam_prompt_encoder.mask_downscaling.3.{p}", "prompt_encoder.mask_embed.conv2.{p}"),
    ("sam_prompt_encoder.mask_downscaling.4.{p}", "prompt_encoder.mask_embed.layer_norm2.{p}"),
    ("sam_prompt_encoder.mask_downscaling.6.{p}", "prompt_encoder.mask_embed.conv3.{p}"),
    *_mlp("obj_ptr_proj", "object_pointer_proj", 3),
]
_TWO_WAY, _LAST = "transformer.layers.{i}.", "transformer."
_MASK_DECODER: list[tuple[str, str]] = [
    *(
        pair
        for part in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        for pair in _attention(_TWO_WAY + part, _TWO_WAY + part)
    ),
    *_norms(_TWO_WAY, _TWO_WAY, 4),
    *_mlp(_TWO_WAY + "mlp", _TWO_WAY + "mlp", 2),
    *_attention(_LAST + "final_attn_token_to_image", _LAST + "final_attn_token_to_image"),
    (_LAST + "norm_final_attn.{p}", _LAST + "layer_norm_final_attn.{p}"),
    ("iou_token.weight", "iou_token.weight"),
    ("mask_tokens.weight", "mask_tokens.weight"),
    ("obj_score_token.weight", "obj_score_token.weight"),
    ("output_upscaling.0.{p}", "upscale_conv1.{p}"),
    ("output_upscaling.1.{p}", "upscale_layer_norm.{p}"),
    ("output_upscaling.3.{p}", "upscale_conv2.{p}"),
    ("conv_s0.{p}", "conv_s0.{p}"),
    ("conv_s1.{p}", "conv_s1.{p}"),
    *_mlp("output_hypernetworks_mlps.{j}", "output_hypernetworks_mlps.{j}", 3),
    *_mlp("iou_prediction_head", "iou_prediction_head", 3),
    *_mlp("pred_obj_score_head", "pred_obj_score_head", 3),
]
