"""The report of a run: scores, settings, published scores, and the best and worst answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sa2va.atomic import remove_leftovers
from sa2va.eval.report_pages import Block, Bullets, Gallery, Heading, Paragraph, Table, write_html, write_markdown
from sa2va.eval.run_metadata import RunHeader, read_header
from sa2va.eval.sample_images import extremes, show
from sa2va.eval.score import Answered, benchmark_folders, open_answered, read_scores

#: Names of values, or their beginnings, as papers write them.
_WRITTEN = {
    **{"ciou": "cIoU", "giou": "gIoU", "miou": "mIoU", "pr": "Pr", "n_acc": "N-acc", "t_acc": "T-acc", "ap": "AP"},
    **{"j&f": "J&F", "j": "J", "f": "F", "r": "R", "a": "A", "meteor": "METEOR", "cider": "CIDEr"},
}
_KNOWN = re.compile(rf"({'|'.join(sorted(_WRITTEN, key=len, reverse=True))})(?![a-z])")
_NONE = "-"


def report(
    out: Path, names: Sequence[str] = (), *, data: Path | None = None, samples: int = 4, pictures: bool = True
) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.html`` into a run's folder.

    Args:
        names: only these benchmarks. data: where their files are now; None for where they were.
        samples: how many of the worst and of the best answers are shown of each. pictures: show any at all.

    Raises:
        ValueError: the folder holds no run, or a benchmark was not scored.
    """
    header = read_header(out)
    remove_leftovers(out)
    sections = [(open_answered(folder, data), read_scores(folder)) for folder in benchmark_folders(out, names)]
    for answered, scores in sections:
        if scores is None and not answered.benchmark.submission:
            raise ValueError(f"{answered.benchmark.name} was not scored; run `sa2va eval score {out}` first")
    title = f"Evaluation of {model_name(header)}"
    blocks: list[Block] = [Heading(title), run_table(header), Heading("Scores", 2), score_table(header, sections)]
    blocks.append(Paragraph(_units(sections)))
    for answered, scores in sections:
        blocks += _section(answered, scores, samples if pictures else 0)
    markdown, page = out / "report.md", out / "report.html"
    write_markdown(markdown, blocks)
    write_html(page, title, blocks)
    return markdown, page


def model_name(header: RunHeader) -> str:
    """The last part of a folder or hub id, the key of published scores."""
    return Path(header.model).name


def run_table(header: RunHeader) -> Table:
    """The model and the settings of a run, as a table."""
    settings = dict(header.settings)
    frames, number = settings.pop("key_frames"), settings.pop("num_key_frames")
    again = settings.pop("ask_every", None)
    rows = {
        "model": header.model,
        "revision": header.revision or "(local files)",
        "configuration": f"sha256 {header.config}",
        "weights": f"fingerprint {header.weights}",
        "dtype": header.dtype,
        "device": f"{header.device} ({header.device_name})",
        "key frames": f"{frames}, {number}" if isinstance(frames, str) else ", ".join(map(str, frames)),
        "asked again": "never" if again is None else "at cuts" if again == "scene" else f"every {again} frames",
        "mode": header.mode,
        "mask threshold": str(settings.pop("threshold")),
        "longest answer": f"{settings.pop('max_new_tokens')} tokens",
        "answered together": f"up to {settings.pop('at_once')} queries",
        **{name: str(value) for name, value in settings.items() if name != "mode"},
        "software": ", ".join(f"{name} {version}" for name, version in header.versions.items()),
    }
    return Table(("run", ""), list(rows.items()), numbers=2)


def score_table(header: RunHeader, sections: Sequence[tuple[Answered, Mapping[str, Any] | None]]) -> Table:
    """Scores as a table: one row per benchmark, next to the published score of the same checkpoint."""
    rows = []
    for answered, scores in sections:
        row = answered.row
        published = row.published.get(model_name(header))
        name = answered.benchmark.name
        theirs = _NONE if published is None else f"{published:.1f}"
        if scores is None:
            rows.append((name, "on a server", _NONE, theirs, _NONE, str(len(answered.predictions))))
            continue
        if row.metric not in ("", scores["headline"]):
            published, theirs = None, _NONE
        ours = 100 * scores["values"][scores["headline"]]
        # A part of a benchmark is not the benchmark: no difference is shown.
        comparable = published is not None and answered.limit is None
        difference = f"{ours - published:+.1f}" if comparable else _NONE
        part = f" (first {answered.limit} items)" if answered.limit is not None else ""
        metric = written(scores["headline"])
        rows.append((name + part, metric, f"{ours:.1f}", theirs, difference, str(scores["queries"])))
    return Table(("benchmark", "metric", "this run", "published", "difference", "queries"), rows, numbers=2)


def _section(answered: Answered, scores: Mapping[str, Any] | None, samples: int) -> list[Block]:
    benchmark, row = answered.benchmark, answered.row
    title = f"{row.title} ({benchmark.name})" if row.title else benchmark.name
    blocks: list[Block] = [Heading(title, 2), Paragraph(benchmark.protocol)]
    if answered.limit is not None:
        blocks.append(Paragraph(f"Only the first {answered.limit} items were asked: these are not its scores."))
    if scores is not None:
        values: dict[str, float] = scores["values"]
        # MME's tasks have values of their own, which it does not have as a whole.
        groups = [group for tag, group in scores["groups"].items() if tag]
        names = dict.fromkeys([*values, *(name for group in groups for name in group if name != "count")])
        blocks.append(Table(("", *map(written, names)), [("all", *_cells(values, names)), *_group_rows(scores, names)]))
        if scores["notices"]:
            blocks.append(Bullets(scores["notices"]))
    if row.published:
        others = [(name, f"{value:.1f}") for name, value in row.published.items()]
        metric = written(row.metric or (scores["headline"] if scores else row.unit))
        blocks.append(Table(("published for", metric), others))
    if scores is not None and samples:
        blocks += _galleries(answered, scores["samples"], samples)
    return blocks


def written(name: str) -> str:
    """A value's name for tables: ``"n_acc<50px"`` is N-acc<50px, ``"j&f_by_expression"`` J&F by expression."""
    known = _KNOWN.match(name)
    start = known[0] if known else ""
    return _WRITTEN.get(start, "") + name[len(start) :].replace("_", " ")


def _units(sections: Sequence[tuple[Answered, Mapping[str, Any] | None]]) -> str:
    rows = [answered.row for answered, _ in sections]
    exceptions = "".join(f", those of {row.name} {row.unit}" for row in rows if row.unit != "percent")
    return f"All numbers are percent{exceptions}. Published numbers are of the headline metric, by their authors."


def _group_rows(scores: Mapping[str, Any], names: Iterable[str]) -> list[tuple[str, ...]]:
    return [
        (f"{tag} ({group['count']:.0f})" if "count" in group else tag, *_cells(group, names))
        for tag, group in scores["groups"].items()
        if tag
    ]


def _cells(values: Mapping[str, float], names: Iterable[str]) -> list[str]:
    """Values in the order of ``names``, times 100."""
    return [f"{100 * values[name]:.1f}" if name in values else _NONE for name in names]


def _galleries(answered: Answered, scores: Mapping[str, float], count: int) -> list[Block]:
    worst, best = extremes(scores, count)
    shown = show(answered.benchmark, answered.predictions, scores, [*worst, *best])
    parts = {"Worst": shown[: len(worst)], "Best": shown[len(worst) :]}
    return [Gallery(title, samples) for title, samples in parts.items() if samples]
