"""The text of an answer, piece by piece as its tokens come."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase


class TextStream:
    """Tells the text of each new token.

    A character may take several tokens, and a token's text may depend on the one before it (a leading space). So the
    text of a few last tokens is compared with and without the new one, and nothing is told while a character is
    incomplete.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tell: Callable[[str], None]):
        self._tokenizer, self._tell = tokenizer, tell
        self._tokens: list[int] = []
        self._start = self._told = 0  # the tokens before have been told; the text from start is context

    def add(self, _row: int, token: int) -> None:
        self._tokens.append(token)
        before = self._decode(self._tokens[self._start : self._told])
        text = self._decode(self._tokens[self._start :])
        if len(text) > len(before) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._start, self._told = self._told, len(self._tokens)
            self._tell(text[len(before) :])

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))
