"""Requests of any number and kind, mapped to replies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sa2va.inference.engine import Engine
from sa2va.inference.options import InferenceOptions
from sa2va.inference.scene import Scene
from sa2va.media.open import MediaSource
from sa2va.processing.regions import Region
from sa2va.processing.requests import GCG_REQUEST
from sa2va.results.answer import Answer
from sa2va.results.history import History

#: Threads that open and decode media ahead of the model.
_OPENERS = 4


@dataclass(frozen=True)
class Request:
    """What to ask about a medium: exactly one of phrases, questions, a caption, or regions alone.

    Attributes:
        media: an image, a video, None for words alone; or an open [`Scene`], which stays open.
        phrases: what to segment, see [`Sa2VA.segment`].
        question: one question, or several independent ones, see [`Sa2VA.chat`] and [`Sa2VA.ask`].
        caption: write a grounded caption.
        regions: bool masks (H, W) or boxes (x0, y0, x1, y1) in pixels; alone, they are described; with questions, one
            region for each.
        history: the turns before the question; or, with several questions, before each of them.
        empty_masks: keep a segment for every ``[SEG]``, even if its mask is empty (questions only).
        at_once: most questions of this request that are answered together; None for as many as the engine holds.
        options: keywords of [`sa2va.inference.options.Options`].
        id: anything, for the caller.

    Raises:
        ValueError: none or several of the four are given.

    Examples:
        >>> from sa2va import Request, Sa2VA
        >>> model = Sa2VA.from_pretrained("tiny")
        >>> requests = [Request("shapes.png", phrases=["the yellow cloud", "the letter Z"]),
        ...             Request("shapes.png", question="What color is the car?")]
        >>> [len(reply.answers) for reply in model.answers(requests)]
        [2, 1]
    """

    media: MediaSource | Scene | None
    phrases: str | Sequence[str] | None = None
    question: str | Sequence[str] | None = None
    caption: bool = False
    regions: Sequence[Region] | None = None
    history: History | Sequence[History] = ()
    empty_masks: bool = False
    at_once: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    id: Any = None

    def __post_init__(self) -> None:
        asked = [self.phrases is not None, self.question is not None, self.caption]
        if sum(asked) > 1 or not (any(asked) or self.regions is not None) or (self.regions is not None and asked[0]):
            raise ValueError(
                "a request has one of phrases=, question=, caption=True, or regions= (alone or with question=); got "
                f"phrases={self.phrases!r}, question={self.question!r}, caption={self.caption}, "
                f"regions={'None' if self.regions is None else len(self.regions)}"
            )


@dataclass(frozen=True)
class Reply:
    """What came of a request.

    Attributes:
        answers: one for each phrase, question or region; none if it failed.
        error: why it failed.

    Examples:
        >>> from sa2va import Request, Sa2VA
        >>> model = Sa2VA.from_pretrained("tiny")
        >>> good, bad = model.answers(Request(name, phrases="the yellow cloud") for name in ("shapes.png", "none.png"))
        >>> good.answers[0].segments[0].phrase
        'the yellow cloud'
        >>> type(bad.error).__name__
        'FileNotFoundError'
    """

    request: Request
    answers: tuple[Answer, ...] = ()
    error: Exception | None = None


def replies(
    engine: Engine, open_scene: Callable[[MediaSource | None], Scene], requests: Iterable[Request], ahead: int
) -> Iterator[Reply]:
    """Replies in order, see [`Sa2VA.answers`]."""
    pending: deque[Request] = deque()

    def steps() -> Iterator[Coroutine[Any, Any, Reply]]:
        for request, scene in _opened(open_scene, requests, ahead):
            pending.append(request)
            yield _steps(request, scene)

    for outcome in engine.map(steps(), ahead):
        request = pending.popleft()
        yield Reply(request, error=outcome) if isinstance(outcome, Exception) else outcome


def _opened(
    open_scene: Callable[[MediaSource | None], Scene], requests: Iterable[Request], ahead: int
) -> Iterator[tuple[Request, Future[Scene]]]:
    """Requests with their media, which threads open and resize ahead."""

    def opened(media: MediaSource | Scene | None) -> Scene:
        if isinstance(media, Scene):
            return media
        scene = open_scene(media)
        scene.prepare()
        return scene

    left = iter(requests)
    waiting: deque[tuple[Request, Future[Scene]]] = deque()
    pool = ThreadPoolExecutor(_OPENERS, thread_name_prefix="sa2va-open")
    try:
        while True:
            for request in islice(left, ahead + 1 - len(waiting)):
                waiting.append((request, pool.submit(opened, request.media)))
            if not waiting:
                break
            yield waiting.popleft()
    finally:  # what was handed out is still opened; what was not is not wanted any more
        for _, opening in waiting:
            opening.cancel()
        pool.shutdown(wait=False)


async def _steps(request: Request, opening: Future[Scene]) -> Reply:
    scene = opening.result()
    try:
        return Reply(request, tuple(await _answers(request, scene)))
    finally:
        if scene is not request.media:
            scene.close()


async def _answers(request: Request, scene: Scene) -> list[Answer]:
    options = InferenceOptions.of(**request.options)
    history: Any = request.history
    if request.phrases is not None:
        return await scene.segment_steps(request.phrases, options)
    question = GCG_REQUEST if request.caption else request.question
    if question is None:
        return await scene.describe_steps(request.regions or (), options)
    several = not isinstance(question, str)
    return await scene.ask_steps(
        question if several else [question],
        options,
        histories=(history or None) if several else [history],
        regions=request.regions,
        at_once=request.at_once,
        keep_empty=request.empty_masks,
        kind="ask" if several else None,
    )
