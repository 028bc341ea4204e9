"""The work of ``sa2va eval run``: everything is checked, then the model is loaded, then benchmark after benchmark."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from sa2va.atomic import check_target, remove_leftovers
from sa2va.cli.arguments import Loading
from sa2va.cli.console import LogProgress, Screen, show_scores
from sa2va.cli.model_loading import load_model, model_name, quiet_libraries
from sa2va.eval import predict
from sa2va.eval.benchmark import BenchmarkSpec
from sa2va.eval.predict import BenchmarkRecord, PredictionProgress, Settings, Shard
from sa2va.eval.prediction_files import read_predictions
from sa2va.eval.registry import absent_files, select
from sa2va.eval.run_metadata import HEADER, RunHeader
from sa2va.eval.score import Answered, score
from sa2va.predictor import Sa2VA


@dataclass(frozen=True)
class EvaluationRequest:
    """What to ask whom, and how; see ``sa2va eval run --help``."""

    model: str
    names: tuple[str, ...]
    data: Path
    settings: Settings
    limit: int | None
    shard: Shard
    loading: Loading

    def rows(self, screen: Screen) -> list[BenchmarkSpec]:
        """The benchmarks; those that ``all`` leaves out are named. Raises ValueError when none is left."""
        selection = select(self.names, self.data)
        for name, paths in selection.absent.items():
            screen.note(f"left out {name}: no {paths[0]}{f' and {len(paths) - 1} more' if paths[1:] else ''}")
        return selection.rows

    def load(self, screen: Screen) -> Sa2VA:
        """The model, on this process's own GPU where there are several."""
        loading = self.loading
        if loading.device == "auto" and "LOCAL_RANK" in os.environ:
            import torch

            if loading.device_map is not None and os.environ.get("WORLD_SIZE", "1") != "1":
                raise ValueError("--device-map gives all devices to one process; start only one, without torchrun")
            if torch.cuda.is_available() and loading.device_map is None:
                loading = replace(loading, device=f"cuda:{os.environ['LOCAL_RANK']}")
        return load_model(screen, model_name(self.model), loading)


def rehearse(screen: Screen, task: EvaluationRequest) -> None:
    """Ask the first items of every benchmark, show what came, and leave nothing behind."""
    opened = [row.open(task.data) for row in task.rows(screen)]
    sa2va = task.load(screen)
    records: list[dict[str, Any]] = []
    for benchmark in opened:
        items = benchmark.items()
        queries = {query.id: query for item in items[:2] for query in item.queries}
        with quiet_libraries(screen):
            predictions = predict.rehearse(sa2va, benchmark, task.settings)
        first = predictions[0]
        request = queries[first.id].text
        screen.rows([(Text(benchmark.name, "bold"), f"{len(items)} items", f"{len(predictions)} queries asked")])
        screen.note(f"  {request!r} -> {first.raw_text!r}, {len(first.masks)} masks")
        records.append({"benchmark": benchmark.name, "items": len(items), "request": request, "answer": first.raw_text})
    screen.note("data, model and requests fit together; nothing was written")
    if screen.json:
        screen.emit({"model": task.model, "benchmarks": records})


def evaluate(screen: Screen, task: EvaluationRequest, out: Path, *, scoring: bool) -> None:
    """Ask every benchmark into a folder; score those that are complete."""
    screen.quiet = screen.quiet or ("RANK" in os.environ and task.shard.index > 0)
    check_target(out, task.data, task.model, *_own_folders(task.data, out))
    remove_leftovers(out)
    rows = task.rows(screen)
    for row in rows:
        if absent_files(row, task.data):
            row.open(task.data)  # says everything that is missing, before the model is loaded
    sa2va = task.load(screen)
    RunHeader.of(sa2va, model_name(task.model), task.settings).settle(out)
    records: list[dict[str, Any]] = []
    for row in rows:
        folder = out / row.name
        record = BenchmarkRecord(row.name, str(task.data.resolve()), task.limit).widen(folder)
        benchmark = predict.limited(row.open(task.data), record.limit)
        with quiet_libraries(screen), _bar(screen, row.name) as show:
            left = predict.predict(sa2va, benchmark, folder, task.settings, shard=task.shard, on_item=show)
        records.append({"benchmark": row.name, "unanswered": left})
        if left:
            screen.note(f"{row.name}: this process is done; the other {left} queries are other processes' to answer")
        elif benchmark.submission:
            screen.note(f"{row.name}: answered; `sa2va eval pack {out}` writes what its server takes")
        elif scoring:
            scores = score(Answered(folder, row, benchmark, record.limit, read_predictions(folder)))
            show_scores(screen, row.name, scores.headline, scores.values, scores.notices)
            records[-1] |= {"headline": scores.headline, "values": scores.values}
    screen.note(f"predictions and scores are in {out}; `sa2va eval report {out}` makes a page of them")
    if screen.json:
        screen.emit({"model": task.model, "out": str(out), "benchmarks": records})


def _own_folders(data: Path, out: Path) -> list[Path]:
    """``out`` where it is a part of the data: a folder in it that no evaluation has made."""
    inside = out.is_dir() and out.resolve().is_relative_to(data.resolve())
    return [out] if inside and not (out / HEADER).exists() and any(out.iterdir()) else []


@contextmanager
def _bar(screen: Screen, name: str) -> Iterator[Any]:
    """A bar with the time that is left, or a line now and then in a log; yields what is told about progress."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("items"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=screen.err, disable=not screen.lively, transient=True) as bar:
        # What an earlier run did is not counted, or it would make this one look faster than it is.
        number, log = bar.add_task(name, total=None), LogProgress(screen, name, "items")

        def show(progress: PredictionProgress) -> None:
            done, total = progress.done - progress.skipped, progress.total - progress.skipped
            bar.update(number, total=total, completed=done)
            log.show(done, total)

        yield show
