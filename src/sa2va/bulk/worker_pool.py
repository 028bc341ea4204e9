"""Several processes that answer shards, each with a model of its own.

The parent reads rows and writes answers, as with one process. A worker gets the next shard before it runs out; shards
of a worker that dies go to the others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from sa2va.bulk.answering import Finished, answer_shards, revision_of
from sa2va.bulk.batch_folder import RowShard
from sa2va.bulk.batch_rows import Ask
from sa2va.predictor import Sa2VA
from sa2va.runtime import logger

#: Rows that a worker has at hand besides a shard that it works on: more than it reads ahead of the one it answers.
_AT_HAND = 64


@dataclass(frozen=True)
class ModelSource:
    """How a process loads the model: keywords of [`Sa2VA.from_pretrained`] that can be sent to it."""

    name: str
    device: str | None = None
    dtype: str | None = None
    quantization: Any = None
    device_map: str | None = None

    def load(self, worker: int = 0) -> Sa2VA:
        """Load it. The worker's number chooses among several GPUs where no device is named."""
        device = self.device
        if device in (None, "cuda") and self.device_map is None and torch.cuda.device_count() > 1:
            device = f"cuda:{worker % torch.cuda.device_count()}"
        return Sa2VA.from_pretrained(
            self.name,
            device=device,
            dtype=None if self.dtype is None else getattr(torch, self.dtype),
            quantization=self.quantization,
            device_map=self.device_map,
        )


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    at_hand: list[RowShard] = field(default_factory=list)
    ended: bool = False


class WorkerPool:
    """Processes that are started on entering, and ended on leaving.

    Args:
        model: what each loads. count: how many.
        ask: of rows that do not say it themselves. options: keywords of [`Sa2VA`]'s methods.

    Attributes:
        revision: of the weights they loaded.
    """

    def __init__(self, model: ModelSource, count: int, ask: Ask | None, options: dict[str, Any]):
        self._context = multiprocessing.get_context("spawn")
        self._arguments = (model, ask, options, max(1, torch.get_num_threads() // count))
        self._count = count
        self._workers: list[_Worker] = []
        self.revision = ""

    def __enter__(self) -> WorkerPool:
        try:
            for number in range(self._count):
                ours, theirs = self._context.Pipe()
                process = self._context.Process(
                    target=_work, args=(theirs, number, *self._arguments), daemon=True, name=f"sa2va-worker-{number}"
                )
                process.start()
                theirs.close()
                self._workers.append(_Worker(process, ours))
            for worker in self._workers:
                self.revision = self._receive(worker)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.terminate()
            worker.connection.close()
        for worker in self._workers:
            worker.process.join()

    def answer(self, shards: Iterable[RowShard]) -> Generator[Finished, None, None]:
        """Answer shards, each coming when it is done.

        Raises:
            RuntimeError: every worker died.
        """
        waiting = iter(shards)
        returned: list[RowShard] = []
        self._supply(self._workers, waiting, returned)
        while busy := {worker.connection: worker for worker in self._workers if worker.at_hand}:
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]
                try:
                    number, records = self._receive(worker)
                except EOFError:
                    returned += self._bury(worker)
                    self._supply(self._workers, waiting, returned)  # also those that had no more to do
                    continue
                worker.at_hand = [shard for shard in worker.at_hand if shard.number != number]
                yield number, records
                self._supply([worker], waiting, returned)
        if returned:
            numbers = ", ".join(str(shard.number) for shard in returned)
            raise RuntimeError(f"every worker died, the last ones on shards {numbers}; what is answered is kept")

    @classmethod
    def _supply(cls, workers: Iterable[_Worker], waiting: Iterator[RowShard], returned: list[RowShard]) -> None:
        """Send shards, to each worker in turn, until all have enough at hand or know that there are no more for now."""
        hungry = list(workers)
        while hungry:
            hungry = [worker for worker in hungry if cls._send(worker, waiting, returned)]

    @staticmethod
    def _send(worker: _Worker, waiting: Iterator[RowShard], returned: list[RowShard]) -> bool:
        """Send a shard, if a worker needs one. Returns whether it did."""
        if sum(len(shard.rows) for shard in worker.at_hand[1:]) >= _AT_HAND:
            return False
        shard = returned.pop() if returned else next(waiting, None)
        if shard is None and worker.ended:
            return False
        worker.ended = shard is None
        if shard is not None:
            worker.at_hand.append(shard)
        try:
            worker.connection.send(shard)
        except OSError:  # it died; reading from it will say so
            return False
        return shard is not None

    def _bury(self, worker: _Worker) -> list[RowShard]:
        worker.process.join()
        code, left = worker.process.exitcode, len(worker.at_hand)
        logger.warning("a worker died (exit code %s) and left %d shards to the others", code, left)
        self._workers.remove(worker)
        worker.connection.close()
        return worker.at_hand

    @staticmethod
    def _receive(worker: _Worker) -> Any:
        """What a worker sent. Raises what it raised, and EOFError where it died."""
        try:
            message = worker.connection.recv()
        except ConnectionResetError as error:
            raise EOFError from error
        if isinstance(message, Exception):
            raise message
        return message


def _work(
    connection: Connection, number: int, model: ModelSource, ask: Ask | None, options: dict[str, Any], threads: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    torch.set_num_threads(threads)

    def shards() -> Iterator[RowShard]:
        """Shards until there are no more for now: what is read ahead must be answered then."""
        try:
            yield from iter(connection.recv, None)
        except EOFError:
            os._exit(1)  # the parent is gone

    try:
        sa2va = model.load(number)
        connection.send(revision_of(sa2va, model.name))
        while True:
            for finished in answer_shards(sa2va, shards(), ask, options):
                connection.send(finished)
    except Exception as error:
        connection.send(_plain(error))


def _plain(error: Exception) -> Exception:
    """An error that can be sent, whatever it holds."""
    for kind in (ValueError, ImportError, MemoryError, FloatingPointError):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
