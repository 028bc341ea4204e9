"""``sa2va merge``: merge an adapter into its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sa2va import zoo
from sa2va.cli.console import Screen, command, quiet_libraries
from sa2va.cli.convert import Target


@command
def merge(
    screen: Screen,
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", show_default=False, help="Folder with adapter_config.json.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", show_default=False, help="New or empty folder.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", show_default=False, help="The model it belongs to; by default the one the adapter names."
        ),
    ] = None,
    to: Annotated[Target, typer.Option(help="Layout to write.")] = Target.NATIVE,
) -> None:
    """Put an adapter into the weights of the model it was trained on.

    The result is a whole checkpoint that answers as the model with the adapter beside it does.
    """
    from sa2va.checkpoint.adapter import adapter_base, is_adapter
    from sa2va.checkpoint.conversion import convert

    if not is_adapter(adapter):
        raise ValueError(f"{adapter} is no adapter: expected a folder with adapter_config.json and no config.json")
    model = adapter_base(adapter, zoo.resolve(base) if base else None)
    screen.note(f"merging {adapter} into {model}")
    with quiet_libraries(screen):
        layout = convert(adapter, destination, to.value, base=model, note=screen.note)
    files = sorted(path.name for path in destination.iterdir())
    if screen.json:
        screen.emit({"adapter": adapter, "base": model, "destination": str(destination), "layout": layout})
    screen.note(f"wrote {destination} in the {layout} layout: {', '.join(files)}")
