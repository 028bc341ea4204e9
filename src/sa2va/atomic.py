"""Files and folders that appear whole or not at all: write beside the target, then rename over it."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def temporary_beside(path: Path) -> Path:
    """A fresh empty file in the folder of ``path`` (made if missing), hidden, with the same suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(6)}{path.suffix}")
    # Not mkstemp: its files are private, and the finished one shall have the permissions of any other.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes ``path`` when the block ends well and vanishes when it does not."""
    temporary = temporary_beside(path)
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors makes every file it writes private
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """An empty folder to write files to; they move into ``folder`` (made if missing) when the block ends well.

    What a killed process left of this in ``folder`` is removed first: no two may fill one folder at a time.
    """
    prefix = ".filling-"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{prefix}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as scratch:
        yield Path(scratch)
        for path in Path(scratch).iterdir():
            path.replace(folder / path.name)


def new_file_mode(folder: Path) -> int:
    """The permissions of a file made now, which only making one tells without a race: the umask is the process's."""
    temporary = temporary_beside(folder / "mode")
    mode = stat.S_IMODE(temporary.stat().st_mode)
    temporary.unlink()
    return mode
