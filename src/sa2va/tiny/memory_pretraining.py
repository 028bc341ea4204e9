"""What SAM 2's memory learns before it draws, in a model that starts from nothing: where in a frame the object is.

Learnt from the masks of tracked frames alone, memory attention gets hardly any signal: its answer passes a decoder that
knows clicks, and the wrong mask of one frame is the memory of the next. This loss asks it directly. What is
remembered of the frames before are their true masks, and every cell that memory attention returns says whether the
object covers it. The head that reads the cells is thrown away afterwards.

Shape legend: B clips, T frames, K objects, N object-frame pairs, C channels, s side of target masks, h side of the
feature grid.

Source: teacher forcing (Williams and Zipser 1989), over the memory of SAM 2 (arXiv 2408.00714, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sa2va.model.mask_decoder import MASK_LOGIT, FrameFeatures, MaskPrediction, decode_masks, point_tokens
from sa2va.model.memory import MemoryBank, attend, encode_memory, remember
from sa2va.model.types import Batch, EqualClips, Sa2VAOutput, equal_clips, object_frame_pairs
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.train.auxiliary import AuxiliaryLoss
from sa2va.train.losses import Term, bce_per_mask, dice_per_mask


class MemoryRecall(AuxiliaryLoss):
    """Runs SAM 2's image encoder and memory on clips with clicks (stage ``"segmenter"``), and reads the cells.

    Args:
        model: whose memory is trained.
    """

    names = ("recall",)
    needs = "nothing"

    def __init__(self, model: Sa2VAModel, processor: Sa2VAProcessor, weights: Mapping[str, float]):
        super().__init__(model, processor, weights)
        self.heads = self.here = nn.Linear(model.sam2.hidden_dim, 1)

    def losses(
        self, model: Sa2VAModel, batch: Batch, output: Sa2VAOutput | None, generator: torch.Generator
    ) -> dict[str, Term]:
        """Cross-entropy and dice loss of the cells of every frame but the first, summed over objects and frames.

        Args:
            batch: clips with clicks, of at least two frames each. generator: not used, every cell counts.
        """
        assert batch.grounding_pixels is not None and batch.frames_per_sample is not None and batch.masks is not None
        assert batch.points is not None and batch.point_labels is not None
        features = model.encode_frames(batch.grounding_pixels)
        objects = tuple(0 if masks is None else len(masks) for masks in batch.masks)
        masks_Nss = torch.cat([masks.flatten(0, 1) for masks in batch.masks if masks is not None])
        seen = _seen(model, features, batch, objects, masks_Nss)
        groups = equal_clips(objects, batch.frames_per_sample, features.top.device)
        errors_M = torch.cat([self._errors(model, features, seen, masks_Nss, clips) for clips in groups])
        return {"recall": Term(errors_M.sum(), errors_M.new_tensor(len(errors_M)))}

    def _errors(
        self, model: Sa2VAModel, features: FrameFeatures, seen: MaskPrediction, masks_Nss: Tensor, clips: EqualClips
    ) -> Tensor:
        """(K * (T - 1),) errors of clips of one length."""
        side, bank, cells, covers = features.top.shape[-1], MemoryBank(), [], []
        for index, (frames_B, pairs_K) in enumerate(zip(clips.frames_TB, clips.pairs_KT.T, strict=True)):
            frame, true = features[frames_B], seen[pairs_K]
            if index == 0:
                memory = encode_memory(model.sam2, frame, true, 0, frame_of_object_K=clips.clip_of_object_K)
                bank = bank.add_prompted(memory)
                continue
            conditioned_KChh = attend(model.sam2, bank, frame.top, index, frame_of_object_K=clips.clip_of_object_K)
            cells.append(self.here(conditioned_KChh.permute(0, 2, 3, 1)).flatten(1).float())
            covers.append(F.adaptive_avg_pool2d(masks_Nss[pairs_K].float(), side).flatten(1))
            bank = remember(model.sam2, bank, frame, true, index, frame_of_object_K=clips.clip_of_object_K)
        logits_MP, cover_MP = torch.cat(cells), torch.cat(covers)
        return bce_per_mask(logits_MP, cover_MP) + dice_per_mask(logits_MP, cover_MP)


@torch.no_grad()
def _seen(
    model: Sa2VAModel, features: FrameFeatures, batch: Batch, objects: tuple[int, ...], masks_Nss: Tensor
) -> MaskPrediction:
    """The true masks of all object-frame pairs, with the pointers that the mask decoder gives for clicks on them.

    SAM 2's own way from a mask to a pointer passes the mask prompt, which a model that starts from nothing has not
    learnt; clicks it knows.
    """
    assert batch.points is not None and batch.point_labels is not None and batch.frames_per_sample is not None
    tokens = point_tokens(model.sam2, batch.points, batch.point_labels)
    _, pair_frame = object_frame_pairs(objects, batch.frames_per_sample, tokens.device)
    drawn = decode_masks(model.sam2, model.sam2.mask_decoder, features, tokens, frame_of_prompt_N=pair_frame)
    true = (2 * masks_Nss.to(drawn.candidates.dtype) - 1) * MASK_LOGIT
    present = true.flatten(1).amax(dim=1).sign() * MASK_LOGIT
    return replace(drawn, candidates=true[:, None], best=torch.zeros_like(drawn.best), presence=present)
