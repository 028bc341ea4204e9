"""The tab for pictures: what is on it, and what its events do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sa2va.demo import rendering
from sa2va.demo.backend import AskOptions, OnText
from sa2va.demo.controls import (
    ASK,
    DESCRIBE,
    FIND,
    STATIC,
    Written,
    ask_row,
    bind,
    example_cards,
    explained,
    html,
    settings,
    split_phrases,
)
from sa2va.demo.examples import PICTURE, PICTURE_EXAMPLES, example_file
from sa2va.demo.marks import Mark
from sa2va.demo.rendering import Exchange
from sa2va.demo.visitors import PictureDesk, Visitor, Visitors
from sa2va.media.image import load_image
from sa2va.results.answer import Answer
from sa2va.writers.picture_files import write_picture

Answers = Sequence[tuple[str, Answer]]

_PLACEHOLDERS = {
    FIND: "the yellow cloud, the letter Z",
    ASK: "Ask anything: what color is the car?",
}
_WELCOME = "Name what to find, ask a question, or click a thing in the picture."
_TOOLS = """<div class="tools" role="group" aria-label="Mark something to ask what it is">
<span>What is this?</span><button data-tool="point">Click</button><button data-tool="box">Box</button>
<button data-tool="stroke">Brush</button></div>"""
_OBJECT_BUTTONS = """element.addEventListener("click", (event) => {
  const { toggle, save } = event.target.closest("button")?.dataset ?? {};
  if (toggle) trigger("toggle", { id: toggle });
  if (save) trigger("save", { kind: save });
});"""
_FOLLOW_LINK = """watch("value", () => element.querySelector("a")?.click());"""
_SAVED_AS = {"masks": "masks.zip", "json": "result.json", "cutout": "cutout.png", "overlay": "overlay.png"}
_MARK_QUESTIONS = {"point": "What is here?", "box": "What is in this box?", "stroke": "What did I paint over?"}


class PictureTab:
    """A picture, a conversation about it, and the masks of what was found.

    Args:
        page: the blocks it is on.
    """

    def __init__(self, page: gr.Blocks, visitors: Visitors):
        self._visitors = visitors
        with gr.Row(elem_classes="desk"):
            with gr.Column(scale=3, min_width=320):
                script = (STATIC / "stage.js").read_text(encoding="utf-8")
                stage = html(html_template=_TOOLS + "${value}", js_on_load=script, elem_id="picture-stage")
                objects = html(js_on_load=_OBJECT_BUTTONS, elem_id="picture-objects")
                opacity = gr.Slider(
                    0, 1, PictureDesk.opacity, step=0.05, label="Opacity of the masks", elem_id="opacity"
                )
                download = html(js_on_load=_FOLLOW_LINK, elem_classes="unseen", elem_id="download")
            with gr.Column(scale=2, min_width=320, elem_classes="talk"):
                chat = html(elem_id="picture-chat")
                mode, text, send = ask_row("picture", _PLACEHOLDERS)
                with gr.Row(elem_classes="buttons"):
                    describe = gr.Button("Describe the picture", size="sm", elem_id="picture-describe")
                    clear = gr.Button("Clear", size="sm", elem_id="picture-clear")
                drop = gr.Image(
                    sources=["upload", "webcam", "clipboard"],
                    type="filepath",
                    label="Your own picture",
                    height=160,
                    webcam_options=gr.WebcamOptions(mirror=False),
                    elem_id="picture-drop",
                )
                options = settings()[:-1]  # the last is about clips
        cards = example_cards("picture", PICTURE_EXAMPLES)

        seen = [stage, objects, chat]
        bind([page.load], self._arrive, None, seen)
        bind([send.click, text.submit], self._ask, [mode, text, *options], [*seen, text])
        bind([describe.click], self._describe, options, seen)
        bind([stage.mark], self._inspect, options, seen)
        bind([cards.example], self._example, options, seen)
        bind([drop.input], self._drop, [drop], [*seen, drop])
        bind([clear.click], self._clear, None, seen)
        bind([opacity.change], self._set_opacity, [opacity], [stage], trigger_mode="always_last")
        bind([objects.toggle], self._toggle, None, [stage, objects])
        bind([objects.save], self._save, None, [download])

    def _arrive(self, request: gr.Request) -> tuple[str, ...]:
        """Show the first example with its answer, which says more than any words would."""
        visitor = self._visitors.of(request.session_hash)
        with visitor.lock:
            desk = self._put(visitor, example_picture())
            wanted = PICTURE_EXAMPLES[0].text
            try:
                desk.add(wanted, self._first_answers())
            except Exception as error:
                desk.fail(wanted, explained(error))
            return seen_of(desk)

    @cache  # noqa: B019 -- a page lives as long as its process
    def _first_answers(self) -> Answers:
        medium = self._visitors.backend.open_picture(example_picture())
        try:
            phrases = split_phrases(PICTURE_EXAMPLES[0].text)
            return list(zip(phrases, medium.segment(phrases, AskOptions()), strict=True))
        finally:
            medium.close()

    def _put(self, visitor: Visitor, image: Image.Image) -> PictureDesk:
        if visitor.picture is not None:
            visitor.picture.medium.close()
        visitor.picture = self._visitors.new_picture(image)
        return visitor.picture

    def _drop(self, path: str | None, request: gr.Request) -> tuple[Any, ...]:
        if path is None:
            return (gr.skip(),) * 4
        visitor = self._visitors.of(request.session_hash)
        try:
            image = load_image(path)
        except ValueError as error:
            raise gr.Error(explained(error), print_exception=False) from error
        finally:
            Path(path).unlink(missing_ok=True)  # it lives on in memory only
        with visitor.lock:
            return *seen_of(self._put(visitor, image)), None

    def _ask(self, request: gr.Request, mode: str, text: str, *values: Any) -> Iterator[Any]:
        for seen in self._answered(request, mode, text, AskOptions(*values)):
            yield *seen, ""

    def _describe(self, request: gr.Request, *values: Any) -> Iterator[Any]:
        yield from self._answered(request, DESCRIBE, "Describe the picture.", AskOptions(*values))

    def _example(self, request: gr.Request, event: gr.EventData, *values: Any) -> Iterator[Any]:
        chosen = PICTURE_EXAMPLES[int(event._data["number"])]
        visitor = self._visitors.of(request.session_hash)
        with visitor.lock:
            if visitor.picture is None or visitor.picture.image is not example_picture():
                self._put(visitor, example_picture())
        yield from self._answered(request, chosen.mode, chosen.text, AskOptions(*values))

    def _inspect(self, request: gr.Request, event: gr.EventData, *values: Any) -> Iterator[Any]:
        def inspect(desk: PictureDesk, on_text: OnText) -> Answers:
            del on_text
            mark = Mark.from_page(event._data, (desk.image.height, desk.image.width))
            return desk.inspect(mark, AskOptions(*values))

        kind = event._data.get("kind") if isinstance(event._data, dict) else None
        yield from self._written(request, _MARK_QUESTIONS.get(str(kind), "What is this?"), inspect)

    def _answered(self, request: gr.Request, mode: str, text: str, options: AskOptions) -> Iterator[Any]:
        text = text.strip()
        calls: dict[str, Callable[[PictureDesk, OnText], Answers]] = {
            FIND: lambda desk, on_text: desk.segment(split_phrases(text), options),
            ASK: lambda desk, on_text: desk.chat(text, options, on_text),
            DESCRIBE: lambda desk, on_text: desk.caption(options, on_text),
        }
        if not text:
            yield (gr.skip(),) * 3
        else:
            yield from self._written(request, text, calls[mode])

    def _written(
        self, request: gr.Request, question: str, call: Callable[[PictureDesk, OnText], Answers]
    ) -> Iterator[Any]:
        """What is seen while a request is answered, and then."""
        visitor = self._visitors.of(request.session_hash)
        with visitor.lock:
            if (desk := visitor.picture) is None:
                yield gr.skip(), gr.skip(), rendering.conversation([], "Drop a picture first, or take an example.")
                return
            written = Written(lambda on_text: call(desk, on_text))
            try:
                for partial in written:
                    pending = [*desk.exchanges, Exchange(question, partial=partial)]
                    yield gr.skip(), gr.skip(), rendering.conversation(pending, _WELCOME)
                    if visitor.gone:
                        return
                desk.add(question, written.result)
            except Exception as error:
                desk.fail(question, explained(error))
            finally:
                written.cancel()
            yield seen_of(desk)

    def _clear(self, request: gr.Request) -> tuple[str, ...]:
        visitor = self._visitors.of(request.session_hash)
        with visitor.lock:
            if visitor.picture is not None:
                visitor.picture.clear()
            return seen_of(visitor.picture)

    def _set_opacity(self, value: float, request: gr.Request) -> str:
        desk = self._visitors.of(request.session_hash).picture
        if desk is not None:
            desk.opacity = value
        return stage_of(desk)

    def _toggle(self, request: gr.Request, event: gr.EventData) -> tuple[str, str]:
        desk = self._visitors.of(request.session_hash).picture
        if desk is not None:
            desk.hidden ^= {int(event._data["id"])} & set(desk.objects)
        return stage_of(desk), objects_of(desk)

    def _save(self, request: gr.Request, event: gr.EventData) -> str:
        visitor = self._visitors.of(request.session_hash)
        with visitor.lock:
            if visitor.picture is None:
                return ""
            path = write_results(visitor.picture, str(event._data["kind"]), visitor.new_folder())
        return rendering.download_link(f"gradio_api/file={path.as_posix()}")


def seen_of(desk: PictureDesk | None) -> tuple[str, ...]:
    """What the stage, the list of objects and the conversation show."""
    chat = rendering.conversation(desk.exchanges if desk else [], _WELCOME)
    return stage_of(desk), objects_of(desk), chat


def stage_of(desk: PictureDesk | None) -> str:
    """The picture with those masks that are switched on."""
    return rendering.no_stage() if desk is None else rendering.stage(desk.view, desk.visible, desk.opacity)


def objects_of(desk: PictureDesk | None) -> str:
    """The list of objects."""
    return "" if desk is None else rendering.object_list(desk.objects.values(), desk.hidden)


def write_results(desk: PictureDesk, kind: str, folder: Path) -> Path:
    """Write what is switched on as a file: ``masks`` (a zip of PNGs), ``json``, ``cutout`` or ``overlay``.

    Raises:
        ValueError: another kind.
    """
    if kind not in _SAVED_AS:
        raise ValueError(f"expected one of {', '.join(_SAVED_AS)}; got {kind!r}")
    target = folder / _SAVED_AS[kind]
    segments = [segment for number, segment in desk.objects.items() if number not in desk.hidden]
    answers = [
        {"question": one.question, "wanted": wanted, **answer.record}
        for one in desk.exchanges
        for wanted, answer in one.answers
    ]
    record = {"size": [desk.image.height, desk.image.width], "answers": answers}
    if kind == "masks":
        inside = folder / "masks"
        write_picture({"masks": inside / "masks.png", "objects": inside}, desk.image, segments, record)
        shutil.make_archive(str(inside), "zip", inside)
    else:
        write_picture({kind: target}, desk.image, segments, record)
    return target


@cache
def example_picture() -> Image.Image:
    """The picture of the examples, the same object every time."""
    return load_image(example_file(PICTURE))
