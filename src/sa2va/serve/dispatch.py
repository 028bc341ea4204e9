"""Blocking calls to the model in threads: so many at once, so many waiting, each within its time.

A call is told to stop when its client has gone, when its time is up, or when the server closes; what it has asked of
the model ends before the next pass. Until it has, it counts as running.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request

from sa2va.inference.engine import Engine
from sa2va.serve.monitoring import Monitoring

T = TypeVar("T")


class Busy(Exception):
    """The queue is full. ``retry_after``: whole seconds after which to try again."""

    def __init__(self, retry_after: int):
        super().__init__(f"the server is busy; try again in {retry_after} s")
        self.retry_after = retry_after


class TimeIsUp(Exception):
    """The request took longer than requests may."""


class ClientGone(Exception):
    """The client has closed its connection: nobody waits for an answer."""


class Closing(Exception):
    """The server is shutting down."""


class Stopped(Exception):
    """Raised inside a call that was told to stop."""


class Stop:
    """Tells a call to stop."""

    def __init__(self) -> None:
        self._told = threading.Event()

    def tell(self) -> None:
        """Make the call end soon."""
        self._told.set()

    def check(self) -> None:
        """Raise [`Stopped`] if the call was told to stop."""
        if self._told.is_set():
            raise Stopped


class Dispatcher:
    """Runs calls.

    Args:
        engine: computes for the calls, and ends what they have asked of it when they are told to stop.
        at_once: threads. max_waiting: calls that may wait for one. seconds: for a call, its waiting included.
    """

    def __init__(self, engine: Engine, monitoring: Monitoring, *, at_once: int, max_waiting: int, seconds: float):
        self._engine = engine
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="sa2va-request")
        self._monitoring = monitoring
        self._at_once, self._max_waiting, self._seconds = at_once, max_waiting, seconds
        self._lock = threading.Lock()
        self._unfinished = 0
        self._mean_seconds = 1.0
        self._closing = asyncio.Event()

    async def run(self, request: Request, call: Callable[[], T]) -> T:
        """Run a call in a thread and wait for what it returns or raises.

        What it asks of the engine ends when it is told to stop; elsewhere it calls the engine's ``check``.

        Raises:
            Busy, TimeIsUp, ClientGone, Closing: the call is told to stop, or was not begun.
        """
        if self._closing.is_set():
            raise Closing
        stop = Stop()
        future = self._submit(call, stop)
        answer = asyncio.wrap_future(future)
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # its loss is no one's
        gone = asyncio.ensure_future(_disconnected(request))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait({answer, gone, closing}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise ClientGone if gone.done() else Closing if closing.done() else TimeIsUp
        finally:
            stop.tell()
            future.cancel()
            gone.cancel()
            closing.cancel()

    def _submit(self, call: Callable[[], T], stop: Stop) -> Future[T]:
        submitted = time.perf_counter()

        def timed() -> T:
            began = time.perf_counter()
            self._monitoring.waited(began - submitted)
            stop.check()
            with self._monitoring.running.track_inprogress(), self._engine.stoppable(stop.check):
                try:
                    return call()
                finally:
                    self._mean_seconds += 0.1 * (time.perf_counter() - began - self._mean_seconds)

        with self._lock:
            if self._unfinished >= self._at_once + self._max_waiting:
                wait = self._unfinished / self._at_once * self._mean_seconds
                raise Busy(min(60, max(1, math.ceil(wait))))
            self._unfinished += 1
        future = self._pool.submit(timed)
        future.add_done_callback(self._finished)
        self._monitoring.unfinished.inc()
        return future

    def _finished(self, _: Future) -> None:
        with self._lock:
            self._unfinished -= 1
        self._monitoring.unfinished.dec()

    def refuse(self) -> None:
        """Tell running calls to stop, and whoever waits for them that the server closes; take no more."""
        self._closing.set()

    def close(self) -> None:
        """Wait until every thread has ended."""
        self._pool.shutdown(cancel_futures=True)


async def _disconnected(request: Request) -> None:
    """Return when the client has closed the connection. The request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
