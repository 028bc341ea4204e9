"""Where tokens look: attention heads of the language model are taught to look at the objects that are meant.

A mask loss says that a mask is wrong, not where the object would have been; a small model needs millions of pictures to
find out. Two losses without weights of their own say it. ``attention``: of what a ``[SEG]`` pays in the last layer but
one, one head's is to lie on the visual tokens of its object. ``mentions``: so is what the last token of "the star" in a
question pays, layers before, on all stars, so that later layers can count, compare and choose. The first token takes
part like one more star: it gets all where there is none, a half beside one, a third beside two, and so says how many.

Shape legend: B samples, L tokens, N tokens of the batch that look; of a sample M tokens that look, T visual tokens.

Source: supervised attention of captions (Liu et al. 2017, arXiv 1605.09553, section 3.2), here of segmentation tokens
and of the words of a question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from sa2va.model import language
from sa2va.model.types import Batch
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.train.losses import LossWeights, Term


class Looking:
    """Watches the language model of a model that is trained, and says how far its tokens look elsewhere.

    Args:
        model: whose language model runs. processor: tells whether a picture is a square of cells.
        weights: only what has a weight is watched.

    Raises:
        ValueError: the model is no InternVL with Qwen2 layers, whose visual tokens are a square of cells per picture.
    """

    def __init__(self, model: Sa2VAModel, processor: Sa2VAProcessor, weights: LossWeights):
        layers: Any = getattr(model.vlm.model.language_model, "layers", ())
        if processor.cells is None or len(layers) < 2 or model.config.get_text_config().model_type != "qwen2":
            raise ValueError(
                "loss.weights.attention and loss.weights.mentions train InternVL models with Qwen2 layers; this one is "
                "of another family: set them to 0"
            )
        self._vlm, self._seg_id = model.vlm, model.config.seg_token_id
        self._seg_head = _Head(layers[-2]) if weights.attention else None
        self._mention_head = _Head(layers[max(0, len(layers) // 2 - 1)]) if weights.mentions else None

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Cross-entropy between attention and objects, over the objects that the language model saw (``attention``)
        and over the mentions of all questions (``mentions``).

        Args:
            batch: that the language model has just read.
        """
        terms = {}
        if self._seg_head is not None:
            rows_N, positions_N = ((batch.input_ids == self._seg_id) & batch.attention_mask).nonzero(as_tuple=True)
            terms["attention"] = self._term(self._seg_head, batch, rows_N, positions_N, batch.seg_shares, _objects_only)
        if self._mention_head is not None:
            nowhere = batch.input_ids.new_zeros(0)
            ends = [nowhere if end_M is None else end_M for end_M in batch.mention_ends or ()]
            rows_N = torch.cat([nowhere, *(torch.full_like(end_M, row) for row, end_M in enumerate(ends))])
            positions_N, shares = torch.cat([nowhere, *ends]), batch.mention_shares
            terms["mentions"] = self._term(self._mention_head, batch, rows_N, positions_N, shares, _objects_or_nothing)
        return terms

    def _term(
        self,
        head: _Head,
        batch: Batch,
        rows_N: Tensor,
        positions_N: Tensor,
        shares: Sequence[Tensor | None] | None,
        errors: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Term:
        attention_NL = head.log_attention(batch, rows_N, positions_N)
        is_image_BL = language.image_tokens(self._vlm, batch.input_ids)
        found = [attention_NL.new_zeros(0)]
        for row, share_MT in enumerate(shares or ()):
            # A picture with marked regions has more visual tokens than cells.
            if share_MT is not None and share_MT.shape[1] == int(is_image_BL[row].sum()):
                looks_ML = attention_NL[rows_N == row]
                found.append(errors(share_MT, looks_ML[:, is_image_BL[row]], looks_ML[:, 0]))
        errors_E = torch.cat(found)
        return Term(errors_E.sum(), errors_E.new_tensor(len(errors_E)))


def _objects_only(share_MT: Tensor, looks_MT: Tensor, _: Tensor) -> Tensor:
    """Errors of the tokens whose objects are in sight."""
    return -(share_MT * looks_MT).sum(dim=1)[share_MT.sum(dim=1) > 0]


def _objects_or_nothing(share_MT: Tensor, looks_MT: Tensor, first_M: Tensor) -> Tensor:
    """Errors of all tokens; what is not to lie on objects is to lie on the first token."""
    return -(share_MT * looks_MT).sum(dim=1) - (1 - share_MT.sum(dim=1)) * first_M


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
