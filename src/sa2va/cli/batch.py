"""``sa2va batch``: answer a folder, a list or a manifest of pictures and clips, row by row."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from sa2va.atomic import sole_writer
from sa2va.cli import arguments
from sa2va.cli.console import Interrupts, Screen, command, progress_bar

if TYPE_CHECKING:
    from sa2va.bulk.answering import Answering
    from sa2va.bulk.batch_folder import BatchFolder, BatchSettings
    from sa2va.bulk.batch_rows import Ask, BatchRow
    from sa2va.bulk.ray_pipeline import ClusterOptions
    from sa2va.bulk.worker_pool import ModelSource

_ASK, _OUTPUT, _SPEED, _CLUSTER = "What is asked", "Output", "Speed", "Cluster"
#: Rows that a dry run answers to measure how fast it goes, and rows that it shows.
_MEASURED, _LISTED = 16, 5


@command
def batch(
    screen: Screen,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help='Folder, pattern ("shots/*.jpg"), list (.txt) or manifest (.jsonl, .csv, .parquet); a path or a URL.',
        ),
    ],
    phrases: Annotated[
        list[str] | None,
        typer.Argument(metavar="PHRASE...", show_default=False, help="What to find in every picture."),
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", rich_help_panel=_OUTPUT, help="Folder for the results.")
    ],
    question: Annotated[
        str | None,
        typer.Option(show_default=False, rich_help_panel=_ASK, help="Ask this about every picture instead."),
    ] = None,
    caption: Annotated[
        bool, typer.Option("--caption", rich_help_panel=_ASK, help="Describe every picture, with masks, instead.")
    ] = False,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="KINDS",
            rich_help_panel=_OUTPUT,
            help="Form of the results, by commas: jsonl parquet coco yolo labelme label-studio png.",
        ),
    ] = "jsonl",
    overlays: Annotated[
        bool, typer.Option("--overlays", rich_help_panel=_OUTPUT, help="Draw what was found over each picture, too.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", rich_help_panel=_OUTPUT, help="Go on with a run that was stopped, or add a form of results."
        ),
    ] = False,
    max_errors: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default=False,
            rich_help_panel=_OUTPUT,
            help="Stop when more rows than this cannot be answered; by default they are noted, and it goes on.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", rich_help_panel=_OUTPUT, help="Say what would be asked and how long it takes; write nothing."
        ),
    ] = False,
    workers: Annotated[
        int,
        typer.Option(min=1, rich_help_panel=_SPEED, help="Processes, each with a model: one for each GPU here."),
    ] = 1,
    ray: Annotated[
        bool, typer.Option("--ray", rich_help_panel=_CLUSTER, help="Run as a Ray Data pipeline, on this machine.")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            show_default=False,
            rich_help_panel=_CLUSTER,
            help="On a running cluster: auto on one of its nodes, or ray://HOST:10001.",
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            rich_help_panel=_CLUSTER,
            help="Models at most; by default one per GPU, or per node without GPUs.",
        ),
    ] = None,
    gpus_per_replica: Annotated[
        float | None,
        typer.Option(
            min=0, show_default=False, rich_help_panel=_CLUSTER, help="GPUs of each model, or a share of one."
        ),
    ] = None,
    masks: arguments.MaskOptions,
    model: arguments.Model = None,
    loading: arguments.Loading,
    max_new_tokens: arguments.MaxNewTokens = 2048,
) -> None:
    """Answer many pictures and clips: a folder, a list, or a manifest with a row each.

    Every row gets an answer or says why it has none. A run that was stopped at any
    moment goes on with [bold]--resume[/bold], and answers every row exactly once. OUT also holds
    [bold]summary.json[/bold], [bold]sheet.html[/bold] to look at, and [bold]errors.jsonl[/bold], the rows
    that failed, as a manifest.
    """
    from sa2va.bulk.batch_folder import BatchSettings
    from sa2va.bulk.targets import KINDS

    kinds = arguments.parse_kinds(to, KINDS, option="--to")
    ask = _ask(phrases or [], question, caption)
    name = arguments.model_name(model)
    told = {"max_new_tokens": max_new_tokens, "threshold": masks.threshold, "cleanup": masks.cleanup or ""}
    quantize = "" if loading.quantize is None else loading.quantize.value
    settings = BatchSettings(source, model or "", ask, told, loading.dtype.value, quantize)
    cluster = _cluster(ray, ray_address, replicas, gpus_per_replica, workers)
    options = {"max_new_tokens": max_new_tokens, **masks.keywords}
    job = _Job(screen, name, loading, ask, options, workers, cluster)
    if dry_run:
        job.rehearse(settings)
        return
    with ExitStack() as stack:
        folder = _open_folder(screen, stack, out, settings, resume=resume)
        run = job.answer(folder, max_errors)
        job.finish(folder, kinds, overlays=overlays, run=run)


def _ask(phrases: list[str], question: str | None, caption: bool) -> Ask | None:
    from sa2va.bulk.batch_rows import Ask

    arguments.check_phrases(phrases)
    if not phrases and question is None and not caption:
        return None
    if bool(phrases) + (question is not None) + caption > 1:
        raise ValueError("give phrases, --question or --caption, only one of them; a manifest may say it row by row")
    return Ask(tuple(phrases), question, caption)


def _cluster(
    ray: bool, address: str | None, replicas: int | None, gpus_per_replica: float | None, workers: int
) -> ClusterOptions | None:
    if not ray and address is None:
        if replicas is not None or gpus_per_replica is not None:
            raise ValueError("--replicas and --gpus-per-replica are for --ray; without it there are --workers")
        return None
    from sa2va.bulk.ray_pipeline import ClusterOptions

    if workers > 1:
        raise ValueError("--workers are processes without Ray; with --ray there are --replicas")
    return ClusterOptions(address, replicas, gpus_per_replica)


def _open_folder(screen: Screen, stack: ExitStack, out: Path, settings: BatchSettings, *, resume: bool) -> BatchFolder:
    """The batch in a folder, held against other processes; started where there is none.

    Raises:
        ValueError: it holds another batch, or this one without ``--resume``.
    """
    from sa2va.bulk.batch_folder import BatchFolder
    from sa2va.bulk.sources import read_rows

    if out.exists() and not out.is_dir():
        raise ValueError(f"-o {out} is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    stack.enter_context(sole_writer(out))
    if BatchFolder.holds_batch(out):
        folder = BatchFolder(out)
        folder.check_settings(settings)
        if not resume:
            done = folder.shard_count - len(folder.missing())
            raise ValueError(
                f"{out} holds this batch already, {done} of {folder.shard_count} shards answered; go on with --resume, "
                "or choose another -o"
            )
        return folder
    screen.note(f"listing {settings.source}")
    try:
        return BatchFolder.start(out, settings, read_rows(settings.source, settings.ask))
    except BaseException:
        with suppress(OSError):  # made here, and empty
            out.rmdir()
        raise


@dataclass(frozen=True)
class _Job:
    """One run of the command."""

    screen: Screen
    model: str
    loading: arguments.Loading
    ask: Ask | None
    options: dict[str, Any]
    workers: int
    cluster: ClusterOptions | None

    def answer(self, folder: BatchFolder, max_errors: int | None) -> dict[str, Any]:
        """Answer what is missing. Returns how that went, for the summary.

        Raises:
            ValueError: more errors than are allowed.
            typer.Exit: a signal stopped it.
        """
        missing = folder.missing()
        if not missing:
            return {}
        started = perf_counter()
        with Interrupts() as interrupts:
            try:
                with self._answering(folder) as answering:
                    started = perf_counter()
                    self._write(folder, missing, answering, max_errors)
            except KeyboardInterrupt:
                self.screen.note("stopped; the same command with --resume goes on")
                raise typer.Exit(interrupts.exit_code) from None
        rows, seconds = folder.rows_in(missing), perf_counter() - started
        return {"run": {"rows": rows, "seconds": round(seconds, 3), "per_second": round(rows / seconds, 3)}}

    def _write(
        self,
        folder: BatchFolder,
        missing: list[int],
        answering: Answering,
        max_errors: int | None,
    ) -> None:
        errors = sum(record["error"] is not None for record in folder.records())
        done, total = 0, folder.rows_in(missing)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.speed:.1f}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with (
            progress_bar(self.screen, "batch", "rows", *columns, note="") as show,
            closing(answering(folder.shards(missing))) as finished,
        ):
            show(0, total, note=_errors(errors))
            for number, records in finished:
                folder.write(number, records)
                done += len(records)
                errors += sum(record["error"] is not None for record in records)
                show(done, total, note=_errors(errors))
                if max_errors is not None and errors > max_errors:
                    last = next(record for record in reversed(records) if record["error"] is not None)
                    raise ValueError(
                        f"{errors} rows failed, more than --max-errors {max_errors}; the last was {last['id']}: "
                        f"{last['error']}. What is answered is kept: go on with --resume and a higher number"
                    )

    @contextmanager
    def _answering(self, folder: BatchFolder) -> Iterator[Answering]:
        """What turns shards into answers: a model here, or workers."""
        from sa2va.bulk.answering import answer_shards, revision_of
        from sa2va.bulk.worker_pool import WorkerPool

        if self.cluster is not None:
            from sa2va.bulk.ray_pipeline import answer_on_ray

            where = (self._source(), self.ask, self.options, self.cluster)
            yield lambda shards: answer_on_ray(shards, *where, folder.settle_revision)
            return
        if self.workers == 1:
            sa2va = arguments.load_model(self.screen, self.model, self.loading)
            folder.settle_revision(revision_of(sa2va, self.model))
            yield lambda shards: answer_shards(sa2va, shards, self.ask, self.options)
            return
        self.screen.note(f"loading {self.model} in {self.workers} processes")
        with WorkerPool(self._source(), self.workers, self.ask, self.options) as pool:
            folder.settle_revision(pool.revision)
            yield pool.answer

    def _source(self) -> ModelSource:
        from sa2va.bulk.worker_pool import ModelSource

        loading = self.loading
        return ModelSource(
            self.model,
            None if loading.device == "auto" else arguments.checked_device(loading.device),
            None if loading.dtype is arguments.Dtype.AUTO else loading.dtype.value,
            None if loading.quantize is None else loading.quantize.value,
            None if loading.device_map is None else loading.device_map.value,
        )

    def finish(self, folder: BatchFolder, kinds: list[str], *, overlays: bool, run: dict[str, Any]) -> None:
        """Make the results from the answers, and say what came of it."""
        from sa2va.bulk.finishing import ERRORS, SHEET, finish

        screen = self.screen
        with progress_bar(screen, "writing", "rows") as show:
            summary = finish(folder, kinds, overlays=overlays, run=run, on_row=lambda count: show(count, folder.rows))
        if screen.json:
            screen.emit({"out": str(folder.path), **summary.record, **run})
        for part in run.values():
            screen.note(f"{part['rows']:,} rows in {part['seconds']:.1f} s, {part['per_second']} a second")
        counts = f"{summary.rows:,} rows, {summary.objects:,} objects, nothing found in {summary.empty:,}"
        screen.result(Text(f"{counts}: {folder.path}"))
        if summary.errors:
            screen.warn(f"rows without an answer: {summary.errors:,}, in {folder.path / ERRORS}")
        screen.note(f"look at {folder.path / SHEET}")

    def rehearse(self, settings: BatchSettings) -> None:
        """Say what would be asked and how long it would take."""
        from sa2va.bulk.answering import answer_rows, fetch_ahead
        from sa2va.bulk.batch_folder import BatchFolder
        from sa2va.bulk.sources import read_rows
        from sa2va.media.frames import uniform_indices

        with tempfile.TemporaryDirectory(prefix="sa2va-") as scratch:
            listed = read_rows(settings.source, settings.ask)
            folder = BatchFolder.start(Path(scratch) / "batch", settings, listed)
            count = min(_MEASURED, folder.rows)
            wanted = set(uniform_indices(folder.rows, count))
            some = [row for row in folder.read_rows() if row.index in wanted]
            for row in some[:_LISTED]:
                asked = row.ask or settings.ask
                self.screen.result(Text(f"{row.id}: {', '.join(asked.texts) if asked else ''}"))
            sa2va = arguments.load_model(self.screen, self.model, self.loading)

            def answer(rows: list[BatchRow]) -> list[dict[str, Any]]:
                return list(answer_rows(sa2va, fetch_ahead(rows, Path(scratch)), self.ask, self.options))

            answer(some[:1])  # which waits for much that comes only once
            started = perf_counter()
            records = answer(some)
            rate = count / (perf_counter() - started)
        for record in records:
            if record["error"] is not None:
                self.screen.warn(f"{record['id']}: {record['error']}")
        seconds = folder.rows / rate / self.workers
        about = f"{folder.rows:,} rows; {count} of them were answered at {rate:.2f} a second"
        many = f", in {self.workers} processes if each has a device of its own" if self.workers > 1 else ""
        self.screen.result(Text(f"{about}: all take about {timedelta(seconds=round(seconds))}{many}"))
        if self.screen.json:
            self.screen.emit({"rows": folder.rows, "measured": count, "per_second": rate, "seconds": seconds})


def _errors(count: int) -> str:
    return f"{count:,} errors" if count else ""
