"""The synthetic world as benchmarks: every task on pictures and clips that need no files, with exact truth.

Targets show combinations of kind, colour and texture that training never does, so scores tell whether a model
understands phrases, not whether it remembers pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sa2va.data.sample import SEG, Sample
from sa2va.eval.benchmark import BenchmarkSpec, Expected, Item, Kind, Media, Prediction, Query, Scores, require_all
from sa2va.masks.mask import Mask
from sa2va.processing.conversation import clean_answer
from sa2va.tiny.synthetic import Split, SyntheticWorld
from sa2va.tiny.synthetic_measures import (
    ABSENT,
    ANSWER,
    CAPTION,
    CHAT,
    CLIPS_REFER,
    REFER,
    REGION,
    Case,
    Measure,
    kind_of_turn,
)

#: Seed of the benchmarks' worlds; training and its validation use others.
SEED = 2024
PICTURES, CLIPS, FRAMES = 200, 60, 8


@dataclass(frozen=True)
class SyntheticBenchmark:
    """One task of the synthetic world.

    Attributes:
        name, kind: as in ``Benchmark``. world: where the samples come from. measure: how answers are counted.
    """

    name: str
    kind: Kind
    world: SyntheticWorld
    measure: Measure[Any]
    submission: bool = False

    @property
    def protocol(self) -> str:
        """What is asked and how it is counted."""
        height, width = self.world.shape
        media = "pictures" if self.world.frames == 1 else f"clips of {self.world.frames} frames"
        media += f" of {height} x {width} pixels"
        if "text" in self.world.tasks:
            media = "riddles, asked without a picture,"
        return (
            f"{len(self.world)} {media} from the {self.world.split} split of the synthetic world (seed "
            f"{self.world.seed}); requests in all wordings of training. {self.measure.protocol}"
        )

    def limited(self, count: int) -> SyntheticBenchmark:
        """The first ``count`` pictures or clips."""
        return replace(self, world=replace(self.world, length=min(count, len(self.world))))

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Every query with its truth."""
        return tuple(case for _, own in self._drawn for case in own)

    def items(self) -> Sequence[Item]:
        """One item per sample."""
        return [
            Item(
                id=own[0].item,
                media=_media(sample),
                video=sample.video,
                size=self.world.shape,
                queries=tuple(case.query for case in own),
            )
            for sample, own in self._drawn
        ]

    @cached_property
    def _drawn(self) -> tuple[tuple[Sample, tuple[Case, ...]], ...]:
        """Samples with their queries; a picture takes less memory than the masks of its targets, so it is kept."""
        samples = (self.world[index] for index in range(len(self.world)))
        return tuple((sample, tuple(_cases(self.name, self.kind, sample))) for sample in samples)

    def score(self, predictions: Mapping[str, Prediction]) -> Scores:
        """See ``Benchmark``."""
        require_all(self.name, [case.query.id for case in self.cases], predictions)
        return self.measure.scores(self.cases, predictions)

    def pack(self, predictions: Mapping[str, Prediction], path: Path) -> Path:
        """There is no server for it: always raises ValueError."""
        raise ValueError(f"{self.name} is scored here; only server benchmarks are packed")

    def expected(self, query_id: str) -> Expected:
        """The truth of one query."""
        for case in self.cases:
            if case.query.id == query_id:
                masks = tuple(tuple(Mask.from_array(frame) for frame in mask) for mask in case.masks)
                says_it_all = masks and self.kind != "caption"
                return Expected("" if says_it_all else clean_answer(case.answer, ())[0], masks)
        raise ValueError(f"{self.name} has no query {query_id!r}")


def _media(sample: Sample) -> Media | None:
    if not sample.frames:
        return None
    return list(sample.pictures()) if sample.video else sample.picture(0)


def _cases(name: str, kind: Kind, sample: Sample) -> Iterator[Case]:
    """The turns of a sample, each on its own or, in a conversation, after the right answers to those before it."""
    masks = iter(sample.masks)
    height, width = sample.size or (0, 0)
    for number, (turn, tag) in enumerate(zip(sample.turns, sample.tags, strict=True)):
        text, region, history = turn.question, None, ()
        if sample.regions:
            # Each region is asked about alone, where it is the first.
            text, region = re.sub(r"\bregion\d+\b", "region1", text), sample.regions[number]
        if kind == "chat":
            tag, history = kind_of_turn(turn, tag), sample.turns[:number]
        own = tuple(next(masks) for _ in range(turn.answer.count(SEG)))
        item = f"{name}/{sample.id}"
        query = Query(f"{item}/{number}", text, tag, region, history)
        yield Case(item, query, turn.answer, own, (len(sample.frames), height, width))


#: Task -> how it is asked, tasks of the world, frames, how it is counted, title.
_TASKS: dict[str, tuple[Kind, dict[str, float], int, Measure[Any], str]] = {
    "refer": ("segment", {"refer": 1}, 1, REFER, "Referring segmentation"),
    "reason": ("segment", {"reason": 1}, 1, REFER, "Reasoning segmentation"),
    "absent": ("segment", {"refer": 1, "absent": 1}, 1, ABSENT, "What is not there"),
    "question": ("question", {"question": 1}, 1, ANSWER, "Questions about pictures"),
    "caption": ("caption", {"caption": 1}, 1, CAPTION, "Grounded captions"),
    "region": ("region", {"region": 1}, 1, REGION, "Region descriptions"),
    "chat": ("chat", {"chat": 1}, 1, CHAT, "Conversations about pictures"),
    "text": ("question", {"text": 1}, 1, ANSWER, "Riddles without a picture"),
    "clips": ("segment", {"refer": 1}, FRAMES, CLIPS_REFER, "Referring video segmentation"),
    "clip-reason": ("segment", {"reason": 1}, FRAMES, CLIPS_REFER, "Reasoning video segmentation"),
    "clip-absent": ("segment", {"refer": 1, "absent": 1}, FRAMES, ABSENT, "What is not in a clip"),
    "clip-question": ("question", {"question": 1}, FRAMES, ANSWER, "Questions about clips"),
    "clip-caption": ("caption", {"caption": 1}, FRAMES, CAPTION, "Grounded captions of clips"),
    "clip-chat": ("chat", {"chat": 1}, FRAMES, CHAT, "Conversations about clips"),
}
_PREFIXES: dict[Split, str] = {"val": "synthetic", "test": "synthetic-test"}


def synthetic_benchmark(task: str, split: Split = "val", *, length: int | None = None) -> SyntheticBenchmark:
    """A benchmark of the synthetic world.

    Args:
        task: ``"refer"``, ``"reason"``, ``"absent"``, ``"question"``, ``"caption"``, ``"region"``, ``"chat"`` or
            ``"text"``, or of clips ``"clips"``, ``"clip-reason"``, ``"clip-absent"``, ``"clip-question"``,
            ``"clip-caption"`` or ``"clip-chat"``.
        split: ``"val"`` or ``"test"``. length: number of pictures or clips; None for the benchmark's own.

    Raises:
        ValueError: no such task or split.
    """
    if task not in _TASKS or split not in _PREFIXES:
        raise ValueError(f"expected a task of {list(_TASKS)} and a split of {list(_PREFIXES)}; got {task!r}, {split!r}")
    kind, tasks, frames, measure, _ = _TASKS[task]
    count = length or (PICTURES if frames == 1 else CLIPS)
    world = SyntheticWorld(split, seed=SEED, frames=frames, tasks=tasks, length=count)
    return SyntheticBenchmark(f"{_PREFIXES[split]}/{task}", kind, world, measure)


def _row(task: str, split: Split) -> BenchmarkSpec:
    name = f"{_PREFIXES[split]}/{task}"
    return BenchmarkSpec(name, lambda root: synthetic_benchmark(task, split), lambda root: {}, title=_TASKS[task][-1])


SYNTHETIC_ROWS: dict[str, BenchmarkSpec] = {
    row.name: row for split in _PREFIXES for row in (_row(t, split) for t in _TASKS)
}
