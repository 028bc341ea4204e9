"""Compare two scored runs: what improved, what got worse, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa2va.eval.predict import read_record
from sa2va.eval.score import benchmark_folders, read_scores

#: Qualities of an answer that differ by less are the same.
_SAME = 0.005


@dataclass(frozen=True)
class Comparison:
    """One benchmark in two runs.

    Attributes:
        name: of the benchmark. values: by name, (before, after), the headline first; those that both have.
        queries: by id, the quality (before, after) of each answer, 0..1; those that both answered.
        notices: what makes the two hard to compare.
    """

    name: str
    values: dict[str, tuple[float, float]]
    queries: dict[str, tuple[float, float]]
    notices: tuple[str, ...] = ()

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many answers are better, worse, and the same (within half a percent)."""
        changes = [new - old for old, new in self.queries.values()]
        better, worse = sum(change > _SAME for change in changes), sum(change < -_SAME for change in changes)
        return better, worse, len(changes) - better - worse

    def largest(self, most: int) -> list[tuple[str, tuple[float, float]]]:
        """The answers that changed most, the worst losses first."""
        changed = [(query, pair) for query, pair in self.queries.items() if abs(pair[1] - pair[0]) > _SAME]
        chosen = sorted(changed, key=lambda one: (-abs(one[1][1] - one[1][0]), one[0]))[:most]
        return sorted(chosen, key=lambda one: one[1][1] - one[1][0])

    def record(self, most: int) -> dict[str, Any]:
        """JSON-ready values."""
        better, worse, same = self.counts
        return {
            "benchmark": self.name,
            "values": {name: {"before": old, "after": new} for name, (old, new) in self.values.items()},
            "better": better,
            "worse": worse,
            "same": same,
            "largest": [{"query": query, "before": old, "after": new} for query, (old, new) in self.largest(most)],
            "notices": list(self.notices),
        }


def compare(before: Path, after: Path, names: Sequence[str] = ()) -> Iterator[Comparison]:
    """The benchmarks that two folders have in common.

    Args:
        names: only these benchmarks, or all whose names begin with one of them and a slash.

    Raises:
        ValueError: a folder holds no run, a benchmark was not scored, or they have none in common.
    """
    old, new = ({read_record(one).name: one for one in benchmark_folders(out, names)} for out in (before, after))
    shared = [name for name in old if name in new]
    if not shared:
        raise ValueError(f"{before} and {after} have no benchmark in common: {', '.join(old)}; {', '.join(new)}")
    for name in shared:
        yield _comparison(name, _scored(old[name]), _scored(new[name]))


def _scored(folder: Path) -> dict[str, Any]:
    scores = read_scores(folder)
    if scores is None:
        raise ValueError(f"{folder} was not scored; run `sa2va eval score` on its run first")
    return scores


def _comparison(name: str, old: dict[str, Any], new: dict[str, Any]) -> Comparison:
    order = [new["headline"], *new["values"]]
    values = {one: (old["values"][one], new["values"][one]) for one in order if one in old["values"]}
    queries = {one: (old["samples"][one], new["samples"][one]) for one in old["samples"] if one in new["samples"]}
    notices = []
    if old["samples"].keys() != new["samples"].keys():
        alone = len(old["samples"].keys() ^ new["samples"].keys())
        notices.append(f"{alone} queries were asked in one run only; the values above are of different sets")
    if old["protocol"] != new["protocol"]:
        notices.append("the two were counted differently; score both again with one version")
    return Comparison(name, values, queries, tuple(notices))
