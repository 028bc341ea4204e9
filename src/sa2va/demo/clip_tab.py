"""The tab for videos: what is on it, and what its events do."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sa2va.demo import rendering
from sa2va.demo.backend import AskOptions, TrackProgress
from sa2va.demo.controls import (
    ASK,
    FIND,
    Written,
    ask_row,
    bind,
    example_cards,
    explained,
    html,
    notice,
    settings,
    split_phrases,
)
from sa2va.demo.examples import CLIP, CLIP_EXAMPLES, example_file
from sa2va.demo.rendering import Exchange
from sa2va.demo.visitors import ClipDesk, Visitor, Visitors
from sa2va.inference.propagation import frame_count, key_frame_indices
from sa2va.masks.mask import Segment
from sa2va.visualization.overlay import overlay

_PLACEHOLDERS = {FIND: "the orange hat, the dog", ASK: "What color is the hat?"}
_NOTHING_YET = "Say what to follow: the result appears here."
#: Files of a track, with what they are called on the page.
_SAVED_AS = {"overlay.mp4": "Video", "masks.zip": "Masks (PNG)", "frames.jsonl": "JSON lines"}
#: Seconds between two previews of a running track.
_PREVIEW_EVERY = 0.25


class ClipTab:
    """A clip, what is followed through it, and a conversation about it.

    Args:
        page: the blocks it is on.
    """

    def __init__(self, page: gr.Blocks, visitors: Visitors):
        self._visitors = visitors
        with gr.Row(elem_classes="desk"):
            with gr.Column(scale=1, min_width=320):
                clip = gr.Video(
                    sources=["upload", "webcam"],
                    label="Your clip",
                    include_audio=True,
                    webcam_options=gr.WebcamOptions(mirror=False),
                    elem_id="clip",
                )
                with gr.Row(elem_classes="trim"):
                    start = gr.Slider(0, 1, 0, step=0.05, label="From (s)", min_width=120, elem_id="clip-from")
                    end = gr.Slider(0, 1, 1, step=0.05, label="To (s)", min_width=120, elem_id="clip-to")
                keys = html(elem_id="clip-keys")
            with gr.Column(scale=1, min_width=320, elem_classes="talk"):
                live = html(notice(_NOTHING_YET), elem_id="clip-live")
                result = gr.Video(
                    label="Result",
                    interactive=False,
                    visible=False,
                    loop=True,
                    autoplay=True,
                    elem_id="clip-result",
                )
                with gr.Row(visible=False, elem_classes="buttons") as saves:
                    files = [gr.DownloadButton(f"\u2193 {label}", size="sm") for label in _SAVED_AS.values()]
                chat = html(elem_id="clip-chat")
                mode, text, send = ask_row("clip", _PLACEHOLDERS, CLIP_EXAMPLES[0].text)
                with gr.Row(elem_classes="buttons"):
                    cancel = gr.Button("Cancel", size="sm", variant="stop", interactive=False, elem_id="clip-cancel")
                    clear = gr.Button("Clear", size="sm", elem_id="clip-clear")
                options = settings()
        cards = example_cards("clip", CLIP_EXAMPLES)

        opened = [clip, start, end, keys]
        seen = [live, result, saves, *files, chat, cancel]
        bounds = [start, end]
        bind([page.load], self._arrive, None, [*opened, *seen])
        bind([clip.upload, clip.stop_recording], self._drop, [clip], [*opened, *seen])
        bind([start.release, end.release, options[-1].release], self._show_keys, [*bounds, *options], [keys])
        bind([send.click, text.submit], self._ask, [mode, text, *bounds, *options], seen, concurrency_limit=2)
        bind([cards.example], self._example, options, [*opened, *seen], concurrency_limit=2)
        bind([cancel.click], self._cancel, None, None)
        bind([clear.click], self._clear, None, seen)

    def _arrive(self, request: gr.Request) -> tuple[Any, ...]:
        visitor = self._visitors.of(request.session_hash)
        with visitor.lock:
            return *opened_of(self._put(visitor, example_file(CLIP), keep=True)), *seen_of()

    def _drop(self, path: str | None, request: gr.Request) -> tuple[Any, ...]:
        visitor = self._visitors.of(request.session_hash)
        with visitor.lock:
            try:
                desk = self._put(visitor, Path(path or ""), keep=False)
            except (ValueError, OSError) as error:
                raise gr.Error(explained(error), print_exception=False) from error
            return *opened_of(desk), *seen_of()

    def _put(self, visitor: Visitor, source: Path, *, keep: bool) -> ClipDesk:
        desk = self._visitors.new_clip(visitor, source, keep=keep)
        if visitor.clip is not None:
            visitor.clip.close()
        visitor.clip = desk
        return desk

    def _show_keys(self, request: gr.Request, start: float, end: float, *values: Any) -> str:
        desk = self._visitors.of(request.session_hash).clip
        return "" if desk is None else key_frames(desk, start, end, AskOptions(*values))

    def _ask(
        self, request: gr.Request, mode: str, text: str, start: float, end: float, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        visitor, text = self._visitors.of(request.session_hash), text.strip()
        with visitor.lock:
            desk = visitor.clip
            if desk is None or not text:
                yield seen_of(live="Drop a clip first." if desk is None else _NOTHING_YET)
                return
            try:
                if not start < end:
                    raise ValueError("this part of the clip is empty: it must end after it begins")
                answer = self._chat if mode == ASK else self._track
                yield from answer(visitor, desk, text, start, end, AskOptions(*values))
            except Exception as error:
                desk.exchanges.append(Exchange(text, error=explained(error)))
                yield seen_of(desk)

    def _example(self, request: gr.Request, event: gr.EventData, *values: Any) -> Iterator[tuple[Any, ...]]:
        chosen = CLIP_EXAMPLES[int(event._data["number"])]
        visitor = self._visitors.of(request.session_hash)
        with visitor.lock:
            opened = opened_of(desk := self._put(visitor, example_file(CLIP), keep=True))
        for seen in self._ask(request, chosen.mode, chosen.text, 0.0, desk.duration, *values):
            yield *opened, *seen
            opened = (gr.skip(),) * len(opened)

    def _track(
        self, visitor: Visitor, desk: ClipDesk, text: str, start: float, end: float, options: AskOptions
    ) -> Iterator[tuple[Any, ...]]:
        phrases = split_phrases(text)
        desk.cancel.clear()
        yield seen_of(desk, live=rendering.progress(TrackProgress(0, 0), 0.0), busy=True)
        folder, began, shown_at = visitor.new_folder(), time.perf_counter(), 0.0
        seen: dict[int, Segment] = {}
        step = TrackProgress(0, 0)
        steps = desk.medium(start, end).track(phrases, folder, options)
        for step in steps:
            now = time.perf_counter()
            if desk.cancel.is_set() or visitor.gone:
                steps.close()
                yield seen_of(desk, live=f"Stopped after {step.done} of {step.total} frames. Nothing was kept.")
                return
            seen |= {one.id: one for one in step.segments if one.id not in seen or one.score > seen[one.id].score}
            if now - shown_at >= _PREVIEW_EVERY:
                shown_at = now
                drawn = None if step.pixels is None else overlay(Image.fromarray(step.pixels), step.segments)
                yield seen_of(desk, live=rendering.progress(step, now - began, drawn), busy=True)
        desk.exchanges.append(
            Exchange(text, report=rendering.track_report(phrases, step, seen, time.perf_counter() - began))
        )
        desk.result = folder
        yield seen_of(desk)

    def _chat(
        self, visitor: Visitor, desk: ClipDesk, text: str, start: float, end: float, options: AskOptions
    ) -> Iterator[tuple[Any, ...]]:
        written = Written(lambda on_text: desk.chat(text, start, end, options, on_text))
        try:
            for partial in written:
                yield seen_of(desk, pending=Exchange(text, partial=partial))
                if visitor.gone:
                    return
        finally:
            written.cancel()
        yield seen_of(desk)

    def _cancel(self, request: gr.Request) -> None:
        desk = self._visitors.of(request.session_hash).clip
        if desk is not None:
            desk.cancel.set()

    def _clear(self, request: gr.Request) -> tuple[Any, ...]:
        visitor = self._visitors.of(request.session_hash)
        with visitor.lock:
            if visitor.clip is not None:
                visitor.clip.clear()
            return seen_of(visitor.clip)


def opened_of(desk: ClipDesk) -> tuple[Any, ...]:
    """What the left side shows of a clip that was just opened: the clip, its ends, its key frames."""
    last = round(desk.duration, 2)
    return (
        gr.Video(str(desk.path)),
        gr.Slider(value=0, maximum=last),
        gr.Slider(value=last, maximum=last),
        key_frames(desk, 0.0, last, AskOptions()),
    )


def seen_of(
    desk: ClipDesk | None = None, *, live: str = "", pending: Exchange | None = None, busy: bool = False
) -> tuple[Any, ...]:
    """What the right side shows: what happens or the last result, the conversation, and whether it can be cancelled.

    Args:
        live: in place of the result, HTML or a sentence.
        pending: a question that is being answered.
    """
    result = desk.result if desk is not None and not live else None
    exchanges: Sequence[Exchange] = [*(desk.exchanges if desk is not None else ()), *([pending] if pending else ())]
    shown = live if live.startswith("<") else notice(live or _NOTHING_YET)
    return (
        gr.HTML(shown, visible=result is None),
        gr.Video(None if result is None else str(result / "overlay.mp4"), visible=result is not None),
        gr.Row(visible=result is not None),
        *(None if result is None else str(result / name) for name in _SAVED_AS),
        rendering.conversation(exchanges, "") if exchanges else "",
        gr.Button(interactive=busy),
    )


def key_frames(desk: ClipDesk, start: float, end: float, options: AskOptions) -> str:
    """The frames of a part of a clip that the language model sees."""
    try:
        source = desk.part(start, end)
        keys = key_frame_indices("uniform", options.key_frames, frame_count(source))
        return rendering.key_frame_strip(list(source.pick(keys)))
    except ValueError as error:
        return notice(str(error))
