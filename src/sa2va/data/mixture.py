"""Mixture of several sources: seeded order, exact repeats, batches of like samples, encoding in the workers.

The order is a function of the seed alone: which process, worker or restart asks does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

from sa2va.data.encode import Encoded, SampleRejected
from sa2va.data.sample import Sample
from sa2va.runtime import logger

#: A sample that is rejected is replaced by a neighbour; so many in a row mean that the source does not fit.
_MOST_REJECTED_IN_A_ROW = 100
#: The share of broken samples is taken of at least so many, or one at the start would be all of them.
_LEAST_COUNTED = 1000
#: Broken samples that each worker remembers for messages.
_NAMED = 4


class SampleCounters(IntEnum):
    """Counters of encoding: samples requested, rejected, broken, and truncated to ``max_length``."""

    ASKED = 0
    REJECTED = 1
    BROKEN = 2
    SHORTENED = 3


class Source(Protocol):
    """Samples by random access; ``source[i]`` is always the same sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class MixtureEntry:
    """One source of a mixture.

    Attributes:
        name: for messages. source: its samples.
        repeats: how often an epoch shows each sample; of a fraction, that share of the samples is drawn anew per epoch.
        group: samples of different groups do not share a batch, e.g. pictures and clips.
    """

    name: str
    source: Source
    repeats: float = 1.0
    group: str = ""

    def __post_init__(self) -> None:
        if len(self.source) == 0 or self.count == 0:
            raise ValueError(
                f"data source {self.name!r} has {len(self.source)} samples, shown {self.repeats} times: that is none; "
                "check its folder, or raise its repeats"
            )

    @property
    def count(self) -> int:
        """Number of samples in an epoch."""
        return round(len(self.source) * self.repeats)


class SampleIndex(NamedTuple):
    """Global sample number, mixture entry, and index within it."""

    position: int
    part: int
    index: int


class MixtureOrder(Sampler[SampleIndex]):
    """The order of a whole run, epoch after epoch; also torch's sampler.

    In an epoch every sample comes exactly as often as its part says. Batches hold samples of one group, except for what
    is left over at the end of an epoch.

    Args:
        parts: the sources. batch_size: samples of one micro-batch. length: samples of the whole run.
        seed: another seed is another order.
    """

    def __init__(self, parts: Sequence[MixtureEntry], *, batch_size: int, length: int, seed: int):
        self.parts = tuple(parts)
        self.batch_size, self.length, self.seed = batch_size, length, seed

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[SampleIndex]:
        position, epoch = 0, 0
        while True:
            for part, index in self.epoch(epoch).tolist():
                if position == self.length:
                    return
                yield SampleIndex(position, part, index)
                position += 1
            epoch += 1

    def epoch(self, number: int) -> np.ndarray:
        """int64 (samples of an epoch, 2): part and index, in order."""
        rng = np.random.default_rng((self.seed, number))
        groups: dict[str, list[np.ndarray]] = {}
        for number_of_part, part in enumerate(self.parts):
            rows = _repeated(len(part.source), part.count, rng)
            groups.setdefault(part.group, []).append(np.stack([np.full_like(rows, number_of_part), rows], axis=1))
        if len(groups) == 1:  # already as mixed as can be, whatever the batch size
            (rows,) = groups.values()
            return rng.permutation(np.concatenate(rows))
        blocks, rest = [], []
        for rows in (rng.permutation(np.concatenate(group)) for group in groups.values()):
            whole = len(rows) // self.batch_size * self.batch_size
            blocks.append(rows[:whole].reshape(-1, self.batch_size, 2))
            rest.append(rows[whole:])
        order = rng.permutation(np.concatenate(blocks)).reshape(-1, 2)
        return np.concatenate([order, rng.permutation(np.concatenate(rest))])


class EncodedDataset(Dataset[Encoded]):
    """Samples of a mixture, encoded on demand in the workers of the data loader.

    A sample that is rejected (too long) or broken (an unreadable picture, a wrong annotation) is replaced by the next
    one of its source that fits, and counted; a broken one is named in a warning, too.

    Args:
        parts: the sources.
        encode: makes an [`Encoded`] of a sample; its random choices come from the generator.
        seed: of these generators: each visit of a run has its own.
        workers: number of data loader workers.
        max_broken: share of broken samples up to which ``check`` is silent; the first thousand samples count as one.
    """

    def __init__(
        self,
        parts: Sequence[MixtureEntry],
        encode: Callable[[Sample, np.random.Generator], Encoded],
        *,
        seed: int,
        workers: int = 0,
        max_broken: float = 0.01,
    ):
        self.parts, self.encode, self.seed, self.max_broken = tuple(parts), encode, seed, max_broken
        # Shared between processes; every worker writes to its own row.
        self._counts = torch.zeros(workers + 1, len(SampleCounters), dtype=torch.int64).share_memory_()
        self._last_broken = torch.full((workers + 1, _NAMED, 2), -1, dtype=torch.int64).share_memory_()
        self._warned: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        return sum(part.count for part in self.parts)

    def __getitem__(self, visit: SampleIndex) -> Encoded:
        part = self.parts[visit.part]
        rng = np.random.default_rng((self.seed, visit.position))
        counts = self._counts[self._row]
        counts[SampleCounters.ASKED] += 1
        for attempt in range(_MOST_REJECTED_IN_A_ROW):
            index = (visit.index + attempt) % len(part.source)
            try:
                encoded = self.encode(part.source[index], rng)
            except SampleRejected as error:
                reason: Exception = error
                counts[SampleCounters.REJECTED] += 1
            except (ValueError, OSError) as error:
                reason = error
                self._note_broken(visit.part, index, error)
            else:
                counts[SampleCounters.SHORTENED] += encoded.turns_dropped > 0
                return encoded
        raise ValueError(
            f"data source {part.name!r}: {_MOST_REJECTED_IN_A_ROW} samples in a row cannot be trained on; the last "
            f"one: {reason}"
        )

    def count(self, kind: SampleCounters) -> int:
        """Samples of a kind so far, in this process and its workers; one that is visited again counts again."""
        return int(self._counts[:, kind].sum())

    def broken_samples(self) -> list[str]:
        """The names of the last few broken samples, as source and index."""
        rows = self._last_broken.flatten(0, 1).unique(dim=0).tolist()
        return [f"{self.parts[part].name}[{index}]" for part, index in rows if part >= 0]

    def check(self) -> None:
        """
        Raises:
            ValueError: more samples are broken than ``max_broken`` allows; the message names some.
        """
        asked, broken = self.count(SampleCounters.ASKED), self.count(SampleCounters.BROKEN)
        if broken > self.max_broken * max(asked, _LEAST_COUNTED):
            raise ValueError(
                f"{broken} of {asked} samples are broken, more than max_broken={self.max_broken:g} allows: "
                f"{', '.join(self.broken_samples())}; the warnings say why; mend or remove them, or raise max_broken"
            )

    @property
    def _row(self) -> int:
        worker = get_worker_info()
        return worker.id + 1 if worker else 0

    def _note_broken(self, part: int, index: int, reason: Exception) -> None:
        counts, last = self._counts[self._row], self._last_broken[self._row]
        last[int(counts[SampleCounters.BROKEN]) % _NAMED] = torch.tensor([part, index])
        counts[SampleCounters.BROKEN] += 1
        if (part, index) not in self._warned:
            self._warned.add((part, index))
            logger.warning("broken sample %s[%d], replaced by the next one: %s", self.parts[part].name, index, reason)


def _repeated(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` indices below ``size``: whole rounds over all, and a random subset for the rest."""
    whole = np.tile(np.arange(size), count // size)
    return np.concatenate([whole, rng.choice(size, count % size, replace=False)])


def epochs_to_samples(parts: Sequence[MixtureEntry], epochs: float) -> int:
    """Number of samples in so many epochs."""
    return math.ceil(epochs * sum(part.count for part in parts))
