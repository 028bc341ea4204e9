"""SAM 2's memory attention, computed with less arithmetic and bounded memory; the numbers are those of transformers'
module.

Two things make it cheaper. Memory is 64 wide and SAM 2 widens it to 256 before it is averaged; the average of widened
values is the widened average (attention weights sum to one), so it is averaged at 64, a quarter of the work. And
before the first look at memory all objects of a frame see the same picture, so the first layer's self-attention runs
once for all of them.

Shape legend: F frames, K objects, Q query cells, M memory tokens, C model width, D memory width.

Source: SAM 2 (arXiv 2408.00714, section 4, "Memory attention").
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.sam2_video.modeling_sam2_video import (
    Sam2VideoMemoryAttention,
    Sam2VideoRoPEAttention,
    apply_rotary_pos_emb_2d,
)

#: On CPU, weights of at most this many (query, memory) pairs exist at a time.
PAIRS_AT_ONCE = 2**23
#: How much of its position code a query carries (SAM 2's constant).
QUERY_POSITION_SHARE = 0.1


def read_memory(
    attention: Sam2VideoMemoryAttention,
    pictures_FQC: Tensor,
    picture_position_QC: Tensor,
    memory_KMD: Tensor,
    memory_position_MD: Tensor,
    pointer_tokens: int,
    frame_of_object_K: Tensor,
) -> Tensor:
    """Image features of frames after looking at the memory of K objects: (K, Q, C).

    Args:
        pictures_FQC: features of the frames. memory_KMD: what each object remembers.
        pointer_tokens: how many tokens at the end of the memory are pointers, which have no place in the picture.
        frame_of_object_K: int64, which frame each object is looked for in.
    """
    rotary = attention.rotary_emb(pictures_FQC, attention.position_ids)
    states = pictures_FQC + QUERY_POSITION_SHARE * picture_position_QC
    rows: Tensor | slice = frame_of_object_K
    layer: Any
    for layer in attention.layers:
        normed = layer.layer_norm1(states)
        own, _ = layer.self_attn(normed[:, None], normed[:, None], normed[:, None], position_embeddings=rotary)
        states = states + layer.dropout1(own[:, 0])
        query = layer.cross_attn_image.q_proj(layer.layer_norm2(states))[rows]
        looked = _look_at_memory(layer.cross_attn_image, query, memory_KMD, memory_position_MD, rotary, pointer_tokens)
        states, rows = states[rows] + layer.dropout2(looked), slice(None)
        hidden = layer.dropout(layer.activation(layer.linear1(layer.layer_norm3(states))))
        states = states + layer.dropout3(layer.linear2(hidden))
    return attention.layer_norm(states)


def _look_at_memory(
    attention: Sam2VideoRoPEAttention,
    query_KQC: Tensor,
    memory_KMD: Tensor,
    position_MD: Tensor,
    rotary: tuple[Tensor, Tensor],
    pointer_tokens: int,
) -> Tensor:
    """Cross-attention of one layer, (K, Q, C)."""
    query, key = query_KQC[:, None], attention.k_proj(memory_KMD + position_MD)[:, None]
    query, key = apply_rotary_pos_emb_2d(query, key, *rotary, num_k_exclude_rope=pointer_tokens, repeat_freqs_k=True)
    averaged = average(query, key, memory_KMD[:, None], dropout=attention.dropout_p if attention.training else 0.0)
    return attention.o_proj(attention.v_proj(averaged[:, 0]))


def average(
    query_K1QC: Tensor, key_K1MC: Tensor, value_K1MD: Tensor, scores_M: Tensor | None = None, *, dropout: float = 0.0
) -> Tensor:
    """Softmax attention, (K, 1, Q, D).

    Values narrower than keys have a fused kernel on CUDA; on CPU plain products over slices of the query are faster
    than the fused kernel is even with values as wide.

    Args:
        scores_M: added to the scores of the keys.
    """
    if query_K1QC.is_cuda or dropout:
        added = None if scores_M is None else scores_M.to(query_K1QC.dtype).expand(1, 1, query_K1QC.shape[2], -1)
        return F.scaled_dot_product_attention(query_K1QC, key_K1MC, value_K1MD, attn_mask=added, dropout_p=dropout)
    scale = query_K1QC.shape[-1] ** -0.5
    rows = max(1, PAIRS_AT_ONCE // (key_K1MC.shape[0] * key_K1MC.shape[-2]))
    keys = key_K1MC.transpose(-1, -2)
    parts = []
    for part in query_K1QC.split(rows, dim=-2):
        scores = (part * scale) @ keys
        if scores_M is not None:
            scores = scores + scores_M.to(scores.dtype)
        parts.append(scores.softmax(dim=-1) @ value_K1MD)
    return torch.cat(parts, dim=-2)
