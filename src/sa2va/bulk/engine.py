"""Stand-in for ``Sa2VA.answers``: one request after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from sa2va.predictor import Sa2VA
from sa2va.results.answer import Answer


@dataclass(frozen=True)
class Request:
    media: Any
    phrases: Any = None
    question: str | None = None
    caption: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    id: Any = None


@dataclass(frozen=True)
class Reply:
    request: Request
    answers: tuple[Answer, ...]
    error: Exception | None


def answers(sa2va: Sa2VA, requests: Iterable[Request], *, ahead: int = 16) -> Iterator[Reply]:
    if hasattr(sa2va, "answers"):
        yield from sa2va.answers(requests, ahead=ahead)
        return
    for request in requests:
        try:
            with sa2va.open(request.media) as scene:
                if request.phrases:
                    found = cast("list[Answer]", scene.segment(list(request.phrases), **request.options))
                elif request.caption:
                    found = [scene.caption(**request.options)]
                else:
                    found = [scene.chat(str(request.question), **request.options)]
            yield Reply(request, tuple(found), None)
        except Exception as error:
            yield Reply(request, (), error)
