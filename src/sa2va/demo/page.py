"""The whole page, and the web server that shows it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import gradio as gr
from gradio.themes import Base
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sa2va import __version__
from sa2va.demo import rendering
from sa2va.demo.backend import Backend
from sa2va.demo.clip_tab import ClipTab
from sa2va.demo.controls import STATIC, html
from sa2va.demo.endpoints import add_endpoints
from sa2va.demo.picture_tab import PictureTab
from sa2va.demo.visitors import Visitors

#: Requests that are answered at the same time, and that wait.
_AT_ONCE, _WAITING = 8, 64
_MOST_UPLOAD = "512mb"
#: Uploads that no visitor's leaving removes, such as those of the API, go after an hour.
_LEFTOVERS = (600, 3600)
#: The browser asks nobody but this server, whatever the page would like.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; form-action 'self'"
_THEME_TOGGLE = """element.addEventListener("click", (event) => {
  if (event.target.closest("[data-theme-toggle]")) document.body.classList.toggle("dark");
});"""


@contextmanager
def serving(
    backend: Backend, folder: Path, *, host: str = "127.0.0.1", port: int | None = 7860, mcp: bool = False
) -> Iterator[str]:
    """Show the page while the block runs.

    Args:
        backend: the model that answers.
        folder: where visitors' files lie; Gradio serves them only if this is its GRADIO_TEMP_DIR.
        host: where to listen; 127.0.0.1 is this machine alone.
        port: None takes a free one.
        mcp: serve the API as tools of the Model Context Protocol, too.

    Returns:
        the address of the page.

    Raises:
        OSError: the port is taken.
    """
    visitors = Visitors(backend, folder / "visitors")
    page = build(visitors)
    try:
        with redirect_stdout(io.StringIO()):  # it would advertise itself there
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                mcp_server=mcp,
                prevent_thread_lock=True,
                quiet=True,
                inbrowser=False,
                ssr_mode=False,
                pwa=False,
                enable_monitoring=False,
                run_history=False,
                max_file_size=_MOST_UPLOAD,
                footer_links=["api"],
                theme=_theme(),
                css=(STATIC / "page.css").read_text(encoding="utf-8"),
                app_kwargs={"middleware": [Middleware(_SameOrigin)]},
            )
        yield url
    finally:
        page.close(verbose=False)
        visitors.close()


def build(visitors: Visitors) -> gr.Blocks:
    """Everything on the page, and its API."""
    about = visitors.backend.about
    with gr.Blocks(title="sa2va", analytics_enabled=False, fill_width=True, delete_cache=_LEFTOVERS) as page:
        html(rendering.header(about, __version__), js_on_load=_THEME_TOGGLE)
        with gr.Tabs():
            with gr.Tab("Picture", id="picture"):
                PictureTab(page, visitors)
            with gr.Tab("Video", id="video"):
                ClipTab(page, visitors)
        html(rendering.footnote(about))
        add_endpoints(visitors.backend)

        def leave(request: gr.Request) -> None:
            visitors.leave(request.session_hash)

        page.unload(leave)
    return page.queue(default_concurrency_limit=_AT_ONCE, max_size=_WAITING)


def _theme() -> Base:
    """Fonts of the visitor's own system: none is loaded."""
    return Base(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="lg",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )


class _SameOrigin:
    """Tells browsers to load nothing from elsewhere."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def add_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        await self._app(scope, receive, add_policy)
