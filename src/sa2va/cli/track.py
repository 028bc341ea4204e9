"""``sa2va track``: follow objects through a video, into playable files, masks and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from sa2va import __version__
from sa2va.atomic import RUN_RECORD, sole_writer
from sa2va.cli import arguments
from sa2va.cli.console import Interrupts, Screen, command, progress_bar
from sa2va.untrusted import STUMBLES, parse_json

if TYPE_CHECKING:
    from sa2va.cli.output import OutputPlan
    from sa2va.inference.video_result import Track
    from sa2va.media.frames import FrameSource
    from sa2va.results.answer import Frame
    from sa2va.writers import FrameWriter

#: Entries of a record that must agree for the old frames and the new ones to belong together.
_SAME = ("source", "frames_total", "size", "model", "phrases", "settings")


@command
def track(
    screen: Screen,
    source: arguments.Source,
    phrases: arguments.Phrases,
    *,
    output: arguments.OutputOptions,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            rich_help_panel="Output",
            help="Complete the results of a run that was stopped. Frames in folders and .jsonl files are kept and the "
            "missing ones added; whole files (videos, .json) are made anew. Masks depend on all frames before, so the "
            "model goes through the video again.",
        ),
    ] = False,
    video: arguments.VideoOptions,
    masks: arguments.MaskOptions,
    model: arguments.Model = None,
    loading: arguments.Loading,
    max_new_tokens: arguments.MaxNewTokens = 2048,
    check_presence: arguments.CheckPresence = False,
) -> None:
    """Follow what phrases describe through a video of any length.

    The language model reads a few key frames, then masks are carried through
    every frame; memory use does not grow with the length. Ctrl-C stops after the
    frame in hand and leaves valid files; [bold]--resume[/bold] completes them. With [bold]--json[/bold]
    and no [bold]-o[/bold], every frame is one line on standard output.
    """
    from sa2va.media.open import open_media

    if output.out is None and not screen.json:
        raise ValueError("say where the results go with -o OUT, or print every frame with --json")
    arguments.check_phrases(phrases)
    media = open_media(source, **video.sampling)
    follow(
        screen,
        source,
        media,
        phrases,
        output=output,
        video=video,
        masks=masks,
        model=model,
        loading=loading,
        max_new_tokens=max_new_tokens,
        check_presence=check_presence,
        resume=resume,
    )


def follow(
    screen: Screen,
    source: str,
    media: FrameSource,
    phrases: list[str],
    *,
    output: arguments.OutputOptions,
    video: arguments.VideoOptions,
    masks: arguments.MaskOptions,
    model: str | None,
    loading: arguments.Loading,
    max_new_tokens: int,
    check_presence: bool,
    resume: bool = False,
) -> None:
    """Track objects and write the results; see the command for the options.

    Args:
        source: the name of the video on the command line. media: the video, sampled.

    Raises:
        ValueError: a mistake in the options; all but a damaged model are found before the model is loaded.
        typer.Exit: a signal stopped it; the code is 130 for Ctrl-C.
    """
    from sa2va.cli.output import plan_output

    if resume and output.overwrite:
        raise ValueError("--resume keeps results and --overwrite replaces them; give one")
    options = {**video.tracking, "max_new_tokens": max_new_tokens, **masks.keywords}
    if check_presence:
        options["check_presence"] = True
    _check_frames(media, options["key_frames"])
    plan = plan_output(source, media, replace(output, overwrite=output.overwrite or resume), by_frame=True)
    settings = {**options, "cleanup": masks.cleanup, **video.sampling, "dtype": loading.dtype.value}
    if loading.quantize is not None:
        settings["quantize"] = loading.quantize.value
    name = arguments.model_name(model)
    record = RunRecord(__version__, source, name, phrases, settings, list(media.size), media.frame_count)
    if resume:
        if plan.folder is None:
            raise ValueError("--resume completes a folder of results: use -o FOLDER")
        record = record.earlier(plan.folder) or record
        if record.is_complete(plan):
            _report(screen, plan, record, "already complete")
            return
    new_folder = plan.folder is not None and not plan.folder.exists()
    sa2va = arguments.load_model(screen, name, loading)
    stats, known = ObjectStats(), record.frames
    with _sole_writer(plan.folder), Interrupts() as interrupts:
        try:
            track = sa2va.track(media, phrases, **options)
            record.reasons = track.reasons
            with _open_writers(plan, media, resume=resume) as writers:
                record.write(plan.folder)
                lines = screen.json and not plan.files
                write_frames(screen, track, writers, stats, interrupts, known=known, lines=lines)
        except BaseException as stop:
            _update(record, plan, stats, known, complete=False)
            if not record.frames:
                _remove_record(plan.folder, new_folder=new_folder)
            if isinstance(stop, KeyboardInterrupt):
                _report_stop(screen, plan, record, stats)
                raise typer.Exit(interrupts.exit_code) from None
            if stats.frames and plan.files:
                screen.note(f"the {stats.frames} frames before the error are in {plan.where}")
            raise
        _update(record, plan, stats, known, complete=True)
    _report(screen, plan, record, f"{stats.frames} frames in {stats.seconds:.1f} s, {stats.rate:.1f} frames/s")


def _check_frames(media: FrameSource, key_frames: str | list[int]) -> None:
    """Raise ValueError for a video without an end, or a key frame outside it."""
    if media.frame_count is None:
        raise ValueError("a camera has no end; follow objects in it with Sa2VA.stream() in Python")
    if not isinstance(key_frames, str) and max(key_frames) >= media.frame_count:
        raise ValueError(
            f"--key-frames {max(key_frames)} is outside the video, whose frames are 0 to "
            f"{media.frame_count - 1} (after --stride and the like)"
        )


@dataclass
class RunRecord:
    """``run.json`` beside the results of a run: what was asked and how far it came, so that it can be resumed.

    Attributes:
        source, model, phrases, settings: what was asked.
        size: (height, width). frames_total: frames of the video, as sampled.
        frames: frames written. complete: whether that is all. seconds: of the last run.
        reasons: for each phrase that nothing is followed for, why.
        objects: ``{"id", "phrase", "frames": frames it is seen in, "score": mean over the frames it was tracked in,
            "color": [r, g, b] of its overlay}``.
        outputs: names of the results.
    """

    sa2va: str
    source: str
    model: str
    phrases: list[str]
    settings: dict[str, Any]
    size: list[int]
    frames_total: int | None
    frames: int = 0
    complete: bool = False
    seconds: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)
    objects: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    @property
    def found_anything(self) -> bool:
        """Whether an object was seen in any frame."""
        return any(row["frames"] for row in self.objects)

    def is_complete(self, plan: OutputPlan) -> bool:
        """Whether the run has nothing left to do: all frames are done, and all files exist."""
        expected = [path for kind, path in plan.files.items() if kind != "overlay" or self.found_anything]
        return self.complete and all(path.exists() for path in expected)

    def write(self, folder: Path | None) -> None:
        """Write the record into a folder, where results have one."""
        from sa2va.writers.picture_files import write_json

        if folder is not None:
            write_json(folder / RUN_RECORD, vars(self))

    def earlier(self, folder: Path) -> RunRecord | None:
        """The record of the run to resume; None where there is none yet.

        Raises:
            ValueError: the folder holds something else, or a run that was asked something else.
        """
        path = folder / RUN_RECORD
        if not path.exists():
            if folder.exists() and any(folder.iterdir()):
                raise ValueError(f"{folder} holds no run to resume ({RUN_RECORD} is missing); choose another folder")
            return None
        try:
            found = RunRecord(**parse_json(path.read_bytes()))
        except STUMBLES as error:
            raise ValueError(f"{path} is not the record of a run: {error}") from error
        ours, theirs = json.loads(json.dumps(vars(self))), vars(found)
        for name in _SAME:
            if ours[name] != theirs[name]:
                raise ValueError(
                    f"{folder} is the result of another run: {name} was {theirs[name]}, now it is {ours[name]}; "
                    "give the same options to resume, or start over with --overwrite"
                )
        return found


@dataclass
class ObjectStats:
    """Counts over the frames written so far.

    Attributes:
        frames: frames written. seconds: time taken.
        objects: by id, ``[phrase, frames seen in, frames tracked in, sum of scores, colour]``.
    """

    frames: int = 0
    seconds: float = 0.0
    objects: dict[int, list[Any]] = field(default_factory=dict)

    def add(self, frame: Frame) -> None:
        """Count one more frame."""
        self.frames += 1
        for segment in frame.segments:
            row = self.objects.setdefault(segment.id, [segment.phrase, 0, 0, 0.0, None])
            row[1] += segment.mask.area > 0
            row[2] += 1
            row[3] += segment.score
            row[4] = segment.color

    @property
    def records(self) -> list[dict[str, Any]]:
        """The objects, JSON-ready; see `RunRecord`."""
        return [
            {"id": number, "phrase": phrase, "frames": seen, "score": round(total / count, 4), "color": color}
            for number, (phrase, seen, count, total, color) in self.objects.items()
        ]

    @property
    def rate(self) -> float:
        """Frames per second."""
        return self.frames / self.seconds if self.seconds else 0.0


def write_frames(
    screen: Screen,
    track: Track,
    writers: Sequence[FrameWriter],
    stats: ObjectStats,
    interrupts: Interrupts,
    *,
    known: int,
    lines: bool,
) -> None:
    """Write every frame to every writer.

    However it ends, the frames written so far make valid files. Only a resumed run that breaks off while it is behind
    the previous one keeps that one's videos and .json files.

    Args:
        stats: filled frame by frame. known: frames that the previous run wrote.
        lines: print every frame as a line of JSON.

    Raises:
        KeyboardInterrupt: a signal came; the frame in hand is written first.
    """
    started, finished = perf_counter(), False
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("frames"),
        TextColumn("{task.fields[rate]:.1f} frames/s"),
        TextColumn("{task.fields[objects]} objects"),
        TimeRemainingColumn(),
    )
    try:
        with progress_bar(screen, "tracking", "frames", *columns, rate=0.0, objects=0) as show:
            for frame, pixels in track.pairs():
                with interrupts.held():
                    for writer in writers:
                        writer.write(frame, pixels)
                    stats.add(frame)
                    stats.seconds = perf_counter() - started
                    if lines:
                        screen.emit_text(frame.to_json())
                    doing = "catching up" if stats.frames <= known else "tracking"
                    show(stats.frames, track.total, description=doing, rate=stats.rate, objects=len(stats.objects))
            finished = True
    finally:
        # A stack, so that a file that cannot be finished keeps no other from being.
        with interrupts.held(then_raise=False), ExitStack() as closing:
            closing.callback(track.close)
            for writer in writers:
                closing.callback(_finish, writer, finished=finished, keep=stats.frames > 0 and stats.frames >= known)


def _finish(writer: FrameWriter, *, finished: bool, keep: bool) -> None:
    if finished:
        writer.close()
        return
    # The run has failed or been stopped: what can be kept is kept, and the first error is the one to report.
    with suppress(Exception):
        if keep:
            writer.close(partial=True)
        else:
            writer.abort()


def _sole_writer(folder: Path | None) -> AbstractContextManager[None]:
    """Lock the folder: the frames of two runs would mix."""
    if folder is None:
        return nullcontext()
    folder.mkdir(parents=True, exist_ok=True)
    return sole_writer(folder)


@contextmanager
def _open_writers(plan: OutputPlan, media: FrameSource, *, resume: bool) -> Iterator[Sequence[FrameWriter]]:
    from sa2va.writers import WRITERS

    about: dict[str, Any] = {"size": media.size, "fps": media.fps, "source": media.path}
    with ExitStack() as opened:
        writers = []
        for name, path in plan.files.items():
            kind = WRITERS[name]
            writers.append(kind(path, **about, resume=resume and kind.resumable))
            opened.callback(writers[-1].abort)  # does nothing to one that is closed
        yield writers


def _update(record: RunRecord, plan: OutputPlan, stats: ObjectStats, known: int, *, complete: bool) -> None:
    """Update the record and write it. While a resumed run is behind the previous one, keep the previous counts."""
    if stats.frames >= known or complete:
        record.frames, record.objects = stats.frames, stats.records
        record.complete, record.seconds = complete, round(stats.seconds, 3)
    if complete and not record.found_anything:
        plan.without_overlay()
    record.outputs = [plan.shown(path) for path in plan.files.values() if path.exists()]
    if record.frames or complete:
        record.write(plan.folder)


def _remove_record(folder: Path | None, *, new_folder: bool) -> None:
    """Remove the record of a run without a frame, so that the same command can simply be given again."""
    if folder is not None:
        (folder / RUN_RECORD).unlink(missing_ok=True)
        if new_folder:
            with suppress(OSError):  # something is in it after all, or it was never made
                folder.rmdir()


def _report(screen: Screen, plan: OutputPlan, record: RunRecord, head: str) -> None:
    """Print what was found and written."""
    from sa2va.cli.output import named, note_on_tiny, nothing, scored

    if screen.json and plan.files:
        screen.emit(vars(record))
    screen.rows(
        [
            (
                named(row["id"], row["phrase"], row.get("color")),
                f"object {row['id']}",
                scored(row["score"]),
                f"in {row['frames']} of {record.frames} frames",
            )
            for row in record.objects
        ]
    )
    for phrase, reason in record.reasons.items():
        screen.result(nothing(phrase, reason))
    note_on_tiny(screen, record.model, [row["score"] for row in record.objects] + [0.0] * len(record.reasons))
    if "overlay" in plan.files and not record.found_anything:
        screen.note("nothing was found, so there is no overlay")
    screen.note(head + (f"; results in {plan.summary(record.outputs)}" if record.outputs else ""))


def _report_stop(screen: Screen, plan: OutputPlan, record: RunRecord, stats: ObjectStats) -> None:
    """Print what a stopped run leaves, and how to complete it."""
    if screen.json and plan.files:
        screen.emit(vars(record))
    total = "?" if record.frames_total is None else record.frames_total
    if plan.folder is not None and record.frames:
        screen.warn(
            f"stopped: {record.frames} of {total} frames are in {plan.where}, in valid files; give the "
            "same command with --resume to go on"
        )
    elif record.outputs:
        screen.warn(
            f"stopped: {plan.where} is a valid file with {stats.frames} of {total} frames; a folder "
            "(-o FOLDER) could be completed with --resume"
        )
    else:
        screen.warn(f"stopped after {stats.frames} of {total} frames")
