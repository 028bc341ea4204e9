"""Metrics of masks in numpy, as the benchmarks define them.

All masks are bool arrays; H height, W width, T frames. Scores are fractions 0..1; papers print them times 100.

Sources: cIoU and gIoU as in referring segmentation (RefCOCO; ReasonSeg, arXiv 2308.00692); gRefCOCO (ReLA, arXiv
2306.00968); J and F as in DAVIS (Perazzi et al., CVPR 2016); robustness as in ReVOS (VISA, arXiv 2407.11325).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from sa2va.masks.mask import Mask

BoolArray = NDArray[np.bool_]
#: Width of the band in which boundaries match, as a share of the picture's diagonal (DAVIS).
BOUNDARY_BAND = 0.008
#: Pixels looked up at once: boundaries of noise are long, and all their neighbourhoods would fill the memory.
_LOOKUPS = 1 << 22


@dataclass(frozen=True)
class Overlap:
    """Intersection and union of a prediction and its target, in pixels."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union, 0..1; 1 if both are empty."""
        return self.intersection / self.union if self.union else 1.0


def overlap(prediction: BoolArray, target: BoolArray, void: BoolArray | None = None) -> Overlap:
    """Intersection and union of a prediction and its target.

    Args:
        prediction, target: bool arrays of one shape.
        void: bool of the same shape, pixels to ignore.

    Raises:
        ValueError: arrays of another dtype, or of different shapes.

    Examples:
        >>> import numpy as np
        >>> from sa2va.eval.metrics import overlap
        >>> prediction, target = np.zeros((2, 4, 6), bool)
        >>> prediction[:, :3] = target[:2] = True
        >>> overlap(prediction, target)
        Overlap(intersection=6, union=18)
    """
    _check(prediction, target, void)
    if void is not None:
        prediction, target = prediction & ~void, target & ~void
    return Overlap(int((prediction & target).sum()), int((prediction | target).sum()))


@dataclass(frozen=True)
class Areas:
    """Pixel counts of a prediction, its target and their intersection, from which all region scores follow."""

    prediction: int
    target: int
    both: int

    @property
    def overlap(self) -> Overlap:
        """Intersection and union."""
        return Overlap(self.both, self.prediction + self.target - self.both)


def mask_areas(prediction: Mask, target: Mask) -> Areas:
    """Pixel counts of a prediction and its target, computed on run lengths.

    Raises:
        ValueError: the masks have different sizes.
    """
    if prediction.size != target.size:
        raise ValueError(
            f"expected masks of one size, got (h, w) {prediction.size} beside a target of {target.size}; resize "
            "predictions to the size of the annotation first"
        )
    runs: list[Any] = [prediction.rle, target.rle]
    return Areas(prediction.area, target.area, int(coco.area(cast(Any, coco.merge(runs, intersect=True)))))


def ciou(overlaps: Iterable[Overlap]) -> float:
    """Cumulative IoU: the sum of all intersections over the sum of all unions, so large objects count more.

    Examples:
        >>> from sa2va.eval.metrics import Overlap, ciou
        >>> ciou([Overlap(90, 100), Overlap(1, 10)])  # 91 / 110
        0.82...
    """
    counted = list(overlaps)
    union = sum(one.union for one in counted)
    return sum(one.intersection for one in counted) / union if union else 1.0


def giou(overlaps: Iterable[Overlap]) -> float:
    """Mean IoU over samples; a sample without a target and without a prediction counts 1.

    Examples:
        >>> from sa2va.eval.metrics import Overlap, giou
        >>> giou([Overlap(90, 100), Overlap(1, 10)])
        0.5
    """
    return float(np.mean([one.iou for one in overlaps]))


def precision_at(overlaps: Iterable[Overlap], threshold: float) -> float:
    """Fraction of samples whose IoU is at least the threshold.

    Examples:
        >>> from sa2va.eval.metrics import Overlap, precision_at
        >>> precision_at([Overlap(90, 100), Overlap(1, 10)], 0.5)
        0.5
    """
    return float(np.mean([one.iou >= threshold for one in overlaps]))


@dataclass(frozen=True)
class GeneralizedScores:
    """Scores of gRefCOCO, where some expressions refer to nothing in the image.

    Attributes:
        giou: mean IoU over all samples.
        ciou: cumulative IoU over all samples.
        n_acc: fraction of the samples without a target that were answered "no target"; 0 if there are none.
        t_acc: fraction of the samples with a target that were answered with a mask; 0 if there are none.
        ious: per sample; 1 for a correct "no target", 0 for a wrong or missing one.
        targeted: per sample, whether it has a target.
    """

    giou: float
    ciou: float
    n_acc: float
    t_acc: float
    ious: tuple[float, ...]
    targeted: tuple[bool, ...]

    def precision_at(self, threshold: float) -> float:
        """Fraction of the samples with a target whose IoU is at least the threshold; 0 if there are none."""
        hits = [iou >= threshold for iou, has_target in zip(self.ious, self.targeted, strict=True) if has_target]
        return float(np.mean(hits)) if hits else 0.0


def generalized_scores(
    predictions: Iterable[BoolArray | None], targets: Iterable[BoolArray], *, least_pixels: int = 1
) -> GeneralizedScores:
    """gRefCOCO's scores of masks.

    Args:
        predictions: bool masks, or None for "no target".
        targets: bool masks, empty if there is no target.
        least_pixels: as in [`generalized_areas`].

    Raises:
        ValueError: as many predictions as targets were expected, or shapes differ.

    Examples:
        >>> import numpy as np
        >>> from sa2va.eval.metrics import generalized_scores
        >>> dog, nothing = np.ones((4, 6), bool), np.zeros((4, 6), bool)
        >>> scores = generalized_scores([dog, None, dog], [dog, nothing, nothing])
        >>> scores.n_acc, scores.t_acc, scores.ious
        (0.5, 1.0, (1.0, 1.0, 0.0))
    """
    areas = []
    for prediction, target in zip(predictions, targets, strict=True):
        mask = np.zeros_like(target) if prediction is None else prediction
        areas.append(Areas(int(mask.sum()), int(target.sum()), overlap(mask, target).intersection))
    return generalized_areas(areas, least_pixels=least_pixels)


def generalized_areas(samples: Iterable[Areas], *, least_pixels: int = 1) -> GeneralizedScores:
    """gRefCOCO's scores, from pixel counts.

    Args:
        samples: one per sample; the prediction or target may be empty.
        least_pixels: a prediction of fewer pixels means "no target". Some papers use 50.
    """
    ious, intersections, unions = [], 0, 0
    answered: dict[bool, list[bool]] = {False: [], True: []}
    targeted = []
    for sample in samples:
        says_none, has_target = sample.prediction < least_pixels, sample.target > 0
        answered[has_target].append(says_none != has_target)
        targeted.append(has_target)
        ious.append(sample.overlap.iou if has_target and not says_none else float(says_none and not has_target))
        # Where "no target" was said wrongly, the pixels drawn all the same still stand in the union.
        intersections += 0 if says_none else sample.both
        unions += 0 if says_none and not has_target else sample.overlap.union
    n_acc, t_acc = (float(np.mean(answered[kind])) if answered[kind] else 0.0 for kind in (False, True))
    total = intersections / unions if unions else 1.0
    return GeneralizedScores(float(np.mean(ious)), total, n_acc, t_acc, tuple(ious), tuple(targeted))


def pixel_agreement(prediction: BoolArray, target: BoolArray) -> float:
    """Fraction of pixels, over all frames together, on which two masks of one shape agree."""
    _check(prediction, target, None)
    return float((prediction == target).mean())


def robustness(prediction: BoolArray, target: BoolArray, foreground: BoolArray) -> float:
    """ReVOS's robustness R, mean over frames: how little a prediction covers beyond its target.

    A frame scores 1 minus the ratio of false positive pixels to those of all annotated objects, and at least 0.

    Args:
        prediction, target: bool (T, H, W).
        foreground: bool (T, H, W), the union of all annotated objects.

    Raises:
        ValueError: arrays of another dtype, or of different shapes.
    """
    _check(prediction, target, foreground)
    wrong = (prediction & ~target).sum(axis=(1, 2))
    objects = foreground.sum(axis=(1, 2))
    return float(np.maximum(0, 1 - wrong / (objects + 1e-6)).mean())


def jf_sequence(prediction: BoolArray, target: BoolArray, void: BoolArray | None = None) -> tuple[float, float]:
    """DAVIS' region similarity J and boundary accuracy F of an object in a video, means over all frames.

    Args:
        prediction, target: bool (T, H, W).
        void: bool (T, H, W), pixels to ignore.

    Returns:
        J and F.

    Raises:
        ValueError: arrays of another dtype or number of axes, or of different shapes.

    Examples:
        >>> import numpy as np
        >>> from sa2va.eval.metrics import jf_sequence
        >>> target = np.zeros((2, 32, 32), bool)
        >>> target[:, 8:24, 8:24] = True
        >>> prediction = target.copy()
        >>> prediction[1] = False  # the object is lost in the second frame
        >>> jf_sequence(prediction, target)
        (0.5, 0.5)
    """
    _check(prediction, target, void)
    if prediction.ndim != 3 or not len(prediction):
        raise ValueError(f"expected bool (T, H, W) with at least one frame, got shape {prediction.shape}")
    if void is not None:
        prediction, target = prediction & ~void, target & ~void
    reach = _reach(prediction.shape[1:])
    scores = np.ones((2, len(prediction)))
    for index, (ours, theirs) in enumerate(zip(prediction, target, strict=True)):
        if (window := _window(ours | theirs)) is not None:
            ours, theirs = ours[window], theirs[window]
            scores[:, index] = overlap(ours, theirs).iou, _boundary_f(ours, theirs, reach)
    region, contour = scores.mean(axis=1)
    return float(region), float(contour)


def boundary_f(prediction: BoolArray, target: BoolArray) -> float:
    """Boundary accuracy F of one frame: 1 if neither mask has a boundary, 0 if only one has.

    A mask that covers the whole image has no boundary.

    Args:
        prediction, target: bool (H, W).

    Raises:
        ValueError: arrays of another dtype, or of different shapes.
    """
    _check(prediction, target, None)
    return _boundary_f(prediction, target, _reach(prediction.shape))


def _reach(shape: tuple[int, ...]) -> int:
    return math.ceil(BOUNDARY_BAND * math.hypot(*shape))


def _window(marked: BoolArray) -> tuple[slice, slice] | None:
    """The part of a bool (H, W) that holds all that is marked and one pixel around it, so that boundaries stay."""
    rows = np.flatnonzero(marked.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(marked[rows[0] : rows[-1] + 1].any(axis=0))
    return slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)


def _boundary_f(prediction: BoolArray, target: BoolArray, reach: int) -> float:
    ours, theirs = boundary(prediction), boundary(target)
    if not ours.any() or not theirs.any():
        return float(not ours.any() and not theirs.any())
    precision, recall = _near(ours, theirs, reach), _near(theirs, ours, reach)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: BoolArray) -> BoolArray:
    """The pixels of a bool (H, W) that differ from their right, lower or lower right neighbour inside the image."""
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
    around = dy * stride + dx
    step = max(_LOOKUPS // len(around), 1)
    hits = [padded[places[i : i + step, None] + around].any(axis=1).sum() for i in range(0, len(places), step)]
    return float(sum(hits) / len(places))


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
