"""Phrases about what is not there: near misses that no object of the scene fits, not even arguably."""

from __future__ import annotations

import random

from sa2va.tiny.synthetic import lexicon
from sa2va.tiny.synthetic.facts import Description, Facts
from sa2va.tiny.synthetic.lexicon import KIND_NOUNS
from sa2va.tiny.synthetic.phrases import Family, Phrase, any_noun, definite, riddle_text, words
from sa2va.tiny.synthetic.shapes import KINDS
from sa2va.tiny.synthetic.splits import LOOKS, Look
from sa2va.tiny.synthetic.wording import ORDERINGS, PLURALS


def absent_look(facts: Facts, rng: random.Random) -> Look:
    """A look the split may show that shares something with an object of the scene, or is wholly different."""
    seen = facts.things[rng.randrange(len(facts.things))].look
    own = facts.scene.split if rng.random() < 0.5 else "train"
    kind = seen.kind if rng.random() < 0.5 else rng.choice(list(KINDS))
    looks = LOOKS[kind, own] or LOOKS[kind, "train"]
    alike = [look for look in looks if look.color == seen.color] if kind != seen.kind else looks
    return rng.choice(alike if alike and rng.random() < 0.7 else looks)


def absent_description(facts: Facts, rng: random.Random) -> Description | None:
    """A description that fits nothing in the scene."""
    look = absent_look(facts, rng)
    texture = look.texture if look.texture != "plain" and rng.random() < 0.6 else None
    description = Description(KIND_NOUNS[look.kind], look.color if rng.random() < 0.8 else None, texture)
    return description if facts.matching(description) == frozenset() else None


def absent_attribute(facts: Facts, rng: random.Random) -> Phrase | None:
    """A look that is not there, often a near miss."""
    description = absent_description(facts, rng)
    if not description:
        return None
    if description.noun.many and rng.random() < 0.15:
        return Phrase(PLURALS[0].format(words(description, rng, plural=True)), frozenset(), "absent")
    return Phrase(f"the {words(description, rng)}", frozenset(), "absent")


def absent_size(facts: Facts, rng: random.Random) -> Phrase | None:
    """A large one where there are only small ones, or the other way round."""
    thing = facts.things[rng.randrange(len(facts.things))]
    other = {"small": "large", "large": "small"}.get(thing.size)
    color = thing.look.color if rng.random() < 0.5 else None
    description = Description(KIND_NOUNS[thing.look.kind], color, size=other)
    if not other or thing.motion in ("grow", "shrink") or facts.matching(description) != frozenset():
        return None
    return Phrase(f"the {words(description, rng)}", frozenset(), "absent")


def absent_relation(facts: Facts, rng: random.Random) -> Phrase | None:
    """An object that is there, but not where the phrase says."""
    if len(facts.things) < 2:
        return None
    index, anchor = rng.sample(facts.everything, 2)
    name = rng.choice(("left", "right", "above", "below", "left", "right", "inside"))
    description = Description(any_noun(facts, index, rng, 0.85))
    place = definite(facts, anchor, rng)
    if name == "inside" and facts.things[anchor].look.kind != "ring":
        return None
    found = facts.select(lambda k: description.fits(facts.things[k]) and facts.related(name, k, anchor))
    if not place or found is None or found:
        return None
    return Phrase(f"the {words(description, rng)} {rng.choice(lexicon.RELATIONS[name])} {place}", found, "absent")


def absent_order(facts: Facts, rng: random.Random) -> Phrase | None:
    """The fourth of three."""
    description = Description(any_noun(facts, rng.randrange(len(facts.things)), rng))
    members = facts.matching(description)
    if not members or len(members) >= len(lexicon.ORDINALS):
        return None
    side, ordinal = rng.choice(("left", "right", "top", "bottom")), lexicon.ORDINALS[len(members)]
    return Phrase(rng.choice(ORDERINGS).format(ordinal, words(description, rng), side), frozenset(), "absent")


def absent_riddle(facts: Facts, rng: random.Random) -> Phrase | None:
    """A riddle to which nothing in the scene is an answer."""
    kinds = {thing.look.kind for thing in facts.things}
    chosen = rng.choice(lexicon.RIDDLES)
    if kinds & (chosen.yes | chosen.unsure):
        return None
    return Phrase(riddle_text(chosen, rng), frozenset(), "absent")


ABSENT_FAMILIES: dict[Family, float] = {
    absent_attribute: 5,
    absent_size: 0.7,
    absent_relation: 2,
    absent_order: 0.7,
    absent_riddle: 1.5,
}
