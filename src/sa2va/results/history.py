"""A conversation so far, in any of the common forms, as turns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Turn:
    """A question and its answer, special tokens included, as the model is shown them to continue the conversation."""

    question: str
    answer: str


#: Turns, pairs (question, answer), what ``Answer.to_json`` writes, or messages with ``role`` and ``content``.
History: TypeAlias = "Sequence[Turn | Sequence[str] | Mapping[str, Any]]"

_FORMS = (
    "history is the `history` of an earlier answer, pairs (question, answer), or messages "
    '{"role": "user" | "assistant", "content": text} that take turns, the user first'
)


def turns_of(history: History) -> tuple[Turn, ...]:
    """A history of any form as turns.

    Raises:
        ValueError: it has none of the forms, a message is a system prompt or holds a picture, or roles do not take
            turns.
    """
    if isinstance(history, str | bytes | Mapping) or not isinstance(history, Iterable):
        raise ValueError(f"{_FORMS}; got {type(history).__name__}")
    entries: list[Any] = list(history)
    if entries and all(isinstance(entry, Mapping) and "role" in entry for entry in entries):
        return _turns_of_messages(entries)
    return tuple(_turn(entry) for entry in entries)


def _turn(entry: Any) -> Turn:
    if isinstance(entry, Mapping):
        entry = (entry.get("question"), entry.get("answer"))
    question, answer = (entry.question, entry.answer) if isinstance(entry, Turn) else _pair(entry)
    if not isinstance(question, str) or not isinstance(answer, str):
        raise ValueError(f"{_FORMS}; got {entry!r:.200}")
    return Turn(question, answer)


def _pair(entry: Any) -> tuple[Any, Any]:
    if not isinstance(entry, tuple | list) or len(entry) != 2:
        raise ValueError(f"{_FORMS}; got {entry!r:.200}")
    return entry[0], entry[1]


def _turns_of_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    roles = [message["role"] for message in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(
            f"{_FORMS}; got the roles {roles!r:.200}. Leave system messages out; the question itself is the last "
            "user message and goes into question="
        )
    texts = [_text(message.get("content")) for message in messages]
    return tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))


def _text(content: Any) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(content, str):
        return content
    parts: Any = content if isinstance(content, list | tuple) else [None]
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        raise ValueError(
            f"{_FORMS}; got the content {content!r:.200}. Its parts are texts: pictures go into media=, once for the "
            "whole conversation"
        )
    return "".join(part["text"] for part in parts)
