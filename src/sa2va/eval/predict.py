"""Predictions for a benchmark, by one or many processes; resumable, and deterministic.

Items are dealt out by turns (process i of n takes i, i + n, ...), each process appends to a file of its own, and what
any file answers is not asked again. No process waits for another; whoever finds everything answered may score.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sa2va.atomic import replacing
from sa2va.eval.asking import Settings, answer_item
from sa2va.eval.benchmark import Benchmark, Item, Prediction
from sa2va.eval.prediction_files import ShardWriter, read_ids, shard_path
from sa2va.untrusted import STUMBLES, parse_json

if TYPE_CHECKING:
    from sa2va.predictor import Sa2VA

RECORD = "benchmark.json"


@dataclass(frozen=True)
class Shard:
    """One of several processes: ``index`` from 0 to ``count`` - 1. By default, the only one."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"shards of {self.count} are numbered 0 to {self.count - 1}; got {self.index}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``"0/4"`` to ``"3/4"``. Raises ValueError for anything else."""
        try:
            index, count = (int(part) for part in text.split("/"))
        except ValueError:
            raise ValueError(f"a shard is I/N, e.g. 0/4 to 3/4; got {text!r}") from None
        return cls(index, count)

    @classmethod
    def of_process(cls) -> Shard:
        """This process's part under torchrun or accelerate; everything without them."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def owns(self, place: int) -> bool:
        """Whether this process predicts the item at a position."""
        return place % self.count == self.index


@dataclass(frozen=True)
class BenchmarkRecord:
    """``benchmark.json``: the benchmark of a prediction folder.

    Attributes:
        name: of the benchmark. data: root it was read from. limit: only so many items; None for all.
    """

    name: str
    data: str
    limit: int | None

    def widen(self, folder: Path) -> BenchmarkRecord:
        """Put the record into a folder; where there is one already, the larger of the two limits counts."""
        path = folder / RECORD
        limit = self.limit
        if path.exists():
            before = read_record(folder).limit
            limit = None if before is None or limit is None else max(before, limit)
        record = BenchmarkRecord(self.name, self.data, limit)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(vars(record), indent=1) + "\n", encoding="utf-8")
        return record


def read_record(folder: Path) -> BenchmarkRecord:
    """Read the record of a prediction folder. Raises ValueError if it is missing or malformed."""
    try:
        record = BenchmarkRecord(**parse_json((folder / RECORD).read_bytes()))
    except (OSError, *STUMBLES) as error:
        raise ValueError(f"{folder / RECORD} is no record of predictions: {error}") from error
    return record


def limited(benchmark: Benchmark, limit: int | None) -> Benchmark:
    """A benchmark, or its first items."""
    return benchmark if limit is None else benchmark.limited(limit)


def query_ids(items: Sequence[Item]) -> list[tuple[str, ...]]:
    """The query ids of each item. Raises ValueError for duplicates."""
    ids = [tuple(query.id for query in item.queries) for item in items]
    twice = [one for one, count in Counter(one for own in ids for one in own).items() if count > 1]
    if twice:
        raise ValueError(f"query ids must be unique; {twice[0]!r} occurs more than once (and {len(twice) - 1} others)")
    return ids


@dataclass(frozen=True)
class PredictionProgress:
    """Progress of a process: ``done`` of ``total`` items, of which ``skipped`` had predictions already."""

    done: int
    total: int
    skipped: int


def predict(
    sa2va: Sa2VA,
    benchmark: Benchmark,
    folder: Path,
    settings: Settings,
    *,
    shard: Shard = Shard(),
    on_item: Callable[[PredictionProgress], None] = lambda _: None,
) -> int:
    """Predict this process's part of a benchmark into a folder, resuming an earlier run.

    Args:
        on_item: told after every item, and once before the first.

    Returns:
        how many queries of the whole benchmark are still unanswered: 0 for the last process to finish.

    Raises:
        ValueError: an item cannot be asked, the message names it; or the folder's predictions are malformed.
    """
    items = benchmark.items()
    answered = read_ids(folder)
    ids = query_ids(items)
    own = [place for place in range(len(items)) if shard.owns(place)]
    waiting = [place for place in own if any(one not in answered for one in ids[place])]
    skipped = len(own) - len(waiting)
    on_item(PredictionProgress(skipped, len(own), skipped))
    with ShardWriter(shard_path(folder, shard.index, shard.count)) as writer:
        for done, place in enumerate(waiting, 1):
            # All of an item's queries are asked, also where some are answered: their number must not change answers.
            found = _answer(sa2va, benchmark, items[place], settings)
            writer.write(one for one in found if one.id not in answered)
            on_item(PredictionProgress(skipped + done, len(own), skipped))
    return len({one for own in ids for one in own} - read_ids(folder))


def _answer(sa2va: Sa2VA, benchmark: Benchmark, item: Item, settings: Settings) -> list[Prediction]:
    try:
        return answer_item(sa2va, benchmark.kind, item, settings)
    except (ValueError, OSError) as error:
        raise ValueError(f"{benchmark.name}, item {item.id!r}: {error}") from error


def rehearse(sa2va: Sa2VA, benchmark: Benchmark, settings: Settings, *, items: int = 2) -> list[Prediction]:
    """Dry run: predict the first items without writing anything, to check data, model and settings.

    Raises:
        ValueError: as in [`predict`], or the benchmark is empty.
    """
    chosen = benchmark.items()
    query_ids(chosen)
    if not chosen:
        raise ValueError(f"{benchmark.name} has no items")
    places = range(min(items, len(chosen)))
    return [one for place in places for one in _answer(sa2va, benchmark, chosen[place], settings)]
