"""Everything missing or malformed in a dataset, collected into one error."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from sa2va.runtime import logger
from sa2va.untrusted import parse_json, reading

_EXAMPLES = 3
_MOST_LINES = 12


class MissingData(ValueError):
    """Files of a data set are not where they belong; the message lists them and says where they come from."""


class Problems:
    """Collects what is wrong with a data set, kind by kind, and says it once.

    Args:
        dataset: name for the message.
    """

    def __init__(self, dataset: str):
        self.dataset = dataset
        self._missing: dict[str, list[str]] = {}
        self._malformed: dict[str, list[str]] = {}
        self._folders = PictureFolders(())
        self._names: dict[Path, str] = {}

    def found(self, folders: PictureFolders, name: str, origin: str) -> Path | None:
        """The picture of a name; one that is not there, or that another name has taken, is noted.

        Args:
            folders: see [`PictureFolders.find`]. name: as in the annotations. origin: where such files come from.
        """
        path = folders.find(name)
        first = self._names.setdefault(path, name)
        if first != name:
            self.malformed("two names mean one file, write them alike or keep the folders", f"{first} and {name}")
        return path if self.present(path, origin) and first == name else None

    def present(self, path: Path, origin: str) -> bool:
        """Whether a file is there; one that is not is noted. origin: where such files come from."""
        if self._folders.has(path):
            return True
        self.missing(path, origin)
        return False

    def missing(self, path: Path, origin: str) -> None:
        """Note a file that is not there. origin: where such files come from."""
        self._missing.setdefault(origin, []).append(str(path))

    def malformed(self, what: str, where: str) -> None:
        """Note a wrong entry. what: e.g. ``"an entry has no phrase"``. where: the name of the entry."""
        self._malformed.setdefault(what, []).append(where)

    def settle(self, kept: int, *, skip: bool) -> None:
        """Say what was found.

        Args:
            kept: entries in which nothing is wrong. skip: go on with these, after a warning in the log.

        Raises:
            MissingData: some files are missing. ValueError: all files are there but entries are wrong. Neither where
                they are skipped and some are kept.
        """
        lines = [
            f"  {len(paths)} files are missing ({origin}): {shown(paths)}" for origin, paths in self._missing.items()
        ]
        lines += [f"  {what}, {len(places)} times: {shown(places)}" for what, places in self._malformed.items()]
        if len(lines) > _MOST_LINES:
            lines = [*lines[:_MOST_LINES], f"  and {len(lines) - _MOST_LINES} other things"]
        if skip and kept and lines:
            logger.warning("\n".join([f"{self.dataset}: left out, {kept} entries are good:", *lines]))
        elif lines:
            cure = f"  skip_broken=true leaves them out; {kept} entries are good" if kept else "  no entry is good"
            error = MissingData if self._missing else ValueError
            raise error("\n".join([f"{self.dataset} cannot be read as it is:", *lines, cure]))
        elif not kept:
            raise ValueError(f"{self.dataset} has no entries")


def require_files(dataset: str, files: Mapping[Path, str]) -> None:
    """Check that files and folders exist.

    Args:
        dataset: name for the message. files: what must exist, and where each comes from.

    Raises:
        MissingData: every path that is missing, and its origin.
    """
    lines = [
        f"  {path.absolute()}{f' (from {origin})' * bool(origin)}"
        for path, origin in files.items()
        if not path.exists()
    ]
    if lines:
        raise MissingData("\n".join([f"{dataset}: {len(lines)} of {len(files)} files or folders are missing:", *lines]))


def first_existing(candidates: Sequence[Path]) -> Path:
    """The first path that exists; the first of all when none does, so that a message can name it."""
    return next((path for path in candidates if path.exists()), candidates[0])


class PictureFolders:
    """Folders that are searched for pictures in turn, each listed once.

    Args:
        folders: those that do not exist are passed over.
    """

    def __init__(self, folders: Sequence[Path]):
        self.folders = tuple(folders)
        self._names: dict[str, frozenset[str]] = {}

    def find(self, name: str) -> Path:
        """The picture under the longest tail of its name that a folder has; else where it should be.

        Args:
            name: as in the annotations, with or without folders before it, also those of another machine.
        """
        places = [folder / tail for tail in tails(name) for folder in self.folders]
        return next(filter(self.has, places), places[0])

    def has(self, path: Path) -> bool:
        """Whether there is such a file."""
        folder, name = os.path.split(path)
        if folder not in self._names:
            self._names[folder] = _listed(folder)
        return name in self._names[folder]


@dataclass(frozen=True)
class Doubt:
    """A kind of decision. what: and how to decide otherwise. count: of entries. examples: the first few of them."""

    what: str
    count: int
    examples: str


class Doubts:
    """What a reader decided without being told, kind by kind; the first of each kind is a warning in the log.

    Args:
        dataset: name for the message.
    """

    def __init__(self, dataset: str):
        self.dataset = dataset
        self._noted: dict[str, dict[str, None]] = {}

    def note(self, what: str, where: str) -> None:
        """Note a decision. what: and how to decide otherwise. where: the name of the entry; one counts once."""
        places = self._noted.setdefault(what, {})
        if not places:
            logger.warning("%s: %s, first in %s", self.dataset, what, where)
        places[where] = None

    @property
    def found(self) -> tuple[Doubt, ...]:
        """Each kind that was noted."""
        return tuple(Doubt(what, len(places), shown(list(places))) for what, places in self._noted.items())


def tails(name: str) -> Iterator[str]:
    """A path as written, then ever shorter ends of it, with the slashes of this system.

    ``D:\\data\\a.png`` also means ``data/a.png`` and ``a.png``.
    """
    yield name
    path = PureWindowsPath(name)  # knows both kinds of slashes
    parts = path.parts[bool(path.anchor) :]
    for start in range(len(parts)):
        tail = "/".join(parts[start:])
        if tail != name:
            yield tail


def text_encoding(path: Path) -> str:
    """How a JSON file is written: UTF-8, or UTF-16 or 32 as Windows saves text. A byte order mark stays in the text."""
    with path.open("rb") as file:
        start = file.read(4)
    found = json.detect_encoding(start)
    if found in ("utf-16", "utf-32"):
        big = start.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
        return f"{found}-{'be' if big else 'le'}"
    return found.removesuffix("-sig")


def read_json(path: Path) -> Any:
    """The values of a JSON file. ValueError with its name when it is not JSON."""
    with reading(f"{path} is not JSON"):
        return parse_json(path.read_bytes())


def shown(names: Sequence[str], most: int = _EXAMPLES) -> str:
    """The first few of many names: ``"a, b, c and 7 more"``."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _listed(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return frozenset(entry.name for entry in entries if not entry.is_dir())
    except OSError:
        return frozenset()
