"""The terminal: results to standard output, notes, warnings, progress and errors to standard error."""

from __future__ import annotations

import json
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sa2va.runtime import logger

#: Columns of a table that goes to a file or a pipe, where there is no window to fit.
_PIPE_WIDTH = 200
_SECONDS_BETWEEN_LINES = 60


class Screen:
    """Where a command writes.

    Attributes:
        json: standard output is for one machine-readable document. quiet: no notes, no progress.
        debug: errors show their traceback.
        err: the console on standard error; a live progress bar lives there.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, debug: bool = False):
        self.json, self.quiet, self.debug = json, quiet, debug
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

    @property
    def lively(self) -> bool:
        """Whether bars and spinners are wanted and can be seen."""
        return self.err.is_terminal and not self.quiet

    def result(self, what: RenderableType) -> None:
        """Show a result to a human; with ``--json`` the document says it."""
        if not self.json:
            self.out.print(what, soft_wrap=isinstance(what, Text))

    def rows(self, rows: Sequence[Sequence[RenderableType]]) -> None:
        """Show results in columns without a heading."""
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
        for row in rows:
            table.add_row(*row)
        if rows:
            self.result(table)

    def emit(self, record: Any) -> None:
        """Print one line of JSON to standard output."""
        self.emit_text(json.dumps(record, ensure_ascii=False, allow_nan=False))

    def emit_text(self, text: str) -> None:
        """Print one line that is JSON already to standard output."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print a progress message to stderr; silent with --quiet."""
        if not self.quiet:
            self.err.print(printable(text), style="dim", markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Say that something is not as it should be; what is listed below the first line stays a list."""
        first, *more = text.splitlines() or [""]
        self._line("warning: ", "yellow", first)
        for line in more:
            self._line("  ", "yellow", line)

    def fail(self, text: str) -> None:
        """Say why the command failed: one red line."""
        self._line("error: ", "bold red", text)

    def _line(self, head: str, style: str, text: str) -> None:
        line = Text.assemble((head, style), (printable(" ".join(text.split())), style.removeprefix("bold ")))
        self.err.print(line, soft_wrap=True, highlight=False)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn exceptions into a line and an exit code: 2 for what the caller can mend, 1 for the rest."""
        try:
            yield
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except KeyboardInterrupt as stop:
            self.note("stopped")
            raise typer.Exit(130) from stop
        except (ValueError, OSError, ImportError, MemoryError, FloatingPointError) as error:
            self._explain(error, 2)
        except Exception as error:
            self._explain(error, 2 if type(error).__name__ == "OutOfMemoryError" else 1)

    def _explain(self, error: Exception, code: int) -> None:
        if self.debug:
            traceback.print_exc()
        self.fail(explanation(error))
        if code == 1 and not self.debug:
            self.note("this looks like a defect of sa2va; run again with --debug to see where it happened")
        raise typer.Exit(code) from error

    @contextmanager
    def library_messages(self) -> Iterator[None]:
        """Show this package's warnings as lines here, and keep other libraries from writing over them."""
        handler = _ToScreen(self)
        logger.addHandler(handler)
        try:
            with warnings.catch_warnings():
                if not self.debug:
                    warnings.simplefilter("ignore")
                yield
        finally:
            logger.removeHandler(handler)


class LogProgress:
    """Progress where nobody sees a bar, such as a log: a line a minute, nothing on a terminal."""

    def __init__(self, screen: Screen, name: str, unit: str):
        self._screen, self._name, self._unit = screen, name, unit
        self._started = self._told = perf_counter()

    def show(self, done: int, total: int | None) -> None:
        """Tell how far a loop is, unless the last line is less than a minute old."""
        now = perf_counter()
        if self._screen.lively or not done or now - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = now
        rate = done / (now - self._started)
        left = "" if total is None else f", {timedelta(seconds=round((total - done) / rate))} left"
        of = "" if total is None else f"/{total}"
        self._screen.note(f"{self._name}: {done}{of} {self._unit}, {rate:.1f} a second{left}")


class _ToScreen(logging.Handler):
    """Log records of this package as warnings on the screen."""

    def __init__(self, screen: Screen):
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.warn(record.getMessage())


def explanation(error: BaseException) -> str:
    """What to tell a user about an exception, on one line."""
    name = type(error).__name__
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror.lower()}: {error.filename}"
    if name == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "out of memory; take a smaller model, --dtype bfloat16, fewer --num-key-frames, or --device cpu"
    text = " ".join(str(error).split())
    return (
        text
        if isinstance(error, ValueError | OSError | ImportError | FloatingPointError) and text
        else f"{name}: {text}"
    )


def printable(text: str) -> str:
    """Text without characters that would steer the terminal; its length does not change."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def show_scores(
    screen: Screen, name: str, headline: str, values: Mapping[str, float], notices: Sequence[str] = ()
) -> None:
    """One line of percentages, the headline first, and what a reader must know."""
    order = [headline, *(one for one in values if one != headline)]
    screen.rows([(Text(name, "bold"), *(f"{one} {100 * values[one]:.1f}" for one in order))])
    for notice in notices:
        screen.note(f"{name}: {notice}")
