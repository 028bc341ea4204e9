"""SIGINT and SIGTERM during a video: no frame is left half written."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While its block runs, a signal raises KeyboardInterrupt, but not inside ``held()``: there it waits for the end.

    Attributes:
        received: the signal's number; None before one came.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._held = False
        self._earlier: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that ended by this signal."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> Interrupts:
        self._earlier = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if not self._held:
            raise KeyboardInterrupt

    @contextmanager
    def held(self, *, then_raise: bool = True) -> Iterator[None]:
        """Work that a signal does not tear apart.

        Args:
            then_raise: raise KeyboardInterrupt afterwards when a signal came; else only note it.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if then_raise and self.received is not None:
            raise KeyboardInterrupt
