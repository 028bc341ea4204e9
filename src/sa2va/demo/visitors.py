"""What each visitor has open, and how it is forgotten when they leave."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from sa2va.demo.backend import AskOptions, Backend, OnText, OpenMedium
from sa2va.demo.marks import Mark
from sa2va.demo.rendering import Exchange, shown_size, shrunk_mask
from sa2va.masks.mask import Segment
from sa2va.media.frames import FrameSource
from sa2va.media.open import open_media
from sa2va.results.answer import Answer
from sa2va.results.history import Turn
from sa2va.visualization.colors import ObjectColors

#: Visitors who keep what their pictures were encoded to; beyond, that of the one who was longest away is freed.
MOST_ENCODED = 16
#: Visitors in all; beyond, the one who was longest away is forgotten.
MOST_VISITORS = 200


@dataclass
class PictureDesk:
    """A visitor's picture, the conversation about it and the objects that were found in it."""

    image: Image.Image
    medium: OpenMedium
    exchanges: list[Exchange] = field(default_factory=list)
    #: Every object found, in the picture's size, and smaller as it is shown on the page.
    objects: dict[int, Segment] = field(default_factory=dict)
    shown: dict[int, Segment] = field(default_factory=dict)
    hidden: set[int] = field(default_factory=set)
    opacity: float = 0.45

    def __post_init__(self) -> None:
        self.view = self.image.resize(shown_size(self.image.size), Image.Resampling.LANCZOS)
        self._history: tuple[Turn, ...] = ()
        self._colors = ObjectColors()
        self._ids = count(1)

    def segment(self, phrases: Sequence[str], options: AskOptions) -> Sequence[tuple[str, Answer]]:
        """Find what phrases describe."""
        return list(zip(phrases, self.medium.segment(phrases, options), strict=True))

    def chat(self, question: str, options: AskOptions, on_text: OnText) -> Sequence[tuple[str, Answer]]:
        """Answer a question; the conversation goes on from here."""
        answer = self.medium.chat(question, self._history, options, on_text)
        self._history = answer.history
        return [("", answer)]

    def caption(self, options: AskOptions, on_text: OnText) -> Sequence[tuple[str, Answer]]:
        """Describe the whole picture."""
        return [("", self.medium.caption(options, on_text))]

    def inspect(self, mark: Mark, options: AskOptions) -> Sequence[tuple[str, Answer]]:
        """Say what is marked."""
        return [("", self.medium.inspect(mark, options))]

    def add(self, question: str, answers: Sequence[tuple[str, Answer]]) -> None:
        """Keep an exchange. The objects of the last one that found any are those that are shown."""
        adopted = tuple((wanted, self._adopt(answer)) for wanted, answer in answers)
        new = {segment.id for _, answer in adopted for segment in answer.segments}
        if new or any(wanted for wanted, _ in adopted):
            self.hidden = set(self.objects) - new
        self.exchanges.append(Exchange(question, adopted))

    def fail(self, question: str, error: str) -> None:
        """Keep what was asked in vain."""
        self.exchanges.append(Exchange(question, error=error))

    def clear(self) -> None:
        """Forget the conversation and its objects; the picture stays."""
        self.exchanges, self.objects, self.shown, self.hidden = [], {}, {}, set()
        self._history, self._colors, self._ids = (), ObjectColors(), count(1)

    @property
    def visible(self) -> list[Segment]:
        """The objects whose masks are switched on, in the size of ``view``."""
        return [segment for number, segment in self.shown.items() if number not in self.hidden]

    def _adopt(self, answer: Answer) -> Answer:
        """The answer with ids and colours that no other object of this picture has."""
        fresh = [replace(segment, id=next(self._ids), color=None) for segment in answer.segments]
        segments = self._colors.apply(np.asarray(self.image), fresh)
        self.objects |= {segment.id: segment for segment in segments}
        small = {one.id: replace(one, masks=(shrunk_mask(one.mask, self.view.size),)) for one in segments}
        self.shown |= small
        return replace(answer, segments=segments)


@dataclass
class ClipDesk:
    """A visitor's clip and the conversation about it.

    Attributes:
        path: the file, in the visitor's folder. duration: seconds. cancel: set to stop what runs.
        result: folder of the last track; None before.
    """

    path: Path
    open_clip: Callable[[Path, float, float], OpenMedium]
    exchanges: list[Exchange] = field(default_factory=list)
    cancel: threading.Event = field(default_factory=threading.Event)
    result: Path | None = None

    def __post_init__(self) -> None:
        with open_media(self.path) as source:
            times, frame = source.times(), 1 / float(source.fps or 25)
            if not times:
                raise ValueError("this is a picture; drop it on the other tab")
        self.duration = float(times[-1]) + frame
        self._history: tuple[Turn, ...] = ()
        self._range: tuple[float, float] | None = None
        self._medium: OpenMedium | None = None

    def medium(self, start: float, end: float) -> OpenMedium:
        """The open part of the clip; another part begins another conversation."""
        if self._medium is None or self._range != (start, end):
            self.close()
            self._medium, self._range = self.open_clip(self.path, start, end), (start, end)
            self._history = ()
        return self._medium

    def chat(self, question: str, start: float, end: float, options: AskOptions, on_text: OnText) -> None:
        """Answer a question about a part of the clip."""
        medium = self.medium(start, end)
        answer = medium.chat(question, self._history, options, on_text)
        self._history = answer.history
        self.exchanges.append(Exchange(question, (("", answer),)))

    def part(self, start: float, end: float) -> FrameSource:
        """The frames of a part of the clip."""
        return open_media(self.path, start=float(start), end=float(end))

    def clear(self) -> None:
        """Forget the conversation and the result; the clip stays."""
        self.exchanges, self._history, self.result = [], (), None

    def close(self) -> None:
        """Free what was computed."""
        if self._medium is not None:
            self._medium.close()


class Visitor:
    """One open page.

    Attributes:
        lock: held while one of its requests runs. folder: of its files. picture, clip: what it has open.
    """

    def __init__(self, folder: Path):
        self.lock = threading.Lock()
        self.folder = folder
        self.picture: PictureDesk | None = None
        self.clip: ClipDesk | None = None
        self.gone = False

    def new_folder(self) -> Path:
        """An empty folder of this visitor's, whose name nobody can guess."""
        folder = self.folder / secrets.token_urlsafe(8)
        folder.mkdir(parents=True)
        return folder

    def free(self) -> None:
        """Free what was computed; the next request computes it anew."""
        if self.picture is not None:
            self.picture.medium.close()
        if self.clip is not None:
            self.clip.close()

    def leave(self) -> None:
        """Stop what runs and remove everything."""
        self.gone = True
        if self.clip is not None:
            self.clip.cancel.set()
        with self.lock:
            self.free()
            self.picture = self.clip = None
            shutil.rmtree(self.folder, ignore_errors=True)


class Visitors:
    """All open pages, by the session that the browser made up for each.

    Args:
        root: folder of everybody's files.
    """

    def __init__(self, backend: Backend, root: Path):
        self.backend, self._root = backend, root
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Visitor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, session: str | None) -> Visitor:
        """The visitor of a session, who is new if they were not here before or have been forgotten."""
        if session is None:
            raise ValueError("this page belongs to no session; load it again")
        with self._lock:
            visitor = self._known.pop(session, None) or Visitor(self._root / secrets.token_urlsafe(12))
            self._known[session] = visitor
            others = list(self._known.values())[:-1]
            forgotten = [self._known.popitem(last=False)[1] for _ in range(len(self._known) - MOST_VISITORS)]
        for one in forgotten:
            one.leave()
        for one in others[: max(0, len(others) + 1 - MOST_ENCODED)]:
            if one.lock.acquire(blocking=False):
                try:
                    one.free()
                finally:
                    one.lock.release()
        return visitor

    def leave(self, session: str | None) -> None:
        """Forget a visitor and remove their files."""
        with self._lock:
            visitor = self._known.pop(session or "", None)
        if visitor is not None:
            visitor.leave()

    def close(self) -> None:
        """Forget everybody."""
        for session in list(self._known):
            self.leave(session)

    def new_picture(self, image: Image.Image) -> PictureDesk:
        """A desk with a picture."""
        return PictureDesk(image, self.backend.open_picture(image))

    def new_clip(self, visitor: Visitor, source: Path, *, keep: bool) -> ClipDesk:
        """A desk with a clip, whose file moves to the visitor's folder; with ``keep`` it is copied."""
        target = visitor.new_folder() / f"clip{source.suffix.lower()}"
        (shutil.copyfile if keep else partial(shutil.move))(source, target)
        return ClipDesk(target, self.backend.open_clip)
