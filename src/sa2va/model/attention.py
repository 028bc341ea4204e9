"""SAM 2's memory attention, computed with less arithmetic and bounded memory; the numbers are those of transformers'
module.

Two things make it cheaper. Memory is 64 wide and SAM 2 widens it to 256 before it is averaged; the average of widened
values is the widened average (attention weights sum to one), so it is averaged at 64, a quarter of the work. And
before the first look at memory all objects see the same picture, so the first layer's self-attention runs once for
all of them.

Shape legend: K objects, Q query cells, M memory tokens, C model width, D memory width.

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
    picture_QC: Tensor,
    picture_position_QC: Tensor,
    memory_KMD: Tensor,
    memory_position_MD: Tensor,
    pointer_tokens: int,
) -> Tensor:
    """Image features of one frame after looking at the memory of K objects: (K, Q, C).

    Args:
        picture_QC: features of the frame, the same for all objects. memory_KMD: what each object remembers.
        pointer_tokens: how many tokens at the end of the memory are pointers, which have no place in the picture.
    """
    rotary = attention.rotary_emb(picture_QC, attention.position_ids)
    states = (picture_QC + QUERY_POSITION_SHARE * picture_position_QC)[None]
    layer: Any
    for layer in attention.layers:
        normed = layer.layer_norm1(states)
        own, _ = layer.self_attn(normed[:, None], normed[:, None], normed[:, None], position_embeddings=rotary)
        states = states + layer.dropout1(own[:, 0])
        looked = _look_at_memory(
            layer.cross_attn_image, layer.layer_norm2(states), memory_KMD, memory_position_MD, rotary, pointer_tokens
        )
        states = states + layer.dropout2(looked)
        hidden = layer.dropout(layer.activation(layer.linear1(layer.layer_norm3(states))))
        states = states + layer.dropout3(layer.linear2(hidden))
    return attention.layer_norm(states)


def _look_at_memory(
    attention: Sam2VideoRoPEAttention,
    states_KQC: Tensor,
    memory_KMD: Tensor,
    position_MD: Tensor,
    rotary: tuple[Tensor, Tensor],
    pointer_tokens: int,
) -> Tensor:
    """Cross-attention of one layer, (K, Q, C); the query may still be one for all objects."""
    query = attention.q_proj(states_KQC)[:, None]
    key = attention.k_proj(memory_KMD + position_MD)[:, None]
    query, key = apply_rotary_pos_emb_2d(query, key, *rotary, num_k_exclude_rope=pointer_tokens, repeat_freqs_k=True)
    query = query.expand(len(memory_KMD), -1, -1, -1)
    averaged = _average(query, key, memory_KMD[:, None], attention.dropout_p if attention.training else 0.0)
    return attention.o_proj(attention.v_proj(averaged[:, 0]))


def _average(query_K1QC: Tensor, key_K1MC: Tensor, value_K1MD: Tensor, dropout: float) -> Tensor:
    """Softmax attention, (K, 1, Q, D).

    Values narrower than keys have a fused kernel on CUDA; on CPU plain products over slices of the query are faster
    than the fused kernel is even with values as wide.
    """
    if query_K1QC.is_cuda or dropout:
        return F.scaled_dot_product_attention(query_K1QC, key_K1MC, value_K1MD, dropout_p=dropout)
    scale = query_K1QC.shape[-1] ** -0.5
    rows = max(1, PAIRS_AT_ONCE // (key_K1MC.shape[0] * key_K1MC.shape[-2]))
    keys = key_K1MC.transpose(-1, -2)
    parts = [((part * scale) @ keys).softmax(dim=-1) @ value_K1MD for part in query_K1QC.split(rows, dim=-2)]
    return torch.cat(parts, dim=-2)
