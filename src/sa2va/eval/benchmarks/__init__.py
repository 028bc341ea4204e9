"""All benchmarks, on the files users already have and synthetic, as rows of one table: `BENCHMARKS[name].open(root)`.

A row knows its files, how to open them, and what others measured; nothing is read before it is opened.
"""

from __future__ import annotations

from sa2va.eval.benchmark import BenchmarkSpec
from sa2va.eval.benchmarks import grandf, reasonseg_areas, refcoco, region_captions, video_sets
from sa2va.eval.qa import QA_ROWS
from sa2va.runtime import import_object

_FILE_ROWS = (*refcoco.ROWS, *reasonseg_areas.ROWS, *video_sets.ROWS, *grandf.ROWS, *region_captions.ROWS)
_DRAWN_ROWS: dict[str, BenchmarkSpec] = import_object("sa2va.tiny.synthetic_benchmarks:SYNTHETIC_ROWS", "benchmarks")
_HARD_ROWS: dict[str, BenchmarkSpec] = import_object("sa2va.tiny.hard_benchmarks:HARD_ROWS", "benchmarks")
BENCHMARKS: dict[str, BenchmarkSpec] = {**{one.name: one for one in _FILE_ROWS}, **QA_ROWS, **_DRAWN_ROWS, **_HARD_ROWS}
"""All rows by name, in the order of tables."""

__all__ = ["BENCHMARKS"]
