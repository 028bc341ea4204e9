"""Answers on the screen and as records: the text with its phrases in the colours of their masks, and what was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from sa2va.cli.console import Screen, printable
from sa2va.masks.segment import DOUBTFUL
from sa2va.visualization.colors import color as default_color
from sa2va.zoo import TINY

#: Scores of tiny on pictures of its own world are seldom lower, those on photographs seldom as high.
_AT_HOME = 0.7

if TYPE_CHECKING:
    from sa2va.masks.segment import Segment
    from sa2va.results.answer import Answer


def answer_record(request: str, answer: Answer) -> dict[str, Any]:
    """An answer and what was asked, as JSON-ready values; the schema of the rest is in ``Answer.to_json``."""
    return {"request": request, **json.loads(answer.to_json())}


def show_text(screen: Screen, answer: Answer) -> None:
    """Print what the model said, phrases coloured like their masks."""
    text = Text(printable(answer.text))
    for segment in answer.segments:
        if segment.span is not None:
            text.stylize(f"bold {_style(segment.id, segment.color)}", *segment.span)
    screen.result(text)


def show_found(screen: Screen, answers: Sequence[Answer], wanted: Sequence[str] | None) -> None:
    """Print one line per object, then one per wanted phrase without any."""
    rows = [
        (
            named(segment.id, segment.phrase, segment.color),
            f"object {segment.id}",
            scored(segment.score),
            _share(segment),
        )
        for answer in answers
        for segment in answer.segments
    ]
    screen.rows(rows)
    for phrase, answer in zip(wanted or (), answers, strict=False):
        if not answer.segments:
            screen.result(nothing(phrase, answer.reason or "the model pointed at nothing"))


def nothing(phrase: str, reason: str) -> Text:
    """A line for a phrase without an object."""
    return Text.assemble("- ", printable(phrase), (f"   nothing: {printable(reason)}", "yellow"))


def note_on_tiny(screen: Screen, model: str, scores: Sequence[float]) -> None:
    """Say what the packaged model is made for, unless it is as sure as it hardly ever is elsewhere.

    Args:
        model: as it was loaded. scores: of what was found for each request, 0 for nothing.
    """
    if Path(model) == TINY and (not scores or min(scores) < _AT_HOME):
        screen.note("tiny knows only the drawn world it was made from; for photographs take a model of `sa2va models`")


def labelled(label: str, text: str) -> Text:
    """A line that says first what it is about."""
    return Text.assemble((f"{printable(label)}: ", "cyan"), printable(text))


def named(number: int, phrase: str, color: Sequence[int] | None) -> Text:
    """An object's phrase beside a patch of its colour in the overlays."""
    return Text.assemble(("■ ", _style(number, color)), printable(phrase) or "(unnamed)")


def scored(score: float) -> Text:
    """A score, marked where the model itself thinks little of its masks."""
    return Text.assemble(f"score {score:.2f}", (" doubtful" if score < DOUBTFUL else "", "yellow"))


def _share(segment: Segment) -> str:
    if len(segment.masks) > 1:
        return f"in {sum(mask.area > 0 for mask in segment.masks)} of {len(segment.masks)} frames"
    height, width = segment.mask.size
    return f"{segment.mask.area / (height * width):.1%} of the picture"


def _style(number: int, color: Sequence[int] | None) -> str:
    red, green, blue = color or default_color(number)
    return f"rgb({red},{green},{blue})"
