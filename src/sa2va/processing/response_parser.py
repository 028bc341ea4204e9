"""Parse the model's raw answer into clean text and the phrase of each mask.

Text is only changed where a token was cut out: the blanks around the cut become one, and punctuation that the cut left
hanging goes ("Sure, [SEG]." reads "Sure."). Everything else, line breaks and code included, stays as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from sa2va.model.families import SEG_TOKEN

#: A phrase and its (start, end) characters in the clean text.
Phrase = tuple[str, tuple[int, int]]

_BLANK = " \t"
_CLOSING = ".,;:!?)"


def clean_answer(raw: str, special_tokens: Collection[str]) -> tuple[str, list[Phrase | None]]:
    """Take the special tokens out of an answer.

    Args:
        raw: decoded text, special tokens kept.
        special_tokens: every text to cut out; ``[SEG]``, ``<p>`` and ``</p>`` are always cut out.

    Returns:
        The clean text, and for each ``[SEG]`` in order the phrase it grounds: the ``<p> ... </p>`` before it with no
        word in between, None where there is none. Several ``[SEG]`` in a row share one phrase.
    """
    cuts = sorted({SEG_TOKEN, "<p>", "</p>", *special_tokens}, key=len, reverse=True)
    text = _SeamedText()
    found: list[Phrase | None] = []
    phrase: Phrase | None = None
    inside = False
    start: int | None = None
    for part in re.split(f"({'|'.join(map(re.escape, cuts))})", raw):
        if part == "<p>":
            inside, start, phrase = True, None, None
        elif part == "</p>":
            phrase = text.protect(start) if start is not None else None
            inside, start = False, None
        elif part == SEG_TOKEN:
            found.append(phrase)
        elif part not in cuts:
            if not inside and re.search(r"\w", part):
                phrase = None
            begin = text.add(part)
            if inside and start is None:
                start = begin
            continue
        text.cut()
    return text.finish(), found


class _SeamedText:
    """Text that grows part by part; the next part after a cut is joined tidily."""

    def __init__(self) -> None:
        self._text = ""
        self._seam = True
        self._floor = 0  # Characters before it belong to phrases, whose spans must stay true.

    def cut(self) -> None:
        self._seam = True

    def add(self, part: str) -> int | None:
        """Append; the index of the part's first visible character, None where it has none."""
        if self._seam:
            part = self._join(part)
        visible = part.lstrip()
        if visible:
            self._seam = False
        begin = len(self._text) + len(part) - len(visible)
        self._text += part
        return begin if visible else None

    def protect(self, start: int) -> Phrase:
        """Close the phrase that began at ``start``: its text no longer changes."""
        self._floor = len(self._text.rstrip())
        return self._text[start : self._floor], (start, self._floor)

    def finish(self) -> str:
        return self._text.rstrip()

    def _join(self, part: str) -> str:
        """Tidy the end of the text and the start of the part; returns the part to append."""
        left, right = self._text.rstrip(_BLANK), part.lstrip(_BLANK)
        if not left:
            return part.lstrip()
        if not right:
            return part
        blank = len(left) < len(self._text) or len(right) < len(part)
        loose = len(left) > self._floor
        if loose and left.endswith("(") and right.startswith(")"):
            self._text = left[:-1].rstrip(_BLANK)
            return right[1:]
        if right[0] in _CLOSING:
            hanging = loose and left[-1] in ",;:" and right[0] != ")"
            self._text = left[:-1] if hanging else left
            return right
        self._text = left
        return " " + right if blank and left[-1] not in "\n([" and right[0] != "\n" else right
