"""``sa2va train``: a recipe or a configuration file, some settings, and off."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sa2va import zoo
from sa2va.cli.command import command
from sa2va.cli.loading import quiet_libraries
from sa2va.cli.screen import Screen


@command
def train(
    screen: Screen,
    recipe: Annotated[
        str, typer.Argument(metavar="PRESET|CONFIG", show_default=False, help="Preset, or a .yaml or .json file.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...", show_default=False, help="Settings, e.g. steps=100 loss.weights.dice=1."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, run two steps, and leave nothing behind.")
    ] = False,
) -> None:
    """Train or fine-tune a model.

    Says first what is trained, on which data and in how much memory. A run that was stopped goes on from its last
    checkpoint when the same command is given again.

    On several GPUs: [bold]torchrun --nproc-per-node 8 -m sa2va.cli train ...[/bold]
    """
    from sa2va.train.config import TrainConfig
    from sa2va.train.overview import overview
    from sa2va.train.parsing import plain
    from sa2va.train.presets import preset
    from sa2va.train.run import prepare
    from sa2va.train.run import train as run_training

    words = settings or []
    is_file = Path(recipe).suffix in (".yaml", ".yml", ".json")
    config = TrainConfig.from_file(recipe, words) if is_file else preset(recipe, words)
    first = os.environ.get("RANK", "0") == "0"
    config = replace(config, model=zoo.resolve(config.model))
    with quiet_libraries(screen):
        run = prepare(config)
        if first:
            for part in overview(run, int(os.environ.get("WORLD_SIZE", "1"))):
                screen.result(part)
        folder = run_training(
            run, dry_run=dry_run, progress=not screen.quiet, note=screen.note if first else lambda _: None
        )
    if first and dry_run:
        screen.note("two steps went well; nothing was kept")
    if first and screen.json:
        screen.emit({"model": None if folder is None else str(folder), "config": plain(config)})
