"""The terminal: results go to standard output; messages, progress and errors to standard error.

``command`` turns a function into a command of ``sa2va``: it gives it a ``Screen`` and the options all commands share.
"""

from __future__ import annotations

import inspect
import json
import logging
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import timedelta
from functools import wraps
from inspect import Parameter
from time import perf_counter
from types import FrameType
from typing import Annotated, Any, Protocol, get_type_hints

import typer
from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn
from rich.table import Table
from rich.text import Text

from sa2va.runtime import logger

#: Columns of a table that goes to a file or a pipe, where there is no window to fit.
_PIPE_WIDTH = 200
_SECONDS_BETWEEN_LINES = 60


class Screen:
    """Where a command writes.

    Attributes:
        json: standard output is for one machine-readable document. quiet: no messages, no progress.
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
        """Print a result for people; silent with --json, where the document holds it."""
        if not self.json:
            self.out.print(what, soft_wrap=isinstance(what, Text))

    def rows(self, rows: Sequence[Sequence[RenderableType]]) -> None:
        """Print results in columns without a heading."""
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
        """Print a message to standard error; silent with --quiet."""
        if not self.quiet:
            self.err.print(printable(text), style="dim", markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning to standard error; lines after the first are indented as a list."""
        first, *more = text.splitlines() or [""]
        self._line("warning: ", "yellow", first)
        for line in more:
            self._line("  ", "yellow", line)

    def fail(self, text: str) -> None:
        """Print why the command failed, as one red line."""
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
        """Print this package's warnings as lines here, and silence those of other libraries."""
        handler = _ToScreen(self)
        logger.addHandler(handler)
        try:
            with warnings.catch_warnings():
                if not self.debug:
                    warnings.simplefilter("ignore")
                yield
        finally:
            logger.removeHandler(handler)


_SHARED = {
    "json": typer.Option("--json", rich_help_panel="Output", help="Print JSON on standard output, and only that."),
    "quiet": typer.Option("--quiet", "-q", rich_help_panel="Output", help="Print nothing but results and errors."),
    "debug": typer.Option("--debug", rich_help_panel="Output", help="Show tracebacks and the libraries' own messages."),
}


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function whose first parameter is a `Screen`.

    It gets the options ``--json``, ``--quiet`` and ``--debug``, and errors become messages and exit codes. A parameter
    whose type is a dataclass stands for a group of options, one per field.
    """
    _, *own = inspect.signature(function).parameters.values()
    types = get_type_hints(function, include_extras=True)
    groups = {parameter.name: types[parameter.name] for parameter in own if is_dataclass(types[parameter.name])}
    options: list[Parameter] = []
    for parameter in own:
        if (group := groups.get(parameter.name)) is None:
            options.append(_option(parameter.name, types[parameter.name], parameter.default))
        else:
            kinds = get_type_hints(group, include_extras=True)
            options += [_option(field.name, kinds[field.name], field.default) for field in fields(group)]
    for name, shared in _SHARED.items():
        options.append(_option(name, Annotated[bool, shared], False))

    @wraps(function)
    def run(json: bool, quiet: bool, debug: bool, **values: Any) -> None:
        screen = Screen(json=json, quiet=quiet, debug=debug)
        with screen.library_messages(), screen.errors():
            for name, group in groups.items():
                values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
            function(screen, **values)

    # typer reads a command's options from its signature and annotations.
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _option(name: str, kind: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


class LogProgress:
    """Progress for logs, where a bar cannot be seen: at most one line a minute, and none on a terminal."""

    def __init__(self, screen: Screen, name: str, unit: str):
        self._screen, self._name, self._unit = screen, name, unit
        self._started = self._told = perf_counter()

    def show(self, done: int, total: int | None, note: str = "") -> None:
        """Print how far a loop is, unless the last line is less than a minute old."""
        now = perf_counter()
        if self._screen.lively or not done or now - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = now
        rate = done / (now - self._started)
        left = "" if total is None else f", {timedelta(seconds=round((total - done) / rate))} left"
        of = "" if total is None else f"/{total}"
        more = f", {note}" if note else ""
        self._screen.note(f"{self._name}: {done}{of} {self._unit}, {rate:.1f} a second{left}{more}")


class ShowProgress(Protocol):
    """Moves a progress bar: steps done, steps in all (None where unknown), and what else its columns show."""

    def __call__(self, done: int, total: int | None, **fields: Any) -> None: ...


@contextmanager
def progress_bar(
    screen: Screen, name: str, unit: str, *columns: str | ProgressColumn, **fields: Any
) -> Iterator[ShowProgress]:
    """A progress bar on a terminal, a line a minute in a log.

    Args:
        columns: of the bar; none for rich's own. fields: what they show before the first step; ``note`` is shown in
            a log, too.
    """
    with Progress(*columns, console=screen.err, disable=not screen.lively, transient=True) as bar:
        task, log = bar.add_task(name, total=None, **fields), LogProgress(screen, name, unit)

        def show(done: int, total: int | None, **fields: Any) -> None:
            bar.update(task, completed=done, total=total, **fields)
            log.show(done, total, fields.get("note", ""))

        yield show


class Interrupts:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt while the block runs, but inside ``held()`` only at its end.

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
        self._earlier = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
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
        """Do work that a signal must not interrupt, such as writing a frame to every file.

        Args:
            then_raise: raise KeyboardInterrupt afterwards if a signal came; otherwise only remember it.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if then_raise and self.received is not None:
            raise KeyboardInterrupt


@contextmanager
def quiet_libraries(screen: Screen) -> Iterator[None]:
    """Silence transformers and the hub client, except for their progress bars on a terminal."""
    import transformers
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    log = transformers.utils.logging
    level, had_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    if not screen.debug:
        log.set_verbosity_error()
    if not screen.lively:
        log.disable_progress_bar()
        disable_progress_bars()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if had_bars:
            log.enable_progress_bar()
            enable_progress_bars()


class _ToScreen(logging.Handler):
    """Log records of this package as warnings on the screen, with the traceback where one was logged."""

    def __init__(self, screen: Screen):
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        self._screen.warn(f"{record.getMessage()}\n{trace}")


def explanation(error: BaseException) -> str:
    """The message for an exception, on one line."""
    name = type(error).__name__
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror.lower()}: {error.filename}"
    if name == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "out of memory; take a smaller model, --dtype bfloat16, fewer --num-key-frames, or --device cpu"
    text = " ".join(str(error).split())
    told = isinstance(error, ValueError | OSError | ImportError | FloatingPointError) and text
    return text if told else f"{name}: {text}"


def printable(text: str) -> str:
    """The text with control characters replaced, so that it cannot steer the terminal; its length does not change."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console
