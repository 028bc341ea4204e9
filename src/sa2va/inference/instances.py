"""The objects that one mask holds, one by one: connected parts, each confirmed by SAM 2."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sa2va.inference.point_prompts import Clicks
from sa2va.inference.work import DecodeMarks
from sa2va.masks.mask import Mask, Segment
from sa2va.masks.mask_ops import components, dilate, innermost
from sa2va.model.mask_decoder import FrameFeatures, MaskPrediction

#: Least area of a part: pixels, and as a share of the largest one's.
_LEAST_PIXELS, _LEAST_SHARE = 16, 0.02
#: What SAM 2 sees must fill this much of the part it was clicked in, and lie in the phrase's mask by that much.
_FILLS, _INSIDE = 0.25, 0.2
#: It is cut out of the part if it fills this much of it; so no part loses most of itself to one look.
_CUTS = 0.5
#: Two of its masks with this IoU are one object.
_SAME = 0.8
#: SAM 2's masks may miss an object's edge by this share of the root of their area.
_RIM = 0.1
#: Objects that touch come off one by one, at most so many of one part.
_ROUNDS = 8
#: Parts that are decoded at once.
_AT_ONCE = 16


@dataclass
class _Object:
    """What SAM 2 sees, bool (H, W), with its scores; and the pixels of the phrase's mask that belong to it."""

    seen: np.ndarray
    score: float
    presence: float
    mask: np.ndarray


async def separate(segment: Segment, features: FrameFeatures, side: int, *, original: bool) -> list[Segment]:
    """One segment for each object of a mask, in reading order; the segment itself where none is confirmed.

    SAM 2 is clicked in the middle of each connected part (and given its box, where its original decoder is there).
    Parts in which it sees the same object belong together, and what the object leaves of a part is another's.

    Args:
        features: of the picture. side: of the grounding image. original: the model has SAM 2's original decoder.
    """
    mask = segment.mask.array
    left, found = mask, list[_Object]()
    for _ in range(_ROUNDS):
        parts, left = _parts(left), np.zeros_like(mask)
        for first in range(0, len(parts), _AT_ONCE):
            chunk = parts[first : first + _AT_ONCE]
            prediction = await DecodeMarks(features, *_prompts(chunk, side, with_box=original), original=original)
            for row, part in enumerate(chunk):
                one = _confirmed(prediction[row : row + 1], part, mask)
                if one is None:
                    continue
                left |= part & ~one.mask
                same = next((other for other in found if _iou(one.seen, other.seen) > _SAME), None)
                if same is None:
                    found.append(one)
                else:
                    same.mask |= one.mask
        if not left.any():
            break
    if not found:
        return [segment]
    return [_instance(segment, one) for one in sorted(found, key=lambda one: int(np.flatnonzero(one.mask)[0]))]


def _parts(mask: np.ndarray) -> list[np.ndarray]:
    """Connected parts, bool (H, W) each, from the largest on, without specks."""
    labels, count = components(mask, connectivity=8)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    least = max(_LEAST_PIXELS, _LEAST_SHARE * areas.max(initial=0))
    return [labels == number + 1 for number in np.argsort(-areas, kind="stable") if areas[number] >= least]


def _prompts(parts: list[np.ndarray], side: int, *, with_box: bool) -> tuple[Tensor, Tensor]:
    """A click in the middle of each part, and its box."""
    clicks = [
        Clicks.of(Mask.from_array(part).box if with_box else None, [innermost(part)]).tensors(part.shape[:2], side)
        for part in parts
    ]
    points, labels = zip(*clicks, strict=True)
    return torch.cat(points), torch.cat(labels)


def _confirmed(prediction: MaskPrediction, part: np.ndarray, mask: np.ndarray) -> _Object | None:
    """The object that SAM 2 sees in a part of a mask, if there is one."""
    candidates = (prediction.candidates[0] > 0).float()
    area = torch.from_numpy(part).to(candidates)[None, None]
    covered = F.interpolate(area, size=candidates.shape[-2:], mode="area")[0, 0]
    shared = torch.minimum(candidates, covered).sum(dim=(1, 2))
    best = int((shared / torch.maximum(candidates, covered).sum(dim=(1, 2))).argmax())
    logits = prediction.candidates[0, best][None, None].float()
    seen = (F.interpolate(logits, size=part.shape, mode="bilinear", align_corners=False)[0, 0] > 0).cpu().numpy()
    filled = (seen & part).sum() / part.sum()
    if prediction.presence[0] <= 0 or filled < _FILLS or (seen & mask).sum() < _INSIDE * seen.sum():
        return None
    own = part & dilate(seen, max(1.0, _RIM * float(seen.sum()) ** 0.5)) if filled >= _CUTS else part
    presence = prediction.presence[0].float().sigmoid().item()
    return _Object(seen, prediction.ious[0, best].float().item(), presence, own)


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def _instance(segment: Segment, one: _Object) -> Segment:
    kept = None if segment.probabilities is None else segment.probabilities * one.mask
    mask = Mask.from_array(one.mask)
    return replace(segment, masks=(mask,), score=one.score, presence=one.presence, probabilities=kept)
