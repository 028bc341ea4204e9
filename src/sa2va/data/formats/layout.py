"""What is missing or malformed in a data set, collected first and then said in one error."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sa2va.reading import parse_json
from sa2va.runtime import logger

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
        """The picture under its name, or its bare file name, in the first folder that has it; else where it should be.

        Args:
            name: as in the annotations, with or without folders before it.
        """
        places = [folder / tail for tail in dict.fromkeys((name, Path(name).name)) for folder in self.folders]
        return next(filter(self.has, places), places[0])

    def has(self, path: Path) -> bool:
        """Whether there is such a file."""
        folder, name = os.path.split(path)
        if folder not in self._names:
            self._names[folder] = _listed(folder)
        return name in self._names[folder]


def read_json(path: Path) -> Any:
    """The values of a JSON file. ValueError with its name when it is not JSON."""
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


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
