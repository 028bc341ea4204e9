"""Ask a model about a benchmark's items: each image or clip is encoded once for all its queries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sa2va.eval.benchmark import Benchmark, Item, Kind, Prediction, Query, Scores
from sa2va.results.answer import Answer

if TYPE_CHECKING:
    from sa2va.predictor import Sa2VA


@dataclass(frozen=True)
class Settings:
    """What decides a model's answers besides its weights.

    Attributes:
        key_frames: which frames of a clip the language model sees: ``"uniform"``, ``"first"``, or indices.
        num_key_frames: how many, for the two named ways.
        mode: how masks are carried through a clip, see [`sa2va.inference.tracker`]; None for what the checkpoint was
            made for.
        threshold: probability above which a pixel belongs to an object.
        max_new_tokens: longest answer.
        at_once: queries that are answered together; fewer need less memory.
    """

    key_frames: Literal["uniform", "first"] | tuple[int, ...] = "uniform"
    num_key_frames: int = 5
    mode: Literal["released", "consistent"] | None = None
    threshold: float = 0.5
    max_new_tokens: int = 2048
    at_once: int = 16

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
    started = perf_counter()
    media: Any = item.media() if callable(item.media) else item.media
    if isinstance(media, tuple):
        media = list(media)
    key_frames = settings.key_frames
    answers = sa2va.ask(
        media,
        [query.text for query in item.queries],
        histories=[query.history for query in item.queries],
        regions=_regions(item) if kind == "region" else None,
        at_once=settings.at_once,
        empty_masks=True,
        threshold=settings.threshold,
        key_frames=list(key_frames) if isinstance(key_frames, tuple) else key_frames,
        num_key_frames=settings.num_key_frames,
        mode=settings.mode,
        max_new_tokens=settings.max_new_tokens,
    )
    seconds = (perf_counter() - started) / max(len(item.queries), 1)
    found = zip(item.queries, answers, strict=True)
    return [_prediction(item, query, answer, seconds) for query, answer in found]


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


def answers(
    sa2va: Sa2VA,
    benchmark: Benchmark,
    items: Iterable[Item],
    settings: Settings = Settings(),
) -> Iterator[tuple[Item, list[Prediction]]]:
    """Items with their predictions, one after the other."""
    for item in items:
        yield item, answer_item(sa2va, benchmark.kind, item, settings)


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
    chosen = benchmark if limit is None else benchmark.limited(limit)
    items = chosen.items()
    predictions: dict[str, Prediction] = {}
    for done, (_, found) in enumerate(answers(sa2va, chosen, items, settings), 1):
        predictions.update((one.id, one) for one in found)
        if on_item is not None:
            on_item(done, len(items))
    return chosen.score(predictions)
