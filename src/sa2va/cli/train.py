"""``sa2va train``: train a preset or a configuration file, with settings from the command line."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sa2va import zoo
from sa2va.cli.console import Screen, command, quiet_libraries

if TYPE_CHECKING:
    from sa2va.data.sample import Sample
    from sa2va.train.config import TrainConfig
    from sa2va.train.run import TrainingRun


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
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="MODEL", show_default=False, help="What to start from; the same as model=MODEL."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="ROOT", show_default=False, help="Folder of the data, for presets; as data=ROOT."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="OUT", show_default=False, help="Folder of the run; as output=OUT."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, run two steps, and leave nothing behind.")
    ] = False,
) -> None:
    """Train or fine-tune a model.

    Says first what differs from the recipe, what is trained, on which data and in how much memory. A run that was
    stopped goes on from its last checkpoint when the same command is given again.

    Presets: [bold]finetune[/bold] for own data, one for each released model ([bold]sa2va-4b[/bold], ...), and
    [bold]tiny[/bold], the checkpoint in this package, from nothing.

    On several GPUs: [bold]torchrun --nproc-per-node 8 -m sa2va.cli train ...[/bold]
    """
    from sa2va.train.run import finished

    given = {"model": model, "data": data, "output": out}
    words = [*(settings or []), *(f"{key}={value}" for key, value in given.items() if value is not None)]
    first = os.environ.get("RANK", "0") == "0"
    configurations = _configurations(recipe, words)
    for original, config in configurations:
        if len(configurations) > 1 and finished(config) and not dry_run:
            screen.note(f"{config.output} is finished already")
            continue
        if dry_run:
            config = replace(config, model=configurations[0][1].model)  # its own does not exist yet
        _train(screen, recipe, original, config, dry_run=dry_run, first=first)


def _train(
    screen: Screen, recipe: str, original: TrainConfig, config: TrainConfig, *, dry_run: bool, first: bool
) -> None:
    """Train one configuration."""
    from sa2va.train.parsing import plain
    from sa2va.train.run import prepare
    from sa2va.train.run import train as run_training
    from sa2va.train.summary import changes, overview

    config = replace(config, model=zoo.resolve(config.model))
    with quiet_libraries(screen):
        run = prepare(config)
        if first:
            for part in [*changes(original, config, recipe), *overview(run, int(os.environ.get("WORLD_SIZE", "1")))]:
                screen.result(part)
        folder = run_training(
            run, dry_run=dry_run, progress=not screen.quiet, note=screen.note if first else lambda _: None
        )
    if first and dry_run:
        screen.note("two steps went well; nothing was kept")
    if first and folder is not None:
        screen.note(_how_to_try(run, folder))
    if first and screen.json:
        screen.emit({"model": None if folder is None else str(folder), "config": plain(config)})


def _configurations(recipe: str, words: list[str]) -> list[tuple[TrainConfig, TrainConfig]]:
    """The configurations of a preset or file, each as it is and with the settings applied."""
    from sa2va.train.config import TrainConfig
    from sa2va.train.presets import recipes_and_overrides

    if Path(recipe).suffix in (".yaml", ".yml", ".json"):
        originals = (TrainConfig.from_file(recipe, [word for word in words if word.startswith("model=")]),)
    else:
        originals, words = recipes_and_overrides(recipe, words)
    return [(original, original.with_overrides(words)) for original in originals]


def _how_to_try(run: TrainingRun, folder: Path) -> str:
    """Commands to try the trained model on one of its samples."""
    sample = next((part.source[0] for part in run.parts if part.source[0].frames), None)
    model = shlex.quote(str(folder))
    if sample is None:
        return f"try it:\n  sa2va chat - --model {model}"
    medium = shlex.quote(_medium_of(sample))
    lines = [
        f"sa2va chat {medium} {shlex.quote(sample.turns[0].question)} --model {model}",
        f'sa2va {"track" if sample.video else "segment"} {medium} "WHAT TO FIND" --model {model} -o out',
    ]
    if (folder / "adapter").is_dir():
        lines.append(f"sa2va convert {model} EXPORTED --to released   # for users of the reference's code")
    return "\n  ".join(["try it:", *lines])


def _medium_of(sample: Sample) -> str:
    """The picture, or the folder of frames, that a sample was read from; a placeholder where it is unknown."""
    from sa2va.data.annotations.annotated_images import file_of

    file = file_of(sample.frames[0])
    if file is None:
        return "CLIP.mp4" if sample.video else "PICTURE.jpg"
    return str(file.parent if sample.video else file)
