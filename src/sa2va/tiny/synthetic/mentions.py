"""Which words of a question speak of which objects: every noun with its attributes, read back from the text.

"Segment the red star left of the house." speaks of all red stars and of all houses; what the whole of it means is for
the language model to find out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sa2va.results.history import Turn
from sa2va.tiny.synthetic.facts import Description, Facts
from sa2va.tiny.synthetic.lexicon import GROUP_NOUNS, KIND_NOUNS, SIZE_WORDS
from sa2va.tiny.synthetic.paint import COLORS, TEXTURES


class Mention(NamedTuple):
    """Words of a question that speak of objects: "the red star" in "Segment the red star left of the house."

    Attributes:
        turn: whose question it is. end: its characters up to the end of these words.
        objects: indices of the scene's objects that the words alone fit, "star" for every star; none where they fit
            nothing.
    """

    turn: int
    end: int
    objects: tuple[int, ...]


_NOUNS = {
    form: noun for noun in (*KIND_NOUNS.values(), *GROUP_NOUNS.values()) for form in (noun.one, noun.many) if form
}
_SIZES = {word: size for size, words in SIZE_WORDS.items() for word in words}


def _any_of(words: Sequence[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))  # "letter A" before "letter"


_PHRASE = re.compile(
    rf"\b(?:({_any_of([*_SIZES])}) )?(?:({_any_of(TEXTURES)}) )?(?:({_any_of([*COLORS])}) )?({_any_of([*_NOUNS])})\b"
)


def mentions(facts: Facts, turns: Sequence[Turn]) -> tuple[Mention, ...]:
    """What the questions of a conversation speak of; words that could arguably fit an object are left out."""
    found = []
    for number, turn in enumerate(turns):
        for match in _PHRASE.finditer(turn.question):
            size, texture, color, noun = match.groups()
            members = facts.matching(Description(_NOUNS[noun], color, texture, size and _SIZES[size]))
            if members is not None:
                found.append(Mention(number, match.end(), tuple(sorted(members))))
    return tuple(found)
