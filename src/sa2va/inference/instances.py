"""The objects that one mask holds, one by one: connected parts, each confirmed by SAM 2."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sa2va.inference.point_prompts import Clicks
from sa2va.inference.work import DecodeMarks
from sa2va.masks.mask import Mask
from sa2va.masks.mask_ops import components, dilate, innermost
from sa2va.masks.segment import Segment
from sa2va.model.mask_decoder import FrameFeatures, MaskPrediction

#: Least area of a part: pixels, and as a share of the largest one's.
_LEAST_PIXELS, _LEAST_SHARE = 16, 0.02
#: Of SAM 2's mask, how much must lie in the part it stands for; and of the part, how much it must fill.
_INSIDE, _FILLS = 0.7, 0.25
#: SAM 2's masks may miss the part's edge by this share of the root of their area.
_RIM = 0.1
#: Objects that touch come off one by one, at most so many of one part.
_ROUNDS = 8
#: Parts that are decoded at once.
_AT_ONCE = 16


async def separate(segment: Segment, features: FrameFeatures, side: int, *, original: bool) -> list[Segment]:
    """One segment for each object of a mask, in reading order; the segment itself where none is confirmed.

    SAM 2 is clicked in the middle of each connected part (and given its box, where its original decoder is there). Its
    mask that agrees best with the part confirms the object if it lies in the part; what it leaves of the part belongs
    to another object.

    Args:
        features: of the picture. side: of the grounding image. original: the model has SAM 2's original decoder.
    """
    left, found = segment.mask.array, []
    for _ in range(_ROUNDS):
        parts = _parts(left)
        left = np.zeros_like(left)
        for first in range(0, len(parts), _AT_ONCE):
            chunk = parts[first : first + _AT_ONCE]
            prediction = await DecodeMarks(features, *_prompts(chunk, side, with_box=original), original=original)
            for part, row in zip(chunk, range(len(chunk)), strict=True):
                confirmed = _confirmed(prediction[row : row + 1], part)
                if confirmed is not None:
                    inside, score = confirmed
                    found.append((inside, score, prediction.presence[row].float().sigmoid().item()))
                    left |= part & ~inside
        if not left.any():
            break
    if not found:
        return [segment]
    found.sort(key=lambda one: int(np.flatnonzero(one[0])[0]))
    return [_instance(segment, *one) for one in found]


def _parts(mask: np.ndarray) -> list[np.ndarray]:
    """Connected parts, bool (H, W) each, without specks."""
    labels, count = components(mask, connectivity=8)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    least = max(_LEAST_PIXELS, _LEAST_SHARE * areas.max(initial=0))
    return [labels == number for number in range(1, count + 1) if areas[number - 1] >= least]


def _prompts(parts: list[np.ndarray], side: int, *, with_box: bool) -> tuple[Tensor, Tensor]:
    """A click in the middle of each part, and its box."""
    clicks = [
        Clicks.of(Mask.from_array(part).box if with_box else None, [innermost(part)]).tensors(part.shape[:2], side)
        for part in parts
    ]
    points, labels = zip(*clicks, strict=True)
    return torch.cat(points), torch.cat(labels)


def _confirmed(prediction: MaskPrediction, part: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The pixels of a part that are SAM 2's object, and its score; None if it is another object, or none."""
    if prediction.presence[0] <= 0:
        return None
    candidates = prediction.candidates[0].float().sigmoid()
    area = torch.from_numpy(part).to(candidates)[None, None]
    covered = F.interpolate(area, size=candidates.shape[-2:], mode="area")[0, 0]
    shared = torch.minimum(candidates, covered).sum(dim=(1, 2))
    best = int((shared / torch.maximum(candidates, covered).sum(dim=(1, 2))).argmax())
    if shared[best] < _INSIDE * candidates[best].sum() or shared[best] < _FILLS * covered.sum():
        return None
    logits = prediction.candidates[0, best][None, None].float()
    seen = F.interpolate(logits, size=part.shape, mode="bilinear", align_corners=False)[0, 0] > 0
    whole = seen.cpu().numpy()
    inside = part & dilate(whole, max(1.0, _RIM * float(whole.sum()) ** 0.5))
    return (inside, prediction.ious[0, best].float().item()) if inside.any() else None


def _instance(segment: Segment, mask: np.ndarray, score: float, presence: float) -> Segment:
    kept = None if segment.probabilities is None else segment.probabilities * mask
    return replace(segment, masks=(Mask.from_array(mask),), score=score, presence=presence, probabilities=kept)
