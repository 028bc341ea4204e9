"""Samples that request masks in an image, and in which words: what all image datasets share.

The sentences are in ``sa2va.processing.requests``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from sa2va.data.datasets.frame_sampling import check_counts, deal
from sa2va.data.sample import LazyFrame, Sample
from sa2va.masks.mask import Mask
from sa2va.processing.requests import SEG_ANSWERS, TRAINING_REQUESTS, TrainingRequests
from sa2va.results.history import Turn

#: Most turns of a sample unless a source is told otherwise: few pictures have more phrases.
MOST_PHRASES = 16

T = TypeVar("T")


@dataclass(frozen=True)
class Wording:
    """Draws the sentences of one sample. requests: the templates of each task. rng: draws them, in turn."""

    requests: TrainingRequests
    rng: random.Random

    def draw(self, templates: Sequence[str], **placeholders: str) -> str:
        """One of a task's templates, filled in. Of one alone nothing is drawn, so that what follows stays the same."""
        template = templates[0] if len(templates) == 1 else self.rng.choice(templates)
        return template.format(**placeholders)

    def referring(self, text: str, *, video: bool = False) -> str:
        """A request for the mask of a phrase; a question keeps its own words."""
        if "?" in text:
            return self.draw(self.requests.question, phrase=text.strip())
        templates = self.requests.video_referring if video else self.requests.referring
        return self.draw(templates, phrase=phrase_of(text))

    def answer(self, *, found: bool = True) -> str:
        """What answers a request for a mask, if anything is meant by it, and if not."""
        return self.draw(SEG_ANSWERS if found else self.requests.no_target)


def phrase_of(text: str) -> str:
    """A phrase as it is put into a request: in lower case, without space around it and without one final full stop."""
    return text.lower().strip().removesuffix(".").rstrip()


@dataclass(frozen=True)
class MaskRequest:
    """Something to ask for.

    Attributes:
        text: a phrase, or a question. mask: makes what it means; None when nothing in the picture is meant.
        question, answer: the whole of them, where the wording is not to be drawn.
    """

    text: str
    mask: Callable[[], Mask] | None
    question: str | None = None
    answer: str | None = None

    def turn(self, wording: Wording) -> Turn:
        """Question and answer in drawn wordings."""
        answer = self.answer or wording.answer(found=self.mask is not None)
        return Turn(self.question or wording.referring(self.text), answer)


class View(NamedTuple):
    """One look at an entry: which entry, which look, and what tells its sample's id from those of other looks."""

    place: int
    number: int
    suffix: str


@dataclass(frozen=True)
class Draws:
    """What a source draws at random, the same whenever a sample is asked for.

    Attributes:
        seed: another seed draws others. phrases: most turns of a sample.
        views: samples per entry, with wordings of their own; where an entry has more than ``phrases``, its views show
            all of them equally often, give or take one.
        requests: the templates that wordings are drawn from.
    """

    seed: int
    phrases: int = MOST_PHRASES
    views: int = 1
    requests: TrainingRequests = TRAINING_REQUESTS

    def __post_init__(self) -> None:
        check_counts(phrases=self.phrases, views=self.views)

    def view(self, index: int, entries: int) -> View:
        """Which view of which entry sample ``index`` is. IndexError outside of the source."""
        if not 0 <= index < entries * self.views:
            raise IndexError(f"index {index} is outside of 0..{entries * self.views - 1}")
        number, place = divmod(index, entries)
        return View(place, number, f"#{number}" if self.views > 1 else "")

    def choose(self, items: Sequence[T], view: View) -> list[T]:
        """At most ``phrases`` of an entry's items, in random order, none of them twice."""
        return deal(items, self.phrases, view.number, random.Random(f"{self.seed}/{view.place}"))

    def clip(self, index: int) -> Wording:
        """Draws the wordings of sample ``index`` of a video, after its ``rng`` has drawn the frames."""
        return Wording(self.requests, random.Random(f"{self.seed}/{index}"))

    def wording(self, index: int) -> Wording:
        """Draws the wordings of sample ``index``."""
        return Wording(self.requests, random.Random(f"{self.seed}/{index}/wording"))


def requests_sample(
    requests: Sequence[MaskRequest], wording: Wording, *, name: str, frame: LazyFrame, source: str
) -> Sample:
    """A turn for each request, tagged with its phrase; what has a question of its own asks for no mask and has no tag.

    Args:
        requests: at least one. wording: draws theirs. name: id of the sample. frame: the picture. source: its source.

    Raises:
        ValueError: a request is for something whose mask is empty: nothing would be learnt but that it is not there.
    """
    turns = tuple(one.turn(wording) for one in requests)
    masks = tuple(_shown(one, name) for one in requests if one.mask)
    tags = tuple("" if one.question else one.text for one in requests)
    return Sample(name, (frame,), turns, masks, source=source, tags=tags)


def united(said: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    """What each phrase means, all of it: two turns that ask for one phrase would contradict each other."""
    found: dict[str, tuple[str, list[T]]] = {}
    for text, meant in said:
        found.setdefault(phrase_of(text), (text, []))[1].append(meant)
    return dict(found.values())


def _shown(request: MaskRequest, name: str) -> np.ndarray:
    """bool (1, H, W)."""
    assert request.mask is not None
    mask = request.mask()
    if not mask.area:
        raise ValueError(
            f"sample {name!r}: the mask of {request.text!r} is empty; its outline encloses no pixel of the picture, or "
            "its run lengths or pixels are all 0: mend the annotation, or take it out"
        )
    return mask.array[None]
