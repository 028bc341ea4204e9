"""``POST /v1/track`` and ``/v1/jobs``: videos of any length, as jobs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from sa2va.serve.bodies import body_document, read_body
from sa2va.serve.context import ServerContext
from sa2va.serve.dispatch import Busy
from sa2va.serve.schemas import ERRORS, JobReply, ResultKind, TrackRequest
from sa2va.serve.track_jobs import JobRunner, TrackJob

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_OF_SILENCE = 15.0
_RETRY_SECONDS = 60


def jobs_router(context: ServerContext, runner: JobRunner) -> APIRouter:
    """The routes for videos."""
    settings = context.settings
    router = APIRouter(prefix="/v1", tags=["Tracking"], responses=ERRORS)

    @router.post(
        "/track",
        status_code=202,
        response_model=JobReply,
        openapi_extra=body_document(TrackRequest, "video"),
    )
    async def track(request: Request) -> Any:
        """Queue a video whose objects are to be followed. The reply's `Location` is where to ask for the job."""
        body, files = await read_body(request, TrackRequest)
        context.check_amount(len(body.phrases), sum(map(len, body.phrases)))
        if len(runner.store.jobs("queued")) >= settings.max_jobs:
            raise Busy(_RETRY_SECONDS)
        job = await context.dispatcher.run(request, lambda: _queue(context, runner, body, files))
        return JSONResponse(_reply(runner, job), 202, {"Location": f"/v1/jobs/{job.id}"})

    @router.get("/jobs/{job}", response_model=JobReply)
    async def state(job: str) -> Any:
        """How far a job is; when it is done, where its results are."""
        return JSONResponse(_reply(runner, _job(runner, job)))

    @router.get(
        "/jobs/{job}/events",
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def events(job: str) -> StreamingResponse:
        """The job as server-sent events, one whenever it changes, until it has ended; each is named by its state."""
        _job(runner, job)
        return StreamingResponse(
            _events(context, runner, job), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    @router.get("/jobs/{job}/results/{kind}", response_class=FileResponse)
    async def result(job: str, kind: ResultKind) -> FileResponse:
        """A result, as a file."""
        path = runner.results(_job(runner, job)).get(kind)
        if path is None or not path.exists():
            raise HTTPException(404, f"job {job} has no result {kind}; it may not be done")
        return FileResponse(path, filename=path.name)

    @router.delete("/jobs/{job}", response_model=JobReply)
    async def cancel(job: str) -> Any:
        """Cancel a job that is queued or running, within a frame; remove one that has ended, with its results."""
        found = _job(runner, job)
        await asyncio.to_thread(runner.cancel, job)
        return JSONResponse(_reply(runner, runner.store.get(job) or found))

    return router


def _queue(context: ServerContext, runner: JobRunner, body: TrackRequest, files: dict[str, bytes]) -> TrackJob:
    """Take a video and queue its job, in a thread. Raises ValueError for one that is not taken."""
    medium = context.intake.chosen(files, video=body.video)
    if medium.kind != "video":
        raise ValueError("a job is about a video: send its file as video")
    sampling = {
        "stride": body.stride,
        "fps": body.fps,
        "start": body.start,
        "end": body.end,
        "max_frames": body.max_frames,
    }
    # Both bounds are seconds, which open_media tells from frames by their type.
    sampling = {name: float(value) if name in ("start", "end") else value for name, value in sampling.items() if value}
    options = {
        "threshold": body.threshold,
        "check_presence": body.check_presence,
        "ask_every": body.ask_every,
        "max_new_tokens": context.longest(body.max_tokens),
    }
    return runner.queue(medium.content, body.phrases, body.return_, options=options, sampling=sampling)


def _job(runner: JobRunner, job: str) -> TrackJob:
    found = runner.store.get(job)
    if found is None:
        raise HTTPException(404, f"there is no job {job!r:.100}; results are kept for {runner.keep_seconds / 3600:g} h")
    return found


def _reply(runner: JobRunner, job: TrackJob) -> dict[str, Any]:
    files = [
        {"kind": kind, "url": f"/v1/jobs/{job.id}/results/{kind}", "bytes": path.stat().st_size}
        for kind, path in runner.results(job).items()
        if path.exists()
    ]
    expires = None if job.finished is None else job.finished + runner.keep_seconds
    shown = {name: value for name, value in vars(job).items() if name in JobReply.model_fields}
    about = {**shown, "expires": expires, "seconds_left": job.seconds_left, "results": files}
    return JobReply.model_validate(about).model_dump()


async def _events(context: ServerContext, runner: JobRunner, job: str) -> AsyncIterator[str]:
    shown, spoken = None, time.monotonic()
    while not context.leaving.is_set() and (found := runner.store.get(job)) is not None:
        now = found.state, found.frames_done, found.note
        if now != shown:
            shown, spoken = now, time.monotonic()
            yield f"event: {found.state}\ndata: {json.dumps(_reply(runner, found))}\n\n"
        elif time.monotonic() - spoken > _SECONDS_OF_SILENCE:
            spoken = time.monotonic()
            yield ": still here\n\n"
        if found.ended:
            return
        await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
