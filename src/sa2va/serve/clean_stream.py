"""An answer's text while it is written: only what no later piece can change goes out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

#: A special token that may not be complete yet.
_UNFINISHED = re.compile(r"[<\[][^<>\[\]]{0,40}$")
#: What a special token that follows may take away from the end of the text.
_LOOSE = " \t\r\n,;:("


class CleanStream:
    """Turns the raw pieces of an answer into the pieces of its clean text, up to a stop sequence.

    Args:
        clean: takes the special tokens out of an answer.
        stops: the text ends before the first of these.

    Attributes:
        raw: the answer so far, with its special tokens.
        end: where the text ends, if a stop sequence was met; else None.
    """

    def __init__(self, clean: Callable[[str], str], stops: Sequence[str] = ()):
        self._clean = clean
        self._stops = stops
        self._hold = max((len(stop) for stop in stops), default=1) - 1
        self._sent = ""
        self.raw = ""
        self.end: int | None = None

    def feed(self, piece: str) -> str:
        """Take the next raw piece; returns what it adds to the text."""
        self.raw += piece
        return self._advance(self._clean(_UNFINISHED.sub("", self.raw)).rstrip(_LOOSE), hold=self._hold)

    def finish(self, text: str) -> str:
        """Take the whole clean text; returns what is left of it to send."""
        return self._advance(text, hold=0)

    def count_before_end(self, token: str) -> int:
        """How often a special token stands in the answer before the text ends."""
        places = [match.end() for match in re.finditer(re.escape(token), self.raw)]
        return sum(self.end is None or len(self._clean(self.raw[:place])) <= self.end for place in places)

    @property
    def text(self) -> str:
        """The text so far."""
        return self._sent

    def _advance(self, text: str, *, hold: int) -> str:
        if self.end is None:
            found = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
            if found:
                self.end = min(found)[1]  # of the one that is complete first, whatever the pieces
        ready = text[: self.end] if self.end is not None else text[: max(0, len(text) - hold)]
        if len(ready) <= len(self._sent) or not ready.startswith(self._sent):
            return ""
        new = ready[len(self._sent) :]
        self._sent = ready
        return new
