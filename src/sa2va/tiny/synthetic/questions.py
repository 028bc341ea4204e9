"""Questions with answers of one or two words, and the texts that describe an object.

Every answer is the only right one: a question is asked only about an object that its words single out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from sa2va.tiny.synthetic import lexicon
from sa2va.tiny.synthetic import wording as w
from sa2va.tiny.synthetic.absent import absent_description
from sa2va.tiny.synthetic.drawn_scene import Thing
from sa2va.tiny.synthetic.facts import Description, Facts
from sa2va.tiny.synthetic.lexicon import KIND_NOUNS
from sa2va.tiny.synthetic.phrases import definite, loose_description, unique_description, with_article, words


class DrawnQuestion(NamedTuple):
    """A question, its answer, the kind of question, and the object it is about (None: no single one)."""

    text: str
    answer: str
    tag: str
    subject: int | None = None


Asker = Callable[[Facts, random.Random], DrawnQuestion | None]


def name_of(thing: Thing) -> str:
    """An object's canonical description: "striped red star"; texture only where there is one."""
    texture = "" if thing.look.texture == "plain" else f"{thing.look.texture} "
    return f"{texture}{thing.look.color} {KIND_NOUNS[thing.look.kind].one}"


def _subject(facts: Facts, rng: random.Random, **hidden: None) -> tuple[int, str] | None:
    """An object and words for it that do not give away the attributes named in ``hidden``."""
    index = rng.randrange(len(facts.things))
    for _ in range(3):
        description = unique_description(facts, index, rng)
        if description and all(getattr(description, name) is None for name in hidden):
            return index, f"the {words(description, rng)}"
    return None


def ask_color(facts: Facts, rng: random.Random) -> DrawnQuestion | None:
    """The colour of an object named without it."""
    found = _subject(facts, rng, color=None)
    if not found:
        return None
    return DrawnQuestion(
        rng.choice(w.COLOR_QUESTIONS).format(found[1]), facts.things[found[0]].look.color, "color", found[0]
    )


def ask_texture(facts: Facts, rng: random.Random) -> DrawnQuestion | None:
    """The texture of an object named without it."""
    found = _subject(facts, rng, texture=None)
    if not found or (facts.things[found[0]].look.texture == "plain" and rng.random() < 0.6):
        return None
    texture = facts.things[found[0]].look.texture
    return DrawnQuestion(rng.choice(w.TEXTURE_QUESTIONS).format(found[1]), texture, "texture", found[0])


def ask_size(facts: Facts, rng: random.Random) -> DrawnQuestion | None:
    """The size class of an object named without it."""
    found = _subject(facts, rng, size=None)
    if not found:
        return None
    return DrawnQuestion(rng.choice(w.SIZE_QUESTIONS).format(found[1]), facts.things[found[0]].size, "size", found[0])


def ask_kind(facts: Facts, rng: random.Random) -> DrawnQuestion | None:
    """The kind of an object named by its attributes."""
    index = rng.randrange(len(facts.things))
    description = unique_description(facts, index, rng, lexicon.GROUP_NOUNS[rng.choice(("thing", "object"))])
    if not description:
        return None
    answer = KIND_NOUNS[facts.things[index].look.kind].one
    return DrawnQuestion(rng.choice(w.KIND_QUESTIONS).format(f"the {words(description, rng)}"), answer, "kind", index)


def ask_count(facts: Facts, rng: random.Random) -> DrawnQuestion | None:
    """How many objects fit a description, zero included."""
    description = loose_description(facts, rng.randrange(len(facts.things)), rng)
    if rng.random() < 0.15:
        description = absent_description(facts, rng) or description
    members = facts.matching(description)
    if members is None or len(members) >= len(lexicon.NUMBERS) or not description.noun.many:
        return None
    text = rng.choice(w.COUNT_QUESTIONS).format(words(description, rng, plural=True))
    return DrawnQuestion(text, lexicon.NUMBERS[len(members)], "count")


def ask_several(facts: Facts, rng: random.Random) -> DrawnQuestion | None:
    """How many objects, where there are two or more: what counting is hard for."""
    question = ask_count(facts, rng)
    return question if question and question.answer not in lexicon.NUMBERS[:2] else None


def ask_existence(facts: Facts, rng: random.Random) -> DrawnQuestion | None:
    """Yes or no, equally often."""
    there = rng.random() < 0.5
    if there:
        description = loose_description(facts, rng.randrange(len(facts.things)), rng)
        if not facts.matching(description) or description.noun.yes == lexicon.GROUP_NOUNS["thing"].yes:
            return None
    else:
        description = absent_description(facts, rng)
        if not description:
            return None
    text = rng.choice(w.EXIST_QUESTIONS).format(with_article(words(description, rng)))
    return DrawnQuestion(text, w.YES if there else w.NO, "existence")


def ask_larger(facts: Facts, rng: random.Random) -> DrawnQuestion | None:
    """Which of two objects is clearly larger."""
    if len(facts.things) < 2:
        return None
    pair = rng.sample(facts.everything, 2)
    chosen, names = facts.largest(pair), [definite(facts, index, rng) for index in pair]
    if chosen is None or not all(names):
        return None
    answer = names[pair.index(chosen)] or ""
    return DrawnQuestion(rng.choice(w.LARGER_QUESTIONS).format(*names), answer.removeprefix("the "), "larger")


def ask_relation(facts: Facts, rng: random.Random) -> DrawnQuestion | None:
    """Whether one object stands in a relation to another."""
    if len(facts.things) < 2:
        return None
    index, anchor = rng.sample(facts.everything, 2)
    name = rng.choice(("left", "right", "above", "below"))
    truth, names = facts.related(name, index, anchor), [definite(facts, k, rng) for k in (index, anchor)]
    if truth is None or not all(names) or (not truth and rng.random() < 0.6):
        return None
    text = w.RELATION_QUESTIONS[0].format(names[0], rng.choice(lexicon.RELATIONS[name]), names[1])
    return DrawnQuestion(text, w.YES if truth else w.NO, "relation")


def ask_where(facts: Facts, rng: random.Random) -> DrawnQuestion | None:
    """What is left of the house? The only thing there, by its colour and kind."""
    names = ("left", "right", "above", "below", "inside")
    anchor = rng.randrange(len(facts.things))
    name = rng.choice(
        [name for name in names if any(facts.related(name, k, anchor) for k in facts.everything)] or names
    )
    found, place = facts.select(lambda k: facts.related(name, k, anchor)), definite(facts, anchor, rng)
    if not found or len(found) != 1 or not place:
        return None
    (index,) = found
    look = facts.things[index].look
    text = rng.choice(w.WHERE_QUESTIONS).format(rng.choice(lexicon.RELATIONS[name]), place)
    return DrawnQuestion(text, words(Description(KIND_NOUNS[look.kind], look.color), rng), "where", index)


def ask_riddle(rng: random.Random) -> DrawnQuestion:
    """A riddle that needs no picture."""
    chosen = rng.choice([riddle for riddle in lexicon.RIDDLES if len(riddle.yes) == 1])
    (kind,) = chosen.yes
    text = rng.choice(w.TEXT_REQUESTS).format(rng.choice(chosen.questions))
    return DrawnQuestion(text, KIND_NOUNS[kind].one, "text")


PICTURE_ASKERS: dict[Asker, float] = {
    ask_color: 3,
    ask_texture: 1.5,
    ask_size: 1,
    ask_kind: 2.5,
    ask_count: 2,
    ask_existence: 2,
    ask_larger: 1,
    ask_relation: 1.5,
    ask_where: 1.5,
}
#: What is hard to learn is practised more often than it is asked for.
PICTURE_QUIZ: dict[Asker, float] = {
    **PICTURE_ASKERS,
    ask_kind: 3.5,
    ask_count: 3,
    ask_several: 12,
    ask_larger: 3,
    ask_relation: 3,
    ask_where: 2.5,
}
