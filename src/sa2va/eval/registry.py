"""Select benchmarks by name, by the first part of their names, or all whose data is present."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sa2va.eval.benchmark import BenchmarkSpec
from sa2va.eval.benchmarks import BENCHMARKS
from sa2va.eval.benchmarks.own import OWN, own_row

ALL = "all"


@dataclass(frozen=True)
class Selection:
    """Rows to run, and those left out because of missing files: name -> missing paths."""

    rows: list[BenchmarkSpec]
    absent: dict[str, list[Path]] = field(default_factory=dict)


def is_of(benchmark: str, name: str) -> bool:
    """Whether a name selects a benchmark: its full name, or the first part (``refcoco`` for ``refcoco/val``)."""
    return benchmark == name or benchmark.startswith(f"{name}/")


def known_row(name: str) -> BenchmarkSpec:
    """The row of a benchmark. Raises ValueError if there is none of this name."""
    if row := own_row(name):
        return row
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}; `sa2va eval list` shows all")
    return BENCHMARKS[name]


def place(name: str) -> tuple[int, str]:
    """Sort key: the order of the table of benchmarks, other names last."""
    order = list(BENCHMARKS)
    return (order.index(name) if name in BENCHMARKS else len(order), name)


def absent_files(row: BenchmarkSpec, data: Path) -> list[Path]:
    """The files and folders of a row that are missing under a data root."""
    return [path for path in row.files(data) if not path.exists()]


def select(names: Sequence[str], data: Path) -> Selection:
    """The rows selected by names, without duplicates, in the order of the table.

    Args:
        names: of benchmarks, first parts of names, or ``"all"``: whatever has its files under ``data``. What is named
            is selected whether or not its files are there; opening it says what is missing. Own data are never part
            of ``all``.

    Raises:
        ValueError: no benchmark goes by a name.
    """
    for name in names:
        if name != ALL and not own_row(name) and not any(is_of(one, name) for one in BENCHMARKS):
            parts = sorted({one.partition("/")[0] for one in (*BENCHMARKS, OWN)})
            raise ValueError(f"no benchmark is called {name!r}; there are {', '.join(parts)}: see `sa2va eval list`")
    rows = [row for name in dict.fromkeys(names) if (row := own_row(name))]
    absent: dict[str, list[Path]] = {}
    for row in BENCHMARKS.values():
        if any(is_of(row.name, name) for name in names):
            rows.append(row)
        elif ALL in names:
            if missing := absent_files(row, data):
                absent[row.name] = missing
            else:
                rows.append(row)
    return Selection(rows, absent)
