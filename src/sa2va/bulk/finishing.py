"""From the shards of a batch to its results: one pass over the answers, whatever their number."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sa2va.atomic import replacing
from sa2va.bulk.batch_folder import BatchFolder
from sa2va.bulk.batch_rows import BatchRow
from sa2va.bulk.batch_summary import Summary
from sa2va.bulk.remote_files import is_remote
from sa2va.bulk.sheet import Sheet
from sa2va.bulk.targets import open_targets, read_answered
from sa2va.writers.picture_files import write_json

SUMMARY, SHEET, ERRORS = "summary.json", "sheet.html", "errors.jsonl"


def finish(
    folder: BatchFolder,
    kinds: Sequence[str],
    *,
    overlays: bool,
    run: dict[str, Any],
    on_row: Callable[[int], None] = lambda count: None,
) -> Summary:
    """Write the results that are not there yet, and beside them the summary, the page and the rows that failed.

    Args:
        kinds: of ``targets.KINDS``. overlays: draw what was found over each picture, too.
        run: about this run, for the summary. on_row: called with the number of rows done.
    """
    summary, sheet = Summary(), Sheet(folder.rows)
    with (
        open_targets(folder, kinds, overlays=overlays) as targets,
        replacing(folder.path / ERRORS) as temporary,
        temporary.open("w", encoding="utf-8") as errors,
    ):
        for row, answered in zip(folder.read_rows(), read_answered(folder, targets.prepare), strict=True):
            for add in targets.ordered:
                add(answered)
            summary.add(answered.record)
            sheet.add(answered.record)
            if (error := answered.record["error"]) is not None:
                errors.write(json.dumps(_again(row, error), ensure_ascii=False) + "\n")
            on_row(row.index + 1)
    with tempfile.TemporaryDirectory(prefix="sa2va-") as scratch:
        title = f"{folder.settings['source']}, {folder.settings['model']}"
        sheet.write(folder.path / SHEET, title, summary, Path(scratch))
    about = {"settings": folder.settings, "revision": folder.revision}
    write_json(folder.path / SUMMARY, {**about, **summary.record, **run})
    return summary


def _again(row: BatchRow, error: str) -> dict[str, Any]:
    """A row that failed as a row of a manifest, which may be given to another run when what was wrong is mended."""
    asked = {} if row.ask is None else row.ask.record
    media = row.source if is_remote(row.source) else os.path.abspath(row.source)
    return {"id": row.id, "media": media, **asked, **row.extra, "earlier_error": error}
