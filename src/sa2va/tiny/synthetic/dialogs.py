"""Conversations about a scene: one maker per task, each giving turns, masks in the order of ``[SEG]``, and regions."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np

from sa2va.results.history import Turn
from sa2va.tiny.synthetic import wording as w
from sa2va.tiny.synthetic.absent import ABSENT_FAMILIES
from sa2va.tiny.synthetic.drawn_scene import box_of
from sa2va.tiny.synthetic.facts import Facts
from sa2va.tiny.synthetic.motion import (
    CLIP_ABSENT_FAMILIES,
    CLIP_ASKERS,
    CLIP_FAMILIES,
    CLIP_LESSON,
    CLIP_QUIZ,
    told,
)
from sa2va.tiny.synthetic.phrases import PICTURE_FAMILIES, PICTURE_LESSON, Family, Phrase, riddle, with_article
from sa2va.tiny.synthetic.questions import PICTURE_ASKERS, PICTURE_QUIZ, DrawnQuestion, ask_riddle, name_of

Answers = Literal["fixed", "pool"]
_EXACT_SHARE = 0.5  # of requests in the exact wording of inference; the others paraphrase it
_BARE_SHARE = 0.1  # of phrases that come without "the", as people type them
_ABSENT_SHARE = 0.3  # of requests in the mixed task that ask for what is not there
_REGION_GRID = 16  # regions reach the model as cells of such a grid; fewer than four cells cannot be described
_FEWEST_CELLS = 4
_Maker = TypeVar("_Maker", bound=Callable)


@dataclass
class Dialog:
    """A conversation being written: turns, their tags, masks bool (F, H, W) per ``[SEG]``, regions bool (H, W)."""

    turns: list[Turn] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    regions: list[np.ndarray] = field(default_factory=list)
    said: set[object] = field(default_factory=set)

    def once(self, subject: object) -> bool:
        """Whether this is said for the first time in the conversation."""
        new = subject not in self.said
        self.said.add(subject)
        return new

    def add(self, question: str, answer: str, tag: str, masks: Sequence[np.ndarray] = ()) -> None:
        self.turns.append(Turn(question, answer))
        self.tags.append(tag)
        self.masks.extend(masks)


class Writer:
    """Writes conversations about one scene.

    Args:
        facts: what is true in the scene.
        rng: every choice comes from it.
        phrases: most turns of a task that repeats one kind of request.
        answers: ``"fixed"`` for one form of answer, ``"pool"`` for all forms.
    """

    def __init__(self, facts: Facts, rng: random.Random, phrases: int, answers: Answers):
        self.facts, self.rng, self.phrases, self.answers = facts, rng, phrases, answers
        self.clip = facts.scene.clip
        self._training = facts.scene.split == "train"
        if self.clip:
            self._families = CLIP_LESSON if self._training else CLIP_FAMILIES
            self._absent, self._askers = CLIP_ABSENT_FAMILIES, CLIP_QUIZ if self._training else CLIP_ASKERS
        else:
            self._families = PICTURE_LESSON if self._training else PICTURE_FAMILIES
            self._absent, self._askers = ABSENT_FAMILIES, PICTURE_QUIZ if self._training else PICTURE_ASKERS

    def write(self, task: str) -> Dialog:
        """A conversation of the task; one without turns when the scene does not allow it."""
        dialog = Dialog()
        TASKS[task](self, dialog)
        return dialog

    def refer(self, dialog: Dialog) -> None:
        """Requests for what is there."""
        for _ in range(self.phrases):
            self._request(dialog, self._phrase(self._families))

    def reason(self, dialog: Dialog) -> None:
        """Requests that say what an object is for, not what it is."""
        for _ in range(self.phrases):
            self._request(dialog, self._phrase({riddle: 1}))

    def absent(self, dialog: Dialog) -> None:
        """Requests for what is not there."""
        for _ in range(self.phrases):
            self._request(dialog, self._phrase(self._absent))

    def segment(self, dialog: Dialog) -> None:
        """Requests for what is there mixed with some for what is not."""
        for _ in range(self.phrases):
            self._request(dialog, self._mixed_phrase())

    def question(self, dialog: Dialog) -> None:
        """Questions with answers of one or two words."""
        for _ in range(self.phrases):
            self._ask(dialog, self._question())

    def caption(self, dialog: Dialog) -> None:
        """A description in which every object is grounded, from left to right."""
        order = sorted(self.facts.everything, key=lambda index: self.facts.centers[index][0])
        spans = [w.GROUNDED.format(with_article(name_of(self.facts.things[index]))) for index in order]
        if self.clip:
            spans = [f"{span} {told(self.facts, index)}" for span, index in zip(spans, order, strict=True)]
        relation = self._relation_of_two(order)
        if relation:
            text = f"{spans[0]} {relation} {spans[1]}."
        else:
            opening = w.VIDEO_CAPTION_OPENING if self.clip else w.CAPTION_OPENING
            text = f"{opening} {', '.join(spans[:-1])}{f' {w.AND} ' if spans[1:] else ''}{spans[-1]}."
        pool = w.VIDEO_CAPTION_REQUESTS if self.clip else w.CAPTION_REQUESTS
        dialog.add(self._wording(pool), text, "caption", [self._mask(frozenset({index})) for index in order])

    def region(self, dialog: Dialog) -> None:
        """Descriptions of objects that are marked by their mask or box."""
        scene = self.facts.scene
        fitting = [k for k in self.facts.everything if _cells(scene.masks[k, 0]) >= _FEWEST_CELLS]
        chosen = self.rng.sample(fitting, min(len(fitting), self.rng.randint(1, len(w.REGION_NAMES))))
        for name, index in zip(w.REGION_NAMES, chosen, strict=False):
            thing = self.facts.things[index]
            answer = with_article(f"{thing.size} {name_of(thing)}")
            answer = f"{answer[0].upper()}{answer[1:]}."
            dialog.add(self._wording(w.REGION_REQUESTS).format(name), answer, "region")
            dialog.regions.append(self._region(scene.masks[:, 0], index))

    def chat(self, dialog: Dialog) -> None:
        """Two or three turns: requests, questions, and follow-ups about the object just spoken of."""
        subject: int | None = None
        length = self.rng.randint(2, 3)
        for _ in range(4 * length):
            if subject is not None and self.rng.random() < 0.6:
                subject = self._follow_up(dialog, subject)
            elif self.rng.random() < 0.5:
                subject = self._request(dialog, self._mixed_phrase())
            else:
                subject = self._ask(dialog, self._question())
            if len(dialog.turns) == length:
                return

    def text(self, dialog: Dialog) -> None:
        """A riddle that needs no picture."""
        self._ask(dialog, ask_riddle(self.rng))

    def _follow_up(self, dialog: Dialog, subject: int) -> int | None:
        """A mask of what was asked about, or the colour of what was segmented."""
        last, thing = dialog.turns[-1], self.facts.things[subject]
        if w.SEG not in last.answer:
            it = Phrase(w.PRONOUN, frozenset({subject}), "pronoun")
            return self._request(dialog, it) if self._wanted(subject) else None
        if thing.look.color in last.question:
            return None
        return self._ask(
            dialog, DrawnQuestion(w.COLOR_QUESTIONS[0].format(w.PRONOUN), thing.look.color, "color", subject)
        )

    def _wanted(self, index: int) -> bool:
        """In validation and test, requests are for looks that are held out from training."""
        return self._training or self.facts.things[index].held

    def _mixed_phrase(self) -> Phrase | None:
        return self._phrase(self._absent if self.rng.random() < _ABSENT_SHARE else self._families)

    def _phrase(self, families: Mapping[Family, float]) -> Phrase | None:
        """One valid phrase; where targets are held out from training, only phrases that mean one of them."""
        for family in self._draws(families):
            phrase = family(self.facts, self.rng)
            if phrase and (not phrase.targets or any(map(self._wanted, phrase.targets))):
                return phrase
        return None

    def _question(self) -> DrawnQuestion | None:
        for asker in self._draws(self._askers):
            question = asker(self.facts, self.rng)
            if question:
                return question
        return None

    def _draws(self, weights: Mapping[_Maker, float]) -> list[_Maker]:
        return self.rng.choices(list(weights), list(weights.values()), k=8)

    def _request(self, dialog: Dialog, phrase: Phrase | None) -> int | None:
        """Add a request for a mask; returns the object when it is a single one."""
        if not phrase or not dialog.once((phrase.text, len(phrase.targets) and min(phrase.targets))):
            return None
        question = self._wording(w.VIDEO_REQUESTS if self.clip else w.IMAGE_REQUESTS).format(phrase.text)
        if phrase.is_question:
            question = w.QUESTION_REQUEST.format(phrase.text)
        elif self.rng.random() < _BARE_SHARE:
            question = (w.VIDEO_REQUEST if self.clip else w.IMAGE_REQUEST).format(phrase.text.removeprefix("the "))
        if not phrase.targets:
            dialog.add(question, self._answer(w.NO_TARGET_ANSWER, w.NO_TARGET_ANSWERS), phrase.tag)
            return None
        dialog.add(question, self._answer(w.SEG_ANSWER, w.SEG_ANSWERS), phrase.tag, [self._mask(phrase.targets)])
        return min(phrase.targets) if len(phrase.targets) == 1 else None

    def _ask(self, dialog: Dialog, question: DrawnQuestion | None) -> int | None:
        if not question:
            return None
        topic = question.text if question.subject is None else question.subject
        if not dialog.once((question.tag, topic)):
            return None
        suffix = f" {w.SHORT_ANSWER}" if self.rng.random() < 0.3 else ""
        dialog.add(question.text + suffix, question.answer, question.tag)
        return question.subject

    def _wording(self, pool: Sequence[str]) -> str:
        return pool[0] if self.rng.random() < _EXACT_SHARE else self.rng.choice(pool)

    def _answer(self, fixed: str, pool: Sequence[str]) -> str:
        return fixed if self.answers == "fixed" else self.rng.choice(pool)

    def _mask(self, targets: frozenset[int]) -> np.ndarray:
        return np.logical_or.reduce(self.facts.scene.masks[sorted(targets)])

    def _relation_of_two(self, order: list[int]) -> str | None:
        if self.clip or len(order) != 2:
            return None
        found = [name for name in ("left", "above", "below") if self.facts.related(name, order[0], order[1])]
        return w.CAPTION_RELATIONS[found[0]] if found else None

    def _region(self, masks: np.ndarray, index: int) -> np.ndarray:
        """An object's mask, or now and then its box where the box holds little else."""
        mask: np.ndarray = masks[index]
        y0, y1, x0, x1 = box_of(mask)
        box = np.zeros_like(mask)
        box[y0:y1, x0:x1] = True
        others = np.delete(masks, index, axis=0) & box
        alone = mask.sum() > 0.45 * box.sum() and others.sum() < 0.1 * box.sum()
        return box if alone and self.rng.random() < 0.3 else mask


def _cells(mask: np.ndarray) -> int:
    """Cells of the region grid that a mask sets, sampled at the nearest pixel."""
    rows, columns = (np.arange(_REGION_GRID) * side // _REGION_GRID for side in mask.shape)
    return int(mask[np.ix_(rows, columns)].sum())


TASKS: dict[str, Callable[[Writer, Dialog], None]] = {
    "refer": Writer.refer,
    "reason": Writer.reason,
    "absent": Writer.absent,
    "segment": Writer.segment,
    "question": Writer.question,
    "caption": Writer.caption,
    "region": Writer.region,
    "chat": Writer.chat,
    "text": Writer.text,
}
PICTURE_MIX: dict[str, float] = {"segment": 6, "question": 2, "caption": 1.5, "region": 1, "chat": 1.5, "text": 0.1}
CLIP_MIX: dict[str, float] = {"segment": 6, "question": 2, "caption": 1, "chat": 1}
