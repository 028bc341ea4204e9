"""From predictions on disk to scores on disk, or to the archive that a server takes: needs a CPU, no model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sa2va.atomic import remove_leftovers, replacing
from sa2va.eval.benchmark import Benchmark, BenchmarkSpec, Prediction, Scores, require_all
from sa2va.eval.predict import RECORD, limited, query_ids, read_record
from sa2va.eval.prediction_files import read_predictions
from sa2va.eval.registry import is_of, known_row, place
from sa2va.untrusted import STUMBLES, parse_json, stumbled

SCORES = "scores.json"
SUBMISSION = "submission.zip"


@dataclass(frozen=True)
class Answered:
    """A benchmark and the predictions in a folder.

    Attributes:
        folder: where they are. row: of the benchmark. benchmark: opened, limited as it was asked.
        limit: how many items were asked; None for all. predictions: by query id.
    """

    folder: Path
    row: BenchmarkSpec
    benchmark: Benchmark
    limit: int | None
    predictions: dict[str, Prediction]


def benchmark_folders(out: Path, names: Sequence[str] = ()) -> list[Path]:
    """The prediction folders of a run, in the order of the table of benchmarks.

    Args:
        names: only these benchmarks, or all whose names begin with one of them and a slash.

    Raises:
        ValueError: there are none, or none of a name.
    """
    found = {read_record(path.parent).name: path.parent for path in sorted(out.rglob(RECORD))}
    found = {name: found[name] for name in sorted(found, key=place)}
    if not found:
        raise ValueError(f"{out} holds no predictions; run `sa2va eval MODEL BENCH... -o {out}` first")
    for name in names:
        if not any(is_of(one, name) for one in found):
            raise ValueError(f"{out} holds no predictions of {name!r}, only of {', '.join(found)}")
    return [path for one, path in found.items() if not names or any(is_of(one, name) for name in names)]


def open_answered(folder: Path, data: Path | None = None) -> Answered:
    """Open a folder of predictions together with its benchmark.

    Args:
        data: where the benchmark's files are now; None for where they were.

    Raises:
        ValueError: the benchmark is unknown, its files are missing, or a prediction is malformed.
    """
    record = read_record(folder)
    row = known_row(record.name)
    benchmark = limited(row.open(data or Path(record.data)), record.limit)
    return Answered(folder, row, benchmark, record.limit, read_predictions(folder))


def score(answered: Answered) -> Scores:
    """Score predictions and write ``scores.json`` next to them.

    Raises:
        ValueError: predictions are missing or of other queries.
    """
    scores = answered.benchmark.score(answered.predictions)
    record = {
        "benchmark": answered.benchmark.name,
        "protocol": answered.benchmark.protocol,
        "limit": answered.limit,
        "items": len(answered.benchmark.items()),
        "queries": len(answered.predictions),
        "seconds": round(sum(one.seconds for one in answered.predictions.values()), 3),
        **asdict(scores),
    }
    with replacing(answered.folder / SCORES) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return scores


def score_all(
    out: Path, names: Sequence[str] = (), data: Path | None = None
) -> Iterator[tuple[Answered, Scores | None]]:
    """Score all predictions of a run; None for benchmarks that a server scores."""
    remove_leftovers(out)
    for folder in benchmark_folders(out, names):
        answered = open_answered(folder, data)
        yield answered, None if answered.benchmark.submission else score(answered)


def read_scores(folder: Path) -> dict[str, Any] | None:
    """Read ``scores.json`` of a prediction folder; None if not scored yet. Raises ValueError if it is malformed."""
    path = folder / SCORES
    if not path.exists():
        return None
    try:
        record = parse_json(path.read_bytes())
        Scores(**{name: record[name] for name in Scores.__dataclass_fields__})
    except STUMBLES as error:
        raise ValueError(f"{path} holds no scores: {stumbled(error)}; run `sa2va eval score` again") from error
    return record


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
