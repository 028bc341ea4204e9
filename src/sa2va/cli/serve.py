"""``sa2va serve``: one model behind HTTP, for stock OpenAI clients and anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sa2va.cli import arguments
from sa2va.cli.console import Screen, command
from sa2va.runtime import require_extra

_SERVER, _LIMITS = "Server", "Limits"
_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


@command
def serve(
    screen: Screen,
    *,
    model: arguments.Model = None,
    loading: arguments.Loading,
    host: Annotated[
        str, typer.Option(rich_help_panel=_SERVER, help="Where to listen; 0.0.0.0 is everywhere, and needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, rich_help_panel=_SERVER, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="SA2VA_API_KEY",
            show_default=False,
            rich_help_panel=_SERVER,
            help="What clients must show as a bearer token. Better set in the environment, which others do not see.",
        ),
    ] = None,
    allow_url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            show_default=False,
            rich_help_panel=_SERVER,
            help="Media URLs to fetch for clients: https://images.example.com/*. May be repeated; none by default.",
        ),
    ] = None,
    label_studio: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            show_default=False,
            rich_help_panel=_SERVER,
            help="Answer projects of this Label Studio; in it, connect a model at http://HOST:PORT/label-studio.",
        ),
    ] = None,
    label_studio_key: Annotated[
        str | None,
        typer.Option(
            envvar="LABEL_STUDIO_API_KEY",
            show_default=False,
            rich_help_panel=_SERVER,
            help="Access token of a user there, to read the media of tasks. Better set in the environment.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            show_default="~/.cache/sa2va/serve-PORT",
            rich_help_panel=_SERVER,
            help="Where jobs and their results lie.",
        ),
    ] = None,
    keep_hours: Annotated[float, typer.Option(rich_help_panel=_SERVER, help="How long results of jobs stay.")] = 24.0,
    at_once: Annotated[int, typer.Option(min=1, rich_help_panel=_LIMITS, help="Requests answered together.")] = 64,
    queue: Annotated[int, typer.Option(min=0, rich_help_panel=_LIMITS, help="Further ones that wait.")] = 256,
    timeout: Annotated[float, typer.Option(rich_help_panel=_LIMITS, help="Seconds for a request.")] = 120.0,
    scene_memory: Annotated[
        int, typer.Option(min=0, rich_help_panel=_LIMITS, help="MiB of pictures that are kept open.")
    ] = 1024,
    max_body: Annotated[int, typer.Option(min=1, rich_help_panel=_LIMITS, help="MiB of a request.")] = 64,
    max_pixels: Annotated[
        int, typer.Option(min=1, rich_help_panel=_LIMITS, help="Of a picture or frame.")
    ] = 50_000_000,
    max_frames: Annotated[int, typer.Option(min=1, rich_help_panel=_LIMITS, help="Of a video to be tracked.")] = 20_000,
    max_seconds: Annotated[float, typer.Option(rich_help_panel=_LIMITS, help="Of a video to be tracked.")] = 1800.0,
    max_new_tokens: arguments.MaxNewTokens = 2048,
) -> None:
    """Serve a model over HTTP.

    [bold]POST /v1/chat/completions[/bold] is OpenAI's; masks come beside the text.
    [bold]/v1/segment[/bold], [bold]/v1/caption[/bold] and [bold]/v1/describe[/bold] take pictures,
    [bold]/v1/track[/bold] videos. Without more it answers programs of this machine only.
    """
    for package in _PACKAGES:
        require_extra(package, "serve")
    from sa2va.serve.server import serve as run
    from sa2va.serve.settings import ServerSettings
    from sa2va.serve.url_rules import UrlRule

    name = arguments.model_name(model)
    settings = ServerSettings(
        folder=folder or Path.home() / ".cache" / "sa2va" / f"serve-{port}",
        host=host,
        port=port,
        api_key=api_key,
        allow_urls=tuple(map(UrlRule.parse, allow_url or ())),
        label_studio=label_studio,
        label_studio_key=label_studio_key,
        max_body=max_body << 20,
        max_pixels=max_pixels,
        max_frames=max_frames,
        max_seconds=max_seconds,
        max_tokens=max_new_tokens,
        at_once=at_once,
        max_waiting=queue,
        seconds=timeout,
        scene_bytes=scene_memory << 20,
        keep_hours=keep_hours,
    )
    sa2va = arguments.load_model(screen, name, loading)
    # Clients get no path of this machine.
    called = Path(str(model)).name if Path(name).exists() else str(model)
    run(sa2va, called, settings, screen.note)
