"""The results of a batch in the form that is wanted, made from its shards when all rows are answered.

A target is a function that is called with every answered row. A file appears whole when all rows have passed by;
pictures (masks, overlays) appear one by one.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sa2va.atomic import replacing
from sa2va.bulk.arrow import answer_schema, answer_table, extra_types
from sa2va.bulk.batch_folder import BatchFolder
from sa2va.bulk.remote_files import ahead, fetched, is_remote, suffix_of
from sa2va.masks.mask import Segment, segment_from_record
from sa2va.media.image import load_image
from sa2va.media.open import PICTURE_SUFFIXES, Picture, open_media
from sa2va.results.answer import Answer
from sa2va.runtime import logger, require_extra
from sa2va.visualization.overlay import ClipOverlay, palette_png
from sa2va.writers import CocoWriter, LabelmeWriter, LabelStudioWriter, YoloWriter
from sa2va.writers.dataset_writer import DatasetWriter

_ROWS_PER_GROUP = 1024


class AnsweredRow:
    """A row with its answer, and with its medium where a target needs that.

    Attributes:
        record: as in ``answers.jsonl``.
        name: of its files: the index, and the name of its medium in plain letters.
    """

    def __init__(self, record: dict[str, Any], scratch: Path):
        self.record, self._scratch = record, scratch
        words = re.sub(r"[^A-Za-z0-9_]+", "-", Path(record["source"]).stem)[:60].strip("-")
        self.name = f"{record['index']:07d}{'-' if words else ''}{words}"

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The objects found."""
        return tuple(segment_from_record(segment) for segment in self.record["segments"])

    @cached_property
    def present(self) -> bool:
        """Whether the row was answered and its medium can still be had; that it cannot is told."""
        if self.record["error"] is not None:
            return False
        try:
            self.medium.stat()
        except (ValueError, OSError) as error:
            logger.warning("%s cannot be had any more, and is left out: %s", self.record["source"], error)
            return False
        return True

    @cached_property
    def medium(self) -> Path:
        """The medium's file; of a remote one, a copy. ValueError or OSError where it cannot be had any more."""
        source = self.record["source"]
        if not is_remote(source):
            return Path(source)
        medium = fetched(source, self._scratch)
        if not isinstance(medium, bytes):
            return Path(medium)
        known = suffix_of(source) in PICTURE_SUFFIXES
        copy = self._scratch / f"{self.name}{suffix_of(source) if known else '.png'}"
        if known:
            copy.write_bytes(medium)
        else:
            load_image(medium).save(copy)
        return copy

    def frames(self) -> Iterator[tuple[str, np.ndarray, list[Segment]]]:
        """The picture, or every frame of a clip: the name of its file, uint8 (H, W, 3), and what is seen there."""
        with open_media(self.medium) as media:
            for frame in media:
                name = self.name if isinstance(media, Picture) else f"{self.name}/{frame.index:05d}"
                yield name, frame.pixels, [at_frame(segment, frame.index) for segment in self.segments]


Add = Callable[[AnsweredRow], object]


def at_frame(segment: Segment, frame: int) -> Segment:
    """A segment of a clip as one frame has it."""
    return Segment(
        segment.id, segment.phrase, (segment.masks[frame],), segment.score, segment.presence, color=segment.color
    )


@contextmanager
def _json_lines(folder: BatchFolder, path: Path) -> Iterator[Add]:
    run = run_fields(folder)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield lambda row: _write_line(file, row.record | run)


def _write_line(file: Any, record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")


@contextmanager
def _parquet(folder: BatchFolder, path: Path) -> Iterator[Add]:
    parquet = require_extra("pyarrow.parquet", "bulk")
    extra, run = extra_types(row.extra for row in folder.read_rows()), run_fields(folder)
    schema = answer_schema(extra)
    waiting: list[dict[str, Any]] = []

    with replacing(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:

        def flush() -> None:
            writer.write_table(answer_table(waiting, schema, extra))
            waiting.clear()

        def add(row: AnsweredRow) -> None:
            waiting.append(row.record | run)
            if len(waiting) == _ROWS_PER_GROUP:
                flush()

        yield add
        flush()


@contextmanager
def _dataset(writer: type[DatasetWriter], folder: BatchFolder, path: Path) -> Iterator[Add]:
    with writer(path.parent) as labels:

        def add(row: AnsweredRow) -> None:
            if row.present:
                answer = Answer("", "", row.segments)
                labels.add(row.medium, answer, name=f"{row.name}{row.medium.suffix.lower()}")

        yield add


def _pictures(
    draw: Callable[[], Callable[[np.ndarray, Sequence[Segment]], Image.Image]], suffix: str, folder: Path
) -> Add:
    """A picture per picture, or per frame of a clip; those that are there already stay.

    Args:
        draw: gives what draws the frames of one row.
    """

    def add(row: AnsweredRow) -> None:
        if (folder / f"{row.name}{suffix}").exists() or not row.present:
            return
        drawn = draw()
        for name, pixels, segments in row.frames():
            with replacing(folder / f"{name}{suffix}") as temporary:
                drawn(pixels, segments).save(temporary)

    folder.mkdir(parents=True, exist_ok=True)
    return add


def _palette(pixels: np.ndarray, segments: Sequence[Segment]) -> Image.Image:
    nothing = np.zeros(pixels.shape[:2], np.bool_)
    masks = [segment.mask.array for segment in segments]
    return palette_png(masks or [nothing], [s.id for s in segments] or [1], [s.color for s in segments] or [None])


_FILES: dict[str, tuple[str, Callable[[BatchFolder, Path], AbstractContextManager[Add]]]] = {
    "jsonl": ("answers.jsonl", _json_lines),
    "parquet": ("answers.parquet", _parquet),
    "coco": (f"coco/{CocoWriter.label_file}", partial(_dataset, CocoWriter)),
    "yolo": (f"yolo/{YoloWriter.label_file}", partial(_dataset, YoloWriter)),
    "labelme": (f"labelme/{LabelmeWriter.label_file}", partial(_dataset, LabelmeWriter)),
    "label-studio": (f"label-studio/{LabelStudioWriter.label_file}", partial(_dataset, LabelStudioWriter)),
}
#: What ``--to`` takes.
KINDS = (*_FILES, "png")


@dataclass
class Targets:
    """What is to be made.

    Attributes:
        ordered: called with every row, in order. free: called with rows ahead, in several threads.
    """

    ordered: list[Add] = field(default_factory=list)
    free: list[Add] = field(default_factory=list)

    def prepare(self, row: AnsweredRow) -> None:
        """What may be done before the rows before it are."""
        for add in self.free:
            add(row)


@contextmanager
def open_targets(folder: BatchFolder, kinds: Sequence[str], *, overlays: bool) -> Iterator[Targets]:
    """The targets that are not there yet.

    Raises:
        ImportError: Parquet is wanted, and pyarrow is missing.
    """
    targets = Targets()
    with ExitStack() as stack:
        for kind in (one for one in kinds if one in _FILES):
            name, make = _FILES[kind]
            if not (folder.path / name).exists():
                targets.ordered.append(stack.enter_context(make(folder, folder.path / name)))
                if "/" in name:  # a dataset, which copies media: fetch them ahead
                    targets.free.append(lambda row: bool(row.present))
        if "png" in kinds:
            targets.free.append(_pictures(lambda: _palette, ".png", folder.path / "masks"))
        if overlays:
            targets.free.append(_pictures(lambda: ClipOverlay().draw, ".jpg", folder.path / "overlays"))
        yield targets


def read_answered(folder: BatchFolder, prepare: Add) -> Iterator[AnsweredRow]:
    """All rows with their answers, in order.

    Args:
        prepare: called with rows ahead, in several threads. Copies of remote media are removed when the next row is
            asked for.
    """
    with tempfile.TemporaryDirectory(prefix="sa2va-") as scratch:
        rows = (AnsweredRow(record, Path(scratch)) for record in folder.records())
        for row, _ in ahead(prepare, rows):
            yield row
            if is_remote(row.record["source"]) and "medium" in row.__dict__:
                row.medium.unlink(missing_ok=True)


def run_fields(folder: BatchFolder) -> dict[str, Any]:
    """What stands in every row of the results about the run."""
    settings = {name: value for name, value in folder.settings.items() if name not in ("model", "source")}
    return {"model": folder.settings["model"], "revision": folder.revision, "settings": settings}
