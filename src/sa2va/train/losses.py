"""Losses as pure functions of tensors: next-token prediction, and masks on their most uncertain points.

Every loss is a [`Term`], a sum and what it is a sum over, so that means can be taken over a micro-batch, over all
micro-batches of a step, or over all processes. With the defaults the numbers are those of the released recipe.

How masks are weighted: every frame that has objects counts once, and its objects share it equally. The released
recipe brings each frame to five objects (it repeats them, or draws five) and averages over all; that is the same for
exactly five objects and for one, the same in expectation for more, and without the uneven repeats for two to four.

Shape legend: B samples, L tokens, V vocabulary, K objects, N object-frame pairs, P points, s side of a mask.

Source: Mask2Former (arXiv 2112.01527, section 3.3, "Calculating loss with sampled points"); SAM (arXiv 2304.02643,
appendix A, "Training"); SAM 2 (arXiv 2408.00714, section 4); Sa2VA (arXiv 2501.04001).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sa2va.data.encode import resize_masks
from sa2va.model.families import IGNORED_LABEL
from sa2va.model.mask_decoder import MaskPrediction

#: What the reference adds to the number of masks or points it divides by: 1e-4, and the smallest step of a float32.
AVERAGE_EPSILON = 1e-4 + torch.finfo(torch.float32).eps

MaskLoss = Literal["bce", "dice", "focal", "iou", "presence"]
#: Losses of single points or cells.
_CELL_LOSSES: tuple[MaskLoss, ...] = ("bce", "dice", "focal")


@dataclass(frozen=True)
class LossWeights:
    """Weight of each loss; those of weight 0 are not computed. The defaults are the released recipe.

    Attributes:
        text: cross-entropy of the answers.
        bce, dice: of the mask.
        focal: of the mask, instead of ``bce`` if a segmenter is trained from scratch (SAM: 20).
        iou: predicted against true IoU of all three candidates.
        presence: cross-entropy of the object score.
    """

    text: float = 1.0
    bce: float = 2.0
    dice: float = 0.5
    focal: float = 0.0
    iou: float = 0.0
    presence: float = 0.0

    @property
    def masks(self) -> bool:
        """Whether any loss is of masks."""
        return any(weight for name, weight in vars(self).items() if name != "text")


@dataclass(frozen=True)
class LossOptions:
    """How losses are computed.

    Attributes:
        weights: weight of each loss.
        points: sampled points of a mask for ``bce``, ``dice`` and ``focal``; None takes every cell, which is cheaper if
            a mask has fewer cells than points.
        oversample: number of uniform candidates per point.
        importance: fraction of the points that are the most uncertain candidates; the others are uniform.
        candidate: which of the three candidate masks is trained: ``"chosen"``, the one with the highest predicted IoU
            (released), or ``"best"``, the one with the smallest loss (as in SAM; it does not collapse).
        average: ``"micro_batch"`` averages each micro-batch, then those of a step (released); ``"step"`` averages over
            all tokens and frames of a step, whatever the number of processes and micro-batches.
    """

    weights: LossWeights = LossWeights()
    points: int | None = 12544
    oversample: float = 3.0
    importance: float = 0.75
    candidate: Literal["chosen", "best"] = "chosen"
    average: Literal["micro_batch", "step"] = "micro_batch"


class Term(NamedTuple):
    """A loss as a sum.

    Attributes:
        total: () sum, differentiable. count: () what the sum runs over: tokens, or frames with objects.
        epsilon: () added to the count before dividing.
    """

    total: Tensor
    count: Tensor
    epsilon: Tensor | float = 0.0

    def mean(self, count: Tensor | None = None) -> Tensor:
        """The sum divided by its own count, or by another one; 0 where there is nothing to divide by."""
        divisor = (self.count if count is None else count) + self.epsilon
        return self.total / torch.where(divisor > 0, divisor, torch.ones_like(divisor))


def text_loss(logits: Tensor, labels_BL: Tensor) -> Term:
    """Cross-entropy of every token that has a label, given the tokens before it.

    Args:
        logits: (B, L, V), or (M, V) of the M positions whose next token has a label, row by row.
        labels_BL: int64, ``IGNORED_LABEL`` where nothing is learnt.
    """
    targets_BL = labels_BL[:, 1:]
    learnt_BL = targets_BL != IGNORED_LABEL
    logits_MV = logits if logits.ndim == 2 else logits[:, :-1][learnt_BL]
    targets_M = targets_BL[learnt_BL]
    return Term(F.cross_entropy(logits_MV.float(), targets_M, reduction="sum"), learnt_BL.sum())


def mask_losses(
    prediction: MaskPrediction,
    targets_Nss: Tensor,
    weights_N: Tensor,
    options: LossOptions,
    generator: torch.Generator | None = None,
) -> dict[MaskLoss, Term]:
    """All mask losses whose weight is not 0.

    Args:
        prediction: of N object-frame pairs.
        targets_Nss: float 0..1 at the side of the predictions, see [`low_resolution_targets`].
        weights_N: share of each pair in its frame, see [`frame_shares`].
        generator: of the points, on the device of the prediction; the same state gives the same losses.

    Returns:
        per loss its [`Term`], counted in frames.
    """
    weights: dict[MaskLoss, float] = {name: getattr(options.weights, name) for name in _CELL_LOSSES}
    wanted: dict[MaskLoss, float] = {name: weight for name, weight in weights.items() if weight}
    terms: dict[MaskLoss, Term] = {}
    if wanted:
        per_mask, cells = _mask_loss_per_pair(prediction, targets_Nss, wanted, options, generator)
        for name, values_N in per_mask.items():
            terms[name] = _frame_mean(values_N, weights_N, cells if name == "bce" else 1)
    present_N = targets_Nss.flatten(1).amax(dim=1) > 0
    if options.weights.iou:
        terms["iou"] = _frame_mean(iou_error(prediction, targets_Nss) * present_N, weights_N)
    if options.weights.presence:
        error_N = F.binary_cross_entropy_with_logits(prediction.presence.float(), present_N.float(), reduction="none")
        terms["presence"] = _frame_mean(error_N, weights_N)
    return terms


def bce_per_mask(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy over the last dimension: (..., P) logits and 0..1 targets to (...)."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=-1)


def dice_per_mask(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - (2 sum pt + 1) / (sum p + sum t + 1) over the last dimension, p = sigmoid(logits): (..., P) to (...)."""
    probabilities = logits.sigmoid()
    overlap, total = (probabilities * targets).sum(dim=-1), probabilities.sum(dim=-1) + targets.sum(dim=-1)
    return 1 - (2 * overlap + 1) / (total + 1)


def focal_per_mask(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Mean focal loss (arXiv 1708.02002) over the last dimension: (..., P) logits and 0..1 targets to (...)."""
    error = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probabilities = logits.sigmoid()
    hit = probabilities * targets + (1 - probabilities) * (1 - targets)
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return (balance * (1 - hit) ** gamma * error).mean(dim=-1)


def iou_error(prediction: MaskPrediction, targets_Nss: Tensor) -> Tensor:
    """(N,) mean over the three candidates of |predicted IoU - IoU of the mask above logit 0 with the target|."""
    masks = prediction.candidates.detach() > 0
    target = (targets_Nss > 0.5)[:, None]
    overlap, union = (masks & target).flatten(2).sum(dim=2), (masks | target).flatten(2).sum(dim=2)
    true_iou = overlap / union.clamp(min=1)
    return (prediction.ious.float() - true_iou).abs().mean(dim=1)


def uncertain_points(
    logits_Nss: Tensor,
    count: int,
    *,
    oversample: float = 3.0,
    importance: float = 0.75,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Points (N, count, 2) at which each mask is looked at; (x, y) in 0..1 of its side.

    Of ``oversample * count`` uniform points, the ``importance * count`` with logits nearest to 0 are kept; the others
    are uniform.
    """
    n, sure = len(logits_Nss), count - int(importance * count)
    device = logits_Nss.device
    drawn = torch.rand(n, int(count * oversample), 2, generator=generator, device=device)
    certainty = sample_points(logits_Nss.detach().float(), drawn).abs()
    unsure = certainty.topk(count - sure, dim=1, largest=False, sorted=False).indices
    kept = drawn.gather(1, unsure[..., None].expand(-1, -1, 2))
    return torch.cat([kept, torch.rand(n, sure, 2, generator=generator, device=device)], dim=1)


def sample_points(maps_NHW: Tensor, points_NP2: Tensor) -> Tensor:
    """(N, P) values at points (x, y) in 0..1, bilinear between cell centres, 0 outside of the map."""
    grid = (2 * points_NP2 - 1)[:, :, None]
    return F.grid_sample(maps_NHW[:, None], grid.to(maps_NHW.dtype), align_corners=False)[:, 0, :, 0]


def low_resolution_targets(masks: Sequence[Tensor | None], side: int) -> Tensor:
    """Float 0..1 targets (N, side, side) of all samples, ordered by sample, object, frame.

    Args:
        masks: per sample bool or float (objects, frames, H, W), or None. Other sizes are resized to the nearest cell.
    """
    parts = [resize_masks(sample, side).flatten(0, 1) for sample in masks if sample is not None]
    return torch.cat(parts).float()


def frame_shares(
    objects: Sequence[int], frames: Sequence[int], annotated: Sequence[Tensor | None] | None = None
) -> list[float]:
    """For every object-frame pair its share of the frame: one over the number of objects that are known there.

    Args:
        objects, frames: of each sample; pairs are ordered by sample, object, frame.
        annotated: per sample bool (objects, frames), which pairs are known; the others have no share. None for all.
    """
    shares: list[float] = []
    for k, f, known in zip(objects, frames, annotated or [None] * len(objects), strict=True):
        known_KF = torch.ones(k, f, dtype=torch.float64) if known is None else known.double()
        shares += (known_KF / known_KF.sum(dim=0).clamp(min=1)).flatten().tolist()
    return shares


def _mask_loss_per_pair(
    prediction: MaskPrediction,
    targets_Nss: Tensor,
    wanted: dict[MaskLoss, float],
    options: LossOptions,
    generator: torch.Generator | None,
) -> tuple[dict[MaskLoss, Tensor], int]:
    """Each wanted loss per pair, of the candidate that learns; and how many points or cells it looked at."""
    functions: dict[MaskLoss, Callable[[Tensor, Tensor], Tensor]]
    functions = {"bce": bce_per_mask, "dice": dice_per_mask, "focal": focal_per_mask}
    chosen = options.candidate == "chosen"
    masks_NCss = (prediction.logits[:, None] if chosen else prediction.candidates).float()
    candidates = masks_NCss.shape[1]
    flat_Mss = masks_NCss.flatten(0, 1)
    target_Mss = targets_Nss[:, None].expand_as(masks_NCss).flatten(0, 1)
    if options.points is None:
        logits_MP, targets_MP = flat_Mss.flatten(1), target_Mss.flatten(1)
    else:
        points = uncertain_points(
            flat_Mss,
            options.points,
            oversample=options.oversample,
            importance=options.importance,
            generator=generator,
        )
        logits_MP, targets_MP = sample_points(flat_Mss, points), sample_points(target_Mss, points)
    values: dict[MaskLoss, Tensor] = {
        name: functions[name](logits_MP, targets_MP).unflatten(0, (-1, candidates)) for name in wanted
    }
    total = torch.stack([wanted[name] * value.detach() for name, value in values.items()]).sum(dim=0)
    best = total.argmin(dim=1, keepdim=True)
    return {name: value.gather(1, best)[:, 0] for name, value in values.items()}, logits_MP.shape[1]


def _frame_mean(values_N: Tensor, weights_N: Tensor, cells: int = 1) -> Term:
    """Mean over the objects of a frame, summed over frames.

    The reference divides by masks (times points, in its cross-entropy) plus an epsilon; counted in frames, the epsilon
    shrinks by the masks per frame.
    """
    frames, masks = weights_N.sum(), (weights_N > 0).sum().clamp(min=1)
    return Term((values_N * weights_N).sum(), frames, AVERAGE_EPSILON / cells * frames / masks)
