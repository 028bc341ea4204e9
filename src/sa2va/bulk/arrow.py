"""Answers as Arrow tables, for Parquet files and for Ray. Needs the extra ``bulk``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sa2va.bulk.batch_rows import FIELDS, RUN_FIELDS
from sa2va.runtime import require_extra

#: Types of a manifest's columns, by what JSON makes of their values; others are kept as JSON text.
_PLAIN: dict[frozenset[type], str] = {frozenset([bool]): "bool", frozenset([int]): "int64", frozenset([str]): "string"}
_FLOATS: frozenset[type] = frozenset([float, int])


def extra_types(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Arrow's type of each column that is passed through; ``"json"`` where values are of several kinds, or nested."""
    kinds: dict[str, set[type]] = {}
    for extra in rows:
        for name, value in extra.items():
            kinds.setdefault(name, set()).update(() if value is None else (type(value),))
    return {name: _type_of(frozenset(found)) for name, found in kinds.items()}


def _type_of(kinds: frozenset[type]) -> str:
    if float in kinds and kinds <= _FLOATS:
        return "float64"
    return _PLAIN.get(kinds, "json" if kinds else "string")


def answer_schema(extra: Mapping[str, str], run: Sequence[str] = RUN_FIELDS) -> Any:
    """The ``pyarrow.Schema`` of answers.

    Args:
        extra: of ``extra_types``. run: which of ``RUN_FIELDS`` stand in every row.
    """
    pa = require_extra("pyarrow", "bulk")
    integers, text = pa.list_(pa.int32()), pa.string()
    segment = pa.struct(
        {
            "id": pa.int32(),
            "phrase": text,
            "span": integers,
            "score": pa.float64(),
            "presence": pa.float64(),
            "box": pa.list_(pa.float64()),
            "area": pa.int64(),
            "color": integers,
            "masks": pa.list_(pa.struct({"size": integers, "counts": text})),
        }
    )
    fields = {
        "index": pa.int64(),
        "id": text,
        "source": text,
        "asked": pa.list_(text),
        "size": integers,
        "text": text,
        "reasons": pa.list_(text),
        "segments": pa.list_(segment),
        "error": text,
    }
    assert tuple(fields) == FIELDS
    columns = {name: text if kind == "json" else pa.type_for_alias(kind) for name, kind in extra.items()}
    return pa.schema(fields | columns | dict.fromkeys(run, text))


def answer_table(records: Sequence[Mapping[str, Any]], schema: Any, extra: Mapping[str, str]) -> Any:
    """Records as a ``pyarrow.Table``; settings, and columns of no one type, become JSON text."""
    pa = require_extra("pyarrow", "bulk")
    texts = {name for name, kind in extra.items() if kind == "json"} | {"settings"}
    rows = [
        {name: _text(value) if name in texts and value is not None else value for name, value in record.items()}
        for record in records
    ]
    return pa.Table.from_pylist(rows, schema)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
