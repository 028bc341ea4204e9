"""What all benchmarks on files share: a list of pictures or videos, queries about each, and a check before counting.

Items are made when they are asked for, so that a benchmark of ten thousand pictures opens at once.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar, overload

import numpy as np

from sa2va.data.annotations.annotated_images import read_picture
from sa2va.data.annotations.layout import require_files
from sa2va.eval.benchmark import BenchmarkSpec, Expected, Item, Kind, Prediction, Scores, require_all
from sa2va.masks.mask import Mask, Size

Entry = TypeVar("Entry")


class FileBenchmark(ABC, Generic[Entry]):
    """A benchmark on entries of annotation files.

    Args:
        name, protocol, kind: as in ``Benchmark``. entries: one per item.
    """

    submission = False
    kind: Kind

    def __init__(self, name: str, protocol: str, kind: Kind, entries: Sequence[Entry]):
        self.name, self.protocol, self.kind, self.entries = name, protocol, kind, tuple(entries)

    @abstractmethod
    def item(self, entry: Entry) -> Item:
        """The item of one entry."""

    @abstractmethod
    def ids(self, entry: Entry) -> Sequence[str]:
        """The ids of its queries, in the item's order; nothing is decoded."""

    @abstractmethod
    def count(self, predictions: Mapping[str, Prediction]) -> Scores:
        """Scores of predictions that are known to be complete."""

    def items(self) -> Sequence[Item]:
        """See ``Benchmark``."""
        return LazyItems(self.entries, self.item)

    def limited(self, count: int) -> FileBenchmark[Entry]:
        """See ``Benchmark``."""
        fewer = copy.copy(self)
        fewer.entries = self.entries[:count]
        return fewer

    def score(self, predictions: Mapping[str, Prediction]) -> Scores:
        """See ``Benchmark``."""
        self.require(predictions)
        return self.count(predictions)

    def pack(self, predictions: Mapping[str, Prediction], path: Path) -> Path:
        """Only for sets of a server; here always ValueError."""
        raise ValueError(f"{self.name} is scored here: use `score`; only sets whose truth a server keeps are packed")

    def require(self, predictions: Mapping[str, Prediction]) -> None:
        """Check that predictions are of exactly these queries; ValueError otherwise."""
        require_all(self.name, [one for entry in self.entries for one in self.ids(entry)], predictions)

    def find(self, query_id: str) -> tuple[Entry, int]:
        """The entry of a query, and which of its queries it is. Raises ValueError for an unknown id."""
        for entry in self.entries:
            ids = self.ids(entry)
            if query_id in ids:
                return entry, ids.index(query_id)
        raise ValueError(f"{self.name} has no query {query_id!r}")

    @abstractmethod
    def expected(self, query_id: str) -> Expected:
        """The truth of one query. Raises ValueError for an unknown one."""


class LazyItems(Sequence[Item], Generic[Entry]):
    """The items of entries, made when they are asked for."""

    def __init__(self, entries: Sequence[Entry], make: Callable[[Entry], Item]):
        self._entries, self._make = entries, make

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> LazyItems[Entry]: ...
    def __getitem__(self, index: int | slice) -> Item | LazyItems[Entry]:
        if isinstance(index, slice):
            return LazyItems(self._entries[index], self._make)
        return self._make(self._entries[index])


def picture(path: Path, size: Size) -> Callable[[], np.ndarray]:
    """A picture as the medium of an item: decoded when asked for, upright as its annotations have it."""
    return partial(read_picture, path, size)


def masks_of(prediction: Prediction, size: Size, frames: int) -> tuple[tuple[Mask, ...], ...]:
    """The masks of a prediction, per segment and frame.

    Raises:
        ValueError: a segment has another number of frames, or a mask another size, than what it is counted against.
    """
    for masks in prediction.masks:
        sizes = {mask.size for mask in masks}
        if len(masks) != frames or sizes != {size}:
            raise ValueError(
                f"prediction {prediction.id!r} has {len(masks)} masks of sizes (h, w) {sorted(sizes)}, expected "
                f"{frames} of {size}; it was made with other pictures"
            )
    return prediction.masks


def first_mask(prediction: Prediction, size: Size, frames: int = 1) -> tuple[Mask, ...] | None:
    """The masks of the first segment, one per frame; None where there is no segment. Errors as of ``masks_of``."""
    return next(iter(masks_of(prediction, size, frames)), None)


def empty_mask(size: Size) -> Mask:
    """A mask of no pixel."""
    return Mask.from_array(np.zeros(size, dtype=bool))


def means(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each value over rows of the same names; nothing for no rows."""
    gathered: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            gathered.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in gathered.items()}


def by_tag(tags: Iterable[str], rows: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Rows gathered by tag, tags sorted; those without a tag are left out."""
    groups: dict[str, list[Entry]] = {}
    for tag, row in zip(tags, rows, strict=True):
        if tag:
            groups.setdefault(tag, []).append(row)
    return dict(sorted(groups.items()))


def row(
    name: str,
    title: str,
    make: Callable[[Path], FileBenchmark],
    files: Callable[[Path], Mapping[Path, str]],
    published: Mapping[str, float] | None = None,
    metric: str = "",
) -> BenchmarkSpec:
    """A row whose files are looked for, all at once, before it is opened."""
    return BenchmarkSpec(name, partial(_opened, name, make, files), files, published or {}, title, metric=metric)


def _opened(
    name: str, make: Callable[[Path], FileBenchmark], files: Callable[[Path], Mapping[Path, str]], root: Path
) -> FileBenchmark:
    require_files(name, files(Path(root)))
    return make(Path(root))
