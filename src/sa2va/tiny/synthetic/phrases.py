"""Phrases that point at objects of a picture, each checked against the scene before it is used.

A family takes the facts and a random source and proposes one phrase, or None when its proposal would be ambiguous.
Attribute, plural, negation and riddle phrases serve clips too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from sa2va.tiny.synthetic import lexicon
from sa2va.tiny.synthetic.facts import Description, Facts
from sa2va.tiny.synthetic.lexicon import GROUP_NOUNS, KIND_NOUNS, Noun
from sa2va.tiny.synthetic.wording import NEGATION_CLAUSES, ORDERINGS, PLURALS, RIDDLE_SUBJECTS


@dataclass(frozen=True)
class Phrase:
    """Words that mean a set of objects.

    Attributes:
        text: with its article, e.g. ``"the red star"``; or a whole question, e.g. ``"What can swim?"``.
        targets: the objects meant; none for a phrase about something that is not there.
        tag: the family, for scores by kind of phrase.
    """

    text: str
    targets: frozenset[int]
    tag: str

    @property
    def is_question(self) -> bool:
        return self.text.endswith("?")


Family = Callable[[Facts, random.Random], Phrase | None]


def words(description: Description, rng: random.Random, plural: bool = False) -> str:
    """A description in words, without an article: "small striped red star"."""
    size = rng.choice(lexicon.SIZE_WORDS[description.size]) if description.size else None
    noun = description.noun.many if plural else description.noun.one
    return " ".join(word for word in (size, description.texture, description.color, noun) if word)


def with_article(text: str) -> str:
    """The indefinite form: "a red star", "an orange car"."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def unique_description(facts: Facts, index: int, rng: random.Random, noun: Noun | None = None) -> Description | None:
    """A description with few words that fits only this object; None when even all its attributes do not suffice."""
    thing = facts.things[index]
    noun = noun or KIND_NOUNS[thing.look.kind]
    values = {"color": thing.look.color, "texture": thing.look.texture, "size": thing.size}
    if thing.look.texture == "plain" and rng.random() < 0.8:
        del values["texture"]
    if thing.motion in ("grow", "shrink"):
        del values["size"]
    names = sorted(values, key=lambda name: rng.random() * (0.5 if name == "color" else 1.0))
    start = rng.choices((0, 1, 2), (3, 4, 1))[0]
    for count in range(min(start, len(names)), len(names) + 1):
        description = Description(noun, **{name: values[name] for name in names[:count]})
        if facts.matching(description) == {index}:
            return description
    return None


def any_noun(facts: Facts, index: int, rng: random.Random, specific: float = 0.7) -> Noun:
    """A noun that covers an object: its kind's own, or with the remaining chance a group's."""
    kind = facts.things[index].look.kind
    if rng.random() < specific:
        return KIND_NOUNS[kind]
    return rng.choice([noun for noun in GROUP_NOUNS.values() if kind in noun.yes])


def definite(facts: Facts, index: int, rng: random.Random) -> str | None:
    """ "the red star" for exactly this object, or None."""
    description = unique_description(facts, index, rng)
    return f"the {words(description, rng)}" if description else None


def loose_description(facts: Facts, index: int, rng: random.Random) -> Description:
    """A description that fits an object and perhaps others: what a relation or an order then narrows down."""
    look = facts.things[index].look
    color = look.color if rng.random() < 0.35 else None
    texture = look.texture if look.texture != "plain" and rng.random() < 0.3 else None
    return Description(any_noun(facts, index, rng, 0.65), color, texture)


def _any(facts: Facts, rng: random.Random) -> int:
    return rng.randrange(len(facts.things))


def attribute(facts: Facts, rng: random.Random) -> Phrase | None:
    """The red star."""
    index = _any(facts, rng)
    description = unique_description(facts, index, rng, any_noun(facts, index, rng))
    if not description:
        return None
    return Phrase(f"the {words(description, rng)}", frozenset({index}), "attribute")


def location(facts: Facts, rng: random.Random) -> Phrase | None:
    """The star in the top left corner."""
    index = _any(facts, rng)
    zones = [zone for zone in lexicon.ZONES if facts.in_zone(zone, index)]
    if not zones:
        return None
    description, zone = loose_description(facts, index, rng), rng.choice(zones)
    members = facts.matching(description)
    found = facts.select(lambda k: facts.in_zone(zone, k), members) if members else None
    if not found or len(found) != 1:
        return None
    return Phrase(f"the {words(description, rng)} {rng.choice(lexicon.ZONES[zone])}", found, "location")


def relation(facts: Facts, rng: random.Random) -> Phrase | None:
    """The star left of the house; all stars left of the house."""
    return _related(facts, rng, ("left", "right", "above", "below"), "relation")


def inside(facts: Facts, rng: random.Random) -> Phrase | None:
    """The star inside the ring."""
    return _related(facts, rng, ("inside",), "inside")


def depth(facts: Facts, rng: random.Random) -> Phrase | None:
    """The star behind the house, partly hidden by it."""
    return _related(facts, rng, ("behind", "front"), "depth")


def _related(facts: Facts, rng: random.Random, relations: tuple[str, ...], tag: str) -> Phrase | None:
    pairs = [(i, j, r) for i in facts.everything for j in facts.everything for r in relations if facts.related(r, i, j)]
    if not pairs:
        return None
    index, anchor, name = rng.choice(pairs)
    place = definite(facts, anchor, rng)
    if not place:
        return None
    description = loose_description(facts, index, rng)
    found = facts.select(lambda k: description.fits(facts.things[k]) and facts.related(name, k, anchor))
    if not found or (len(found) > 1 and not description.noun.many):
        return None
    start = f"the {words(description, rng)}" if len(found) == 1 else f"all {words(description, rng, plural=True)}"
    return Phrase(f"{start} {rng.choice(lexicon.RELATIONS[name])} {place}", found, tag)


def between(facts: Facts, rng: random.Random) -> Phrase | None:
    """The star between the house and the tree."""
    if len(facts.things) < 3:
        return None
    first, last = rng.sample(facts.everything, 2)
    found = [k for k in facts.everything if facts.between(k, first, last)]
    ends = definite(facts, first, rng), definite(facts, last, rng)
    if not found or not all(ends):
        return None
    description = loose_description(facts, rng.choice(found), rng)
    members = facts.matching(description)
    targets = facts.select(lambda k: facts.between(k, first, last), members) if members else None
    if not targets or len(targets) != 1:
        return None
    return Phrase(f"the {words(description, rng)} between {ends[0]} and {ends[1]}", targets, "between")


def order(facts: Facts, rng: random.Random) -> Phrase | None:
    """The second star from the left."""
    description = loose_description(facts, _any(facts, rng), rng)
    members = facts.matching(description)
    if not members or len(members) < 2:
        return None
    count, side = rng.randint(1, min(len(members), 5)), rng.choice(("left", "left", "right", "top", "bottom"))
    chosen = facts.nth(members, side, count)
    if chosen is None:
        return None
    text = rng.choice(ORDERINGS).format(lexicon.ORDINALS[count - 1], words(description, rng), side)
    return Phrase(text, frozenset({chosen}), "order")


def extreme(facts: Facts, rng: random.Random) -> Phrase | None:
    """The largest red shape; the leftmost star."""
    description, name = loose_description(facts, _any(facts, rng), rng), rng.choice(list(lexicon.EXTREMES))
    members = facts.matching(description)
    if not members or len(members) < 2:
        return None
    if name in ("largest", "smallest"):
        chosen = facts.largest(members, 1 if name == "largest" else -1)
    else:
        chosen = facts.nth(members, name, 1)
    if chosen is None:
        return None
    return Phrase(f"the {rng.choice(lexicon.EXTREMES[name])} {words(description, rng)}", frozenset({chosen}), "extreme")


def closest(facts: Facts, rng: random.Random) -> Phrase | None:
    """The star closest to the house."""
    anchor = _any(facts, rng)
    description, place = loose_description(facts, _any(facts, rng), rng), definite(facts, anchor, rng)
    members = facts.matching(description)
    chosen = facts.closest(members, anchor) if members and place else None
    if chosen is None:
        return None
    text = f"the {words(description, rng)} {rng.choice(lexicon.RELATIONS['closest'])} {place}"
    return Phrase(text, frozenset({chosen}), "closest")


def plural(facts: Facts, rng: random.Random) -> Phrase | None:
    """All striped shapes; both stars; every house: one ``[SEG]`` whose mask is their union."""
    description = loose_description(facts, _any(facts, rng), rng)
    members = facts.matching(description)
    if not members or not 2 <= len(members) < len(lexicon.NUMBERS) or not description.noun.many:
        return None
    form, text = rng.choice(PLURALS), words(description, rng, plural=True)
    if form.startswith("every"):
        text = words(description, rng)
    if form.startswith("both") and len(members) != 2:
        return None
    if form.count("{}") == 2:
        return Phrase(form.format(lexicon.NUMBERS[len(members)], text), members, "plural")
    return Phrase(form.format(text), members, "plural")


def negation(facts: Facts, rng: random.Random) -> Phrase | None:
    """The star that is not red; all stars that are not red."""
    index, other = _any(facts, rng), _any(facts, rng)
    noun, look = any_noun(facts, index, rng), facts.things[other].look
    excluded = Description(color=look.color) if rng.random() < 0.7 else Description(texture=look.texture)
    members = facts.matching(Description(noun))
    if not members or (look.texture == "plain" and excluded.texture):
        return None
    targets = frozenset(k for k in members if not excluded.fits(facts.things[k]))
    if not targets or targets == members or (len(targets) > 1 and not noun.many):
        return None
    many = len(targets) > 1
    clause = NEGATION_CLAUSES[many].format(excluded.color or excluded.texture)
    return Phrase(f"{f'all {noun.many}' if many else f'the {noun.one}'} {clause}", targets, "negation")


def riddle(facts: Facts, rng: random.Random) -> Phrase | None:
    """An object by what it is for: a phrase, or a question in its own right."""
    kinds = {thing.look.kind for thing in facts.things}
    fitting = [riddle for riddle in lexicon.RIDDLES if kinds & riddle.yes and not kinds & riddle.unsure]
    if not fitting:
        return None
    chosen = rng.choice(fitting)
    description = Description(Noun("thing", "", chosen.yes, chosen.unsure))
    members = facts.matching(description)
    if not members:
        return None
    if len(members) == 1:
        return Phrase(riddle_text(chosen, rng), members, "riddle")
    color = facts.things[rng.choice(sorted(members))].look.color
    members = facts.matching(Description(description.noun, color))
    if not members or len(members) != 1:
        return None
    return Phrase(RIDDLE_SUBJECTS[3].format(color, rng.choice(chosen.clauses)), members, "riddle")


def riddle_text(chosen: lexicon.Riddle, rng: random.Random) -> str:
    """A riddle as a phrase or as a question."""
    if rng.random() < 0.45:
        return rng.choice(chosen.questions)
    return rng.choice(RIDDLE_SUBJECTS[:3]).format(rng.choice(chosen.clauses))


PICTURE_FAMILIES: dict[Family, float] = {
    attribute: 4,
    location: 1.5,
    relation: 3,
    between: 1.5,
    inside: 0.6,
    depth: 0.6,
    order: 2,
    extreme: 2,
    closest: 1,
    plural: 1.5,
    negation: 0.8,
    riddle: 2,
}
#: What is hard to learn is practised more often than it is asked for.
PICTURE_LESSON: dict[Family, float] = {
    **PICTURE_FAMILIES,
    relation: 5,
    between: 2,
    order: 5,
    closest: 4,
    plural: 2,
    negation: 2,
}
