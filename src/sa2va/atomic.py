"""Atomic files and folders: they appear complete or not at all, and never overwrite what they are made from.

Write beside the target, then rename over it. Errors of the file system name the target, not the hidden file beside it.
What grows in place is held by the one process that writes it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: Files of these kinds in a folder of frames are part of the source; a video beside them is not.
_FRAMES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".json"}
#: Records that results carry with them: the objects of a folder of masks, and the run of a folder of results.
MANIFEST, RUN_RECORD = "objects.json", "run.json"
#: Names of temporary files: the target's stem and suffix are the groups.
_TEMPORARY = re.compile(r"\.(.+)\.part-[0-9a-f]{12}(\.[^.]*)?")


def check_target(target: str | Path, *sources: Any) -> None:
    """Reject an unsuitable target before any work is done.

    Args:
        target: file or folder to write. It may exist, and so may any of its parents.
        sources: what the result is made from: files, folders, or anything else (a camera, an array), which is ignored.

    Raises:
        ValueError: the target is one of the sources, or writing it would change a file of one (the message names both);
            or its name is that of a record which results carry with them.
        OSError: nothing can be written there (read-only, not permitted, full); the message names the folder.
    """
    target = Path(target)
    if target.name in (MANIFEST, RUN_RECORD):
        raise ValueError(f"{target} has the name of a record that results carry with them; choose another name")
    for source in filter(None, map(_existing, sources)):
        if _same(target, source) or _changes(target, source):
            raise ValueError(
                f"{target} would be written over its own source {source}; choose another name or folder for the result"
            )
    nearest = next(parent for parent in (target, *target.absolute().parents) if parent.is_dir())
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(nearest)) from None


def _existing(source: Any) -> Path | None:
    """The file or folder a source stands for; None for a URL, a camera, an array, a missing file."""
    if not isinstance(source, str | os.PathLike):
        return None
    with suppress(OSError, ValueError):  # text that no file system takes as a name
        path = Path(source)
        return path if path.exists() else None
    return None


def _same(first: Path, second: Path) -> bool:
    """Whether two paths are one file or folder, through links and whatever way they are spelt."""
    return first.exists() and second.exists() and os.path.samefile(first, second)


def _changes(target: Path, source: Path) -> bool:
    """Whether writing the target touches a file of the source: one in a folder of frames, or a picture among results.

    A new file in a folder of frames changes nothing that is there, and neither do numbered pictures beside a video.
    """
    if source.is_dir():
        return target.is_file() and target.suffix.lower() in _FRAMES and _within(target, source)
    return target.is_dir() and source.suffix.lower() in _FRAMES and _within(source, target)


def _within(path: Path, folder: Path) -> bool:
    return any(_same(parent, folder) for parent in path.resolve().parents)


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A fresh empty file in the folder of ``path`` (made if missing), hidden, with the same suffix.

    When the block ends, it vanishes, unless it was given another name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part-{secrets.token_hex(6)}{path.suffix}")
    # Not mkstemp: its files are private, and the finished one shall have the permissions of any other.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        with sole_writer(temporary):  # so that nobody takes it for a leftover
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(target: Path) -> None:
    """Remove the temporary files that a killed process left next to a target, or in it if it is a folder.

    Those that are being written now stay, and on Windows, where that is not known, all do.
    """
    if fcntl is None:
        return
    hidden = [*target.parent.glob(".*"), *(target.rglob(".*") if target.is_dir() else ())]
    for left in hidden:
        found = _TEMPORARY.fullmatch(left.name)
        if found and (left.parent != target.parent or found[1] + (found[2] or "") == target.name):
            with suppress(OSError, ValueError), sole_writer(left):
                left.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes ``path`` at the end of the block, and is removed after an error."""
    with naming(path), temporary_beside(path) as temporary:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # safetensors makes every file it writes private
        temporary.replace(path)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Errors of writing ``path`` carry its name: a full disk does not say which file was too much.

    An error about another file than those beside the target (a source that is missing) is left alone.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _system_error(error)
        named = getattr(error, "filename", None)
        if number is None or (isinstance(named, str | bytes) and not _beside(Path(os.fsdecode(named)), Path(path))):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _beside(named: Path, path: Path) -> bool:
    """Whether a file lies beside another, or in a hidden folder near it, which this module made."""
    if named.parent == path.parent:
        return True
    return named.is_relative_to(path.parent) and any(
        part.startswith(".") for part in named.relative_to(path.parent).parts
    )


def _system_error(error: Exception) -> int | None:
    """The number of a system error that a library in Rust (safetensors) tells in words alone."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """An empty folder to write to; its files move into ``folder`` (created if missing) at the end of the block.

    What a killed process left of this in ``folder`` is removed first: no two may fill one folder at a time.
    """
    prefix = ".filling-"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{prefix}*"):
        shutil.rmtree(left)
    with naming(folder), tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as scratch:
        yield Path(scratch)
        for path in Path(scratch).iterdir():
            path.replace(folder / path.name)


def append(file: FileIO, content: bytes) -> None:
    """Write to the end of a file; where there is no room for all of it, nothing of it stays.

    Args:
        file: open for appending, unbuffered: what a buffer could not write would be tried again at closing.
    """
    start = file.seek(0, os.SEEK_END)
    try:
        while content:
            content = content[file.write(content) :]
    except BaseException:
        file.truncate(start)
        raise


#: Descriptors of what this process holds.
_held: set[int] = set()


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Hold a file or folder that is written in place, against other processes that ask for it in the same way.

    Ends with the process, however that ends, and leaves no trace. Nothing is held on Windows, nor where the file system
    knows no locks.

    Raises:
        ValueError: another holds it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    _held.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is writing to {path}; wait until it ends, or choose another place"
            ) from None
        except OSError:  # no locks there
            pass
        yield
    finally:
        if handle in _held:
            _held.remove(handle)
            os.close(handle)


def _let_go() -> None:
    """In a forked child, which may live longer than the process that writes."""
    while _held:
        os.close(_held.pop())


if fcntl:
    os.register_at_fork(after_in_child=_let_go)


def new_file_mode(folder: Path) -> int:
    """The permissions of a file made now, which only making one tells without a race: the umask is the process's."""
    with temporary_beside(folder / "mode") as temporary:
        return stat.S_IMODE(temporary.stat().st_mode)
