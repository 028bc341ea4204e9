"""Files of other machines: any URL that fsspec reads, and http(s) as everywhere in this package."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

import fsspec

from sa2va.bulk.batch_rows import BatchRow
from sa2va.media.download import download
from sa2va.media.image import is_url
from sa2va.media.open import MediaSource

T = TypeVar("T")
R = TypeVar("R")

#: Of a picture, as for downloads: far more than any, and little enough to hold in memory.
_MAX_BYTES = 64 << 20
#: What is read as a clip, by its name, where the content is not at hand yet.
CLIP_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".flv", ".ogv", ".wmv"))
#: Files that are on their way at a time, and those that are looked at ahead.
_THREADS, _AHEAD = 8, 32
#: A row with its medium as the model opens it, or why there is none.
Loaded = tuple[BatchRow, "MediaSource | Exception"]


def is_remote(source: str) -> bool:
    """Whether a source is a URL, rather than a file of this machine."""
    return is_url(source)


def is_http(source: str) -> bool:
    """Whether a source is a URL of the web."""
    return source.lower().startswith(("http://", "https://"))


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it.

    Raises:
        ValueError: a scheme that fsspec does not know, or a chain of several.
        ImportError: the scheme needs a package; the message names it.
    """
    if "::" in url:
        raise ValueError(f"{url} is a chain of URLs; give the last one alone")
    return fsspec.core.url_to_fs(url)


def suffix_of(source: str) -> str:
    """The ending of a path or URL, in lower case, without the query of an http URL."""
    return PurePosixPath(source.split("?", 1)[0] if is_http(source) else source).suffix.lower()


@contextmanager
def opened(source: str) -> Iterator[IO[bytes]]:
    """A local or remote file, open for reading bytes."""
    if is_http(source):
        with tempfile.TemporaryFile() as file:
            file.write(download(source))
            file.seek(0)
            yield file
    elif is_remote(source):
        files, path = file_system(source)
        with files.open(path, "rb") as file:
            yield file
    else:
        with open(source, "rb") as file:
            yield file


def fetched(source: str, folder: Path) -> str | bytes | Path:
    """A medium as the model opens it: the path of a local one, the bytes of a remote picture, a remote clip in a file.

    Args:
        folder: where clips go; who calls removes them.

    Raises:
        ValueError: too large, or another scheme. OSError: it is not there, or cannot be read.
    """
    if not is_remote(source):
        return source
    if suffix_of(source) not in CLIP_SUFFIXES:
        return download(source) if is_http(source) else _bytes(source)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=suffix_of(source), delete=False) as target:
        if is_http(source):
            target.write(download(source))
        else:
            files, path = file_system(source)
            files.get_file(path, target.name)
    return Path(target.name)


def ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Items with what a function gives for them, in order; threads call it for a few items ahead."""
    with ThreadPoolExecutor(_THREADS, "sa2va-ahead") as pool:
        waiting: deque[tuple[T, Future[R]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) == _AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for item, future in waiting:
            yield item, future.result()


def medium_of(source: str, folder: Path) -> MediaSource | Exception:
    """A medium as the model opens it, or why there is none.

    Args:
        folder: for clips of other machines.
    """
    try:
        return fetched(source, folder)
    except Exception as error:  # of any library behind fsspec; it becomes the row's
        return error


def _bytes(url: str) -> bytes:
    files, path = file_system(url)
    with files.open(path, "rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{url} is larger than {_MAX_BYTES >> 20} MiB")
    return content
