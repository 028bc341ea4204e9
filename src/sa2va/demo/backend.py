"""What the page needs of whoever computes: open a picture or a clip, then ask about it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sa2va.demo.marks import Mark
from sa2va.masks.mask import Segment
from sa2va.results.answer import Answer
from sa2va.results.history import History

#: Receives the answer's text so far, again and again; an exception that it raises cancels the request.
OnText = Callable[[str], None]


@dataclass(frozen=True)
class About:
    """What visitors are told of the model.

    Attributes:
        model: its name. place: where it computes.
        tiny: whether it is the packaged model, which knows drawn pictures only.
        describes: whether it can put a marked region into words. clicks: whether it can segment what is marked.
        note: a sentence about the two, where something is to be said.
    """

    model: str
    place: str
    tiny: bool = False
    describes: bool = True
    clicks: bool = True
    note: str = ""


@dataclass(frozen=True)
class AskOptions:
    """What visitors can set.

    Attributes:
        threshold: probability above which a pixel belongs to an object. max_new_tokens: longest answer.
        temperature: 0 always takes the likeliest word. key_frames: how many frames of a clip the language model sees.
    """

    threshold: float = 0.5
    max_new_tokens: int = 512
    temperature: float = 0.0
    key_frames: int = 5


@dataclass(frozen=True)
class TrackProgress:
    """How far a track is.

    Attributes:
        done: frames. total: frames in all; 0 while unknown.
        segments: the objects in the last frame, and its pixels (H, W, 3); empty and None where nobody tells.
        reasons: for each phrase without an object, why.
    """

    done: int
    total: int
    segments: tuple[Segment, ...] = ()
    pixels: NDArray[np.uint8] | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


class OpenMedium(Protocol):
    """An open picture or clip. What is wrong with a request is a ``ValueError`` whose text may be shown."""

    def segment(self, phrases: Sequence[str], options: AskOptions) -> list[Answer]:
        """Find what each phrase describes."""
        ...

    def chat(self, question: str, history: History, options: AskOptions, on_text: OnText) -> Answer:
        """Answer a question, with the turns before it."""
        ...

    def caption(self, options: AskOptions, on_text: OnText) -> Answer:
        """Describe a whole picture, with masks."""
        ...

    def inspect(self, mark: Mark, options: AskOptions) -> Answer:
        """Say what is marked in a picture, and segment it, as far as the model can."""
        ...

    def track(self, phrases: Sequence[str], folder: Path, options: AskOptions) -> Generator[TrackProgress, None, None]:
        """Follow what phrases describe through a clip, and write ``overlay.mp4``, ``masks.zip`` and ``frames.jsonl``.

        Closing the iterator early stops the work within a frame and leaves nothing half written.
        """
        ...

    def close(self) -> None:
        """Free what was computed. The medium may still be asked; it is then looked at anew."""
        ...


class Backend(Protocol):
    """A model, here or elsewhere."""

    @property
    def about(self) -> About:
        """What visitors are told of it."""
        ...

    def open_picture(self, image: Image.Image) -> OpenMedium:
        """Open a picture, mode RGB."""
        ...

    def open_clip(self, path: Path, start: float, end: float) -> OpenMedium:
        """Open a video file from ``start`` to before ``end``, in seconds."""
        ...
