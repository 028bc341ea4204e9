"""Match free-form answers to options or yes and no, by rules, without a language model as judge.

The rules are VLMEvalKit's exact matching. Two readings are added where it would be plainly wrong: an ``A`` that is the
English article is no choice, and full-width punctuation separates words as ASCII punctuation does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

#: Characters around a letter that do not belong to it. Quotes do: ``"B"`` is quoted text.
_ASCII, _FULL_WIDTH = ".()[],:;!*#{}", "\u3002\uff0c\u3001\uff1a\uff1b\uff01\uff08\uff09\u3010\u3011"
_PUNCTUATION = str.maketrans(dict.fromkeys(_ASCII + _FULL_WIDTH, " "))
#: An ``A`` that opens a sentence, before a word in lower case; "A is right" and "A and B" speak of options.
_ARTICLE = re.compile(r"(?:^|[.!?\n])\s*A\s+(?!(?:is|was|and|or)\b)[a-z]")
#: Beside an article-like A this many words (A included) are a choice with its text rather than a sentence.
_SHORT = 3
_WORD = re.compile(r"\w+")


def chosen_option(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter an answer stands for, None when that is not clear.

    If exactly one option's letter stands in the answer as a word of its own, it is that; else if exactly one option's
    text is contained in the answer, whatever the case of letters, it is that. Where ``A`` looks like the article
    ("A dog lies there"), the texts are asked first, and without an answer there it counts only in up to three words.

    Args:
        options: letter -> text, e.g. ``{"A": "cat", "B": "dog"}``.
    """
    words = answer.translate(_PUNCTUATION).split()
    letters = [letter for letter in options if letter in words]
    lowered = answer.lower()
    texts = [letter for letter, text in options.items() if text.strip().lower() in lowered]
    letter, text = (found[0] if len(found) == 1 else None for found in (letters, texts))
    if letter == "A" and _ARTICLE.search(answer):
        return text or ("A" if len(words) <= _SHORT else None)
    return letter or text


def yes_or_no(answer: str) -> Literal["Yes", "No"] | None:
    """What a yes-or-no answer says: the one of the two words it has, None when it has both or neither."""
    words = set(_WORD.findall(answer.lower()))
    if ("yes" in words) == ("no" in words):
        return None
    return "Yes" if "yes" in words else "No"
