"""What is asked: one row per picture or clip, and the record that answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sa2va.masks.mask import segment_record
from sa2va.processing.conversation import check_text
from sa2va.results.answer import Answer

#: Fields of every answered row; a manifest's own columns stand beside them.
FIELDS = ("index", "id", "source", "asked", "size", "text", "reasons", "segments", "error")
#: Fields that are the same in all rows of a run, and stand only in its results.
RUN_FIELDS = ("model", "revision", "settings")


@dataclass(frozen=True)
class Ask:
    """What is wanted of a medium: exactly one of phrases to segment, a question, or a grounded caption.

    Raises:
        ValueError: none, or several of them; a phrase or question that is blank.
    """

    phrases: tuple[str, ...] = ()
    question: str | None = None
    caption: bool = False

    def __post_init__(self) -> None:
        if bool(self.phrases) + (self.question is not None) + self.caption != 1:
            raise ValueError("expected exactly one of phrases, a question, or a caption for each picture")
        for text in self.texts:
            check_text(text, "what is asked")
            if not text.strip():
                raise ValueError("a phrase or question is empty; say what to find")

    @property
    def texts(self) -> tuple[str, ...]:
        """The phrases or the question; nothing for a caption."""
        return self.phrases if self.question is None else (self.question,)

    @property
    def record(self) -> dict[str, Any]:
        """The one field that is set, ready for JSON."""
        if self.phrases:
            return {"phrases": list(self.phrases)}
        return {"caption": True} if self.question is None else {"question": self.question}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Ask | None:
        """Read ``record``, which may hold other fields, too. None where it asks nothing.

        Raises:
            ValueError: as above, or a field of another type.
        """
        phrases, question = record.get("phrases", ()), record.get("question")
        if not isinstance(phrases, list | tuple) or not all(isinstance(phrase, str) for phrase in phrases):
            raise ValueError(f"phrases are a list of texts; got {phrases!r:.80}")
        if question is not None and not isinstance(question, str):
            raise ValueError(f"a question is a text; got {question!r:.80}")
        caption = record.get("caption") is True  # a text under this name is a column of its own
        if not phrases and question is None and not caption:
            return None
        return cls(tuple(phrases), question, caption)


@dataclass(frozen=True)
class BatchRow:
    """One medium of the source.

    Attributes:
        index: its place in the source, from 0.
        id: what the manifest calls it; else its path in the source.
        source: path or URL of the medium.
        ask: what is wanted of it; None for what is wanted of all.
        extra: columns of the manifest that are passed through.
    """

    index: int
    id: str
    source: str
    ask: Ask | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """All fields but the index, ready for JSON."""
        asked = {} if self.ask is None else self.ask.record
        return {"id": self.id, "source": self.source, **asked, **({"extra": self.extra} if self.extra else {})}

    @classmethod
    def of(cls, index: int, record: Mapping[str, Any]) -> BatchRow:
        """The inverse of ``record``."""
        return cls(index, record["id"], record["source"], Ask.of(record), record.get("extra", {}))


def answered(row: BatchRow, ask: Ask, answers: Sequence[Answer]) -> dict[str, Any]:
    """The record of an answered row; ``docs/bulk.md`` tells its fields.

    Texts of several phrases become one, a line each, and the segments' spans count in it.
    """
    segments, start = [], 0
    for answer in answers:
        for segment in map(segment_record, answer.segments):
            if segment["span"] is not None:
                segment["span"] = [start + bound for bound in segment["span"]]
            segments.append(segment)
        start += len(answer.text) + 1
    return _record(
        row,
        ask,
        size=None if answers[0].size is None else list(answers[0].size),
        text="\n".join(answer.text for answer in answers),
        reasons=[answer.reason for answer in answers],
        segments=segments,
    )


def failed(row: BatchRow, ask: Ask, error: Exception) -> dict[str, Any]:
    """The record of a row that could not be answered."""
    return _record(row, ask, error=told(error))


def told(error: Exception) -> str:
    """An error on one line."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror.lower()}: {error.filename}"
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"


def _record(
    row: BatchRow,
    ask: Ask,
    *,
    size: list[int] | None = None,
    text: str = "",
    reasons: Sequence[str | None] = (),
    segments: Sequence[dict[str, Any]] = (),
    error: str | None = None,
) -> dict[str, Any]:
    return {
        "index": row.index,
        "id": row.id,
        "source": row.source,
        "asked": list(ask.texts),
        "size": size,
        "text": text,
        "reasons": list(reasons),
        "segments": list(segments),
        "error": error,
        **row.extra,
    }
