"""Where rows come from: a folder, a pattern, a list of files or a manifest, here or at any URL of fsspec.

Rows are read one after the other, so that memory does not grow with their number; names in folders are sorted directory
by directory.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from sa2va.bulk.batch_rows import FIELDS, RUN_FIELDS, Ask, BatchRow
from sa2va.bulk.remote_files import CLIP_SUFFIXES, file_system, is_http, is_remote, opened, suffix_of
from sa2va.media.open import PICTURE_SUFFIXES
from sa2va.runtime import require_extra
from sa2va.untrusted import parse_json, reading

#: Names under which a manifest's column holds the medium; the first that is there.
MEDIA_COLUMNS = ("media", "image", "video", "source", "path", "file", "file_name", "url")
MANIFESTS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
LISTS = (".txt", ".lst", ".list")
_MEDIA = frozenset(PICTURE_SUFFIXES) | CLIP_SUFFIXES
#: Between the phrases of one cell in a CSV file.
_SEPARATOR = "|"


def read_rows(source: str, ask: Ask | None) -> Iterator[BatchRow]:
    """The rows of a source, in a fixed order.

    Args:
        source: a folder (pictures and clips in it at any depth), a pattern with ``*``, a list (.txt: a path or URL a
            line), a manifest (.jsonl, .csv, .tsv, .parquet), or one picture or clip; a path or a URL.
        ask: what is asked of rows that do not say it themselves.

    Raises:
        ValueError: the source is none of these, a row is malformed, or nothing is asked of one.
        FileNotFoundError: there is no such file.
    """
    for index, (place, record) in enumerate(_records(source)):
        with reading(place):
            row = BatchRow.of(index, record)
        if row.ask is None and ask is None:
            raise ValueError(f"{place}: nothing is asked; give phrases, --question or --caption, or a column of them")
        yield row


def _records(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows as ``BatchRow.record`` has them, each with the place to name in an error."""
    remote, suffix = is_remote(source), suffix_of(source)
    if suffix in MANIFESTS:
        return _manifest(source, suffix)
    if suffix in LISTS:
        return _list(source)
    if not remote and os.path.isdir(source):
        return _named(_walk(Path(source)), source)
    if not remote and os.path.isfile(source):
        return _named([(Path(source).name, source)], source)
    if is_http(source):
        return _named([(PurePosixPath(source.split("?")[0]).name, source)], source)
    if remote:
        return _named(_remote(source), source)
    if glob.has_magic(source):
        return _named(((path, path) for path in _matching(source)), source)
    raise FileNotFoundError(2, "no such file or folder", source)


def _named(found: Iterable[tuple[str, str]], source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Media with their ids. ValueError where there are none."""
    none = True
    for name, path in found:
        none = False
        yield path, {"id": name, "source": path}
    if none:
        raise ValueError(f"{source} holds no pictures or clips ({', '.join(sorted(_MEDIA))})")


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if _is_medium(name):
                yield (here / name).relative_to(root).as_posix(), str(here / name)


def _matching(pattern: str) -> list[str]:
    return sorted(path for path in glob.glob(pattern, recursive=True) if _is_medium(path) and os.path.isfile(path))


def _remote(url: str) -> Iterator[tuple[str, str]]:
    """A remote folder, pattern or file."""
    files, path = file_system(url)
    if glob.has_magic(path):
        found, root = sorted(files.glob(path)), ""
    else:
        found, root = sorted(files.find(path)), path.rstrip("/") + "/"
    if not found:
        raise FileNotFoundError(2, "no such file or folder", url)
    for name in found:
        if _is_medium(name) and not files.isdir(name):
            yield name.removeprefix(root) or PurePosixPath(name).name, files.unstrip_protocol(name)


def _is_medium(path: str) -> bool:
    name = PurePosixPath(path).name
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in _MEDIA


def _list(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with opened(source) as file:
        for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig"), 1):
            if path := line.strip():
                yield f"{source}:{number}", {"id": path, "source": _beside(source, path)}


def _manifest(source: str, suffix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    read = {".parquet": _parquet, ".csv": _csv, ".tsv": _csv}.get(suffix, _json_lines)
    for number, columns in enumerate(read(source), 1):
        place = f"{source}: row {number}"
        with reading(place):
            yield place, _row_record(source, columns)


def _json_lines(source: str) -> Iterator[dict[str, Any]]:
    with opened(source) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                with reading(f"{source}:{number}"):
                    columns = parse_json(line)
                    if not isinstance(columns, dict):
                        raise ValueError(f"expected a JSON object, got {type(columns).__name__}")
                yield columns


def _csv(source: str) -> Iterator[dict[str, Any]]:
    with opened(source) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        for number, columns in enumerate(
            csv.DictReader(text, dialect="excel-tab" if source.endswith("tsv") else "excel")
        ):
            if None in columns or None in columns.values():
                raise ValueError(f"{source}: row {number + 1} has another number of cells than the head of the table")
            columns = {name: cell for name, cell in columns.items() if cell or name not in ("phrases", "question")}
            if "phrases" in columns:
                columns["phrases"] = [phrase.strip() for phrase in columns["phrases"].split(_SEPARATOR)]
            if columns.get("caption", "").lower() == "true":
                columns["caption"] = True
            yield columns


def _parquet(source: str) -> Iterator[dict[str, Any]]:
    parquet = require_extra("pyarrow.parquet", "bulk")
    with opened(source) as file, reading(source, "a Parquet file"):
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=256):
            yield from batch.to_pylist()


def _row_record(source: str, columns: dict[str, Any]) -> dict[str, Any]:
    """A manifest's row as ``BatchRow.record`` has it."""
    column = next((name for name in MEDIA_COLUMNS if columns.get(name)), None)
    if column is None:
        raise ValueError(f"no column names a picture or clip; expected one of {', '.join(MEDIA_COLUMNS)}")
    medium = columns.pop(column)
    if not isinstance(medium, str):
        raise ValueError(f"{column} is a path or URL; got {medium!r:.80}")
    record = {"id": str(columns.pop("id", medium)), "source": _beside(source, medium)}
    if (phrase := columns.pop("phrase", None)) is not None:
        columns.setdefault("phrases", [phrase])
    if isinstance(columns.get("phrases"), str):
        columns["phrases"] = [columns["phrases"]]
    for name in ("phrases", "question"):
        if (value := columns.pop(name, None)) is not None:
            record[name] = value
    if columns.get("caption") is True:
        record["caption"] = columns.pop("caption")
    if taken := sorted({*columns} & {*FIELDS, *RUN_FIELDS}):
        raise ValueError(f"columns {', '.join(taken)} have names of the results; rename them")
    if columns:
        # As JSON has them: dates become texts, and what is no number nothing.
        record["extra"] = json.loads(json.dumps(columns, default=str), parse_constant=lambda _: None)
    return record


def _beside(source: str, medium: str) -> str:
    """A medium's path: what a list or manifest names without a root lies beside it."""
    if is_remote(medium) or os.path.isabs(medium):
        return medium
    if is_remote(source):
        return f"{source.rsplit('/', 1)[0]}/{medium}"
    return str(Path(source).parent / medium)
