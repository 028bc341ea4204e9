"""The application with all its parts, and the process that serves it."""

from __future__ import annotations

import asyncio
import ctypes
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache, partial

import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from sa2va import __version__
from sa2va.atomic import sole_writer
from sa2va.predictor import Sa2VA
from sa2va.serve.api_page import api_page, openapi_document
from sa2va.serve.context import ServerContext
from sa2va.serve.dispatch import Dispatcher
from sa2va.serve.guard import Guard, failure, tell_errors
from sa2va.serve.intake import Intake
from sa2va.serve.jobs_api import jobs_router
from sa2va.serve.label_studio_backend import label_studio_router
from sa2va.serve.monitoring import Monitoring
from sa2va.serve.openai_api import chat_router
from sa2va.serve.scene_pool import ScenePool
from sa2va.serve.settings import ServerSettings
from sa2va.serve.track_jobs import JobRunner, JobStore
from sa2va.serve.vision_api import vision_router

_ABOUT = """Ask about pictures and videos; get text and pixel-exact masks back.

* `POST /v1/chat/completions` is OpenAI's: their clients work unchanged, and find masks in `message.segments`.
* `POST /v1/segment`, `/v1/caption` and `/v1/describe` take a picture as JSON or as a form with a file.
* `POST /v1/track` follows objects through a video, as a job.

Every error has OpenAI's form; 429 comes with `Retry-After`. Every reply carries `x-request-id`.
"""
_SECONDS_BETWEEN_SWEEPS = 60.0
#: Connections that the system holds until they are taken.
_BACKLOG = 2048
#: glibc's number for the most heaps of a process, and how many.
_M_ARENA_MAX, _HEAPS = -8, 2


def build_app(model: Sa2VA, name: str, settings: ServerSettings, note: Callable[[str], None]) -> FastAPI:
    """The application; its parts begin and end with its lifespan.

    Args:
        name: what clients call the model. note: is told what became of the jobs of an earlier server.
    """
    monitoring = Monitoring()
    scratch = settings.folder / "tmp"
    intake = Intake(settings, scratch)
    scenes = ScenePool(model, intake, monitoring, budget=settings.scene_bytes, max_frames=settings.max_clip_frames)
    dispatcher = Dispatcher(
        model.engine, monitoring, at_once=settings.at_once, max_waiting=settings.max_waiting, seconds=settings.seconds
    )
    context = ServerContext(settings, name, model, intake, scenes, dispatcher, monitoring)
    store = JobStore(settings.folder)
    runner = JobRunner(
        store,
        model,
        intake,
        monitoring,
        keep_seconds=settings.keep_hours * 3600,
        max_frames=settings.max_frames,
    )
    monitoring.watch("sa2va_scenes", "Open scenes.", lambda: len(scenes))
    monitoring.watch("sa2va_scene_bytes", "Memory of open scenes.", lambda: scenes.nbytes)
    monitoring.watch("sa2va_jobs_queued", "Tracking jobs that wait.", lambda: len(store.jobs("queued")))
    monitoring.watch_devices()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for sentence in runner.recover():
            note(sentence)
        runner.start()
        sweeping = asyncio.create_task(_sweep(runner))
        try:
            yield
        finally:
            sweeping.cancel()
            dispatcher.refuse()
            dispatcher.close()
            runner.close()
            scenes.close()
            store.close()
            shutil.rmtree(scratch, ignore_errors=True)

    app = FastAPI(
        title="sa2va", version=__version__, description=_ABOUT, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.context = context
    app.add_middleware(Guard, settings=settings, monitoring=monitoring)
    tell_errors(app)
    app.include_router(chat_router(context))
    app.include_router(vision_router(context))
    app.include_router(jobs_router(context, runner))
    if settings.label_studio is not None:
        app.include_router(label_studio_router(context, settings.label_studio, settings.label_studio_key))

    @app.get("/health", tags=["Server"])
    async def health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/ready", tags=["Server"])
    async def ready() -> JSONResponse:
        """Whether it takes requests: 503 once it shuts down."""
        if context.leaving.is_set():
            return failure(503, "the server is shutting down")
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", tags=["Server"], response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Figures for Prometheus."""
        return PlainTextResponse(monitoring.page(), media_type="text/plain; version=0.0.4")

    app.openapi = cache(partial(openapi_document, app))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(
            api_page(app.openapi()),
            headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )

    return app


async def _sweep(runner: JobRunner) -> None:
    while True:
        await asyncio.to_thread(runner.sweep)
        await asyncio.sleep(_SECONDS_BETWEEN_SWEEPS)


class Server(uvicorn.Server):
    """An application on a port, until a signal comes; running answers then get their time of grace."""

    def __init__(self, app: FastAPI, settings: ServerSettings):
        self._context: ServerContext = app.state.context
        super().__init__(
            uvicorn.Config(
                app,
                settings.host,
                settings.port,
                log_level="warning",
                access_log=False,
                server_header=False,
                # Longer than the grace after which answers are told, by as much as the telling takes.
                timeout_graceful_shutdown=int(settings.grace) + 10,
                h11_max_incomplete_event_size=64 << 10,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._context.leaving.set()
        grace = self._context.settings.grace
        asyncio.get_running_loop().call_later(grace, self._context.dispatcher.refuse)
        await super().shutdown(sockets)


def serve(model: Sa2VA, name: str, settings: ServerSettings, note: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        name: what clients call the model. note: is told where the server listens, and what became of earlier jobs.

    Raises:
        ValueError: another server uses the folder. OSError: the port is taken, or the folder cannot be written.
    """
    _share_heaps()
    settings.folder.mkdir(parents=True, exist_ok=True)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with (
        sole_writer(settings.folder),
        socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG) as listening,
    ):
        server = Server(build_app(model, name, settings, note), settings)
        host = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
        note(f"{name} at http://{host}:{listening.getsockname()[1]}/v1; Ctrl-C stops it")
        server.run(sockets=[listening])


def _share_heaps() -> None:
    """Let threads share heaps.

    glibc gives them heaps of their own, which the large buffers of whichever thread computes leave full of holes.
    """
    with suppress(AttributeError, OSError, TypeError):  # another system, or another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _HEAPS)
