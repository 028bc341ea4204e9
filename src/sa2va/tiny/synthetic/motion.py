"""Phrases and questions about clips: what moves where, what comes and goes, what passes behind what."""

from __future__ import annotations

import random

import numpy as np

from sa2va.tiny.synthetic import absent, lexicon, phrases
from sa2va.tiny.synthetic import questions as q
from sa2va.tiny.synthetic import wording as w
from sa2va.tiny.synthetic.facts import Description, Facts, Truth
from sa2va.tiny.synthetic.lexicon import KIND_NOUNS, MOTIONS
from sa2va.tiny.synthetic.phrases import Family, Phrase, definite, loose_description, words
from sa2va.tiny.synthetic.questions import Asker, DrawnQuestion

_STRAIGHT = ("drift", "hide", "leave", "enter")
_PLACED = ("still", "grow", "shrink", "appear", "vanish")
_ARGUABLE = {  # motions that one could also call by the name on the left
    "still": ("grow", "shrink", "appear", "vanish"),
    "moves": ("grow", "shrink", "appear", "vanish"),
    "return": ("bounce", "circle"),
    "circle": (),
    "bounce": ("return",),
    "leave": ("vanish",),
    "enter": ("appear",),
    "appear": ("enter",),
    "vanish": ("leave", "hide"),
    "grow": (),
    "shrink": (),
}


def performs(facts: Facts, motion: str, index: int) -> Truth:
    """Whether an object moves in the way that ``lexicon.MOTIONS`` calls by this name."""
    own = facts.things[index].motion
    if motion in ("left", "right", "up", "down"):
        return _heads(facts, motion, index)
    if own in _ARGUABLE[motion]:
        return None
    if motion in ("vanish", "appear") and own != motion and not facts.scene.areas[index].all():
        return None if own not in ("leave", "enter", "vanish", "appear") else False
    return own not in _PLACED if motion == "moves" else own == motion


def _heads(facts: Facts, direction: str, index: int) -> Truth:
    own = facts.things[index].motion
    if own not in _STRAIGHT:
        return False if own in _PLACED else None
    path = facts.scene.paths[index]
    dx, dy = path[-1] - path[0]
    along, across = {"left": (-dx, dy), "right": (dx, dy), "up": (-dy, dx), "down": (dy, dx)}[direction]
    if along > 2.5 * abs(across):
        return True
    return False if along <= 0.15 * abs(across) else None


def heading(facts: Facts, index: int) -> str | None:
    """left, right, up or down for an object on a straight way along an axis, else None."""
    return next((name for name in ("left", "right", "up", "down") if _heads(facts, name, index)), None)


def passes_behind(facts: Facts, index: int, cover: int) -> Truth:
    """Whether a moving object goes out of sight, or mostly so, behind another and comes out again."""
    if index == cover:
        return False
    scene = facts.scene
    whole = scene.outlines[index].sum(axis=(1, 2))
    both = (scene.outlines[index] & scene.outlines[cover]).sum(axis=(1, 2)) if cover > index else np.zeros_like(whole)
    share = both / np.maximum(1, whole)
    if not share.any():
        return False
    most = int(share.argmax())
    clear = (share == 0) & (whole > 0.6 * whole.max())
    through = bool(clear[:most].any() and clear[most:].any())
    return True if through and share[most] > 0.6 and facts.things[index].motion not in _PLACED else None


def moving(facts: Facts, rng: random.Random) -> Phrase | None:
    """The circle that turns back; all shapes that move."""
    index = rng.randrange(len(facts.things))
    names = [name for name in MOTIONS if performs(facts, name, index)]
    if not names:
        return None
    name, description = rng.choice(names), loose_description(facts, index, rng)
    found = facts.select(lambda k: description.fits(facts.things[k]) and performs(facts, name, k))
    if not found or (len(found) > 1 and not description.noun.many):
        return None
    if len(found) > 1:
        return Phrase(f"all {words(description, rng, plural=True)} {MOTIONS[name].plural}", found, "motion")
    return Phrase(f"the {_one(words(description, rng), rng)} {rng.choice(MOTIONS[name].clauses)}", found, "motion")


def moving_question(facts: Facts, rng: random.Random) -> Phrase | None:
    """ "Which circle turns back?" as a request in its own right."""
    found = _who(facts, rng)
    return Phrase(found[0], frozenset({found[1]}), "motion") if found else None


def _who(facts: Facts, rng: random.Random) -> tuple[str, int] | None:
    index = rng.randrange(len(facts.things))
    names = [name for name in MOTIONS if performs(facts, name, index)]
    if not names:
        return None
    name, description = rng.choice(names), Description(phrases.any_noun(facts, index, rng, 0.4))
    found = facts.select(lambda k: description.fits(facts.things[k]) and performs(facts, name, k))
    if found != {index}:
        return None
    return rng.choice(w.MOTION_WHO_QUESTIONS).format(words(description, rng), MOTIONS[name].third), index


def behind(facts: Facts, rng: random.Random) -> Phrase | None:
    """The star that passes behind the house."""
    pairs = [(i, j) for i in facts.everything for j in facts.everything if passes_behind(facts, i, j)]
    if not pairs:
        return None
    index, cover = rng.choice(pairs)
    description, place = loose_description(facts, index, rng), definite(facts, cover, rng)
    found = facts.select(lambda k: description.fits(facts.things[k]) and passes_behind(facts, k, cover))
    if not place or not found or len(found) > 1:
        return None
    return Phrase(f"the {words(description, rng)} {rng.choice(lexicon.PASS_BEHIND)} {place}", found, "motion")


def fastest(facts: Facts, rng: random.Random) -> Phrase | None:
    """The star that moves fastest, faster than all others by far."""
    description = loose_description(facts, rng.randrange(len(facts.things)), rng)
    members = facts.matching(description)
    if not members or len(members) < 2:
        return None
    steps = np.abs(np.linalg.norm(np.diff(facts.scene.paths, axis=1), axis=2))
    pace = sorted((float(steps[k].max()), k) for k in members)
    if pace[-1][0] < 1.6 * pace[-2][0] or pace[-1][0] == 0 or pace[-2][0] == 0:
        return None
    return Phrase(f"the {words(description, rng)} {rng.choice(lexicon.FASTEST)}", frozenset({pace[-1][1]}), "motion")


def absent_motion(facts: Facts, rng: random.Random) -> Phrase | None:
    """An object that is there but does not move so."""
    index, name = rng.randrange(len(facts.things)), rng.choice(list(MOTIONS))
    description = loose_description(facts, index, rng)
    found = facts.select(lambda k: description.fits(facts.things[k]) and performs(facts, name, k))
    if found is None or found or facts.matching(description) is None:
        return None
    return Phrase(f"the {words(description, rng)} {rng.choice(MOTIONS[name].clauses)}", found, "absent")


def _one(text: str, rng: random.Random) -> str:
    """ "the one that turns back" for "the thing that turns back", now and then."""
    return text.replace("thing", "one") if rng.random() < 0.4 else text


def ask_motion(facts: Facts, rng: random.Random) -> DrawnQuestion | None:
    """Whether an object moves in a certain way."""
    index, name = rng.randrange(len(facts.things)), rng.choice([name for name in MOTIONS if name != "still"])
    truth, subject = performs(facts, name, index), definite(facts, index, rng)
    if truth is None or not subject or (not truth and rng.random() < 0.75):
        return None
    text = rng.choice(w.MOTION_QUESTIONS).format(subject, MOTIONS[name].verb)
    return DrawnQuestion(text, w.YES if truth else w.NO, "motion", index)


def ask_direction(facts: Facts, rng: random.Random) -> DrawnQuestion | None:
    """Left, right, up or down."""
    index = rng.randrange(len(facts.things))
    answer, subject = heading(facts, index), definite(facts, index, rng)
    if not answer or not subject:
        return None
    return DrawnQuestion(rng.choice(w.DIRECTION_QUESTIONS).format(subject), answer, "direction", index)


def ask_moving_count(facts: Facts, rng: random.Random) -> DrawnQuestion | None:
    """How many objects move."""
    found = facts.select(lambda k: performs(facts, "moves", k))
    if found is None:
        return None
    return DrawnQuestion(rng.choice(w.MOTION_COUNT_QUESTIONS), lexicon.NUMBERS[len(found)], "motion count")


def ask_who(facts: Facts, rng: random.Random) -> DrawnQuestion | None:
    """Which object moves in a certain way, by its colour and kind."""
    found = _who(facts, rng)
    if not found:
        return None
    look = facts.things[found[1]].look
    return DrawnQuestion(found[0], words(Description(KIND_NOUNS[look.kind], look.color), rng), "motion who", found[1])


def told(facts: Facts, index: int) -> str:
    """An object's motion for a caption: "moves left", "turns back", "does not move"."""
    own = facts.things[index].motion
    if own in ("drift", "hide"):
        return MOTIONS[heading(facts, index) or "moves"].third
    return MOTIONS[own].third


CLIP_FAMILIES: dict[Family, float] = {
    phrases.attribute: 3,
    moving: 5,
    moving_question: 1,
    behind: 1.5,
    fastest: 0.5,
    phrases.plural: 0.7,
    phrases.negation: 0.5,
    phrases.riddle: 1,
}
CLIP_ABSENT_FAMILIES: dict[Family, float] = {absent.absent_attribute: 3, absent_motion: 3, absent.absent_riddle: 1}
CLIP_ASKERS: dict[Asker, float] = {
    q.ask_color: 2,
    q.ask_texture: 0.7,
    q.ask_kind: 1.5,
    q.ask_count: 1,
    q.ask_existence: 1,
    ask_motion: 3,
    ask_direction: 2.5,
    ask_moving_count: 1,
    ask_who: 2,
}
#: What is hard to learn is practised more often than it is asked for.
CLIP_LESSON: dict[Family, float] = {**CLIP_FAMILIES, moving: 7, moving_question: 2}
CLIP_QUIZ: dict[Asker, float] = {**CLIP_ASKERS, ask_motion: 4, ask_direction: 4, ask_moving_count: 2, ask_who: 3}
