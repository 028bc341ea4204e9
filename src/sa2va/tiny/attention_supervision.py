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

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from sa2va.data.encode import Shown
from sa2va.data.sample import Sample
from sa2va.model import language
from sa2va.model.types import Batch, Sa2VAOutput
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.tiny.synthetic.mentions import Mention
from sa2va.train.auxiliary import AuxiliaryLoss
from sa2va.train.losses import Term


class TokenPlaces(NamedTuple):
    """Where tokens of a sample are to look.

    Attributes:
        seg: float32 (K, T), where the objects of its ``[SEG]`` are in what the language model sees: how much of each
            lies in each of the T visual tokens, of tiles and thumbnail alike; all zero for one that is not in sight.
            None where that is not known of all frames.
        ends: (M,) int64, the last token of each mention of a question; None where there are none.
        mentions: float32 (M, T), the same for the n objects of each mention that are in sight, 1 / (n + 1) for each.
    """

    seg: Tensor | None = None
    ends: Tensor | None = None
    mentions: Tensor | None = None


class AttentionSupervision(AuxiliaryLoss):
    """Watches the language model of a model that is trained, and says how far its tokens look elsewhere.

    Of every sample it reads ``masks`` and, in its extras, ``objects``, bool (objects, F, H, W), what is known of the
    scene beyond the answers, and ``mentions``, which words of the questions speak of which of them ([`Mention`]).

    Args:
        model: whose language model runs. processor: tells whether a picture is a square of cells.
        weights: only what has a weight is watched.

    Raises:
        ValueError: the model is no InternVL with Qwen2 layers, whose visual tokens are a square of cells per picture.
    """

    names = ("attention", "mentions")
    needs = "text"

    def __init__(self, model: Sa2VAModel, processor: Sa2VAProcessor, weights: Mapping[str, float]):
        super().__init__(model, processor, weights)
        layers: Any = getattr(model.vlm.model.language_model, "layers", ())
        if processor.cells is None or len(layers) < 2 or model.config.get_text_config().model_type != "qwen2":
            raise ValueError(
                "attention and mentions train InternVL models with Qwen2 layers; this one is of another family: leave "
                "them out of auxiliary"
            )
        self._vlm, self._seg_id = model.vlm, model.config.seg_token_id
        self._seg_head = _Head(layers[-2]) if weights.get("attention") else None
        self._mention_head = _Head(layers[max(0, len(layers) // 2 - 1)]) if weights.get("mentions") else None

    @staticmethod
    def targets(sample: Sample, shown: Shown) -> TokenPlaces:
        """Where the ``[SEG]`` and the mentions of a sample are to look; ValueError for a mention of nothing there."""
        if shown.cells is None:
            return TokenPlaces()
        seg = None
        if shown.objects and sample.annotated is None:
            masks_KFHW = np.stack(sample.masks[: shown.objects])
            seg = _cell_shares(masks_KFHW[:, shown.key_frames], shown.cells, shown.grid)
        mentions = [mention for mention in checked_mentions(sample) if mention.turn < len(shown.turns)]
        if not mentions:
            return TokenPlaces(seg)
        ends = shown.question_tokens([(mention.turn, mention.end) for mention in mentions])
        share_KT = _cell_shares(sample.extras["objects"][:, shown.key_frames], shown.cells, shown.grid)
        shares_MT = torch.stack([share_KT[list(mention.objects)].sum(dim=0) for mention in mentions])
        shares_MT = shares_MT / (shares_MT.sum(dim=1, keepdim=True) + 1)  # the sum is how many are in sight
        return TokenPlaces(seg, torch.tensor(ends), shares_MT)

    def losses(
        self, model: Sa2VAModel, batch: Batch, output: Sa2VAOutput | None, generator: torch.Generator
    ) -> dict[str, Term]:
        """Cross-entropy between attention and objects, over the objects that the language model saw (``attention``)
        and over the mentions of all questions (``mentions``).

        Args:
            batch: that the language model has just read.
        """
        terms: dict[str, Term] = {}
        places = [place or TokenPlaces() for place in self.targets_of(batch)]
        if self._seg_head is not None:
            rows_N, positions_N = ((batch.input_ids == self._seg_id) & batch.attention_mask).nonzero(as_tuple=True)
            seg_shares = [place.seg for place in places]
            terms["attention"] = self._term(self._seg_head, batch, rows_N, positions_N, seg_shares, _objects_only)
        if self._mention_head is not None:
            nowhere = batch.input_ids.new_zeros(0)
            ends = [nowhere if place.ends is None else place.ends for place in places]
            rows_N = torch.cat([nowhere, *(torch.full_like(end_M, row) for row, end_M in enumerate(ends))])
            positions_N, shares = torch.cat([nowhere, *ends]), [place.mentions for place in places]
            terms["mentions"] = self._term(self._mention_head, batch, rows_N, positions_N, shares, _objects_or_nothing)
        return terms

    def _term(
        self,
        head: _Head,
        batch: Batch,
        rows_N: Tensor,
        positions_N: Tensor,
        shares: Sequence[Tensor | None],
        errors: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Term:
        attention_NL = head.log_attention(batch, rows_N, positions_N)
        is_image_BL = language.image_tokens(self._vlm, batch.input_ids)
        found = [attention_NL.new_zeros(0)]
        for row, share_MT in enumerate(shares):
            # A picture with marked regions has more visual tokens than cells.
            if share_MT is not None and share_MT.shape[1] == int(is_image_BL[row].sum()):
                looks_ML = attention_NL[rows_N == row]
                found.append(errors(share_MT, looks_ML[:, is_image_BL[row]], looks_ML[:, 0]))
        errors_E = torch.cat(found)
        return Term(errors_E.sum(), errors_E.new_tensor(len(errors_E)))


def checked_mentions(sample: Sample) -> tuple[Mention, ...]:
    """The mentions of a sample.

    Raises:
        ValueError: one speaks of a question or an object that is not there, or objects have another shape.
    """
    objects, mentions = sample.extras.get("objects"), tuple(sample.extras.get("mentions", ()))
    start = f"sample {sample.id!r} of source {sample.source!r}: "
    known = 0 if objects is None else len(objects)
    expected = (known, len(sample.frames), *(sample.size or ()))
    if objects is not None and (objects.dtype != np.bool_ or objects.shape != expected):
        raise ValueError(f"{start}objects must be bool of shape {expected}, got {objects.dtype} {objects.shape}")
    for turn, end, meant in mentions:
        if not 0 <= turn < len(sample.turns) or not 0 < end <= len(sample.turns[turn].question):
            raise ValueError(f"{start}a mention ends at character {end} of question {turn}, which does not exist")
        if not all(0 <= index < known for index in meant):
            raise ValueError(f"{start}a mention speaks of objects {meant}, but there are {known}")
    return mentions


def _cell_shares(masks_KFHW: np.ndarray, cells: int, grid: tuple[int, int]) -> Tensor:
    """(K, T) how much of each object lies in each visual token, a part of 1; zeros where it is not in sight.

    Args:
        grid: columns and rows of tiles. T is of each frame a square of cells, or of the tiles of a picture, row by row,
            one each and one of the thumbnail.
    """
    masks, (columns, rows) = torch.from_numpy(masks_KFHW).float(), grid
    cover_KT = F.adaptive_avg_pool2d(masks, cells).flatten(1)
    if columns * rows > 1:
        tiled = F.adaptive_avg_pool2d(masks[:, 0], (rows * cells, columns * cells))
        tiled = tiled.unflatten(2, (columns, cells)).unflatten(1, (rows, cells)).transpose(2, 3)  # (K, r, c, y, x)
        cover_KT = torch.cat([tiled.flatten(1), cover_KT], dim=1)
    return cover_KT / cover_KT.sum(dim=1, keepdim=True).clamp(min=1e-6)


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
