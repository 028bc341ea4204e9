"""Predictions for a benchmark, by one or many processes; resumable, and deterministic.

An image or a clip is encoded once for all its queries, and several are worked on at once. Items are dealt out by
turns (process i of n takes i, i + n, ...), each process appends to a file of its own, and what any file answers is not
asked again. No process waits for another; whoever finds everything answered may score.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from sa2va.atomic import replacing
from sa2va.eval.benchmark import Benchmark, Item, Kind, Prediction, Query, Scores
from sa2va.eval.prediction_files import ShardWriter, read_ids, shard_path
from sa2va.inference.replies import Request
from sa2va.masks.mask import Mask
from sa2va.untrusted import STUMBLES, parse_json

if TYPE_CHECKING:
    from sa2va.inference.memory_policies import MemoryPolicy
    from sa2va.inference.options import AskEvery, Mode, Options
    from sa2va.predictor import Sa2VA
    from sa2va.results.answer import Answer

RECORD = "benchmark.json"
#: Pictures or clips that are worked on at once.
ITEMS_AT_ONCE = 8


@dataclass(frozen=True)
class Settings:
    """What decides a model's answers besides its weights.

    Attributes:
        key_frames: which frames of a clip the language model sees: ``"uniform"``, ``"first"``, or indices.
        num_key_frames: how many, for the two named ways.
        mode: how masks are carried through a clip, see [`sa2va.inference.tracker`]; None for what the checkpoint was
            made for.
        memory: which frames are remembered for that, see [`sa2va.inference.memory_policies`].
        ask_every: ask for phrases in clips again after so many frames, or at cuts (``"scene"``), see [`Sa2VA.track`];
            all objects of a phrase then count as one. Other requests are made once.
        threshold: probability above which a pixel belongs to an object.
        max_new_tokens: longest answer.
        at_once: queries of one item that are answered together; fewer need less memory.
    """

    key_frames: Literal["uniform", "first"] | tuple[int, ...] = "uniform"
    num_key_frames: int = 5
    mode: Mode | None = None
    memory: MemoryPolicy = "recent"
    ask_every: AskEvery = None
    threshold: float = 0.5
    max_new_tokens: int = 2048
    at_once: int = 16

    @property
    def options(self) -> Options:
        """The keywords of [`Sa2VA.ask`]."""
        others = ("at_once", "ask_every")
        return cast("Options", {name: value for name, value in vars(self).items() if name not in others})

    @property
    def record(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def answer_item(sa2va: Sa2VA, kind: Kind, item: Item, settings: Settings = Settings()) -> list[Prediction]:
    """Put all queries of an item to a model; its picture or frames are encoded once.

    Returns:
        a prediction per query, in order.

    Raises:
        ValueError: the media cannot be read, has another size than the item says, or a region query has no region.
    """
    (predictions,) = _answer_items(sa2va, kind, [item], settings)
    return predictions


def _answer_items(
    sa2va: Sa2VA, kind: Kind, items: Iterable[Item], settings: Settings, *, benchmark: str | None = None
) -> Iterator[list[Prediction]]:
    """[`answer_item`] for each of many, several of which are answered at once where all is asked once."""

    def failed(item: Item, error: Exception) -> Exception:
        if not isinstance(error, ValueError | OSError):
            return error
        return ValueError(f"{f'{benchmark}, ' if benchmark else ''}item {item.id!r}: {error}")

    if settings.ask_every is not None and kind == "segment":
        for item in items:
            if item.video and all(query.phrase for query in item.queries):
                try:
                    yield _followed(sa2va, item, settings)
                except (ValueError, OSError) as error:
                    raise failed(item, error) from error
            else:
                yield from _answer_items(sa2va, kind, [item], replace(settings, ask_every=None), benchmark=benchmark)
        return

    def requests() -> Iterator[Request]:
        for item in items:
            try:
                media = _media(item)
                regions = _regions(item) if kind == "region" else None
            except (ValueError, OSError) as error:
                raise failed(item, error) from error
            yield Request(
                media,
                question=[query.text for query in item.queries],
                history=[query.history for query in item.queries],
                regions=regions,
                at_once=settings.at_once,
                empty_masks=True,
                options=settings.options,
                id=item,
            )

    started = perf_counter()
    for reply in sa2va.answers(requests(), ahead=ITEMS_AT_ONCE):
        item, now = reply.request.id, perf_counter()
        if reply.error is not None:
            raise failed(item, reply.error) from reply.error
        seconds, started = (now - started) / max(len(item.queries), 1), now
        try:
            found = zip(item.queries, reply.answers, strict=True)
            predictions = [_prediction(item, query, answer, seconds) for query, answer in found]
        except ValueError as error:
            raise failed(item, error) from error
        yield predictions


def _followed(sa2va: Sa2VA, item: Item, settings: Settings) -> list[Prediction]:
    """What is asked about a clip again and again; all that a phrase points at in a frame is one mask."""
    started = perf_counter()
    found: dict[str, list[Mask]] = {query.phrase: [] for query in item.queries}
    seen: set[str] = set()
    options: Options = {**settings.options, "ask_every": settings.ask_every}
    with sa2va.track(_media(item), list(found), **options) as track:
        if track.size != item.size:
            raise ValueError(f"its media are {track.size} (h, w), but its masks {item.size}")
        for frame in track:
            for phrase, masks in found.items():
                own = [segment.mask.array for segment in frame.segments if segment.phrase == phrase]
                masks.append(Mask.from_array(np.any(own, axis=0) if own else np.zeros(item.size, bool)))
                seen.update([phrase] if own else [])
    seconds = (perf_counter() - started) / len(item.queries)
    return [
        Prediction(
            id=query.id,
            text="",
            raw_text="",
            masks=(tuple(found[query.phrase]),) if query.phrase in seen else (),
            phrases=(query.phrase,) if query.phrase in seen else (),
            seconds=seconds,
        )
        for query in item.queries
    ]


def _media(item: Item) -> Any:
    media = item.media() if callable(item.media) else item.media
    return list(media) if isinstance(media, tuple) else media


def _regions(item: Item) -> list[np.ndarray]:
    regions: list[np.ndarray] = []
    for query in item.queries:
        if query.region is None:
            raise ValueError(f"{query.id}: a query of a region benchmark needs its region, bool (H, W)")
        regions.append(query.region)
    return regions


def _prediction(item: Item, query: Query, answer: Answer, seconds: float) -> Prediction:
    if answer.size is not None and answer.size != item.size:
        raise ValueError(f"{item.id}: its media are {answer.size} (h, w), but its masks {item.size}")
    return Prediction(
        id=query.id,
        text=answer.text,
        raw_text=answer.raw_text,
        masks=tuple(segment.masks for segment in answer.segments),
        phrases=tuple(segment.phrase for segment in answer.segments),
        seconds=seconds,
    )


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
        # All of an item's queries are asked, also where some are answered: their number must not change answers.
        asked = (items[place] for place in waiting)
        answers = _answer_items(sa2va, benchmark.kind, asked, settings, benchmark=benchmark.name)
        for done, found in enumerate(answers, 1):
            writer.write(one for one in found if one.id not in answered)
            on_item(PredictionProgress(skipped + done, len(own), skipped))
    return len({one for own in ids for one in own} - read_ids(folder))


def evaluate(
    sa2va: Sa2VA,
    benchmark: Benchmark,
    settings: Settings = Settings(),
    *,
    limit: int | None = None,
    on_item: Callable[[int, int], None] | None = None,
) -> Scores:
    """Ask and score in one go, nothing kept on disk.

    Args:
        limit: only so many of the first pictures or clips. on_item: told (done, total) after each.
    """
    chosen = limited(benchmark, limit)
    items = chosen.items()
    predictions: dict[str, Prediction] = {}
    for done, found in enumerate(_answer_items(sa2va, chosen.kind, items, settings, benchmark=chosen.name), 1):
        predictions.update((one.id, one) for one in found)
        if on_item is not None:
            on_item(done, len(items))
    return chosen.score(predictions)


def rehearse(sa2va: Sa2VA, benchmark: Benchmark, settings: Settings, *, items: int = 2) -> list[Prediction]:
    """Dry run: predict the first items without writing anything, to check data, model and settings.

    Raises:
        ValueError: as in [`predict`], or the benchmark is empty.
    """
    chosen = benchmark.items()
    query_ids(chosen)
    if not chosen:
        raise ValueError(f"{benchmark.name} has no items")
    answers = _answer_items(sa2va, benchmark.kind, chosen[:items], settings, benchmark=benchmark.name)
    return [one for found in answers for one in found]
