"""SAM 2's memory attention in the neighbourhood of each object: cells in a window, and blocks of cells outside of it.

A token of a block is the mean of its cells and counts as often as it has cells (the logarithm is added to its score,
as for merged tokens in arXiv 2210.09461); cells of a block get back what attention added to its token. At full size
1,216 tokens of 4,096 ask; memory is read whole, since objects were lost where that was cut too.

Shape legend: as in [`sa2va.model.memory_attention`]; B blocks per side, N tokens of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, log
from typing import Any

import torch
from torch import Tensor
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMemoryAttention, rotate_pairwise

from sa2va.model.memory_attention import QUERY_POSITION_SHARE, average

#: Attention of one chunk of objects weighs at most this many pairs of tokens.
_PAIRS_PER_CHUNK = 2**27


def block_side(grid: int) -> int:
    """Cells along the side of a block, in a grid of so many cells along its side."""
    return max(2, grid // 16)


@dataclass(frozen=True, eq=False)
class _Cut:
    """How a grid of cells becomes tokens, for K objects: int64 blocks kept as cells, and those that become one."""

    inside_KI: Tensor
    outside_KO: Tensor
    blocks: int
    side: int

    @classmethod
    def of(cls, corners_K2: Tensor, grid: int) -> _Cut:
        side = block_side(grid)
        blocks = grid // side
        place = torch.arange(blocks, device=corners_K2.device)
        rows, columns = (
            (place >= corner) & (place < corner + blocks // 2) for corner in corners_K2[:, :, None].unbind(1)
        )
        within = (rows[:, :, None] & columns[:, None]).flatten(1)
        order = within.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        count = (blocks // 2) ** 2
        return cls(order[:, :count], order[:, count:], blocks, side)

    def tokens(self, cells_1MD: Tensor) -> Tensor:
        """(K, N, D) of each object's cut."""
        blocked = self.blocked(cells_1MD)
        fine = blocked[self.inside_KI].flatten(1, 2)
        return torch.cat([fine, blocked.mean(dim=1)[self.outside_KO]], dim=1)

    def weights(self) -> Tensor:
        """(N,) float32, what is added to the score of each token as a key."""
        many = torch.full((self.outside_KO.shape[1],), 2 * log(self.side), device=self.inside_KI.device)
        return torch.cat([many.new_zeros(self.inside_KI.shape[1] * self.side**2), many])

    def cells(self, start_1MC: Tensor, begun_KNC: Tensor, ended_KNC: Tensor) -> Tensor:
        """(K, M, C): the tokens at the end in their cells; cells of blocks as at the start, changed as their tokens."""
        count, fine = len(self.inside_KI), self.inside_KI.shape[1] * self.side**2
        rows = torch.arange(count, device=self.inside_KI.device)[:, None]
        blocked = self.blocked(start_1MC).repeat(count, 1, 1, 1)
        blocked[rows, self.inside_KI] = ended_KNC[:, :fine].unflatten(1, (-1, self.side**2))
        change = (ended_KNC - begun_KNC)[:, fine:, None]
        blocked[rows, self.outside_KO] = blocked[rows, self.outside_KO] + change
        grid = blocked.unflatten(2, (self.side, self.side)).unflatten(1, (self.blocks, self.blocks))
        return grid.permute(0, 1, 3, 2, 4, 5).flatten(1, 4)

    def blocked(self, cells_1MD: Tensor) -> Tensor:
        """(B * B, cells of a block, D)."""
        grid = cells_1MD[0].unflatten(0, (self.blocks, self.side, self.blocks, self.side))
        return grid.transpose(1, 2).flatten(2, 3).flatten(0, 1)


def read_around_objects(
    attention: Sam2VideoMemoryAttention,
    picture_1QC: Tensor,
    picture_position_QC: Tensor,
    memory_KMD: Tensor,
    memory_position_MD: Tensor,
    pointer_tokens: int,
    corners_K2: Tensor,
) -> Tensor:
    """Image features of one frame, around each of K objects, after looking at its memory: (K, Q, C).

    Args:
        corners_K2: int64 row and column of the first block of each object's window, half the picture high and wide.
        memory_KMD, memory_position_MD, pointer_tokens: as for [`sa2va.model.memory_attention.read_memory`].
    """
    tokens = picture_1QC.shape[1] // 2
    step = max(1, _PAIRS_PER_CHUNK // (tokens * max(tokens, memory_KMD.shape[1])))
    parts = [
        _read(
            attention,
            picture_1QC + QUERY_POSITION_SHARE * picture_position_QC,
            memory_KMD[first : first + step],
            memory_position_MD,
            pointer_tokens,
            corners_K2[first : first + step],
        )
        for first in range(0, len(memory_KMD), step)
    ]
    return torch.cat(parts)


def _read(
    attention: Sam2VideoMemoryAttention,
    start_1QC: Tensor,
    memory_KMD: Tensor,
    position_MD: Tensor,
    pointer_tokens: int,
    corners_K2: Tensor,
) -> Tensor:
    tables = attention.rotary_emb(start_1QC, attention.position_ids)
    cut = _Cut.of(corners_K2, isqrt(start_1QC.shape[1]))
    rotary, scores = _rotary(cut, tables), cut.weights()
    begun = states = cut.tokens(start_1QC)

    frames = (memory_KMD.shape[1] - pointer_tokens) // start_1QC.shape[1]
    memory_rotary = tuple(table.view(1, -1, table.shape[-1]).repeat(1, frames, 1) for table in tables)

    layer: Any
    for layer in attention.layers:
        own = layer.self_attn
        normed = layer.layer_norm1(states)
        query, key = (_rotated(project(normed), rotary) for project in (own.q_proj, own.k_proj))
        states = states + own.o_proj(average(query[:, None], key[:, None], own.v_proj(normed)[:, None], scores)[:, 0])
        look = layer.cross_attn_image
        query = _rotated(look.q_proj(layer.layer_norm2(states)), rotary)
        key = _rotated(look.k_proj(memory_KMD + position_MD), memory_rotary)
        averaged = average(query[:, None], key[:, None], memory_KMD[:, None])[:, 0]
        states = states + look.o_proj(look.v_proj(averaged))
        states = states + layer.linear2(layer.activation(layer.linear1(layer.layer_norm3(states))))
    return attention.layer_norm(cut.cells(start_1QC, begun, states))


def _rotary(cut: _Cut, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the tokens, (K, N, C) each; a block's are those of its middle."""
    cos, sin = (cut.tokens(table.view(1, -1, table.shape[-1])) for table in tables)
    length = torch.hypot(cos, sin)
    return cos / length, sin / length


def _rotated(tokens_KNC: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
    """With rotary position codes; tokens beyond them, pointers, have no place."""
    cos, sin = rotary
    placed = tokens_KNC[:, : cos.shape[1]].float()
    placed = placed * cos + rotate_pairwise(placed.contiguous()) * sin
    return torch.cat([placed.type_as(tokens_KNC), tokens_KNC[:, cos.shape[1] :]], dim=1)
