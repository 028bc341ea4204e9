"""The loop of ``sa2va track``: writes frames to every output, with a progress bar, a clean stop and a summary."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sa2va.cli.console import LogProgress, Screen
from sa2va.cli.signals import Interrupts
from sa2va.inference.video_result import Track
from sa2va.results.answer import Frame
from sa2va.writers import FrameWriter


@dataclass
class ObjectStats:
    """What a run has come to.

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
        """The objects, JSON-ready; see [`sa2va.cli.run_record.RunRecord`]."""
        return [
            {"id": number, "phrase": phrase, "frames": seen, "score": round(total / count, 4), "color": color}
            for number, (phrase, seen, count, total, color) in self.objects.items()
        ]

    @property
    def found_anything(self) -> bool:
        """Whether an object was seen in any frame."""
        return any(row[1] for row in self.objects.values())

    @property
    def rate(self) -> float:
        """Frames per second."""
        return self.frames / self.seconds if self.seconds else 0.0


def write_frames(
    screen: Screen,
    track: Track,
    writers: Sequence[FrameWriter],
    tally: ObjectStats,
    interrupts: Interrupts,
    *,
    known: int,
    lines: bool,
) -> None:
    """Write every frame to every writer.

    However it ends, what was written is finished into valid files; only a run that broke off before it had caught up
    with an earlier one leaves that one's whole files alone.

    Args:
        tally: filled on the way. known: frames that an earlier run had written.
        lines: print every frame as a line of JSON.

    Raises:
        KeyboardInterrupt: a signal came; the frame in hand is written first.
    """
    started = perf_counter()
    finished = False
    try:
        with _Bar(screen, track.total, known) as bar:
            for frame, pixels in track.pairs():
                with interrupts.held():
                    for writer in writers:
                        writer.write(frame, pixels)
                    tally.add(frame)
                    tally.seconds = perf_counter() - started
                    if lines:
                        screen.emit_text(frame.to_json())
                    bar.show(tally)
            finished = True
    finally:
        # A stack, so that a file that cannot be finished keeps no other from being.
        with interrupts.held(then_raise=False), contextlib.ExitStack() as closing:
            closing.callback(track.close)
            for writer in writers:
                closing.callback(_finish, writer, finished=finished, worth=tally.frames > 0 and tally.frames >= known)


def _finish(writer: FrameWriter, *, finished: bool, worth: bool) -> None:
    if finished:
        writer.close()
        return
    # The run has failed or been stopped: what can be kept is kept, and the first error is the one to tell.
    with contextlib.suppress(Exception):
        if worth:
            writer.close(partial=True)
        else:
            writer.abort()


class _Bar:
    """A progress bar on standard error, where somebody can see it; in a log, a line a minute."""

    def __init__(self, screen: Screen, total: int | None, known: int):
        self._known = known
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.fields[total_text]} frames"),
            TextColumn("{task.fields[rate]:.1f} frames/s"),
            TextColumn("{task.fields[objects]} objects"),
            TimeRemainingColumn(),
            console=screen.err,
            disable=not screen.lively,
            transient=True,
        )
        self._log, self._total = LogProgress(screen, "tracking", "frames"), total
        text = "?" if total is None else str(total)
        self._task: TaskID = self._progress.add_task("looking", total=total, total_text=text, rate=0.0, objects=0)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, tally: ObjectStats) -> None:
        """Move on to the frames of a tally."""
        self._progress.update(
            self._task,
            completed=tally.frames,
            rate=tally.rate,
            objects=len(tally.objects),
            description="catching up" if tally.frames <= self._known else "tracking",
        )
        self._log.show(tally.frames, self._total)
