"""Tracking jobs: a queue in SQLite and a folder per job, which outlive the server.

A job's results are written beside their place and appear together when all are complete. Whatever stops the server, a
job is queued, running, done, failed or cancelled; one that was running starts again.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sa2va.predictor import Sa2VA
from sa2va.results.answer import Frame
from sa2va.runtime import logger
from sa2va.serve.dispatch import Stop, Stopped
from sa2va.serve.intake import Intake, nameless
from sa2va.serve.monitoring import Monitoring
from sa2va.writers import WRITERS, write_track

#: A job that took the server down so often is not begun again.
_MOST_ATTEMPTS = 3
_SECONDS_BETWEEN_REPORTS = 0.2
_ENDED = ("done", "failed", "cancelled")
_MASKS_FILE = "masks.zip"
_VIDEO, _PARTIAL, _RESULTS = "video", "partial", "results"


@dataclass(frozen=True)
class TrackJob:
    """A tracking job, as it stands in the database.

    Attributes:
        id: unguessable, so that whoever knows it may have the results.
        state: ``"queued"``, ``"running"``, ``"done"``, ``"failed"`` or ``"cancelled"``.
        phrases, kinds: what to follow, and what to write.
        options: keywords of `Sa2VA.track`. sampling: of `open_media`.
        created, started, finished: seconds since 1970.
        frames_total: after sampling. attempts: how often it was begun.
        error: why it failed. note: what a restart of the server meant for it.
        reasons: for each phrase that nothing was followed for, why.
    """

    id: str
    phrases: list[str]
    kinds: list[str]
    options: dict[str, Any]
    sampling: dict[str, Any]
    frames_total: int
    created: float
    state: str = "queued"
    started: float | None = None
    finished: float | None = None
    frames_done: int = 0
    attempts: int = 0
    error: str | None = None
    note: str | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing more will become of it."""
        return self.state in _ENDED

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the frames so far; None before the first, and for jobs that do not run."""
        if self.state != "running" or not self.frames_done or self.started is None:
            return None
        return (time.time() - self.started) / self.frames_done * (self.frames_total - self.frames_done)


_COLUMNS = [one.name for one in fields(TrackJob)]


class JobStore:
    """The jobs of a folder.

    Args:
        folder: for ``jobs.sqlite`` and a folder per job. One process at a time uses it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.Lock()
        self._database = sqlite3.connect(folder / "jobs.sqlite", check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute(f"CREATE TABLE IF NOT EXISTS jobs ({', '.join(_COLUMNS)}, PRIMARY KEY (id))")

    def place(self, job: str) -> Path:
        """The folder of a job."""
        return self.folder / "jobs" / job

    def add(self, job: TrackJob) -> None:
        """Add a job."""
        values = [json.dumps(value) for value in vars(job).values()]
        self._do(f"INSERT INTO jobs VALUES ({', '.join('?' * len(values))})", values)

    def get(self, job: str) -> TrackJob | None:
        """The job of that id; None where there is none."""
        return next(iter(self._select("WHERE id = ?", json.dumps(job))), None)

    def jobs(self, *states: str) -> list[TrackJob]:
        """Jobs in any of these states, the oldest first; all jobs, if none is named."""
        where = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        return self._select(f"{where} ORDER BY CAST(created AS REAL), rowid", *map(json.dumps, states))

    def change(self, job: str, *states: str, **values: Any) -> bool:
        """Change fields of a job, if it is in one of these states; whether it was."""
        names = ", ".join(f"{name} = ?" for name in values)
        marks = ", ".join("?" * len(states))
        arguments = [*map(json.dumps, values.values()), json.dumps(job), *map(json.dumps, states)]
        return self._do(f"UPDATE jobs SET {names} WHERE id = ? AND state IN ({marks})", arguments) == 1

    def remove(self, job: str) -> None:
        """Remove a job and all its files."""
        shutil.rmtree(self.place(job), ignore_errors=True)
        self._do("DELETE FROM jobs WHERE id = ?", [json.dumps(job)])

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def _select(self, rest: str, *arguments: str) -> list[TrackJob]:
        with self._lock:
            rows = self._database.execute(f"SELECT {', '.join(_COLUMNS)} FROM jobs {rest}", arguments).fetchall()
        return [TrackJob(**dict(zip(_COLUMNS, map(json.loads, row), strict=True))) for row in rows]

    def _do(self, statement: str, arguments: list[str]) -> int:
        with self._lock:
            return self._database.execute(statement, arguments).rowcount


class JobRunner:
    """Works through the jobs of a store, one after the other, in a thread of its own.

    Args:
        keep_seconds: how long what became of a job is kept.
    """

    def __init__(
        self,
        store: JobStore,
        model: Sa2VA,
        intake: Intake,
        monitoring: Monitoring,
        *,
        keep_seconds: float,
        max_frames: int,
    ):
        self.store = store
        self.keep_seconds = keep_seconds
        self._model, self._intake, self._monitoring, self._max_frames = model, intake, monitoring, max_frames
        self._wake = threading.Condition()
        self._closing = False
        self._current: tuple[str, Stop] | None = None
        self._thread = threading.Thread(target=self._work, name="sa2va-jobs")

    def recover(self) -> list[str]:
        """Bring the jobs of an earlier server in order; returns a sentence for each that it left unfinished."""
        told = []
        for job in self.store.jobs("running", "queued"):
            if not (self.store.place(job.id) / _VIDEO).exists():
                self._end(job.id, "failed", error="its video was lost while the server was down")
                told.append(f"job {job.id} failed: its video is gone")
            elif job.attempts >= _MOST_ATTEMPTS:
                self._end(job.id, "failed", error=f"the server was stopped {job.attempts} times while this job ran")
                told.append(f"job {job.id} failed: the server was stopped {job.attempts} times while it ran")
            elif job.state == "running":
                note = f"the server was stopped after {job.frames_done} frames of this job; it starts again"
                self.store.change(job.id, "running", state="queued", note=note, frames_done=0, started=None)
                told.append(f"job {job.id} was running and starts again")
            else:
                told.append(f"job {job.id} is still queued")
        for place in (self.store.folder / "jobs").glob("*"):
            self._clear(place.name)
        return told

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def queue(
        self,
        video: bytes,
        phrases: list[str],
        kinds: Sequence[str],
        *,
        options: dict[str, Any],
        sampling: dict[str, Any],
    ) -> TrackJob:
        """Queue a job; see [`TrackJob`].

        Raises:
            ValueError: the video cannot be decoded, or exceeds a limit.
        """
        identity = uuid.uuid4().hex
        place = self.store.place(identity)
        place.mkdir(parents=True)
        try:
            (place / _VIDEO).write_bytes(video)
            with self._intake.open_file(place / _VIDEO, limit=self._max_frames, **sampling) as source:
                total = source.frame_count or 0
            wanted = list(dict.fromkeys(kinds))
            job = TrackJob(identity, phrases, wanted, options, sampling, total, created=time.time())
            self.store.add(job)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        with self._wake:
            self._wake.notify()
        return job

    def cancel(self, job: str) -> None:
        """Cancel a job, within a frame if it runs; forget one that has ended."""
        if self.store.change(job, "queued", "running", state="cancelled", finished=time.time()):
            self._monitoring.jobs.labels("cancelled").inc()
            with self._wake:
                if self._current and self._current[0] == job:
                    self._current[1].tell()
                    return  # whoever runs it clears up
            self._clear(job)
        else:
            self.store.remove(job)

    def sweep(self) -> None:
        """Remove the jobs whose time is over."""
        for job in self.store.jobs(*_ENDED):
            if job.finished is not None and time.time() > job.finished + self.keep_seconds:
                self.store.remove(job.id)

    def close(self) -> None:
        """Park the running job, so that it starts again with the next server, and end the thread."""
        with self._wake:
            self._closing = True
            if self._current:
                self._current[1].tell()
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def results(self, job: TrackJob) -> dict[str, Path]:
        """The files of a job that is done, by kind."""
        if job.state != "done":
            return {}
        return {kind: self.store.place(job.id) / _RESULTS / _file_name(kind) for kind in job.kinds}

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._closing and not (waiting := self.store.jobs("queued")):
                    self._wake.wait()
                if self._closing:
                    return
                job, stop = waiting[0], Stop()
                begun = {"started": time.time(), "attempts": job.attempts + 1}
                if not self.store.change(job.id, "queued", state="running", **begun):
                    continue
                self._current = (job.id, stop)
            try:
                self._run(job, stop)
            except Exception:  # such as a full disk; the job starts again with the next server
                logger.exception("job %s: what became of it could not be written", job.id)
                time.sleep(1)
            finally:
                with self._wake:
                    self._current = None

    def _run(self, job: TrackJob, stop: Stop) -> None:
        try:
            reasons = self._track(job, stop)
        except Stopped:
            if self._closing:
                note = "the server was shut down while this job ran; it starts again"
                parked = {"note": note, "frames_done": 0, "started": None, "attempts": job.attempts}
                self.store.change(job.id, "running", state="queued", **parked)
        except ValueError as error:
            self._end(job.id, "failed", error=str(error))
        except Exception:
            logger.exception("job %s failed", job.id)
            self._end(job.id, "failed", error="an internal error; the server's log has more under the job's id")
        else:
            self._end(job.id, "done", frames_done=job.frames_total, reasons=reasons)
        self._clear(job.id)

    def _track(self, job: TrackJob, stop: Stop) -> Mapping[str, str]:
        """Write the results; returns why phrases were not followed."""
        place = self.store.place(job.id)
        video, partial = place / _VIDEO, place / _PARTIAL
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        done, reported = 0, 0.0

        def count(_: Frame) -> None:
            nonlocal done, reported
            stop.check()
            done += 1
            self._monitoring.frames.inc()
            if (now := time.monotonic()) - reported > _SECONDS_BETWEEN_REPORTS:
                reported = now
                self.store.change(job.id, "running", frames_done=done)

        with ExitStack() as opened:
            opened.enter_context(nameless(video))
            source = opened.enter_context(self._intake.open_file(video, limit=self._max_frames, **job.sampling))
            with self._model.engine.stoppable(stop.check):
                track = opened.enter_context(self._model.track(source, job.phrases, **job.options))
            about: dict[str, Any] = {"size": track.size, "fps": track.fps, "source": track.source}
            kinds = [WRITERS[kind] for kind in job.kinds]
            writers = [opened.enter_context(kind(partial / kind.default_name, **about)) for kind in kinds]
            write_track(track, writers, count)
            reasons = track.reasons
        if "masks" in job.kinds:
            _pack(partial / WRITERS["masks"].default_name, partial / _MASKS_FILE)
        partial.replace(place / _RESULTS)
        return reasons

    def _end(self, job: str, state: str, **values: Any) -> None:
        if self.store.change(job, "queued", "running", state=state, finished=time.time(), **values):
            self._monitoring.jobs.labels(state).inc()

    def _clear(self, job: str) -> None:
        """Remove the files that a job no longer needs: of one that waits keep the video, of one that is done the
        results."""
        found = self.store.get(job)  # None for a folder that is nobody's
        keep = {"queued": _VIDEO, "done": _RESULTS}.get(found.state if found else "")
        place = self.store.place(job)
        for path in list(place.iterdir()) if place.exists() else ():
            if path.name != keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if keep is None:
            shutil.rmtree(place, ignore_errors=True)


def _file_name(kind: str) -> str:
    return _MASKS_FILE if kind == "masks" else WRITERS[kind].default_name


def _pack(folder: Path, archive: Path) -> None:
    """Move a folder of PNGs into a zip."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as pack:  # PNG is compressed
        for path in sorted(folder.iterdir()):
            pack.write(path, path.name)
    shutil.rmtree(folder)
