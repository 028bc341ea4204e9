"""Open scenes, found again by the content of their medium; the least recently used go when memory is short."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sa2va.inference.scene import Scene
from sa2va.media.open import Picture
from sa2va.predictor import Sa2VA
from sa2va.results.history import Turn
from sa2va.serve.intake import Intake, SentMedium, nameless
from sa2va.serve.monitoring import Monitoring

#: Answers per scene of which the wording with special tokens is remembered.
_MOST_ANSWERS = 256


@dataclass(eq=False)
class OpenScene:
    """A scene of the pool.

    Attributes:
        scene: the scene; None until whoever came first has opened it.
        users: requests that are at it. nbytes: its memory when the last of them left it.
    """

    scene: Scene | None = None
    users: int = 0
    nbytes: int = 0
    opening: threading.Lock = field(default_factory=threading.Lock)
    _said: OrderedDict[tuple[tuple[str, str], ...], str] = field(default_factory=OrderedDict)

    def remember(self, texts: tuple[tuple[str, str], ...], raw: str) -> None:
        """Keep the last answer of a conversation as it was written.

        Args:
            texts: the conversation as pairs (question, text), as clients send it back. raw: with special tokens.
        """
        self._said[texts] = raw
        while len(self._said) > _MOST_ANSWERS:
            self._said.popitem(last=False)

    def turns(self, texts: tuple[tuple[str, str], ...]) -> tuple[Turn, ...]:
        """A conversation that a client sent back: answers given here with the special tokens they were written with.

        So the model reads its own words again, masks included, and what it has read of them already is not read anew.
        """
        return tuple(
            Turn(question, self._said.get(texts[: number + 1], text)) for number, (question, text) in enumerate(texts)
        )


class ScenePool:
    """Opens scenes and keeps them, up to a budget.

    Scenes in use are never closed, so that memory may exceed the budget while more are asked about at a time.

    Args:
        budget: bytes of the scenes that are kept while nobody uses them. max_frames: of a video.
    """

    def __init__(self, model: Sa2VA, intake: Intake, monitoring: Monitoring, *, budget: int, max_frames: int):
        self._model, self._intake, self._monitoring = model, intake, monitoring
        self._budget, self._max_frames = budget, max_frames
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenScene] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def nbytes(self) -> int:
        """Memory of the scenes, bytes; of those in use, what it was before."""
        with self._lock:
            return sum(one.nbytes for one in self._open.values())

    @contextmanager
    def borrow(self, medium: SentMedium | None) -> Iterator[tuple[OpenScene, Scene]]:
        """The scene of a medium, opened now or earlier; of words alone, a new one.

        Raises:
            ValueError: the medium cannot be opened, or exceeds a limit.
        """
        key = "" if medium is None else medium.key
        with self._lock:
            entry = self._open.setdefault(key, OpenScene()) if medium else OpenScene()
            entry.users += 1
        try:
            with (
                self._monitoring.part("opening"),
                entry.opening,
            ):  # several may ask about a new medium at once: the first opens it
                if entry.scene is None:
                    source = self._intake.open(medium, limit=self._max_frames) if medium else None
                    entry.scene = self._model.open(source)
            with nameless(entry.scene.media.path if entry.scene.media else None):
                yield entry, entry.scene
        finally:
            self._give_back(key, entry)

    def _give_back(self, key: str, entry: OpenScene) -> None:
        with self._lock:
            entry.users -= 1
            if entry.users:
                return
            if not key or entry.scene is None:
                self._open.pop(key, None)
                unused = [entry]
            else:
                entry.nbytes = _bytes_of(entry.scene)
                self._open.move_to_end(key)
                unused = self._over_budget()
        for one in unused:
            self._close(one)

    def _over_budget(self) -> list[OpenScene]:
        """Take the least recently used scenes out until the rest fits."""
        taken, total = [], sum(one.nbytes for one in self._open.values())
        for key, one in list(self._open.items()):
            if total <= self._budget:
                break
            if not one.users:
                total -= one.nbytes
                taken.append(self._open.pop(key))
        return taken

    def _close(self, entry: OpenScene) -> None:
        if entry.scene is not None:
            media = entry.scene.media
            entry.scene.close()
            self._intake.discard(media)

    def close(self) -> None:
        """Close all scenes."""
        with self._lock:
            entries = list(self._open.values())
            self._open.clear()
        for entry in entries:
            self._close(entry)


def _bytes_of(scene: Scene) -> int:
    """What a scene's encoding and its decoded picture occupy."""
    height, width = scene.size or (0, 0)
    return scene.nbytes + (height * width * 3 if isinstance(scene.media, Picture) else 0)
