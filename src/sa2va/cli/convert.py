"""``sa2va convert``: rewrite a checkpoint in the other layout."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sa2va import zoo
from sa2va.cli.console import Screen, command, quiet_libraries


class Target(StrEnum):
    """The layouts a checkpoint can be in."""

    NATIVE = "native"
    RELEASED = "released"


class Dtypes(StrEnum):
    """Number formats of the tensors written."""

    KEPT = "kept"
    RELEASED = "released"


@command
def convert(
    screen: Screen,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", show_default=False, help="A checkpoint (folder, hub id, zoo name) or an adapter."
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", show_default=False, help="New or empty folder.")],
    to: Annotated[
        Target | None, typer.Option(show_default=False, help="Layout to write; by default the one SRC is not in.")
    ] = None,
    dtypes: Annotated[
        Dtypes, typer.Option(help="Number formats: as in SRC, or those of the released files.")
    ] = Dtypes.KEPT,
    sam2: Annotated[
        str | None,
        typer.Option(
            "--sam2",
            metavar="SAM2",
            show_default=False,
            help="Keep the decoder and memory of SAM 2's own weights (hub id, folder, or Meta's .pt) beside the tuned "
            "decoder: masks are carried through videos better.",
        ),
    ] = None,
) -> None:
    """Rewrite a checkpoint: released layout to this package's own, or back.

    Tensors keep their values. An adapter is merged into the model that it names. A damaged or incomplete checkpoint
    is refused, and nothing is written.
    """
    name = zoo.resolve(source)
    screen.note(f"reading {name}")
    from sa2va.checkpoint.conversion import convert as rewrite

    with quiet_libraries(screen):
        layout = rewrite(
            name, destination, None if to is None else to.value, dtypes=dtypes.value, sam2=sam2, note=screen.note
        )
    files = sorted(path.name for path in destination.iterdir())
    if screen.json:
        screen.emit({"source": name, "destination": str(destination), "layout": layout, "files": files})
    screen.note(f"wrote {destination} in the {layout} layout: {', '.join(files)}")
