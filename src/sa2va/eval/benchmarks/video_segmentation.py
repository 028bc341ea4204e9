"""Referring video segmentation scored here: MeViS valid_u, Ref-DAVIS17 per expression, ReVOS, Ref-SAV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count

import numpy as np

from sa2va.data.annotations.referring_video import RvosExpression, RvosVideo
from sa2va.eval.benchmark import Expected, Item, Prediction, Query, Scores
from sa2va.eval.benchmarks.file_benchmark import FileBenchmark, by_tag, empty_mask, first_mask, means
from sa2va.eval.metrics import BoolArray, jf_sequence, pixel_agreement, robustness
from sa2va.masks.mask import Mask
from sa2va.processing.requests import VIDEO_QUESTION_BENCHMARK_REQUEST, VIDEO_REFERRING_REQUEST

#: Frames that are held as pixels at once.
_CHUNK = 8
ASKED = (
    f"Each expression is asked alone, as {VIDEO_REFERRING_REQUEST.format(phrase='{}')!r}, or as "
    f"{VIDEO_QUESTION_BENCHMARK_REQUEST.format(phrase='{}')!r} where it has a question mark. The "
    "masks of the first [SEG] count; an answer without one counts as empty masks. "
)
JF = (
    "The target is the union of the expression's objects. J and F as DAVIS defines them, mean over all frames, the "
    "first and the last included: a frame without target scores 1 for an empty mask and 0 for anything else. "
)
MEAN = "Scores are means over expressions; J&F is the mean of J and F."


class ReferringVideos(FileBenchmark[RvosVideo]):
    """Expressions about videos, each one sequence of masks."""

    def item(self, entry: RvosVideo) -> Item:
        """One video with all its expressions."""
        queries = [
            Query(name, request(expression.text), tag=self.tag(expression), phrase=expression.text)
            for name, expression in zip(self.ids(entry), entry.expressions, strict=True)
        ]
        return Item(f"{self.name}/{entry.id}", entry.frames, True, entry.size, tuple(queries))

    def ids(self, entry: RvosVideo) -> Sequence[str]:
        """``benchmark/video/expression``."""
        return [f"{self.name}/{entry.id}/{expression.id}" for expression in entry.expressions]

    def tag(self, expression: RvosExpression) -> str:
        """No groups."""
        return ""

    def expected(self, query_id: str) -> Expected:
        """The masks meant, frame by frame."""
        entry, index = self.find(query_id)
        masks = entry.masks(entry.expressions[index])
        return Expected(masks=(tuple(map(Mask.from_array, masks)),))

    def count(self, predictions: Mapping[str, Prediction]) -> Scores:
        """J, F, J&F, over everything and by tag."""
        rows = self.measured(predictions)
        tags = [self.tag(expression) for entry in self.entries for expression in entry.expressions]
        groups = {tag: {"count": len(own), **means(own)} for tag, own in by_tag(tags, rows.values()).items()}
        samples = {name: row["j&f"] for name, row in rows.items()}
        return Scores(self.overall(list(rows.values()), groups), groups, samples, "j&f")

    def overall(
        self, rows: Sequence[Mapping[str, float]], groups: Mapping[str, Mapping[str, float]]
    ) -> dict[str, float]:
        """The values of the whole set; here means over expressions."""
        return means(rows)

    def measured(self, predictions: Mapping[str, Prediction]) -> dict[str, dict[str, float]]:
        """What each expression scores, by query; several are counted at once."""
        names = [name for entry in self.entries for name in self.ids(entry)]
        asked = [(entry, expression) for entry in self.entries for expression in entry.expressions]
        # numpy lets go of the interpreter while it counts, and threads share the file of masks.
        with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
            rows = pool.map(lambda pair, name: self._sequence(pair[0], pair[1], predictions[name]), asked, names)
            return dict(zip(names, rows, strict=True))

    def measures(self, video: RvosVideo, frames: range, prediction: BoolArray, target: BoolArray) -> dict[str, float]:
        """Scores of some frames of one expression, as means over them."""
        j, f = jf_sequence(prediction, target)
        return {"j": j, "f": f}

    def _sequence(self, video: RvosVideo, expression: RvosExpression, prediction: Prediction) -> dict[str, float]:
        totals: dict[str, float] = {}
        for frames, drawn in chunks(video, prediction):
            for name, mean in self.measures(video, frames, drawn, video.masks(expression, frames)).items():
                totals[name] = totals.get(name, 0.0) + mean * len(frames)
        row = {name: total / len(video.frames) for name, total in totals.items()}
        return {"j&f": (row["j"] + row["f"]) / 2, **row}


class GroupedVideos(ReferringVideos):
    """A set of kinds of expressions whose headline is the plain mean of kinds.

    Args:
        kinds: type id -> tag. headline: the tags that it is the mean of. The rest as in ``ReferringVideos``.
    """

    def __init__(
        self, name: str, protocol: str, videos: Sequence[RvosVideo], kinds: Mapping[int, str], headline: Sequence[str]
    ):
        super().__init__(name, protocol, "segment", videos)
        self.kinds, self.headline = dict(kinds), tuple(headline)

    def tag(self, expression: RvosExpression) -> str:
        """By the type the file gives. ValueError for one that the set does not have."""
        if expression.type_id not in self.kinds:
            raise ValueError(
                f"{self.name}: expression {expression.id!r} ({expression.text!r}) has type_id {expression.type_id}, "
                f"expected one of {sorted(self.kinds)}"
            )
        return self.kinds[expression.type_id]

    def overall(
        self, rows: Sequence[Mapping[str, float]], groups: Mapping[str, Mapping[str, float]]
    ) -> dict[str, float]:
        """Means of the kinds' means, as published; ``_by_expression`` means weigh every expression alike."""
        counted = [group for tag, group in groups.items() if tag in self.headline] or list(groups.values())
        values = means({name: value for name, value in group.items() if name != "count"} for group in counted)
        total = sum(group["count"] for group in counted)
        weighted = sum(group["count"] * group["j&f"] for group in counted) / total
        return {**values, "j&f_by_expression": weighted}


class Revos(GroupedVideos):
    """ReVOS: J and F, the share of pixels that agree, and robustness against the other objects of a video."""

    def __init__(
        self,
        name: str,
        protocol: str,
        videos: Sequence[RvosVideo],
        foreground: Mapping[str, Sequence[Mask | None]],
    ):
        super().__init__(
            name, protocol, videos, {0: "referring", 1: "reasoning", 2: "no target"}, ("referring", "reasoning")
        )
        self.foreground = foreground

    def measures(self, video: RvosVideo, frames: range, prediction: BoolArray, target: BoolArray) -> dict[str, float]:
        """J, F, agreement (a) and robustness (r)."""
        objects = np.zeros_like(target)
        for one, frame in zip(objects, frames, strict=True):
            mask = self.foreground[video.id][frame]
            if mask is not None:
                one[:] = mask.array
        scores = super().measures(video, frames, prediction, target)
        return {**scores, "a": pixel_agreement(prediction, target), "r": robustness(prediction, target, objects)}


def request(expression: str) -> str:
    """What the model is asked."""
    return (VIDEO_QUESTION_BENCHMARK_REQUEST if "?" in expression else VIDEO_REFERRING_REQUEST).format(
        phrase=expression
    )


def chunks(video: RvosVideo, prediction: Prediction) -> Iterator[tuple[range, BoolArray]]:
    """The masks that count, a few frames at a time: the frames, and bool (F, H, W)."""
    count = len(video.frames)
    masks = first_mask(prediction, video.size, count) or (empty_mask(video.size),) * count
    for start in range(0, count, _CHUNK):
        frames = range(start, min(start + _CHUNK, count))
        yield frames, np.stack([masks[frame].array for frame in frames])
