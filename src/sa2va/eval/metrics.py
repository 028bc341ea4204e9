"""The field's metrics on masks, in numpy, exactly as their benchmarks define them.

All masks are bool arrays; shapes: H height, W width, T frames. Scores are fractions 0..1; papers print them times 100.

Sources: cIoU and gIoU as in referring segmentation (RefCOCO; ReasonSeg, arXiv 2308.00692); gRefCOCO (ReLA, arXiv
2306.00968); J and F as in DAVIS (Perazzi et al., CVPR 2016).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
#: Width of the band in which boundaries match, as a share of the picture's diagonal (DAVIS).
BOUNDARY_BAND = 0.008


@dataclass(frozen=True)
class Overlap:
    """Intersection and union of one prediction with its target, in pixels."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """1 where both are empty."""
        return self.intersection / self.union if self.union else 1.0


def overlap(prediction: BoolArray, target: BoolArray, void: BoolArray | None = None) -> Overlap:
    """Count one prediction against its target.

    Args:
        prediction, target: bool arrays of one shape. void: pixels that do not count.

    Raises:
        ValueError: arrays of another dtype, or of different shapes.
    """
    _check(prediction, target, void)
    if void is not None:
        prediction, target = prediction & ~void, target & ~void
    return Overlap(int((prediction & target).sum()), int((prediction | target).sum()))


def ciou(overlaps: Iterable[Overlap]) -> float:
    """Cumulative IoU: all intersections over all unions. Large objects count more."""
    counted = list(overlaps)
    union = sum(one.union for one in counted)
    return sum(one.intersection for one in counted) / union if union else 1.0


def giou(overlaps: Iterable[Overlap]) -> float:
    """Mean IoU over samples; one with nothing to find and nothing found counts 1."""
    return float(np.mean([one.iou for one in overlaps]))


def precision_at(overlaps: Iterable[Overlap], threshold: float) -> float:
    """Share of samples whose IoU is above a threshold."""
    return float(np.mean([one.iou > threshold for one in overlaps]))


@dataclass(frozen=True)
class GeneralizedScores:
    """gRefCOCO: some expressions name nothing in the picture, and saying so is right.

    Attributes:
        giou, ciou: over all samples. n_acc: share of no-target samples answered with no target. t_acc: share of the
            others answered with one. Both 0 where there are no such samples.
    """

    giou: float
    ciou: float
    n_acc: float
    t_acc: float


def generalized_scores(predictions: Sequence[BoolArray | None], targets: Sequence[BoolArray]) -> GeneralizedScores:
    """gRefCOCO's scores.

    Args:
        predictions: a mask, or None where the model says that there is no target; an empty mask says the same.
        targets: a mask each, empty where there is no target.
    """
    if len(predictions) != len(targets):
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets")
    ious, intersections, unions = [], 0, 0
    answered: dict[bool, list[bool]] = {False: [], True: []}
    for prediction, target in zip(predictions, targets, strict=True):
        mask = np.zeros_like(target) if prediction is None else prediction
        says_none, has_target = not mask.any(), bool(target.any())
        counted = overlap(mask, target)
        answered[has_target].append(says_none != has_target)
        ious.append(counted.iou if has_target and not says_none else float(says_none and not has_target))
        intersections, unions = intersections + counted.intersection, unions + counted.union
    n_acc, t_acc = (float(np.mean(answered[kind])) if answered[kind] else 0.0 for kind in (False, True))
    return GeneralizedScores(float(np.mean(ious)), intersections / unions if unions else 1.0, n_acc, t_acc)


def jf_sequence(prediction: BoolArray, target: BoolArray, void: BoolArray | None = None) -> tuple[float, float]:
    """Region similarity J and boundary accuracy F of one object in one video: means over all its frames.

    Args:
        prediction, target: bool (T, H, W). void: bool (T, H, W), pixels that do not count.

    Raises:
        ValueError: arrays of another dtype or number of axes, or of different shapes.
    """
    _check(prediction, target, void)
    if prediction.ndim != 3 or not len(prediction):
        raise ValueError(f"expected bool (T, H, W) with at least one frame, got shape {prediction.shape}")
    if void is not None:
        prediction, target = prediction & ~void, target & ~void
    regions = [overlap(p, t).iou for p, t in zip(prediction, target, strict=True)]
    boundaries = [boundary_f(p, t) for p, t in zip(prediction, target, strict=True)]
    return float(np.mean(regions)), float(np.mean(boundaries))


def boundary_f(prediction: BoolArray, target: BoolArray, band: float = BOUNDARY_BAND) -> float:
    """F of one frame: how well boundaries match within a band. 1 where neither has one, 0 where only one has.

    A mask that covers the whole picture has no boundary.

    Args:
        prediction, target: bool (H, W). band: reach of a match, as a share of the diagonal.
    """
    _check(prediction, target, None)
    reach = math.ceil(band * math.hypot(*prediction.shape))
    ours, theirs = boundary(prediction), boundary(target)
    if not ours.any() or not theirs.any():
        return float(not ours.any() and not theirs.any())
    precision, recall = _near(ours, theirs, reach), _near(theirs, ours, reach)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: BoolArray) -> BoolArray:
    """Pixels of a bool (H, W) that differ from their right, lower or lower right neighbour inside the picture."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def _near(of: BoolArray, to: BoolArray, reach: int) -> float:
    """Share of the pixels of one boundary that have a pixel of the other within reach.

    Boundaries are thin, so looking around each of their pixels is much cheaper than dilating the whole picture.
    """
    padded = np.pad(to, reach).ravel()
    stride = to.shape[1] + 2 * reach
    rows, columns = np.nonzero(of)
    places = (rows + reach) * stride + columns + reach
    dy, dx = _disk(reach)
    return float(padded[places[:, None] + (dy * stride + dx)[None]].any(axis=1).mean())


@cache
def _disk(radius: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets (rows, columns) of a disk."""
    dy, dx = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    inside = dy**2 + dx**2 <= radius**2
    return dy[inside], dx[inside]


def _check(prediction: BoolArray, target: BoolArray, void: BoolArray | None) -> None:
    for name, array in (("prediction", prediction), ("target", target), ("void", void)):
        if array is not None and (array.dtype != np.bool_ or array.shape != prediction.shape):
            raise ValueError(
                f"expected bool arrays of one shape, got {name} {array.dtype} {array.shape} beside a prediction of "
                f"shape {prediction.shape}; resize predictions to the size of the annotation first"
            )
