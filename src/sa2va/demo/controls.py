"""What both tabs are made of: the row to ask in, settings, example cards, and the binding of events."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Generic, TypeVar

import gradio as gr
from PIL import Image

from sa2va.demo import rendering
from sa2va.demo.backend import AskOptions, OnText
from sa2va.demo.examples import Example, example_file
from sa2va.media.open import open_media
from sa2va.runtime import logger

T = TypeVar("T")

STATIC = Path(__file__).parent / "static"
FIND, ASK, DESCRIBE = "Find", "Ask", "Describe"

# Buttons inside HTML tell Python what was pressed.
_EXAMPLE_BUTTONS = """element.addEventListener("click", (event) => {
  const card = event.target.closest("[data-example]");
  if (card) trigger("example", { number: card.dataset.example });
});"""


class Written(Iterator[str], Generic[T]):
    """A call that runs in a thread of its own: iterates over the text that it has written so far.

    Args:
        call: gets a function that takes the text so far; after [`cancel`] that function raises.

    Attributes:
        result: what the call returned, after the iteration.
    """

    def __init__(self, call: Callable[[OnText], T]):
        self._texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._left = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True, name="sa2va-demo")
        self._texts.put("")  # so that the question is seen at once
        self._thread.start()

    def _run(self, call: Callable[[OnText], T]) -> None:
        try:
            self.result: T = call(self._take)
        except BaseException as error:
            self._error = error
        self._texts.put(None)

    def _take(self, text: str) -> None:
        if self._left.is_set():
            raise Cancelled
        self._texts.put(text)

    def __next__(self) -> str:
        text = self._texts.get()
        if text is not None:
            return text
        self._thread.join()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def cancel(self) -> None:
        """Make the call end with its next piece of text."""
        self._left.set()


class Cancelled(Exception):
    """Raised inside a request that nobody waits for."""


def html(value: str = "", **options: Any) -> gr.HTML:
    """HTML of ours, without Gradio's style for texts."""
    return gr.HTML(value, apply_default_css=False, **options)


def bind(
    triggers: Sequence[Any], handler: Callable[..., Any] | None, inputs: Any, outputs: Any, **options: Any
) -> None:
    """Let events call a handler. It belongs to the page and is no part of the API."""
    for trigger in triggers:
        trigger(handler, inputs, outputs, api_visibility="private", show_progress="hidden", **options)


def ask_row(name: str, placeholders: dict[str, str], text: str = "") -> tuple[gr.Radio, gr.Textbox, gr.Button]:
    """Where a visitor says what to do and with what: mode, words, button."""
    with gr.Group(elem_classes="ask"):
        mode = gr.Radio(list(placeholders), value=FIND, show_label=False, container=False, elem_id=f"{name}-mode")
        with gr.Row(equal_height=True):
            box = gr.Textbox(
                text,
                placeholder=placeholders[FIND],
                show_label=False,
                container=False,
                max_lines=4,
                scale=8,
                elem_id=f"{name}-text",
            )
            send = gr.Button("Go", variant="primary", scale=1, min_width=64, elem_id=f"{name}-send")
    text_is_question = f"(text, mode) => text.trim().endsWith('?') ? '{ASK}' : mode"
    bind([box.input], None, [box, mode], [mode], js=text_is_question, queue=False)
    bind([mode.change], lambda chosen: gr.Textbox(placeholder=placeholders[chosen]), [mode], [box], queue=False)
    return mode, box, send


def settings() -> list[Any]:
    """The controls of [`AskOptions`], in the order of its fields."""
    given = AskOptions()
    with gr.Accordion("Settings", open=False):
        return [
            gr.Slider(0.05, 0.95, given.threshold, step=0.05, label="Probability from which a pixel is inside"),
            gr.Slider(16, 2048, given.max_new_tokens, step=16, label="Longest answer, in tokens"),
            gr.Slider(0, 1.5, given.temperature, step=0.1, label="Temperature; 0 always gives the same answer"),
            gr.Slider(1, 16, given.key_frames, step=1, label="Frames of a clip that the language model sees"),
        ]


def example_cards(name: str, examples: Sequence[Example]) -> gr.HTML:
    """Examples as cards; pressing one triggers ``example`` with its number."""
    thumbnails = {}
    for file in {one.file for one in examples}:
        with open_media(example_file(file)) as source:
            thumbnails[file] = rendering.picture_url(Image.fromarray(source.read([0])[0]), 160)
    cards = rendering.example_cards([(thumbnails[one.file], one.mode, one.text) for one in examples])
    return html(cards, js_on_load=_EXAMPLE_BUTTONS, elem_id=f"{name}-examples")


def split_phrases(text: str) -> list[str]:
    """Phrases by commas, semicolons and lines; a question is one, whatever it holds."""
    parts = [text] if "?" in text else re.split(r"[,;\n]", text)
    return [part.strip() for part in parts if part.strip()]


def explained(error: Exception) -> str:
    """What a visitor is told of an error: the text of those that are about their request."""
    if isinstance(error, ValueError):
        return str(error)
    logger.error("a request of the page failed", exc_info=error)
    return "Something went wrong here; the log of the server says what."


def notice(text: str) -> str:
    """A quiet line of text in place of a result."""
    return f'<div class="running idle"><p>{escape(text)}</p></div>'
