"""``sa2va data``: look at training data before training on it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sa2va.atomic import check_target
from sa2va.cli.console import Screen, command, progress_bar, quiet_libraries

if TYPE_CHECKING:
    from sa2va.data.check import SetReport
    from sa2va.data.sample import Sample

data = typer.Typer(no_args_is_help=True, help="Look at training data before training on it.")

Root = Annotated[
    Path, typer.Argument(metavar="ROOT", show_default=False, help="Folder of your data, or of all published sets.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="NAME", show_default=False, help="Only this set; may be repeated."),
]
Orientation = Annotated[
    str | None,
    typer.Option(
        "--orientation",
        metavar="HOW",
        show_default=False,
        help="How pictures that their EXIF data turn were annotated where their masks do not tell: upright or stored.",
    ),
]
Samples = Annotated[int, typer.Option("--samples", "-n", min=1, help="Samples of each set, spread evenly.")]


@data.command(
    epilog="[bold]Examples[/bold]\n\n[cyan]$ sa2va data check ./mine[/cyan]\n\n"
    "[cyan]$ sa2va data check ./data --set mevis --all[/cyan]"
)
@command
def check(
    screen: Screen,
    root: Root,
    sets: Sets = None,
    samples: Samples = 200,
    everything: Annotated[bool, typer.Option("--all", help="Read every sample, and all frames of own videos.")] = False,
    orientation: Orientation = None,
) -> None:
    """Say which data sets are in a folder, what of them is missing or malformed, and what they hold.

    Annotations are read whole and every file is looked for. Pictures and masks are
    decoded for some samples of each set, or for [bold]--all[/bold]; of a clip, those frames
    that a sample shows. The exit code is 1 when anything is wrong. What a reader had to decide
    by itself is told, too: look at it with [cyan]sa2va data preview[/cyan].
    """
    from sa2va.data.annotations.annotated_images import checked_orientation
    from sa2va.data.check import KNOWN_SETS, OWN_FORMS, check_set

    reports = []
    for name in _set_names(root, sets):
        with progress_bar(screen, name, "samples") as step:
            most = None if everything else samples
            reports.append(check_set(root, name, most, step, checked_orientation(orientation)))
    absent = [name for name in KNOWN_SETS if name not in {report.name for report in reports}]
    good = all(report.good for report in reports)
    if screen.json:
        screen.emit({"root": str(root), "sets": [asdict(report) for report in reports], "absent": absent, "ok": good})
    screen.result(_table(reports))
    for report in reports:
        # Where single entries are left out, the reader has warned already.
        for line in () if report.samples else report.problems:
            screen.warn(line)
        for name, reason in report.broken:
            screen.warn(f"broken sample {name}: {reason}")
        if report.broken_count > len(report.broken):
            screen.warn(f"{report.broken_count - len(report.broken)} more broken samples of {report.name}")
        for doubt in report.doubts:
            if doubt.count > 1:  # the reader has warned about a single one
                screen.warn(f"{report.name}: {doubt.what}: {doubt.count} times, {doubt.examples}")
    if not sets and any(report.name not in OWN_FORMS for report in reports):
        screen.note(f"not in this folder: {', '.join(name for name in absent if name not in OWN_FORMS)}")
    if not good:
        raise typer.Exit(1)
    screen.note(f"nothing is missing or malformed; `sa2va data preview {shlex.quote(str(root))}` draws some samples")


@data.command(
    epilog="[bold]Examples[/bold]\n\n[cyan]$ sa2va data preview ./mine -o sheet.png[/cyan]\n\n"
    "[cyan]$ sa2va data preview ./data --set mevis --model Sa2VA-4B[/cyan]"
)
@command
def preview(
    screen: Screen,
    root: Root,
    sets: Sets = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PNG", help="Where to write the sheet.")] = Path(
        "preview.png"
    ),
    samples: Samples = 8,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            show_default=False,
            help="Show them as this model is trained on them: squashed, masks as coarse as targets, tokens counted.",
        ),
    ] = None,
    columns: Annotated[int, typer.Option(min=1, help="Samples side by side.")] = 4,
    orientation: Orientation = None,
) -> None:
    """Draw samples on one sheet: drawn frames with masks tinted, and their conversations below."""
    from sa2va.data.preview import preview as draw

    if out.suffix.lower() != ".png":
        raise ValueError(f"--out is a .png file; got {out}")
    check_target(out, *(folder for folder in root.glob("*/") if folder.is_dir()))
    show = _as_trained(screen, model) if model else lambda sample: sample
    shown: list[Sample] = []
    for name in _set_names(root, sets):
        shown += _samples(screen, root, name, samples, show, orientation)
    if not shown:
        raise ValueError(f"nothing in {root} can be shown; `sa2va data check {root}` says why")
    draw(shown, out, columns=columns)
    if screen.json:
        screen.emit({"out": str(out), "samples": [sample.id for sample in shown]})
    screen.note(f"wrote {out}: {len(shown)} samples")


def _set_names(root: Path, sets: Sequence[str] | None) -> Sequence[str]:
    from sa2va.data.check import KNOWN_SETS, OWN_FORMS, places_of, present_sets

    found = sets or present_sets(root)
    if not found:
        published = (name for name in KNOWN_SETS if name not in OWN_FORMS)
        raise ValueError(
            f"{root} holds no data that are known: own data have one of {places_of(OWN_FORMS)} in it, published sets "
            f"one of {places_of(published)}"
        )
    return found


def _samples(
    screen: Screen, root: Path, name: str, most: int, show: Callable[[Sample], Sample], orientation: str | None
) -> Iterator[Sample]:
    """Some samples of a set, spread evenly; broken ones are left out with a warning."""
    from sa2va.data.annotations.annotated_images import checked_orientation
    from sa2va.data.check import open_set
    from sa2va.media.frames import uniform_indices

    source, problems = open_set(root, name, checked_orientation(orientation))
    if source is None:
        for line in problems:
            screen.warn(line)
        return
    for index in uniform_indices(len(source), min(most, len(source))):
        try:
            sample = show(source[index].validate())
            sample.pictures()
        except (ValueError, OSError) as error:
            screen.warn(f"{name}[{index}] is broken: {error}")
        else:
            yield sample


def _as_trained(screen: Screen, model: str) -> Callable[[Sample], Sample]:
    from sa2va import Sa2VAProcessor, zoo
    from sa2va.checkpoint.loading import open_checkpoint
    from sa2va.data.preview import as_trained

    with quiet_libraries(screen):
        checkpoint = open_checkpoint(zoo.resolve(model))
        processor = Sa2VAProcessor.from_pretrained(checkpoint.folder, checkpoint.config)
    return lambda sample: as_trained(sample, processor)


def _table(reports: Sequence[SetReport]) -> Table:
    table = Table("set", title="Data sets", title_justify="left")
    for column in ("samples", "read", "turns", "objects", "out of sight", "broken"):
        table.add_column(column, justify="right")
    for report in reports:
        numbers = (report.samples, report.checked, report.turns, report.objects, report.unseen, report.broken_count)
        style = "" if report.good else "yellow" if report.samples else "red"
        table.add_row(report.name, *(f"{number:,}" for number in numbers), style=style)
    return table
