"""From rows to records: media fetched ahead, the engine's replies in order, errors beside answers."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from sa2va.bulk.batch_folder import RowShard
from sa2va.bulk.batch_rows import Ask, BatchRow, answered, failed
from sa2va.bulk.remote_files import Loaded, ahead, medium_of
from sa2va.eval.run_metadata import fingerprint, hub_revision
from sa2va.inference.replies import Request
from sa2va.media.frames import prefetch
from sa2va.predictor import Sa2VA

#: Answers of one shard: its number, and a record for each of its rows.
Finished = tuple[int, list[dict[str, Any]]]

#: What answers shards: a model of this process, several processes, or a cluster.
Answering = Callable[[Iterable[RowShard]], Generator[Finished, None, None]]

#: Replies that wait to be made records of.
_WAITING = 32


def revision_of(sa2va: Sa2VA, name: str) -> str:
    """What tells the weights of a model from others of its name: the hub's commit, or their fingerprint."""
    return hub_revision(name) or fingerprint(sa2va.model)


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

    return ahead(lambda row: medium_of(row.source, folder), rows)


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

    with closing(prefetch(sa2va.answers(requests()), depth=_WAITING)) as replies:
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
