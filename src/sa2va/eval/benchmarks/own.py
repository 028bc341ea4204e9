"""Own labelled images and clips as a benchmark: every phrase is queried and its mask compared with the label.

``own`` is everything in a folder, ``own/holdout-0.2`` the fifth of its pictures or clips that a training run with
``validation=0.2`` has not seen.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from sa2va.data.annotations.annotated_images import file_of
from sa2va.data.check import KNOWN_SETS, OWN_CLIPS, OWN_FORMS, kind_of_data, places_of
from sa2va.data.holdout import HoldOut, NamedSource
from sa2va.data.sample import SEG, Sample
from sa2va.eval.benchmark import BenchmarkSpec, Expected, Item, Prediction, Query, Scores
from sa2va.eval.benchmarks.file_benchmark import FileBenchmark, masks_of
from sa2va.eval.metrics import Areas, generalized_areas, jf_sequence, mask_areas
from sa2va.inference.vlm import segmentation_request
from sa2va.masks.mask import Mask

OWN = "own"
_HELD_OUT = re.compile(rf"{OWN}/holdout-(0?\.\d+)")
_PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)
#: Phrases and frames of an entry: all of them.
_ALL = 10**9
_ASKED = (
    "Every phrase of every picture or clip is asked for alone, in the wording of inference. The union of all masks of "
    "an answer counts; an answer without a mask counts as an empty one. Groups are phrases that occur more than once. "
)
_PICTURES = _ASKED + (
    "cIoU: sum of intersections over sum of unions, over requests. gIoU: mean IoU over requests. Pr@k: share of "
    "requests whose IoU reaches k. Where phrases name nothing in their picture, these are counted as in gRefCOCO: "
    "N-acc is the share of them that were answered without a pixel, T-acc that of the others answered with one."
)
_CLIPS = _ASKED + (
    "As DAVIS counts: region similarity J and boundary accuracy F, means over all annotated frames of a clip, then "
    "over requests; J&F is the mean of the two."
)


class OwnBenchmark(FileBenchmark[int]):
    """A source of own data; entries are the indices of its samples, of which one at a time is in memory.

    Args:
        name, protocol: as in ``Benchmark``. source: tags each turn with its phrase, or with nothing where none is
            asked for.
    """

    def __init__(self, name: str, protocol: str, source: NamedSource):
        self.source = source
        self._ids = {index: _query_ids(name, source[index]) for index in range(len(source))}
        super().__init__(name, protocol, "segment", [index for index, ids in self._ids.items() if ids])

    def item(self, entry: int) -> Item:
        """One picture or clip with all its phrases."""
        sample = self.source[entry]
        queries = [
            Query(name, segmentation_request(phrase, video=sample.video), phrase=phrase)
            for name, (phrase, _, _) in zip(self._ids[entry], _labels(sample), strict=True)
        ]
        return Item(f"{self.name}/{sample.id}", _media(sample), sample.video, sample.size or (0, 0), tuple(queries))

    def ids(self, entry: int) -> Sequence[str]:
        """``benchmark/sample/number of the phrase``."""
        return self._ids[entry]

    def expected(self, query_id: str) -> Expected:
        """The label."""
        entry, index = self.find(query_id)
        _, target, _ = _labels(self.source[entry])[index]
        return Expected(masks=(tuple(Mask.from_array(frame) for frame in target),))

    def count(self, predictions: Mapping[str, Prediction]) -> Scores:
        """Outcomes of one sample after the other, then their summary over everything and by phrase."""
        outcomes: dict[str, Any] = {}
        tags: dict[str, str] = {}
        for entry in self.entries:
            for name, (phrase, target, known) in zip(self._ids[entry], _labels(self.source[entry]), strict=True):
                outcomes[name] = self.judge(_union(predictions[name], target.shape)[known], target[known])
                tags[name] = phrase
        counts = Counter(tags.values())
        by_phrase: dict[str, list[Any]] = {phrase: [] for phrase, count in sorted(counts.items()) if count > 1}
        for name, phrase in tags.items():
            if phrase in by_phrase:
                by_phrase[phrase].append(outcomes[name])
        groups = {phrase: {"count": len(own), **self.summary(own)} for phrase, own in by_phrase.items()}
        quality = {name: self.quality(outcome) for name, outcome in outcomes.items()}
        values = self.summary(list(outcomes.values()))
        return Scores(values, groups, quality, next(iter(values)))

    @abstractmethod
    def judge(self, found: np.ndarray, target: np.ndarray) -> Any:
        """All that was drawn against its label, bool (F, H, W) both: the frames whose label is known."""

    @abstractmethod
    def summary(self, outcomes: Sequence[Any]) -> dict[str, float]:
        """Scores of outcomes; the first one is the headline."""

    @abstractmethod
    def quality(self, outcome: Any) -> float:
        """An outcome as one number, 0..1."""


class OwnPictures(OwnBenchmark):
    """Pictures: overlap with the label."""

    def judge(self, found: np.ndarray, target: np.ndarray) -> Areas:
        """Pixels of both and of what they share."""
        return mask_areas(Mask.from_array(found[0]), Mask.from_array(target[0]))

    def summary(self, outcomes: Sequence[Areas]) -> dict[str, float]:
        """cIoU, gIoU, Pr@k; N-acc and T-acc where a phrase names nothing."""
        scores = generalized_areas(outcomes)
        values = {"ciou": scores.ciou, "giou": scores.giou}
        values |= {f"pr@{at}": scores.precision_at(at) for at in _PRECISIONS}
        if not all(scores.targeted):
            values["n_acc"] = scores.n_acc
            if any(scores.targeted):
                values["t_acc"] = scores.t_acc
        return values

    def quality(self, outcome: Areas) -> float:
        """IoU; 1 where nothing is there and nothing was drawn."""
        return generalized_areas([outcome]).ious[0]


class OwnClips(OwnBenchmark):
    """Clips: DAVIS' region similarity and boundary accuracy."""

    def judge(self, found: np.ndarray, target: np.ndarray) -> tuple[float, float]:
        """J and F."""
        return jf_sequence(found, target)

    def summary(self, outcomes: Sequence[tuple[float, float]]) -> dict[str, float]:
        """J&F, J, F."""
        j, f = np.mean(outcomes, axis=0).tolist()
        return {"j&f": (j + f) / 2, "j": j, "f": f}

    def quality(self, outcome: tuple[float, float]) -> float:
        """J&F."""
        return sum(outcome) / 2


def own_row(name: str) -> BenchmarkSpec | None:
    """The row that a name means: ``own``, or ``own/holdout-0.2``; None for other names."""
    held_out = _HELD_OUT.fullmatch(name)
    if name != OWN and held_out is None:
        return None
    share = float(held_out[1]) if held_out else None
    return BenchmarkSpec(name, partial(_open, name, share), _files, title="Own data")


def held_out_name(share: float) -> str:
    """The name of the row that scores what is held out.

    Raises:
        ValueError: the share is not above 0 and below 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"--holdout is a share of the data above 0 and below 1, e.g. 0.2; got {share:g}")
    return f"{OWN}/holdout-{share:g}"


def _open(name: str, share: float | None, root: Path) -> OwnBenchmark:
    kind = kind_of_data(str(root))
    known = KNOWN_SETS[kind]
    video = kind in OWN_CLIPS
    if kind == "chat":
        raise ValueError(f"{root} holds conversations (chat.jsonl), which are trained on and not scored; label masks")
    options = {"phrases": _ALL, **({"frames": _ALL} if video else {})}
    source = cast(NamedSource, known.open(root, **options))
    if share is not None:
        source = HoldOut(source, share, held_out=True)
    return OwnClips(name, _CLIPS, source) if video else OwnPictures(name, _PICTURES, source)


def _files(root: Path) -> Mapping[Path, str]:
    """Nothing where there are own data; else the files of which one would show that there are."""
    try:
        kind_of_data(str(root))
    except ValueError:
        return {root / place: "your labels" for place in places_of(OWN_FORMS).split(", ")}
    return {} if root.is_dir() else {root: "your data"}


def _media(sample: Sample) -> Any:
    """Files of a clip, which are decoded a few at a time; a picture as the label sees it, turned like it."""
    if not sample.video:
        return partial(sample.picture, 0)
    files = [file_of(frame) for frame in sample.frames]
    return [file for file in files if file] if all(files) else sample.pictures


def _labels(sample: Sample) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Phrases with their masks, bool (F, H, W), empty where a phrase names nothing; and in which frames, bool (F,)."""
    everywhere = np.ones((len(sample.masks), len(sample.frames)), bool)
    masks = iter(zip(sample.masks, everywhere if sample.annotated is None else sample.annotated, strict=True))
    nothing = np.zeros((len(sample.frames), *(sample.size or (0, 0))), bool), np.ones(len(sample.frames), bool)
    targets = [next(masks) if SEG in turn.answer else nothing for turn in sample.turns]
    return [(phrase, mask, known) for phrase, (mask, known) in zip(sample.tags, targets, strict=True) if phrase]


def _query_ids(name: str, sample: Sample) -> list[str]:
    return [f"{name}/{sample.id}/{number}" for number in range(sum(map(bool, sample.tags)))]


def _union(prediction: Prediction, shape: tuple[int, ...]) -> np.ndarray:
    """All masks of an answer together, bool (F, H, W)."""
    frames, height, width = shape
    union = np.zeros(shape, bool)
    for masks in masks_of(prediction, (height, width), frames):
        union |= np.stack([mask.array for mask in masks])
    return union
