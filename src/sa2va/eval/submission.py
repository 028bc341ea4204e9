"""Submissions: predictions of benchmarks whose truth is on a server, as the archives that server takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sa2va.atomic import remove_leftovers
from sa2va.eval.benchmark import require_all
from sa2va.eval.predict import query_ids
from sa2va.eval.score import Answered, benchmark_folders, open_answered

SUBMISSION = "submission.zip"


def pack(answered: Answered, path: Path | None = None) -> Path:
    """Write the archive of one benchmark, checked against its list of expressions.

    Args:
        path: of the archive; None for ``submission.zip`` beside the predictions.

    Raises:
        ValueError: the benchmark has no server, only a part of it was asked, or predictions are missing.
    """
    benchmark = answered.benchmark
    if not benchmark.submission:
        raise ValueError(f"{benchmark.name} is scored locally (`sa2va eval score`); there is no server to pack it for")
    if answered.limit is not None:
        raise ValueError(
            f"{benchmark.name} was asked with --limit {answered.limit}, and servers want everything; run it without"
        )
    ids = [one for own in query_ids(benchmark.items()) for one in own]
    require_all(benchmark.name, ids, answered.predictions)
    return benchmark.pack(answered.predictions, path or answered.folder / SUBMISSION)


def pack_all(out: Path, names: Sequence[str] = (), data: Path | None = None) -> Iterator[tuple[str, Path]]:
    """Pack every server benchmark of a run's folder: its name and archive.

    Raises:
        ValueError: as in [`pack`], or the folder holds no server benchmark.
    """
    remove_leftovers(out)
    opened = [open_answered(folder, data) for folder in benchmark_folders(out, names)]
    servers = opened if names else [one for one in opened if one.benchmark.submission]
    if not servers:
        raise ValueError(
            f"{out} holds no benchmark whose truth is on a server; `sa2va eval score {out}` scores the others"
        )
    for answered in servers:
        yield answered.benchmark.name, pack(answered)
