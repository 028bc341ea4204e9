"""LLaVA's conversations, ``[{"from": "human" or "gpt", "value": text}, ...]``, as questions with answers.

Files hold hundreds of thousands of them, which are kept in little memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from sa2va.processing.requests import IMAGE_MARK, RESERVED


def read_conversation(messages: Any) -> list[tuple[str, str]]:
    """Questions with their answers.

    Answers before the first question are left out and questions in a row joined, as the reference does. The
    conversation ends before the first turn that cannot be learnt from: one that is empty on a side, or holds one of the
    model's own tokens as text.

    Args:
        messages: the list, straight from JSON.

    Returns:
        The turns, answers without white space around them; maybe none.

    Raises:
        ValueError: it is no such list, or somebody else than the two speaks.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError('conversations are no list of {"from", "value"}')
    turns: list[tuple[str, str]] = []
    question: str | None = None
    for message in messages:
        speaker, text = message.get("from"), message.get("value")
        if speaker not in ("human", "gpt") or not isinstance(text, str):
            raise ValueError('a message is not from "human" or "gpt", or has no text')
        if speaker == "human":
            question = (question or "") + text
        elif question is not None:
            turns.append((question, text.strip()))
            question = None
        elif turns:
            break
    return _until_unusable(turns)


def place_image(turns: list[tuple[str, str]], *, picture: bool) -> list[tuple[str, str]]:
    """Turns whose image mark stands only where the picture does not come first, in the first question.

    Args:
        turns: of [`read_conversation`]. picture: whether the conversation is about one; else marks are taken out.

    Raises:
        ValueError: there is more than one mark, or one in a later question.
    """
    if not picture:
        bare = [(question.replace(IMAGE_MARK, "").strip(), answer) for question, answer in turns]
        return _until_unusable(bare)
    if turns[0][0].count(IMAGE_MARK) > 1 or any(IMAGE_MARK in question for question, _ in turns[1:]):
        raise ValueError(f"{IMAGE_MARK} stands more than once, or in a later question")
    question, answer = turns[0]
    return [(question.strip().removeprefix(f"{IMAGE_MARK}\n"), answer), *turns[1:]]


def _until_unusable(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The turns before the first that is empty on a side, or holds a reserved token."""
    usable = [bool(question.strip() and answer) and not _reserved(question + answer) for question, answer in turns]
    return turns[: [*usable, False].index(False)]


def _reserved(text: str) -> bool:
    # Nearly all texts are done with the first test; there are millions.
    return ("<" in text or "[" in text) and any(token in text for token in RESERVED)


class PackedRecords:
    """A sequence of JSON values, made when asked for.

    Hundreds of thousands of dictionaries take gigabytes, and each worker gets its own copy as it counts references.
    """

    def __init__(self, records: Iterable[Any]):
        lines = [json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() for record in records]
        self._ends = np.cumsum([0, *map(len, lines)])
        self._text = b"".join(lines)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        start, end = self._ends[index % len(self)], self._ends[index % len(self) + 1]
        return json.loads(self._text[start:end])
