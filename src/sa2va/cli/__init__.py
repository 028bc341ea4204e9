"""The command line: ``sa2va VERB SOURCE ...``.

Results go to standard output, everything else to standard error. Nothing heavy is imported before a command needs it,
so that ``--help`` comes at once.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main", "run"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: as typed after ``sa2va``; None takes the process's own.

    Returns:
        the exit code: 0 when all went well, 2 for a mistake of the caller, 1 for a failure of ours, 130 after Ctrl-C.
    """
    try:
        from sa2va.cli.commands import app  # here, so that Ctrl-C is met from the start

        app(args=arguments, prog_name="sa2va")
    except KeyboardInterrupt:
        return 130
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def run() -> NoReturn:
    """Run the command that the process was started for, and leave it."""
    code = main()
    gc.freeze()  # memory goes with the process: looking through all modules for cycles would take seconds
    sys.exit(code)
