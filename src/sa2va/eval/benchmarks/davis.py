"""Ref-DAVIS17 by DAVIS's own rules: the objects of a video as one label map, matched to the true ones.

Its numbers are not comparable with those of the per-expression protocol, which most language models report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sa2va.data.annotations.referring_video import RvosVideo
from sa2va.eval.benchmark import Prediction, Scores
from sa2va.eval.benchmarks.file_benchmark import means
from sa2va.eval.benchmarks.video_segmentation import ASKED, ReferringVideos, chunks
from sa2va.eval.metrics import BoolArray, jf_sequence
from sa2va.media.image import MAX_PIXELS, open_picture
from sa2va.runtime import require_extra

VOID = 255
#: What expression 4k + n of a video is, for its object k.
ANNOTATORS = (
    "annotator 1, first frame",
    "annotator 1, full video",
    "annotator 2, first frame",
    "annotator 2, full video",
)
PROTOCOL = ASKED + (
    "As URVOS and ReferFormer evaluate: for each of the four sets of descriptions (expression 4k + n is object k's in "
    "set n) the objects of a video are laid into one label map, where masks overlap the first object's; label maps are "
    "matched to the objects of the first annotated frame so that the sum of J&F is largest (DAVIS, unsupervised mode); "
    "void pixels (255) do not count; all frames count. J and F are means over objects, then over the four sets. Not "
    "comparable with the per-expression protocol."
)


class OfficialDavis(ReferringVideos):
    """Ref-DAVIS17 with DAVIS's label maps.

    Args:
        annotations: folder ``video/frame.png`` of index pictures. The rest as in ``ReferringVideos``.
    """

    def __init__(self, name: str, videos: Sequence[RvosVideo], annotations: Path):
        super().__init__(name, PROTOCOL, "segment", videos)
        self.annotations = annotations
        for video in videos:
            _check(video)

    def count(self, predictions: Mapping[str, Prediction]) -> Scores:
        """J, F, J&F: means over objects, then over the four sets, each of which is a group."""
        sets: list[list[dict[str, float]]] = [[] for _ in ANNOTATORS]
        samples: dict[str, float] = {}
        for video in self.entries:
            truth = _label_maps(self.annotations, video)
            # An expression whose map is matched to no object adds nothing to the scores.
            samples.update(dict.fromkeys(self.ids(video), 0.0))
            for number, rows in enumerate(sets):
                asked = [f"{self.name}/{video.id}/{one}" for one in range(number, len(video.expressions), len(sets))]
                for row, query in _matched(_merged([_drawn(video, predictions[one]) for one in asked]), truth):
                    rows.append(row)
                    samples.update({asked[query]: row["j&f"]} if query < len(asked) else {})
        groups = {name: {"count": len(rows), **means(rows)} for name, rows in zip(ANNOTATORS, sets, strict=True)}
        values = means({name: group[name] for name in ("j&f", "j", "f")} for group in groups.values())
        return Scores(values, groups, samples, "j&f")


def _matched(proposals: list[BoolArray], truth: NDArray[np.uint8]) -> list[tuple[dict[str, float], int]]:
    """The scores of each true object, and the index of the proposal it was matched to, in the order of proposals."""
    objects = [truth == label for label in range(1, _object_count(truth) + 1)]
    if not objects:
        return []
    padded = proposals + [np.zeros(truth.shape, bool)] * (len(objects) - len(proposals))
    scores = np.array([[jf_sequence(ours, theirs, truth == VOID) for theirs in objects] for ours in padded])
    rows, columns = require_extra("scipy.optimize", "eval").linear_sum_assignment(-scores.mean(axis=2))
    matched = scores[rows, columns].tolist()
    return [({"j&f": (j + f) / 2, "j": j, "f": f}, int(row)) for row, (j, f) in zip(rows, matched, strict=True)]


def _check(video: RvosVideo) -> None:
    numbers = sorted(int(expression.id) for expression in video.expressions if expression.id.isdecimal())
    if not numbers or numbers != list(range(len(video.expressions))) or len(numbers) % len(ANNOTATORS):
        raise ValueError(
            f"video {video.id!r}: expected expressions 0, 1, ... of which 4k to 4k + 3 are object k's, got "
            f"{[expression.id for expression in video.expressions]}"
        )


def _drawn(video: RvosVideo, prediction: Prediction) -> BoolArray:
    return np.concatenate([masks for _, masks in chunks(video, prediction)])


def _merged(masks: Sequence[BoolArray]) -> list[BoolArray]:
    """The masks without what an earlier one has taken."""
    taken = np.zeros_like(masks[0])
    merged = []
    for mask in masks:
        merged.append(mask & ~taken)
        taken |= mask
    return merged


def _object_count(truth: NDArray[np.uint8]) -> int:
    first = truth[0]
    return int(first[first != VOID].max(initial=0))


def _label_maps(folder: Path, video: RvosVideo) -> NDArray[np.uint8]:
    """uint8 (F, H, W). Raises ValueError for a missing, damaged or differently sized picture."""
    maps = []
    for frame in video.frames:
        path = folder / video.id / f"{frame.stem}.png"
        with open_picture(str(path), str(path), MAX_PIXELS) as image:
            if image.mode not in ("P", "L") or (image.height, image.width) != video.size:
                raise ValueError(
                    f"{path}: expected an index picture of {video.size} (h, w), got mode {image.mode} of "
                    f"{(image.height, image.width)}"
                )
            maps.append(np.asarray(image, dtype=np.uint8))
    return np.stack(maps)
