"""``sa2va demo``: a web page to ask about pictures and videos."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import typer

from sa2va import zoo
from sa2va.cli import arguments
from sa2va.cli.console import Screen, command
from sa2va.runtime import require_extra

_PANEL = "Page"


@command
def demo(
    screen: Screen,
    *,
    model: arguments.Model = None,
    loading: arguments.Loading,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            show_default=False,
            rich_help_panel=_PANEL,
            help="Let a running `sa2va serve` answer, instead of a model here. Its key comes from SA2VA_API_KEY.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(rich_help_panel=_PANEL, help="Where to listen; 127.0.0.1 is for this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, rich_help_panel=_PANEL, help="Port to listen on; 0 takes a free one.")
    ] = 7860,
    mcp: Annotated[
        bool,
        typer.Option("--mcp", rich_help_panel=_PANEL, help="Serve the same as tools of the Model Context Protocol."),
    ] = False,
) -> None:
    """Show a web page to ask about pictures and videos; without [bold]--model[/bold], with the packaged tiny.

    It needs no internet, sends nothing anywhere and keeps nothing. Ctrl-C ends it.
    """
    if server is not None and model is not None:
        raise ValueError("--server has a model of its own; give either --server or --model")
    with tempfile.TemporaryDirectory(prefix="sa2va-demo-") as folder:
        # Gradio reads these when it is imported. Its own choices are one folder for all programs, and telemetry.
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        require_extra("gradio", "demo")
        from sa2va.demo.backend import Backend
        from sa2va.demo.local_backend import LocalBackend
        from sa2va.demo.page import serving
        from sa2va.demo.remote_backend import RemoteBackend

        backend: Backend
        if server is not None:
            backend = RemoteBackend.at(server)
        else:
            name = arguments.model_name(model or "tiny")
            sa2va = arguments.load_model(screen, name, loading)
            backend = LocalBackend(sa2va, model or "tiny", tiny=name == str(zoo.TINY))
        with serving(backend, Path(folder), host=host, port=port or None, mcp=mcp) as url:
            tools = f"{url}gradio_api/mcp/" if mcp else None
            if screen.json:
                screen.emit({"url": url, "mcp": tools})
            screen.note(f"open {url} (Ctrl-C to stop)")
            if tools:
                screen.note(f"MCP clients connect to {tools}")
            _wait_for_the_end()


def _wait_for_the_end() -> None:
    """Return after Ctrl-C, or when the process is told to end, so that everything is removed either way."""
    told = threading.Event()
    before = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not told.wait(0.5):  # in short steps, so that signals are met on every platform
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
