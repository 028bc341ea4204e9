"""The language model: tokens and image features in, hidden states out, the same for every family.

transformers' VLM classes compute everything; what is ours is taking them apart: image features are computed once and
kept, M-RoPE positions are explicit, and the state that feeds the mask prompt is taken where the family was trained.

Shape legend: B rows, L tokens, M image tokens, D hidden width.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from sa2va.model.families import Family
from sa2va.model.normalization import normalized_tiles
from sa2va.model.types import VisualTokens

_ONE_TEXT = threading.RLock()


@dataclass(frozen=True)
class LanguageStates:
    """Hidden states of the last layer.

    Attributes:
        normed: (B, L, D) after the final norm: what the output head reads.
        seg: (B, L, D) what the mask projection reads; the same tensor, or the one before the norm.
    """

    normed: Tensor
    seg: Tensor


def encode_images(
    vlm: PreTrainedModel,
    pixel_values: Tensor,
    image_grid_thw: Tensor | None = None,
    *,
    tiles_per_sample: tuple[int, ...] | None = None,
    regions: tuple[Tensor | None, ...] | None = None,
) -> VisualTokens:
    """Run the vision tower and projector once.

    Args:
        pixel_values, image_grid_thw, tiles_per_sample, regions: as in
            [`sa2va.model.types.Batch`]. A region repeats the features of the last tile (the thumbnail) at its cells,
            row by row, after all tiles of its picture.
    """
    if image_grid_thw is not None:
        features = vlm.model.get_image_features(pixel_values, image_grid_thw, return_dict=True)
        deepstack = getattr(features, "deepstack_features", None) or []
        return VisualTokens(
            torch.cat(features.pooler_output), tuple(torch.cat(level) for level in deepstack), image_grid_thw
        )
    tiles = vlm.model.get_image_features(normalized_tiles(pixel_values), return_dict=True).pooler_output
    if regions is None or all(region is None for region in regions):
        return VisualTokens(tiles.flatten(0, 1))
    pieces = []
    for sample_tiles, region in zip(tiles.split(list(tiles_per_sample or [len(tiles)])), regions, strict=True):
        pieces.append(sample_tiles.flatten(0, 1))
        if region is not None:
            pieces.extend(sample_tiles[-1][cells.flatten()] for cells in region.to(tiles.device))
    return VisualTokens(torch.cat(pieces))


def embed_tokens(vlm: PreTrainedModel, input_ids_BL: Tensor, visual: VisualTokens | None) -> Tensor:
    """(B, L, D) token embeddings with image features at the image tokens.

    Raises:
        ValueError: there are more or fewer image tokens than features.
    """
    embeddings = vlm.get_input_embeddings()(input_ids_BL)
    is_image = image_tokens(vlm, input_ids_BL)
    tokens, given = int(is_image.sum()), 0 if visual is None else len(visual.embeddings)
    if tokens != given:
        raise ValueError(
            f"the prompt has {tokens} image tokens, but the pictures give {given} features; "
            "build the prompt with the processor from the same pictures"
        )
    if visual is None:
        return embeddings
    return embeddings.masked_scatter(is_image[..., None], visual.embeddings.to(embeddings.dtype))


def image_tokens(vlm: PreTrainedModel, input_ids_BL: Tensor) -> Tensor:
    """(B, L) bool: where image features go."""
    return input_ids_BL == vlm.config.image_token_id


def positions(
    vlm: PreTrainedModel, input_ids_BL: Tensor, attention_mask_BL: Tensor, image_grid_thw: Tensor | None
) -> Tensor:
    """Position ids of every token: (B, L), or (3, B, L) in families with multimodal RoPE.

    Padding counts nothing. Given explicitly because transformers silently falls back to one-dimensional positions
    when a cache is in use and token types are missing.
    """
    if not hasattr(vlm.model, "get_rope_index"):
        return (attention_mask_BL.long().cumsum(-1) - 1).clamp(min=0)
    position_ids, _ = vlm.model.get_rope_index(
        input_ids_BL,
        mm_token_type_ids=image_tokens(vlm, input_ids_BL).int(),
        image_grid_thw=image_grid_thw,
        attention_mask=attention_mask_BL,
    )
    return position_ids


def run_language_model(
    vlm: PreTrainedModel,
    family: Family,
    embeddings_BLD: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor,
    *,
    cache: Cache | None = None,
    visual: VisualTokens | None = None,
    is_image_BL: Tensor | None = None,
) -> LanguageStates:
    """The language model over embedded tokens, continuing a cache where one is given.

    Args:
        attention_mask: (B, cached + L) bool.
        visual, is_image_BL: where deepstack features are added (Qwen3-VL); only needed in the pass that holds the
            images.
    """
    deepstack = {}
    if visual is not None and visual.deepstack:
        deepstack = {"visual_pos_masks": is_image_BL, "deepstack_visual_embeds": list(visual.deepstack)}
    language_model = vlm.model.language_model
    if cache is None or cache.get_seq_length() == 0:
        _reset_dynamic_rope(language_model.rotary_emb)
    with _input_of(language_model.norm) as before_norm:
        normed = language_model(
            inputs_embeds=embeddings_BLD,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **deepstack,
        ).last_hidden_state
    return LanguageStates(normed, before_norm[-1] if family.seg_state == "raw" else normed)


@contextmanager
def whole_text(vlm: PreTrainedModel) -> Iterator[None]:
    """Held while one text is written: dynamic RoPE keeps its frequencies in the model, so threads take turns there, and
    every text starts from those of the window."""
    rotary: Any = vlm.model.language_model.rotary_emb
    with _ONE_TEXT if "dynamic" in rotary.rope_type else nullcontext():
        _reset_dynamic_rope(rotary)
        yield


def _reset_dynamic_rope(rotary: Any) -> None:
    """Forget how long earlier texts were.

    transformers' dynamic RoPE keeps the frequencies of the longest text it has seen, so the same prompt would give
    other numbers after a longer one. Every text starts from the frequencies of the window here.
    """
    if "dynamic" in rotary.rope_type and rotary.max_seq_len_cached != rotary.original_max_seq_len:
        rotary.inv_freq = rotary.original_inv_freq.to(rotary.inv_freq.device)
        rotary.max_seq_len_cached = rotary.original_max_seq_len


@contextmanager
def _input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what this thread calls a module with; others may be running the same model."""
    seen: list[Tensor] = []
    here = threading.get_ident()

    def collect(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == here:
            seen.append(args[0])

    handle = module.register_forward_pre_hook(collect)
    try:
        yield seen
    finally:
        handle.remove()
