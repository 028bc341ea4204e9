"""``sa2va eval``: run benchmarks, score them, pack them for servers, and report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from sa2va.atomic import check_target, remove_leftovers
from sa2va.cli import arguments
from sa2va.cli.console import Screen, ShowProgress, command, progress_bar, quiet_libraries

if TYPE_CHECKING:
    from sa2va.eval.benchmark import BenchmarkSpec
    from sa2va.eval.predict import PredictionProgress, Settings, Shard
    from sa2va.predictor import Sa2VA


class _RunsByDefault(TyperGroup):
    """An unknown command of the group is a model to run: ``sa2va eval MODEL BENCH...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


evaluation = typer.Typer(
    cls=_RunsByDefault,
    no_args_is_help=True,
    help="Measure a model on benchmarks: [bold]sa2va eval MODEL BENCH... -o OUT[/bold], then "
    "[bold]sa2va eval report OUT[/bold].\n\n"
    "A benchmark is one name (refcoco/val), the first part of several (refcoco), or "
    "[bold]all[/bold] whose data is present; the synthetic ones need no data, and [bold]own[/bold] "
    "is whatever you labelled in --data.",
    epilog="[bold]Examples[/bold]\n\n"
    "[cyan]$ sa2va eval Sa2VA-4B refcoco mevis/valid_u --data ./data -o out[/cyan]\n\n"
    "[cyan]$ sa2va eval runs/mine own --data ./mine --holdout 0.2 -o out[/cyan]\n\n"
    "[cyan]$ torchrun --nproc-per-node 8 -m sa2va.cli eval Sa2VA-4B all --data ./data -o out[/cyan]\n\n"
    "[cyan]$ sa2va eval report out[/cyan]",
)

Out = Annotated[Path, typer.Argument(metavar="OUT", show_default=False, help="Folder of an evaluation.")]
Names = Annotated[
    list[str] | None, typer.Argument(metavar="BENCH...", show_default=False, help="Only these; by default all in OUT.")
]
Data = Annotated[
    Path,
    typer.Option("--data", envvar="SA2VA_DATA", metavar="ROOT", help="Folder with the benchmarks' files."),
]
OtherData = Annotated[
    Path | None,
    typer.Option("--data", metavar="ROOT", show_default=False, help="Where the files are now, if they were moved."),
]


@evaluation.command()
@command
def run(
    screen: Screen,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", show_default=False, help="Hub id, name from `sa2va models`, or folder.")
    ],
    benchmarks: Annotated[
        list[str], typer.Argument(metavar="BENCH...", show_default=False, help="Names, first parts of names, or all.")
    ],
    *,
    data: Data = Path("data"),
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT", show_default=False, help="Folder for the results.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Only so many of the first pictures or clips.")
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            show_default=False,
            help="Of own data, only the pictures or clips that training with validation=SHARE left out.",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", show_default=False, help="Only every N-th item from the I-th on, I from 0."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check data, model and requests on the first items; write nothing.")
    ] = False,
    no_score: Annotated[bool, typer.Option("--no-score", help="Leave counting to `sa2va eval score`.")] = False,
    at_once: Annotated[int, typer.Option(min=1, help="Queries about one picture that are answered together.")] = 16,
    key_frames: arguments.KeyFrames = "uniform",
    num_key_frames: arguments.NumKeyFrames = 5,
    mode: arguments.Mode = None,
    memory: arguments.Memory = arguments.MemoryKind.RECENT,
    ask_every: arguments.AskEvery = None,
    threshold: arguments.Threshold = 0.5,
    loading: arguments.Loading,
    max_new_tokens: arguments.MaxNewTokens = 2048,
) -> None:
    """Ask a model everything in benchmarks, and score its answers.

    A run that was stopped goes on where it was when the same command is given
    again. Many processes share the work: start them with torchrun or accelerate
    launch, or give each its [bold]--shard[/bold]; the last to finish scores.
    """
    from sa2va.eval.predict import Settings, Shard

    masks = arguments.MaskOptions(threshold)
    frames: Any = arguments.parse_key_frames(key_frames)
    if frames == "compressed":
        raise ValueError("sa2va eval takes --key-frames uniform, first, or frame numbers; compressed is for `track`")
    settings = Settings(
        key_frames=tuple(frames) if isinstance(frames, list) else frames,
        num_key_frames=num_key_frames,
        mode=None if mode is None else mode.value,
        memory=memory.value,
        ask_every=None if ask_every is None else arguments.parse_ask_every(ask_every, key_frames),
        threshold=masks.threshold,
        max_new_tokens=max_new_tokens,
        at_once=at_once,
    )
    request = EvaluationRequest(
        model,
        _names(benchmarks, holdout),
        data,
        settings,
        limit,
        Shard.of_process() if shard is None else Shard.parse(shard),
        loading,
    )
    if dry_run:
        _dry_run(screen, request)
    elif out is None:
        raise ValueError("say where the results go with -o OUT, or only check everything with --dry-run")
    else:
        _evaluate(screen, request, out, scoring=not no_score)


@evaluation.command()
@command
def score(screen: Screen, out: Out, benchmarks: Names = None, data: OtherData = None) -> None:
    """Count the answers of a run again; needs no model."""
    from sa2va.eval.score import score_all

    records = []
    for answered, scores in score_all(out, benchmarks or (), data):
        name = answered.benchmark.name
        if scores is None:
            screen.note(f"{name}: its truth is on a server; `sa2va eval pack {out}` writes what to send there")
            continue
        _show_scores(screen, name, scores.headline, scores.values, scores.notices)
        records.append({"benchmark": name, "headline": scores.headline, "values": scores.values})
    if screen.json:
        screen.emit({"out": str(out), "scores": records})


@evaluation.command()
@command
def pack(screen: Screen, out: Out, benchmarks: Names = None, data: OtherData = None) -> None:
    """Write the archives that servers take, checked for completeness."""
    from sa2va.eval.score import pack_all

    archives = {}
    for name, path in pack_all(out, benchmarks or (), data):
        archives[name] = str(path)
        screen.result(f"{name}: {path}")
    if screen.json:
        screen.emit({"archives": archives})


@evaluation.command()
@command
def report(
    screen: Screen,
    out: Out,
    benchmarks: Names = None,
    data: OtherData = None,
    samples: Annotated[int, typer.Option(min=1, help="How many of the worst and of the best answers to show.")] = 4,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Numbers only; needs no pictures.")] = False,
) -> None:
    """Write report.md and report.html: scores beside published ones, and answers to look at."""
    from sa2va.eval.report import report as write

    paths = write(out, benchmarks or (), data=data, samples=samples, pictures=not no_pictures)
    for path in paths:
        screen.result(str(path))
    if screen.json:
        screen.emit({"files": [str(path) for path in paths]})


@evaluation.command()
@command
def compare(
    screen: Screen,
    before: Annotated[Path, typer.Argument(metavar="RUN", show_default=False, help="Folder of an evaluation.")],
    after: Annotated[Path, typer.Argument(metavar="RUN", show_default=False, help="Folder of another.")],
    benchmarks: Names = None,
    samples: Annotated[int, typer.Option(min=0, help="How many of the largest changes to list.")] = 5,
) -> None:
    """Set two scored runs side by side: values, and which answers became better or worse."""
    from sa2va.eval.compare import compare as compared

    records = []
    for one in compared(before, after, benchmarks or ()):
        table = Table(title=one.name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("", str(before), str(after), "difference"):
            table.add_column(heading, justify="left" if not heading else "right")
        for value, (old, new) in one.values.items():
            table.add_row(value, f"{100 * old:.1f}", f"{100 * new:.1f}", f"{100 * (new - old):+.1f}")
        screen.result(table)
        better, worse, same = one.counts
        screen.result(Text(f"{better} answers are better, {worse} worse, {same} the same"))
        for query, (old, new) in one.largest(samples):
            screen.result(Text(f"  {100 * old:.0f} -> {100 * new:.0f}  {query}"))
        for notice in one.notices:
            screen.warn(f"{one.name}: {notice}")
        records.append(one.record(samples))
    if screen.json:
        screen.emit({"before": str(before), "after": str(after), "benchmarks": records})


@evaluation.command("list")
@command
def list_benchmarks(screen: Screen, data: Data = Path("data")) -> None:
    """List the benchmarks and which have their files under --data."""
    from sa2va.eval.benchmarks import BENCHMARKS
    from sa2va.eval.registry import absent_files

    rows = [(row, absent_files(row, data)) for row in BENCHMARKS.values()]
    if screen.json:
        records = [
            {"name": row.name, "title": row.title, "missing": [str(path) for path in gone]} for row, gone in rows
        ]
        screen.emit({"data": str(data), "benchmarks": records})
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("benchmark", "", Text(f"files under {data}")):
        table.add_column(heading)
    for row, gone in rows:
        needed = len(row.files(data))
        state = "needs none" if not needed else "there" if not gone else f"missing {len(gone)} of {needed}: {gone[0]}"
        table.add_row(row.name, row.title, Text(state))  # paths are no markup
    screen.result(table)


def _names(benchmarks: Sequence[str], holdout: float | None) -> tuple[str, ...]:
    """The benchmarks; with --holdout, own data stand for the part that is held out."""
    from sa2va.eval.benchmarks.own import OWN, held_out_name

    if holdout is None:
        return tuple(benchmarks)
    if OWN not in benchmarks:
        raise ValueError(f"--holdout is for own data: `sa2va eval MODEL {OWN} --data ROOT --holdout {holdout:g}`")
    return tuple(held_out_name(holdout) if name == OWN else name for name in benchmarks)


@dataclass(frozen=True)
class EvaluationRequest:
    """Which model to ask which benchmarks, and how; see ``sa2va eval run --help``."""

    model: str
    names: tuple[str, ...]
    data: Path
    settings: Settings
    limit: int | None
    shard: Shard
    loading: arguments.Loading

    def rows(self, screen: Screen) -> list[BenchmarkSpec]:
        """The benchmarks; prints which ones ``all`` leaves out. Raises ValueError if none is left."""
        from sa2va.eval.registry import select

        selection = select(self.names, self.data)
        for name, paths in selection.absent.items():
            screen.note(f"left out {name}: no {paths[0]}{f' and {len(paths) - 1} more' if paths[1:] else ''}")
        return selection.rows

    def load(self, screen: Screen) -> Sa2VA:
        """Load the model, under torchrun on the GPU of this process."""
        loading = self.loading
        if loading.device == "auto" and "LOCAL_RANK" in os.environ:
            import torch

            if loading.device_map is not None and os.environ.get("WORLD_SIZE", "1") != "1":
                raise ValueError("--device-map gives all devices to one process; start only one, without torchrun")
            if torch.cuda.is_available() and loading.device_map is None:
                loading = replace(loading, device=f"cuda:{os.environ['LOCAL_RANK']}")
        return arguments.load_model(screen, arguments.model_name(self.model), loading)


def _dry_run(screen: Screen, request: EvaluationRequest) -> None:
    """Ask the first items of every benchmark, print the answers, and write nothing."""
    from sa2va.eval.predict import rehearse

    opened = [row.open(request.data) for row in request.rows(screen)]
    sa2va = request.load(screen)
    records: list[dict[str, Any]] = []
    for benchmark in opened:
        items = benchmark.items()
        queries = {query.id: query for item in items[:2] for query in item.queries}
        with quiet_libraries(screen):
            predictions = rehearse(sa2va, benchmark, request.settings)
        first = predictions[0]
        asked = queries[first.id].text
        screen.rows([(Text(benchmark.name, "bold"), f"{len(items)} items", f"{len(predictions)} queries asked")])
        screen.note(f"  {asked!r} -> {first.raw_text!r}, {len(first.masks)} masks")
        records.append({"benchmark": benchmark.name, "items": len(items), "request": asked, "answer": first.raw_text})
    screen.note("data, model and requests fit together; nothing was written")
    if screen.json:
        screen.emit({"model": request.model, "benchmarks": records})


def _evaluate(screen: Screen, request: EvaluationRequest, out: Path, *, scoring: bool) -> None:
    """Write the predictions for every benchmark into a folder, and score those that are complete."""
    from sa2va.eval.predict import BenchmarkRecord, limited, predict
    from sa2va.eval.prediction_files import read_predictions
    from sa2va.eval.registry import absent_files
    from sa2va.eval.run_metadata import RunHeader
    from sa2va.eval.score import Answered, score

    screen.quiet = screen.quiet or ("RANK" in os.environ and request.shard.index > 0)
    check_target(out, request.data, request.model, *_own_folders(request.data, out))
    remove_leftovers(out)
    rows = request.rows(screen)
    for row in rows:
        if absent_files(row, request.data):
            row.open(request.data)  # raises with all that is missing, before the model is loaded
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("items"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    sa2va = request.load(screen)
    RunHeader.of(sa2va, arguments.model_name(request.model), request.settings).settle(out)
    records: list[dict[str, Any]] = []
    for row in rows:
        folder = out / row.name
        record = BenchmarkRecord(row.name, str(request.data.resolve()), request.limit).widen(folder)
        benchmark = limited(row.open(request.data), record.limit)
        with quiet_libraries(screen), progress_bar(screen, row.name, "items", *columns) as show:

            def on_item(progress: PredictionProgress, show: ShowProgress = show) -> None:
                # Without what an earlier run did, which would make this one look faster than it is.
                show(progress.done - progress.skipped, progress.total - progress.skipped)

            left = predict(sa2va, benchmark, folder, request.settings, shard=request.shard, on_item=on_item)
        records.append({"benchmark": row.name, "unanswered": left})
        if left:
            screen.note(f"{row.name}: this process is done; the other {left} queries are other processes' to answer")
        elif benchmark.submission:
            screen.note(f"{row.name}: answered; `sa2va eval pack {out}` writes what its server takes")
        elif scoring:
            scores = score(Answered(folder, row, benchmark, record.limit, read_predictions(folder)))
            _show_scores(screen, row.name, scores.headline, scores.values, scores.notices)
            records[-1] |= {"headline": scores.headline, "values": scores.values}
    screen.note(f"predictions and scores are in {out}; `sa2va eval report {out}` makes a page of them")
    if screen.json:
        screen.emit({"model": request.model, "out": str(out), "benchmarks": records})


def _own_folders(data: Path, out: Path) -> list[Path]:
    """``out`` where it is part of the data: a folder inside it that no evaluation has made."""
    from sa2va.eval.run_metadata import HEADER

    inside = out.is_dir() and out.resolve().is_relative_to(data.resolve())
    return [out] if inside and not (out / HEADER).exists() and any(out.iterdir()) else []


def _show_scores(
    screen: Screen, name: str, headline: str, values: Mapping[str, float], notices: Sequence[str] = ()
) -> None:
    """Print one line of percentages, the headline first, and what a reader must know."""
    order = [headline, *(one for one in values if one != headline)]
    screen.rows([(Text(name, "bold"), *(f"{one} {100 * values[one]:.1f}" for one in order))])
    for notice in notices:
        screen.note(f"{name}: {notice}")
