"""From rows to records: media fetched ahead, the engine's replies in order, errors beside answers."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from sa2va.bulk.batch_folder import RowShard
from sa2va.bulk.batch_rows import Ask, BatchRow, answered, failed
from sa2va.bulk.remote_files import fetched
from sa2va.inference.replies import Request
from sa2va.media.frames import prefetch
from sa2va.media.open import MediaSource
from sa2va.predictor import Sa2VA

T = TypeVar("T")
#: A row with its medium as the model opens it, or why there is none.
Loaded = tuple[BatchRow, "MediaSource | Exception"]
#: Answers of one shard: its number, and a record for each of its rows.
Finished = tuple[int, list[dict[str, Any]]]

#: Media on their way from other machines, and rows that are read before they are asked.
_FETCHES, _AHEAD = 8, 32


def answer_shards(
    sa2va: Sa2VA, shards: Iterable[RowShard], ask: Ask | None, options: dict[str, Any]
) -> Generator[Finished, None, None]:
    """Answer shards as one stream, so that the model never waits between two; each comes when its last row is answered.

    Args:
        ask: of rows that do not say it themselves. options: keywords of [`Sa2VA`]'s methods.
    """
    begun: deque[RowShard] = deque()

    def rows() -> Iterator[BatchRow]:
        for shard in shards:
            begun.append(shard)
            yield from shard.rows

    with tempfile.TemporaryDirectory(prefix="sa2va-") as scratch:
        done: list[dict[str, Any]] = []
        for record in answer_rows(sa2va, fetch_ahead(rows(), Path(scratch)), ask, options):
            done.append(record)
            if len(done) == len(begun[0].rows):
                yield begun.popleft().number, done
                done = []


def fetch_ahead(rows: Iterable[BatchRow], folder: Path) -> Iterator[Loaded]:
    """Rows with their media; those of other machines are fetched several at a time.

    Args:
        folder: for clips, which are removed when the row after them is asked for.
    """

    def fetch(row: BatchRow) -> MediaSource | Exception:
        try:
            return fetched(row.source, folder)
        except Exception as error:  # of any library behind fsspec; it becomes the row's
            return error

    with ThreadPoolExecutor(_FETCHES, "sa2va-fetch") as pool:
        yield from _ahead(pool, fetch, rows)


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[BatchRow], T], rows: Iterable[BatchRow]
) -> Iterator[tuple[BatchRow, T]]:
    waiting: deque[tuple[BatchRow, Future[T]]] = deque()
    for row in rows:
        waiting.append((row, pool.submit(function, row)))
        if len(waiting) == _AHEAD:
            first, future = waiting.popleft()
            yield first, future.result()
    for row, future in waiting:
        yield row, future.result()


def answer_rows(
    sa2va: Sa2VA, rows: Iterable[Loaded], ask: Ask | None, options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """A record for each row, in order.

    The model runs in a thread of its own, so that it works on while records are made and written.
    """
    waiting: deque[Loaded] = deque()

    def requests() -> Iterator[Request]:
        for row, medium in rows:
            waiting.append((row, medium))
            if not isinstance(medium, Exception):
                wanted = _asked(row, ask)
                yield Request(
                    medium,
                    phrases=list(wanted.phrases) or None,
                    question=wanted.question,
                    caption=wanted.caption,
                    options=options,
                    id=row.index,
                )

    def failures() -> Iterator[dict[str, Any]]:
        """Of rows before the next request: there was nothing to ask about."""
        while waiting and isinstance(error := waiting[0][1], Exception):
            row, _ = waiting.popleft()
            yield failed(row, _asked(row, ask), error)

    with closing(prefetch(sa2va.answers(requests()), depth=_AHEAD)) as replies:
        for reply in replies:
            yield from failures()
            row, medium = waiting.popleft()
            wanted = _asked(row, ask)
            yield failed(row, wanted, reply.error) if reply.error else answered(row, wanted, reply.answers)
            if isinstance(medium, Path):
                medium.unlink(missing_ok=True)
        yield from failures()


def _asked(row: BatchRow, ask: Ask | None) -> Ask:
    wanted = row.ask or ask
    assert wanted is not None, "rows without anything asked are refused when they are read"
    return wanted
