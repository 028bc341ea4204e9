"""The page's model in this process."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from PIL import Image

from sa2va.demo.backend import About, AskOptions, OnText, TrackProgress
from sa2va.demo.marks import Mark
from sa2va.inference.scene import Scene
from sa2va.media.frames import FrameSource
from sa2va.media.open import Picture, open_media
from sa2va.predictor import Sa2VA
from sa2va.results.answer import Answer
from sa2va.results.history import History
from sa2va.writers import JsonLinesWriter, OverlayWriter, PaletteWriter

_TUNED_FOR_WORDS = "This checkpoint's mask decoder was tuned for words; what it makes of clicks is a good guess."


class LocalBackend:
    """A loaded model.

    Args:
        name: how visitors know it. tiny: whether it is the packaged model.
    """

    def __init__(self, sa2va: Sa2VA, name: str, *, tiny: bool = False):
        self._sa2va = sa2va
        weights, family = sa2va.model, sa2va.processor.family
        describes = bool(family.visual_prompts) and sa2va.processor.cells is not None
        notes = [] if describes else [f"{family.name} checkpoints cannot put a marked region into words."]
        if weights.original_mask_decoder is None and not tiny:  # tiny learnt from clicks as well
            notes.append(_TUNED_FOR_WORDS)
        place = f"{weights.device}, {str(weights.dtype).removeprefix('torch.')}"
        self.about = About(name, place, tiny, describes, note=" ".join(notes))

    def open_picture(self, image: Image.Image) -> LocalMedium:
        """See [`sa2va.demo.backend.Backend`]."""
        return LocalMedium(self._sa2va, Picture(image), self.about)

    def open_clip(self, path: Path, start: float, end: float) -> LocalMedium:
        """See [`sa2va.demo.backend.Backend`]."""
        return LocalMedium(self._sa2va, open_media(path, start=float(start), end=float(end)), self.about)


class LocalMedium:
    """A [`OpenMedium`][sa2va.demo.backend.OpenMedium]: a scene, opened again when it was closed in between."""

    def __init__(self, sa2va: Sa2VA, source: FrameSource, about: About):
        self._sa2va, self._source, self._about = sa2va, source, about
        self._lock = threading.Lock()
        self._scene: Scene | None = None

    def segment(self, phrases: Sequence[str], options: AskOptions) -> list[Answer]:
        answers = self._open().segment(list(phrases), **_keywords(options))
        return cast("list[Answer]", answers)

    def chat(self, question: str, history: History, options: AskOptions, on_text: OnText) -> Answer:
        return self._open().chat(question, history=history, on_text=self._cleaned(on_text), **_keywords(options))

    def caption(self, options: AskOptions, on_text: OnText) -> Answer:
        return self._open().caption(on_text=self._cleaned(on_text), **_keywords(options))

    def inspect(self, mark: Mark, options: AskOptions) -> Answer:
        scene = self._open()
        prompt: dict[str, Any] = {"box": mark.box} if mark.kind == "box" else {"points": mark.clicks}
        found = cast("Answer", scene.segment(**prompt, threshold=options.threshold)).segments
        text = ""
        if self._about.describes:
            sure = [segment.mask.array for segment in found if not segment.doubtful]
            region = sure[0] if sure else mark.box if mark.kind == "box" else mark.mask
            (text,) = scene.describe([region], max_new_tokens=options.max_new_tokens)
        phrase = text.strip().rstrip(".") or "what you marked"
        named = tuple(replace(segment, phrase=phrase) for segment in found)
        return Answer(text, text, named, size=mark.size)

    def track(self, phrases: Sequence[str], folder: Path, options: AskOptions) -> Generator[TrackProgress, None, None]:
        track = self._open().track(list(phrases), **_keywords(options))
        about: dict[str, Any] = {"size": track.size, "fps": track.fps, "source": track.source}
        with track, ExitStack() as stack:
            writers = [
                stack.enter_context(OverlayWriter(folder / "overlay.mp4", **about)),
                stack.enter_context(PaletteWriter(folder / "masks", **about)),
                stack.enter_context(JsonLinesWriter(folder / "frames.jsonl", **about)),
            ]
            for frame, pixels in track.pairs():
                for writer in writers:
                    writer.write(frame, pixels)
                yield TrackProgress(frame.index + 1, track.total or 0, frame.segments, pixels, track.reasons)
        shutil.make_archive(str(folder / "masks"), "zip", folder / "masks")
        shutil.rmtree(folder / "masks")

    def close(self) -> None:
        with self._lock:
            if self._scene is not None:
                self._scene.close()
            self._scene = None

    def _open(self) -> Scene:
        with self._lock:
            if self._scene is None:
                self._scene = self._sa2va.open(self._source)
            return self._scene

    def _cleaned(self, on_text: OnText) -> OnText:
        """Takes pieces of an answer as it is written, and passes on the text so far without special tokens."""
        pieces: list[str] = []

        def take(piece: str) -> None:
            pieces.append(piece)
            on_text(self._sa2va.processor.clean("".join(pieces))[0])

        return take


def _keywords(options: AskOptions) -> dict[str, Any]:
    """The same as keyword arguments of a scene."""
    return {
        "threshold": options.threshold,
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "num_key_frames": options.key_frames,
    }
