"""What is measured of an object's masks through a clip besides J&F: absences, reappearances, and mistaken identity.

All masks are bool arrays; T frames, N objects, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sa2va.eval.metrics import BoolArray, jf_sequence

#: IoU from which a mask is that of an object.
MATCH = 0.5
#: Frames in a row for which an object is out of sight before it counts as lost.
LEAST_ABSENCE = 5


@dataclass(frozen=True)
class TrackOutcome:
    """The masks of one object through a clip, against the truth.

    Attributes:
        j, f: DAVIS' region similarity and boundary accuracy, means over all frames.
        reappeared: J&F over the frames in which the object is in sight after it was lost; None where it never was.
        absent: number of frames in which the object is not to be seen. false: those of them with a mask.
        swaps: how often the mask went over to another object.
    """

    j: float
    f: float
    reappeared: float | None
    absent: int
    false: int
    swaps: int

    @property
    def jf(self) -> float:
        """Mean of J and F."""
        return (self.j + self.f) / 2


def track_outcome(prediction: BoolArray, objects: BoolArray, target: int) -> TrackOutcome:
    """Measure the masks of one object.

    Args:
        prediction: bool (T, H, W).
        objects: bool (N, T, H, W), the visible part of everything that could be mistaken for it, itself included.
        target: which of the objects is meant.

    Raises:
        ValueError: arrays of another dtype, or of shapes that do not fit.
    """
    if objects.ndim != 4 or not 0 <= target < len(objects):
        raise ValueError(f"expected objects (N, T, H, W) that hold number {target}, got shape {objects.shape}")
    truth = objects[target]
    j, f = jf_sequence(prediction, truth)
    seen = truth.any(axis=(1, 2))
    again = after_absence(seen)
    reappeared = sum(jf_sequence(prediction[again], truth[again])) / 2 if again.any() else None
    false = int(prediction[~seen].any(axis=(1, 2)).sum())
    return TrackOutcome(j, f, reappeared, int((~seen).sum()), false, identity_swaps(prediction, objects))


def after_absence(seen: BoolArray, *, least: int = LEAST_ABSENCE) -> BoolArray:
    """The frames (T) in which an object is in sight after it had been seen and then lost.

    Args:
        seen: bool (T), whether the object is in sight in each frame.
        least: frames in a row without it that count as lost; shorter gaps are none.

    Examples:
        >>> import numpy as np
        >>> from sa2va.eval.track_metrics import after_absence
        >>> seen = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1], bool)
        >>> after_absence(seen, least=2).astype(int)
        array([0, 0, 0, 0, 0, 0, 0, 1, 1])
    """
    found = np.zeros_like(seen)
    known, gone = False, 0
    lost = False
    for index, here in enumerate(seen):
        lost = lost or (here and known and gone >= least)
        gone = 0 if here else gone + 1
        known = known or bool(here)
        found[index] = here and lost
    return found


def identity_swaps(prediction: BoolArray, objects: BoolArray) -> int:
    """How often a mask goes over from one object to another.

    In each frame it is on the object with the highest IoU, if that is at least [`MATCH`]; frames in which it is on none
    are passed over. Where it begins is not counted: a mask that is on the wrong object throughout never swaps.

    Args:
        prediction: bool (T, H, W). objects: bool (N, T, H, W), visible parts.
    """
    both = (prediction & objects).sum(axis=(2, 3))
    either = prediction.sum(axis=(1, 2)) + objects.sum(axis=(2, 3)) - both
    iou = both / np.maximum(either, 1)
    on = iou.argmax(axis=0)[iou.max(axis=0) >= MATCH]
    return int((on[1:] != on[:-1]).sum())
