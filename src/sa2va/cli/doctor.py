"""``sa2va doctor``: what is installed, what the machine has, and whether a small model works here."""

from __future__ import annotations

import typer
from rich.table import Table
from rich.text import Text

from sa2va.cli.command import command
from sa2va.cli.console import Screen


@command
def doctor(screen: Screen) -> None:
    """Check this installation: versions, devices, memory, codecs, a tiny model.

    Paste its output into bug reports. The exit code is 1 when a check fails.
    """
    from sa2va.cli import inspection
    from sa2va.cli.model_loading import quiet_libraries
    from sa2va.cli.self_check import CHECKS, run_checks

    facts = {
        "versions": inspection.versions(),
        "extras": inspection.extras(),
        "devices": inspection.devices(),
        "memory": inspection.memory(),
        "codecs": inspection.codecs(),
    }
    for title, rows in facts.items():
        screen.result(_table(title, rows))
    with quiet_libraries(screen):
        results = []
        for result in run_checks():
            results.append(result)
            mark = Text("ok", "green") if result.error is None else Text("FAILED", "bold red")
            screen.result(Text.assemble(mark, f"  {result.name} ({result.seconds:.1f} s)", _after(result.error)))
    good = len(results) == len(CHECKS) and all(result.error is None for result in results)
    if screen.json:
        checks = [vars(result) for result in results]
        screen.emit({**facts, "checks": checks, "ok": good})
    if not good:
        screen.fail("the self-check failed; run `sa2va doctor --debug` for the libraries' own messages")
        raise typer.Exit(1)


def _after(error: str | None) -> str:
    return f": {error}" if error else ""


def _table(title: str, rows: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), title=title)
    table.title_justify, table.title_style = "left", "bold"
    for name, value in rows.items():
        table.add_row(f"  {name}", value)
    return table
