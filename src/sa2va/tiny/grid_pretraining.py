"""What a model that starts from nothing learns before it draws masks, with heads that are thrown away afterwards.

[`CellNaming`]: every cell of both image encoders names what covers it, as a bag of words, and says where the middle of
that object lies; what the language model reads of a cell learns to be near the very words that it reads in a text.
[`SegPlacement`]: the state of every ``[SEG]`` says which part of the picture its object covers. Both give a picture
dozens of targets where the mask loss gives a few, so an encoder learns in thousands of pictures what would take it
millions. They read nothing but ordinary samples: names are the phrases ``<p> ... </p>`` of grounded captions.

Shape legend: B samples, L tokens, K objects of a sample, g cells along a side, C channels, V vocabulary, M cells,
W words of a phrase.

Source: words as classes of one softmax with several answers, SuperClass (arXiv 2411.03313, section 3.2), here per cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sa2va.model.types import Batch, Sa2VAOutput
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.train.auxiliary import AuxiliaryLoss
from sa2va.train.losses import Term

#: Cells of a level that are looked at in each picture; finer levels are sampled.
_CELLS = 64
#: Words of a phrase that count.
_WORDS = 8
#: An object covers a cell from this share on.
_COVERED = 0.15
#: A cell without an object says nothing worth many votes.
_BACKGROUND_WEIGHT = 0.3


class CellHead(nn.Module):
    """Names a cell and says where the middle of what covers it is.

    Args:
        width: channels of a cell. words: size of its own vocabulary; None names with the language model's words.
    """

    def __init__(self, width: int, words: int | None):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.words = None if words is None else nn.Linear(width, words)
        self.middle = nn.Linear(width, 2)

    def forward(self, cells_MC: Tensor, words_VC: Tensor) -> tuple[Tensor, Tensor]:
        """(M, V) logits of words, and (M, 2) places (x, y) in 0..1 of the picture.

        Args:
            words_VC: the language model's words, for a head that has none of its own.
        """
        normed = self.norm(cells_MC)
        logits = self.words(normed) if self.words is not None else normed @ words_VC.T.to(normed.dtype)
        return logits, self.middle(normed)


class GridHeads(nn.Module):
    """The heads of both losses.

    Args:
        model: an InternVL with one tile per picture. side: visual tokens along a side of the picture.
    """

    def __init__(self, model: Sa2VAModel, side: int):
        super().__init__()
        width, words = model.config.get_text_config().hidden_size, model.vlm.lm_head.weight.shape[0]
        pyramid = model.config.sam2_config.vision_config.fpn_hidden_size
        self.levels = nn.ModuleDict(
            {"vision": CellHead(width, None)} | {level: CellHead(pyramid, words) for level in ("fine", "middle", "top")}
        )
        self.place = nn.Linear(width, side**2)


class _GridLoss(AuxiliaryLoss):
    """
    Raises:
        ValueError: the model is no InternVL, whose visual tokens are a square of cells.
    """

    def __init__(self, model: Sa2VAModel, processor: Sa2VAProcessor, weights: Mapping[str, float]):
        super().__init__(model, processor, weights)
        if processor.cells is None:
            raise ValueError(
                f"the losses {list(self.names)} train InternVL models; this one is of another family: leave them out "
                "of auxiliary"
            )
        self.side = processor.cells
        self.heads = GridHeads(model, self.side)


class CellNaming(_GridLoss):
    """Runs both image encoders, whose cells name what covers them and say where its middle is."""

    names = ("words", "middle")
    needs = "nothing"

    def __init__(self, model: Sa2VAModel, processor: Sa2VAProcessor, weights: Mapping[str, float]):
        super().__init__(model, processor, weights)
        vocabulary = processor.tokenizer.get_vocab()
        self.phrase_ids, self.seg_id = (vocabulary["<p>"], vocabulary["</p>"]), model.config.seg_token_id
        self.blank_ids = processor.tokenizer(" ", add_special_tokens=False)["input_ids"]

    def losses(
        self, model: Sa2VAModel, batch: Batch, output: Sa2VAOutput | None, generator: torch.Generator
    ) -> dict[str, Term]:
        """Both image encoders run, the language model does not.

        Args:
            batch: pictures with grounded captions and area targets. generator: of the cells that are looked at.
        """
        assert batch.pixel_values is not None and batch.grounding_pixels is not None and batch.masks is not None
        features = model.encode_frames(batch.grounding_pixels)
        seen = model.encode_images(batch.pixel_values, tiles_per_sample=batch.tiles_per_sample).embeddings
        maps = {
            "vision": seen.view(len(batch.input_ids), self.side, self.side, -1),
            "fine": features.fine.permute(0, 2, 3, 1),
            "middle": features.middle.permute(0, 2, 3, 1),
            "top": features.top.permute(0, 2, 3, 1),
        }
        bags = [self._bags(row) for row in batch.input_ids]
        # What the language model reads of a cell is to look like the words it reads.
        words_VC: Any = model.get_input_embeddings().weight
        words, middles = [], []
        for level, map_BggC in maps.items():
            word, middle = self._level(level, map_BggC, words_VC, batch.masks, bags, generator)
            words.append(word)
            middles.append(middle)
        return {"words": _sum(words), "middle": _sum(middles)}

    def _level(
        self,
        level: str,
        map_BggC: Tensor,
        words_VC: Tensor,
        masks: tuple[Tensor | None, ...],
        bags: list[Tensor],
        generator: torch.Generator,
    ) -> tuple[Term, Term]:
        """Both losses of one feature map, over some of its cells."""
        side = map_BggC.shape[1]
        chosen, names, places = [], [], []
        for row, (sample, bag) in enumerate(zip(masks, bags, strict=True)):
            cells = torch.randperm(side**2, generator=generator, device=map_BggC.device)[:_CELLS]
            name, place = _targets(sample, bag, side, cells)
            chosen.append(row * side**2 + cells)
            names.append(name)
            places.append(place)
        heads: Any = self.heads
        logits_MV, middle_M2 = heads.levels[level](map_BggC.flatten(0, 2)[torch.cat(chosen)], words_VC)
        names_MW, places_M2 = torch.cat(names), torch.cat(places)
        covered_M = ~places_M2.isnan().any(dim=1)
        weights_M = torch.where(covered_M, 1.0, _BACKGROUND_WEIGHT)
        logits_MV = logits_MV.float()
        count_M = (names_MW >= 0).sum(dim=1)
        named_MW = logits_MV.gather(1, names_MW.clamp(min=0)) * (names_MW >= 0)
        # The last word is the noun: the hardest to learn, so it has half of the vote.
        noun_M = named_MW.gather(1, count_M[:, None] - 1)[:, 0]
        error_M = logits_MV.logsumexp(dim=1) - (named_MW.sum(dim=1) / count_M + noun_M) / 2
        distance_M = (middle_M2.float() - places_M2.nan_to_num()).abs().sum(dim=1)
        return (
            Term((error_M * weights_M).sum(), weights_M.sum()),
            Term((distance_M * covered_M).sum(), covered_M.sum()),
        )

    def _bags(self, ids_L: Tensor) -> Tensor:
        """(K, W) for every ``[SEG]`` of a sample the words of its phrase; -1 fills up."""
        opening, closing = self.phrase_ids
        bags, first, last = [], None, None
        ids_L = ids_L[~torch.isin(ids_L, ids_L.new_tensor(self.blank_ids))]
        for position, token in enumerate(ids_L.tolist()):
            if token == opening:
                first, last = position + 1, None
            elif token == closing:
                last = position
            elif token == self.seg_id:
                if first is None or last is None:
                    raise ValueError('"words" needs grounded captions: a [SEG] has no <p> phrase </p>')
                bags.append(F.pad(ids_L[first:last][:_WORDS], (0, max(0, _WORDS - (last - first))), value=-1))
        return torch.stack(bags) if bags else ids_L.new_zeros(0, _WORDS)


class SegPlacement(_GridLoss):
    """The state of every ``[SEG]`` says which part of the picture its object covers; no mask is drawn for it."""

    names = ("place",)
    needs = "text"

    def losses(
        self, model: Sa2VAModel, batch: Batch, output: Sa2VAOutput | None, generator: torch.Generator
    ) -> dict[str, Term]:
        """Cross-entropy between where each ``[SEG]`` says its object is, and its mask.

        Args:
            batch: with the masks of their objects in a picture. output: with the states of all ``[SEG]`` of the batch.
        """
        masks = [sample[:, 0].float() for sample in batch.masks or () if sample is not None]
        if not masks or output is None or output.seg_states is None:
            return {}
        cover_NP = F.adaptive_avg_pool2d(torch.cat(masks)[:, None], self.side).flatten(1)
        there_N = cover_NP.sum(dim=1) > 0
        share_NP = cover_NP / cover_NP.sum(dim=1, keepdim=True).clamp(min=1e-6)
        heads: Any = self.heads
        error_N = -(share_NP * heads.place(output.seg_states).float().log_softmax(dim=1)).sum(dim=1)
        return {"place": Term((error_N * there_N).sum(), there_N.sum())}


def _targets(masks_KFss: Tensor | None, bags_KW: Tensor, side: int, cells_M: Tensor) -> tuple[Tensor, Tensor]:
    """(M, W) words of each cell, token 0 for nothing, and (M, 2) the object's middle, nan for nothing."""
    nothing = F.pad(bags_KW.new_zeros(len(cells_M), 1), (0, _WORDS - 1), value=-1)
    unknown = torch.full((len(cells_M), 2), float("nan"), device=cells_M.device)
    if masks_KFss is None:
        return nothing, unknown
    cover_Kgg = F.adaptive_avg_pool2d(masks_KFss[:, :1].float(), side)[:, 0]
    share_M, object_M = cover_Kgg.flatten(1)[:, cells_M].max(dim=0)
    line = (torch.arange(side, device=cells_M.device) + 0.5) / side
    places_gg2 = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
    weights_Kgg1 = cover_Kgg[..., None] / cover_Kgg.sum(dim=(1, 2))[:, None, None, None].clamp(min=1e-6)
    middles_K2 = (weights_Kgg1 * places_gg2).sum(dim=(1, 2))
    covered_M1 = (share_M > _COVERED)[:, None]
    return torch.where(covered_M1, bags_KW[object_M], nothing), torch.where(covered_M1, middles_K2[object_M], unknown)


def _sum(terms: list[Term]) -> Term:
    """The sum of the means of several terms, as one mean over the count of the first."""
    return Term(torch.stack([term.mean() for term in terms]).sum() * terms[0].count, terms[0].count)
