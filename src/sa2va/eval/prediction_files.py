"""Prediction files: JSON lines, one file per process, that survive a kill.

A line counts when it ends in a line break, so what a killed process left half written is as if it had never been.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

from sa2va.atomic import append, naming, sole_writer
from sa2va.eval.benchmark import Prediction
from sa2va.untrusted import STUMBLES, parse_json

_PATTERN = "predictions-*.jsonl"


def shard_path(folder: Path, index: int, count: int) -> Path:
    """The file of one of ``count`` processes."""
    return folder / f"predictions-{index:05d}-of-{count:05d}.jsonl"


def read_predictions(folder: Path) -> dict[str, Prediction]:
    """All predictions of a folder's shards, by query id.

    Raises:
        ValueError: a line is malformed, or a query was answered twice; the message names file and line.
    """
    found: dict[str, Prediction] = {}
    places: dict[str, str] = {}
    for place, line in _lines(folder):
        try:
            prediction = Prediction.from_json(line)
        except ValueError as error:
            raise ValueError(f"{place}: {error}; delete this line and run again to repeat it") from error
        _once(places, prediction.id, place)
        found[prediction.id] = prediction
    return found


def read_ids(folder: Path) -> set[str]:
    """The queries that are answered in a folder, without reading their masks.

    Raises:
        ValueError: as in [`read_predictions`].
    """
    places: dict[str, str] = {}
    for place, line in _lines(folder):
        try:
            number = parse_json(line)["id"]
        except STUMBLES as error:
            raise ValueError(f"{place}: expected one prediction as JSON; delete this line to repeat it") from error
        _once(places, str(number), place)
    return set(places)


def _once(places: dict[str, str], number: str, place: str) -> None:
    if number in places:
        raise ValueError(
            f"query {number!r} was answered twice, in {places[number]} and {place}: were two runs writing here at "
            "once? Delete one of the lines, or one of the files"
        )
    places[number] = place


def _lines(folder: Path) -> Iterator[tuple[str, str]]:
    """(file:line, text) of every finished line."""
    for path in sorted(folder.glob(_PATTERN)):
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield f"{path}:{number}", line.decode("utf-8", errors="replace")


class ShardWriter:
    """Appends predictions to a shard; what a killed predecessor left half written at its end is cut off first.

    Raises:
        ValueError: on entering, another process writes to it.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file: FileIO | None = None
        self._held = ExitStack()

    def __enter__(self) -> ShardWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            self._file = opened.enter_context(open(self._path, "ab", buffering=0))
            opened.enter_context(sole_writer(self._path))
            self._file.truncate(_finished_bytes(self._path))
            self._held = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def write(self, predictions: Iterable[Prediction]) -> None:
        """Append lines and hand them to the system, so that killing this process loses none of them."""
        assert self._file is not None, "use ShardWriter as a context manager"
        with naming(self._path):
            append(self._file, "".join(f"{one.to_json()}\n" for one in predictions).encode())


def _finished_bytes(path: Path) -> int:
    """How many bytes of a file stand before its unfinished last line."""
    with open(path, "rb") as file:
        return sum(len(line) for line in file if line.endswith(b"\n"))
