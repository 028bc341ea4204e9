"""``sa2va models``: the published checkpoints as a table."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich import box
from rich.table import Table

from sa2va import zoo
from sa2va.cli.console import Screen, command


@command
def models(
    screen: Screen,
    memory: Annotated[bool, typer.Option("--memory", help="How much memory each of the ten needs instead.")] = False,
) -> None:
    """List the published checkpoints: base, size, scores, and which can be loaded.

    Scores are their authors' own: cIoU on RefCOCO / + / g (val), J&F on MeViS
    (val_u) and Ref-DAVIS17. The name in the first column is good for [bold]--model[/bold].
    """
    if memory:
        _show_memory(screen)
        return
    if screen.json:
        screen.emit({"models": [model.record for model in zoo.ZOO], "license": zoo.LICENSE_NOTE})
        return
    screen.result(_table(zoo.RELEASED, "The ten Sa2VA checkpoints"))
    screen.result(_table(zoo.OTHERS, "Others of the family"))
    screen.note("Scores as printed in arXiv 2501.04001 v3 (tables 8, 14) and the Sa2VA-i README; - is not published.")
    screen.note(zoo.LICENSE_NOTE)


def _show_memory(screen: Screen) -> None:
    """Print the memory for weights in three number formats, and for a request."""
    from sa2va.sizes import ARCHITECTURES

    kinds: tuple[Literal["bfloat16", "int8", "nf4"], ...] = ("bfloat16", "int8", "nf4")
    rows = [
        {"name": name}
        | {kind: shapes.weights(kind) for kind in kinds}
        | {"picture": shapes.picture_work(), "video": shapes.video_work()}
        for name, shapes in ARCHITECTURES.items()
    ]
    if screen.json:
        screen.emit({"memory": rows, "unit": "bytes"})
        return
    table = Table(title="Memory in GB (10^9 bytes)", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("model", style="cyan", no_wrap=True)
    for heading in ("weights bfloat16", "--quantize int8", "--quantize nf4", "+ picture", "+ video"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(str(row["name"]), *(f"{float(value) / 1e9:.2f}" for value in list(row.values())[1:]))
    screen.result(table)
    screen.note(
        "Weights are exact. To them comes one of the last two: the most that is at work, in half precision, for a"
    )
    screen.note(
        "picture as large as the model takes, or for a video of any length; and what the device's libraries take."
    )
    screen.note(
        "Sa2VA-i and SaSaSa2VA models need what the released model on the same base does; float32 twice bfloat16."
    )


def _table(rows: tuple[zoo.ZooModel, ...], title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("model", style="cyan", no_wrap=True)
    table.add_column("base", no_wrap=True)
    table.add_column("vision", no_wrap=True)
    for heading in ("params", "disk", "RefCOCO", "+", "g", "MeViS", "DAVIS17"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("loads", justify="center", no_wrap=True)
    for row in rows:
        scores = (row.refcoco, row.refcoco_plus, row.refcocog, row.mevis, row.davis17)
        table.add_row(
            row.name,
            row.base,
            row.vision,
            "-" if row.size is None else f"{row.size:.1f} B",
            "-" if row.disk is None else f"{row.disk:.1f} GB",
            *("-" if score is None else f"{score:.1f}" for score in scores),
            "yes" if row.loads else "no",
        )
    return table
