"""What SAM 2's memory learns before it draws, in a model that starts from nothing: where in a frame the object is.

Learnt from the masks of tracked frames alone, memory attention gets hardly any signal: its answer passes a decoder that
knows clicks, and the wrong mask of one frame is the memory of the next. Stage "memory" asks it directly. What is
remembered of the frames before are their true masks, and every cell that memory attention returns says whether the
object covers it. The head that reads the cells is thrown away afterwards.

Shape legend: K objects, F frames, C channels, s side of target masks, h side of the feature grid.

Source: teacher forcing (Williams and Zipser 1989), over the memory of SAM 2 (arXiv 2408.00714, section 4).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sa2va.model.batch import Batch
from sa2va.model.grounding import MASK_LOGIT, FrameFeatures, MaskPrediction, decode_masks, point_tokens
from sa2va.model.memory import MemoryBank, attend, encode_memory, remember
from sa2va.model.sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.train.losses import Term, bce_per_mask, dice_per_mask


class Recall(nn.Module):
    """The head. It is a part of the model while it is trained, and is not saved with it.

    Args:
        model: whose memory is trained.
    """

    def __init__(self, model: Sa2VAModel):
        super().__init__()
        self.here = nn.Linear(model.sam2.hidden_dim, 1)

    @classmethod
    def of(cls, model: Sa2VAModel, processor: Sa2VAProcessor) -> Recall:
        """The head for a model; the processor has no part in it."""
        return cls(model)

    def losses(self, model: Sa2VAModel, batch: Batch, generator: torch.Generator) -> dict[str, Term]:
        """Cross-entropy and dice loss of the cells of every frame but the first, summed over objects and frames.

        Args:
            batch: clips with clicks, of at least two frames each. generator: not used, every cell counts.
        """
        assert batch.grounding_pixels is not None and batch.frames_per_sample is not None and batch.masks is not None
        assert batch.points is not None and batch.point_labels is not None
        features, errors, first_frame, first_pair = model.encode_frames(batch.grounding_pixels), [], 0, 0
        for frames, masks_KFss in zip(batch.frames_per_sample, batch.masks, strict=True):
            if masks_KFss is None:
                continue
            clip = features[slice(first_frame, first_frame + frames)]
            pairs = slice(first_pair, first_pair + len(masks_KFss) * frames)
            seen = _seen(model, clip, batch.points[pairs], batch.point_labels[pairs], masks_KFss)
            errors.append(self._clip_errors(model, clip, seen, masks_KFss))
            first_frame, first_pair = first_frame + frames, pairs.stop
        errors_M = torch.cat(errors)
        return {"recall": Term(errors_M.sum(), errors_M.new_tensor(len(errors_M)))}

    def _clip_errors(
        self, model: Sa2VAModel, clip: FrameFeatures, seen: list[MaskPrediction], masks_KFss: Tensor
    ) -> Tensor:
        """(K * (F - 1),) errors of one clip."""
        bank = MemoryBank().add_prompted(encode_memory(model.sam2, clip[0], seen[0], 0))
        side, cells, covers = clip.top.shape[-1], [], []
        for index in range(1, len(clip)):
            conditioned_KChh = attend(model.sam2, bank, clip[index].top, index)
            cells.append(self.here(conditioned_KChh.permute(0, 2, 3, 1)).flatten(1).float())
            covers.append(F.adaptive_avg_pool2d(masks_KFss[:, index].float(), side).flatten(1))
            bank = remember(model.sam2, bank, clip[index], seen[index], index)
        logits_MP, cover_MP = torch.cat(cells), torch.cat(covers)
        return bce_per_mask(logits_MP, cover_MP) + dice_per_mask(logits_MP, cover_MP)


@torch.no_grad()
def _seen(
    model: Sa2VAModel, clip: FrameFeatures, points: Tensor, labels: Tensor, masks_KFss: Tensor
) -> list[MaskPrediction]:
    """Per frame the true masks of all objects, with the pointers that the mask decoder gives for clicks on them.

    SAM 2's own way from a mask to a pointer passes the mask prompt, which a model that starts from nothing has not
    learnt; clicks it knows.
    """
    count, frames = masks_KFss.shape[:2]
    tokens = point_tokens(model.sam2, points, labels)
    frame_of_pair = torch.arange(frames, device=tokens.device).repeat(count)
    drawn = decode_masks(model.sam2, model.sam2.mask_decoder, clip, tokens, frame_of_prompt_N=frame_of_pair)
    true = (2 * masks_KFss.flatten(0, 1).to(drawn.candidates.dtype) - 1) * MASK_LOGIT
    present = true.flatten(1).amax(dim=1).sign() * MASK_LOGIT
    drawn = replace(drawn, candidates=true[:, None], best=torch.zeros_like(drawn.best), presence=present)
    return [drawn[torch.arange(frame, len(true), frames, device=true.device)] for frame in range(frames)]
