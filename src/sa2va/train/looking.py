"""Where tokens look: attention heads of the language model are taught to look at the objects that are meant.

A mask loss says that a mask is wrong, not where the object would have been; a small model needs millions of pictures to
find out. Two losses without weights of their own say it. ``attention``: of what a ``[SEG]`` pays in the last layer but
one, one head's is to lie on the visual tokens of its object. ``mentions``: so is what the last token of "the star" in a
question pays, layers before, on all stars, so that later layers can count, compare and choose; where there is no star,
it is to lie on the first token, which then says "nothing".

Shape legend: B samples, L tokens, N tokens of the batch that look; of a sample K objects, M mentions, T visual tokens.

Source: supervised attention of captions (Liu et al. 2017, arXiv 1605.09553, section 3.2), here of segmentation tokens
and of the words of a question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from sa2va.model import language
from sa2va.model.batch import Batch
from sa2va.model.sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.train.losses import Term


class Looking:
    """Watches the language model of a model that is trained, and says how far its tokens look elsewhere.

    Args:
        model: whose language model runs. processor: says how many cells a picture has.
        key_frames: which frames of a clip of so many the language model sees.

    Raises:
        ValueError: the model is no InternVL with Qwen2 layers, whose visual tokens are a square of cells per picture.
    """

    def __init__(self, model: Sa2VAModel, processor: Sa2VAProcessor, key_frames: Callable[[int], Sequence[int]]):
        layers: Any = getattr(model.vlm.model.language_model, "layers", ())
        if processor.cells is None or len(layers) < 2 or model.config.get_text_config().model_type != "qwen2":
            raise ValueError(
                "loss.weights.attention and loss.weights.mentions train InternVL models with Qwen2 layers; this one is "
                "of another family: set them to 0"
            )
        self._vlm, self._seg_id = model.vlm, model.config.seg_token_id
        self._side, self._key_frames = processor.cells, key_frames
        self._seg_head, self._mention_head = _Head(layers[-2]), _Head(layers[max(0, len(layers) // 2 - 1)])

    def attention(self, batch: Batch) -> Term:
        """Cross-entropy between attention and object, over the objects in the pictures that the language model saw.

        Args:
            batch: that the language model has just read.
        """
        rows_N, positions_N = ((batch.input_ids == self._seg_id) & batch.attention_mask).nonzero(as_tuple=True)
        attention_NL = self._seg_head.log_attention(batch, rows_N, positions_N)
        is_image_BL = language.image_tokens(self._vlm, batch.input_ids)
        total, count = attention_NL.new_zeros(()), 0
        for row, masks_KFss in enumerate(batch.masks or ()):
            share_KT = None if masks_KFss is None else self._shares(masks_KFss.to(attention_NL.device))
            # A text that speaks of marked regions has more visual tokens than cells.
            if share_KT is None or share_KT.shape[1] != int(is_image_BL[row].sum()):
                continue
            seen_K = share_KT.sum(dim=1) > 0
            looks_KT = attention_NL[rows_N == row][:, is_image_BL[row]]
            total, count = total - (share_KT * looks_KT)[seen_K].sum(), count + int(seen_K.sum())
        return Term(total, total.new_tensor(count))

    def mentions(self, batch: Batch) -> Term:
        """Cross-entropy between attention and objects, over the mentions of all questions.

        Args:
            batch: that the language model has just read.
        """
        ends, shares = batch.mention_ends or (), batch.mention_shares or ()
        pairs = [(row, end_M) for row, end_M in enumerate(ends) if end_M is not None]
        device = batch.input_ids.device
        rows_N = torch.cat([torch.full_like(end_M, row) for row, end_M in pairs] or [torch.zeros(0).long().to(device)])
        positions_N = torch.cat([end_M for _, end_M in pairs] or [rows_N])
        attention_NL = self._mention_head.log_attention(batch, rows_N, positions_N)
        is_image_BL = language.image_tokens(self._vlm, batch.input_ids)
        total, count = attention_NL.new_zeros(()), 0
        for row, _ in pairs:
            share_MT, looks_ML = shares[row], attention_NL[rows_N == row]
            if share_MT is None or share_MT.shape[1] != int(is_image_BL[row].sum()):
                continue
            nothing_M = share_MT.sum(dim=1) == 0
            on_objects = (share_MT * looks_ML[:, is_image_BL[row]]).sum()
            total, count = total - on_objects - looks_ML[nothing_M, 0].sum(), count + len(share_MT)
        return Term(total, total.new_tensor(count))

    def _shares(self, masks_KFss: Tensor) -> Tensor:
        """(K, T) how the attention of each object is to be spread; all zero for one that is not in sight."""
        seen_KFss = masks_KFss[:, list(self._key_frames(masks_KFss.shape[1]))]
        cover_KT = F.adaptive_avg_pool2d(seen_KFss.float(), self._side).flatten(1)
        return cover_KT / cover_KT.sum(dim=1, keepdim=True).clamp(min=1e-6)


class _Head:
    """The first attention head of a layer, computed once more for the few tokens that are watched."""

    def __init__(self, layer: Any):
        self._layer = layer
        self._seen: tuple[Tensor, tuple[Tensor, Tensor]] | None = None
        layer.register_forward_pre_hook(self._see, with_kwargs=True)

    def log_attention(self, batch: Batch, rows_N: Tensor, positions_N: Tensor) -> Tensor:
        """(N, L) logarithm of what each token pays to every token of its sample."""
        assert self._seen is not None, "the language model has not run"
        (states_BLD, (cos, sin)), self._seen = self._seen, None
        attention, normed_BLD = self._layer.self_attn, self._layer.input_layernorm(states_BLD)
        width, projections = attention.head_dim, (attention.q_proj, attention.k_proj)
        queries, keys = (projection(normed_BLD)[:, None, :, :width].float() for projection in projections)
        queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
        scores_NL = torch.einsum("nd,nld->nl", queries[rows_N, 0, positions_N], keys[rows_N, 0]) * attention.scaling
        before_NL = torch.arange(scores_NL.shape[1], device=scores_NL.device) <= positions_N[:, None]
        hidden_NL = ~(before_NL & batch.attention_mask[rows_N])
        return scores_NL.masked_fill(hidden_NL, float("-inf")).log_softmax(dim=1)

    def _see(self, layer: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        self._seen = (states, kwargs["position_embeddings"])
