"""The interface of a benchmark: items with queries, predictions, and their scores.

A benchmark reads files and counts; it never sees a model. The runner asks a model and never sees the truth. Between the
two stand predictions as lines of JSON, so that scoring needs neither a model nor a GPU. Letters in shapes: H, W.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from sa2va.masks.mask import Mask
from sa2va.results.history import Turn
from sa2va.untrusted import STUMBLES, parse_json, stumbled

Kind = Literal["segment", "caption", "region", "question", "chat"]
#: A picture: a path or uint8 RGB (H, W, 3). A clip: a sequence of those. Or a callable that makes either when asked.
Media: TypeAlias = "Path | np.ndarray | Sequence[Path] | Sequence[np.ndarray] | Callable[[], Any]"


@dataclass(frozen=True, eq=False)
class Query:
    """One request about the medium of an item.

    Attributes:
        id: unique in the benchmark, e.g. ``"refcoco/val/123"``.
        text: what the model is asked, without media placeholder.
        tag: group for scores per kind; "" for none.
        region: bool (H, W), the area to describe, for benchmarks of kind ``"region"``.
        history: the turns before it, with their right answers, so that queries do not depend on each other.
        phrase: of a request for masks in a clip, what is sought: that is what is followed when a run asks again.
    """

    id: str
    text: str
    tag: str = ""
    region: np.ndarray | None = None
    history: tuple[Turn, ...] = ()
    phrase: str = ""


@dataclass(frozen=True, eq=False)
class Item:
    """An image or clip with all its queries, which share its encoding.

    Attributes:
        id: unique in the benchmark.
        media: see [`Media`]; None for text-only questions.
        video: whether it is a clip, even one of a single frame.
        size: (height, width) in pixels of the masks that are expected.
        queries: what is asked.
    """

    id: str
    media: Media | None
    video: bool
    size: tuple[int, int]
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Prediction:
    """The model's answer to a query; one line of JSON.

    Attributes:
        id: of the query.
        text: the answer without special tokens.
        raw_text: the answer as generated.
        masks: per ``[SEG]``, per frame (a picture has one); empty masks are masks too.
        phrases: per ``[SEG]``, the words it grounds, "" where there are none.
        seconds: the query's share of the time its item took.
    """

    id: str
    text: str
    raw_text: str
    masks: tuple[tuple[Mask, ...], ...] = ()
    phrases: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> str:
        """One line: ``{"id", "text", "raw_text", "masks": [[{"size": [h, w], "counts": str}, ...], ...], "phrases",
        "seconds"}``."""
        record = {
            "id": self.id,
            "text": self.text,
            "raw_text": self.raw_text,
            "masks": [[mask.rle for mask in masks] for masks in self.masks],
            "phrases": list(self.phrases),
            "seconds": round(self.seconds, 6),
        }
        return json.dumps(record, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Prediction:
        """Read what [`to_json`] wrote. Raises ValueError for anything else."""
        try:
            record = parse_json(line)
            masks = tuple(tuple(Mask.from_rle(mask) for mask in masks) for masks in record["masks"])
            phrases = tuple(_text(phrase) for phrase in record["phrases"])
            if len(phrases) != len(masks):
                raise ValueError(f"{len(phrases)} phrases for {len(masks)} masks")
            number, text, raw_text = (_text(record[name]) for name in ("id", "text", "raw_text"))
            return cls(number, text, raw_text, masks, phrases, float(record["seconds"]))
        except STUMBLES as error:
            raise ValueError(f"expected one prediction as JSON: {stumbled(error)}") from error


@dataclass(frozen=True)
class Scores:
    """Scores of a benchmark's predictions.

    Attributes:
        values: name -> value, fractions 0..1 unless the name says otherwise, e.g. ``{"ciou": 0.8, "pr@0.5": 0.9}``.
        groups: the same per tag.
        samples: query id -> one number, higher is better, by which the worst and best are picked.
        headline: key of ``values`` that tables print.
        notices: what a reader must know, e.g. that a metric was left out and why.
    """

    values: dict[str, float]
    groups: dict[str, dict[str, float]]
    samples: dict[str, float]
    headline: str
    notices: tuple[str, ...] = ()


class Benchmark(Protocol):
    """A dataset with its queries and its metrics.

    Attributes:
        name: e.g. ``"refcoco/val"``, ``"ref-davis17/per-expression"``.
        protocol: a paragraph for the report: what is asked, which masks count, formulas, conventions.
        kind: how the model is asked: ``"segment"``, ``"caption"``, ``"question"`` and ``"chat"`` put the text as it is,
            after the query's history; ``"region"`` puts it about the query's region.
        submission: True where the truth is on a server: there is only [`pack`].
    """

    @property
    def name(self) -> str: ...
    @property
    def protocol(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def submission(self) -> bool: ...

    def items(self) -> Sequence[Item]:
        """All items; media are decoded lazily."""
        ...

    def limited(self, count: int) -> Benchmark:
        """The same benchmark with its first ``count`` items only, for quick looks; all other methods follow suit."""
        ...

    def score(self, predictions: Mapping[str, Prediction]) -> Scores:
        """Count predictions, which must be of exactly this benchmark's queries.

        Raises:
            ValueError: some are missing; the message names them.
        """
        ...

    def pack(self, predictions: Mapping[str, Prediction], path: Path) -> Path:
        """Write what the server takes, checked against its expression file.

        Raises:
            ValueError: the benchmark is no server set, or predictions are missing.
        """
        ...


@dataclass(frozen=True)
class Expected:
    """The truth of one query, for people to look at.

    Attributes:
        text: the right answer, "" where masks say it all.
        masks: per object, per frame.
    """

    text: str = ""
    masks: tuple[tuple[Mask, ...], ...] = ()


@runtime_checkable
class Explains(Protocol):
    """A benchmark that can show the truth of a query, so that a report can set it beside the prediction."""

    def expected(self, query_id: str) -> Expected:
        """The truth. Raises ValueError for a query it does not have."""
        ...


@dataclass(frozen=True)
class BenchmarkSpec:
    """A benchmark that may or may not be on this machine.

    Attributes:
        name: as typed on the command line.
        open: makes it from the data root; raises ``MissingData`` when files are missing.
        files: the files and folders it needs under a root, each with where it comes from; empty when it needs none.
        published: checkpoint name -> published headline number, in the unit.
        title: for tables.
        unit: of the headline times 100. metric: the value that was published; "" for the headline, whichever it is.
    """

    name: str
    open: Callable[[Path], Benchmark]
    files: Callable[[Path], Mapping[Path, str]]
    published: Mapping[str, float] = field(default_factory=dict)
    title: str = ""
    unit: str = "percent"
    metric: str = ""


def require_all(name: str, ids: Sequence[str], predictions: Mapping[str, Prediction]) -> None:
    """Check that predictions are of exactly these queries.

    Raises:
        ValueError: some are missing or unknown; the message names the first few.
    """
    missing = [one for one in ids if one not in predictions]
    unknown = sorted(set(predictions) - set(ids))
    if missing:
        raise ValueError(
            f"{name}: {len(missing)} of {len(ids)} predictions are missing ({_some(missing)}); "
            "run `sa2va eval run` again to finish them"
        )
    if unknown:
        raise ValueError(
            f"{name}: {len(unknown)} predictions are of no query of this benchmark ({_some(unknown)}); "
            "they were made with other data"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value
