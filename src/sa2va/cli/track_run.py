"""A run over a video: its record, its writers, and its final report, however it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import typer

from sa2va.atomic import RUN_RECORD, sole_writer
from sa2va.cli.answers import named, note_on_tiny, nothing, scored
from sa2va.cli.console import Screen
from sa2va.cli.frame_loop import ObjectStats, write_frames
from sa2va.cli.outputs import OutputPlan
from sa2va.cli.reporter import summary
from sa2va.cli.run_record import RunRecord
from sa2va.cli.signals import Interrupts
from sa2va.inference.video_result import Track
from sa2va.media.frames import FrameSource
from sa2va.writers import WRITERS, FrameWriter


class TrackRun:
    """A run over a video.

    Args:
        record: of this run, not begun.
        resume: go on with what is in the plan's folder.

    Raises:
        ValueError: there is something else to resume, or no folder.
    """

    def __init__(self, screen: Screen, plan: OutputPlan, record: RunRecord, *, resume: bool):
        if resume and plan.folder is None:
            raise ValueError("--resume completes a folder of results: use -o FOLDER")
        self._screen, self._plan, self._resume = screen, plan, resume
        earlier = record.earlier(plan.folder) if resume and plan.folder is not None else None
        self._record = earlier or record
        self._known = self._record.frames
        self._made_folder = plan.folder is not None and not plan.folder.exists()

    @property
    def model(self) -> str:
        """Folder or hub id of the model."""
        return self._record.model

    @property
    def is_done(self) -> bool:
        """Whether an earlier run has left nothing to do."""
        expected = dict(self._plan.files)
        if not self._record.found_anything:
            expected.pop("overlay", None)
        return self._record.complete and all(path.exists() for path in expected.values())

    def go(self, video: FrameSource, start: Callable[[], Track]) -> None:
        """Follow the objects and write everything.

        Args:
            start: asks the model and returns the track.

        Raises:
            typer.Exit: a signal stopped it; the code is 130 for Ctrl-C.
            ValueError: another process writes into the folder.
        """
        tally = ObjectStats()
        with self._alone(), Interrupts() as interrupts:
            try:
                track = start()
                self._record.reasons = track.reasons
                with self._writers(video) as writers:
                    self._keep_record()
                    lines = self._screen.json and not self._plan.files
                    write_frames(self._screen, track, writers, tally, interrupts, known=self._known, lines=lines)
            except KeyboardInterrupt:
                self._note(tally, complete=False)
                self._stopped(tally)
                raise typer.Exit(interrupts.exit_code) from None
            except BaseException:
                self._note(tally, complete=False)
                if tally.frames and self._plan.files:
                    self._screen.note(f"the {tally.frames} frames before the error are in {self._plan.where}")
                raise
            if not tally.found_anything:
                self._plan.without_overlay()
            self._note(tally, complete=True)
        self.report(f"{tally.frames} frames in {tally.seconds:.1f} s, {tally.rate:.1f} frames/s")

    def report(self, head: str) -> None:
        """Tell what was found and written."""
        if self._screen.json and self._plan.files:
            self._screen.emit(vars(self._record))
        objects, frames = self._record.objects, self._record.frames
        rows = [
            (
                named(row["id"], row["phrase"], row.get("color")),
                f"object {row['id']}",
                scored(row["score"]),
                f"in {row['frames']} of {frames} frames",
            )
            for row in objects
        ]
        self._screen.rows(rows)
        for phrase, reason in self._record.reasons.items():
            self._screen.result(nothing(phrase, reason))
        scores = [row["score"] for row in objects] + [0.0] * len(self._record.reasons)
        note_on_tiny(self._screen, self._record.model, scores)
        if "overlay" in self._plan.files and not self._record.found_anything:
            self._screen.note("nothing was found, so there is no overlay")
        results = f"; results in {summary(self._plan, self._record.outputs)}" if self._record.outputs else ""
        self._screen.note(head + results)

    @contextmanager
    def _writers(self, video: FrameSource) -> Iterator[Sequence[FrameWriter]]:
        about: dict[str, Any] = {"size": video.size, "fps": video.fps, "source": video.path}
        with ExitStack() as opened:
            writers = []
            for name, path in self._plan.files.items():
                kind = WRITERS[name]
                writers.append(kind(path, **about, resume=self._resume and kind.resumable))
                opened.callback(writers[-1].abort)  # does nothing to one that is closed
            yield writers

    def _alone(self) -> AbstractContextManager[None]:
        """Hold the folder: the frames of two runs would mix."""
        if self._plan.folder is None:
            return nullcontext()
        self._plan.folder.mkdir(parents=True, exist_ok=True)
        return sole_writer(self._plan.folder)

    def _note(self, tally: ObjectStats, *, complete: bool) -> None:
        """Update the record. While a resumed run is behind the previous one, keep the previous counts."""
        if tally.frames >= self._known or complete:
            self._record.frames, self._record.objects = tally.frames, tally.records
            self._record.complete, self._record.seconds = complete, round(tally.seconds, 3)
        self._record.outputs = [self._plan.shown(path) for path in self._plan.files.values() if path.exists()]
        if self._record.frames or complete:
            self._keep_record()
        elif self._plan.folder is not None:
            self._leave_nothing(self._plan.folder)

    def _leave_nothing(self, folder: Path) -> None:
        """Take back the record of a run without a frame, so that the same command may simply be given again."""
        (folder / RUN_RECORD).unlink(missing_ok=True)
        if self._made_folder:
            with suppress(OSError):  # something is in it after all, or it was never made
                folder.rmdir()

    def _keep_record(self) -> None:
        if self._plan.folder is not None:
            self._record.write(self._plan.folder)

    def _stopped(self, tally: ObjectStats) -> None:
        if self._screen.json and self._plan.files:
            self._screen.emit(vars(self._record))
        total = "?" if self._record.frames_total is None else self._record.frames_total
        if self._plan.folder is not None and self._record.frames:
            self._screen.warn(
                f"stopped: {self._record.frames} of {total} frames are in {self._plan.where}, in valid files; give the "
                "same command with --resume to go on"
            )
        elif self._record.outputs:
            self._screen.warn(
                f"stopped: {self._plan.where} is a valid file with {tally.frames} of {total} frames; a folder "
                "(-o FOLDER) could be completed with --resume"
            )
        else:
            self._screen.warn(f"stopped after {tally.frames} of {total} frames")
