"""What a batch came to, counted while its rows pass by: ``summary.json``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

#: Different phrases, and kinds of errors, that are counted by themselves; a question per row would fill the memory.
_MOST_TEXTS, _MOST_ERRORS = 1000, 20
_BINS = 10


@dataclass
class _Asked:
    rows: int = 0
    found: int = 0
    objects: int = 0
    score: float = 0.0


@dataclass
class Summary:
    """Counts over answered rows, made with ``add``.

    Attributes:
        rows: all. errors: those without an answer. empty: those answered without any object. objects: in all.
    """

    rows: int = 0
    errors: int = 0
    empty: int = 0
    objects: int = 0
    _asked: dict[str, _Asked] = field(default_factory=dict)
    _errors: Counter[str] = field(default_factory=Counter)
    _scores: list[int] = field(default_factory=lambda: [0] * _BINS)

    def add(self, record: dict[str, Any]) -> None:
        """Count one row."""
        self.rows += 1
        if record["error"] is not None:
            self.errors += 1
            kind = record["error"].replace(record["source"], "FILE")
            if kind in self._errors or len(self._errors) < _MOST_ERRORS:
                self._errors[kind] += 1
            return
        segments = record["segments"]
        self.objects += len(segments)
        self.empty += not segments
        for segment in segments:
            self._scores[min(_BINS - 1, int(_BINS * max(0.0, segment["score"])))] += 1
        for text in record["asked"]:
            if text in self._asked or len(self._asked) < _MOST_TEXTS:
                # An answer to a question names its objects itself.
                own = [one for one in segments if one["phrase"] == text or len(record["asked"]) == 1]
                counted = self._asked.setdefault(text, _Asked())
                counted.rows += 1
                counted.found += bool(own)
                counted.objects += len(own)
                counted.score += sum(segment["score"] for segment in own)

    @property
    def record(self) -> dict[str, Any]:
        """The counts, ready for JSON; ``scores`` are objects by score, in tenths."""
        return {
            "rows": self.rows,
            "answered": self.rows - self.errors,
            "errors": self.errors,
            "empty": self.empty,
            "objects": self.objects,
            "scores": self._scores,
            "asked": [
                {
                    "text": text,
                    "rows": one.rows,
                    "found_in": one.found,
                    "objects": one.objects,
                    "mean_score": round(one.score / one.objects, 4) if one.objects else None,
                }
                for text, one in self._asked.items()
            ],
            "most_errors": [{"error": error, "rows": count} for error, count in self._errors.most_common()],
        }
