"""Pictures decoded by one process for another: rows as Arrow tables, with pixels beside them. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sa2va.bulk.batch_rows import BatchRow, told
from sa2va.bulk.remote_files import Loaded, fetched, medium_of
from sa2va.media.open import Picture, open_media
from sa2va.runtime import require_extra


def rows_table(shard: int, rows: list[BatchRow]) -> Any:
    """Rows of a shard as a ``pyarrow.Table``: ``shard``, ``index`` and ``row``, JSON."""
    pa = require_extra("pyarrow", "bulk")
    lines = [json.dumps(row.record) for row in rows]
    return pa.table({"shard": [shard] * len(rows), "index": [row.index for row in rows], "row": lines})


def decode(table: Any) -> Any:
    """Add ``pixels``, ``height`` and ``width`` of each row's picture, or the ``error``; clips are left as they are."""
    pa = require_extra("pyarrow", "bulk")
    columns: dict[str, list[Any]] = {"pixels": [], "height": [], "width": [], "error": []}
    with TemporaryDirectory(prefix="sa2va-") as scratch:
        for line in table["row"].to_pylist():
            pixels, error = None, None
            try:
                with open_media(fetched(json.loads(line)["source"], Path(scratch))) as media:
                    if isinstance(media, Picture):
                        pixels = np.asarray(media.image)
            except Exception as failure:  # of any library; it becomes the row's
                error = told(failure)
            columns["pixels"].append(None if pixels is None else pixels.tobytes())
            columns["height"].append(0 if pixels is None else pixels.shape[0])
            columns["width"].append(0 if pixels is None else pixels.shape[1])
            columns["error"].append(error)
    kinds = {"pixels": pa.large_binary(), "height": pa.int32(), "width": pa.int32(), "error": pa.string()}
    return pa.table(
        {name: table[name] for name in table.column_names}
        | {name: pa.array(values, kinds[name]) for name, values in columns.items()}
    )


def decoded(columns: dict[str, Any], scratch: Path) -> Loaded:
    """A row of ``decode`` with its medium as the model opens it.

    Args:
        scratch: for clips of other machines.
    """
    row = BatchRow.of(columns["index"], json.loads(columns["row"]))
    if columns["error"] is not None:
        return row, ValueError(columns["error"])
    if columns["pixels"] is None:
        return row, medium_of(row.source, scratch)
    return row, np.frombuffer(columns["pixels"], np.uint8).reshape(columns["height"], columns["width"], 3)
