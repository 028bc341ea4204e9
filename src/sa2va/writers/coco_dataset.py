"""Results of many images and videos as one dataset in COCO's instance format."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from sa2va.atomic import naming, replacing
from sa2va.masks.mask import Segment, Size
from sa2va.results import exports
from sa2va.writers.dataset_writer import DatasetWriter


class CocoWriter(DatasetWriter):
    """Collects results as ``FOLDER/annotations.json`` and ``FOLDER/images``.

    pycocotools, supervision and ``sa2va data check`` read it. There is one category per phrase (``"object"`` if there
    is none). An annotation has the mask as RLE, its area and box, ``iscrowd`` 0 and, in addition to COCO's keys,
    ``score``, ``phrase`` and ``object_id``.

    The annotations appear complete when the block ends; after an error there are none. For a benchmark whose images
    already have ids use [`sa2va.Answer.to_coco`].

    Args:
        folder: new, or without annotations.

    Raises:
        ValueError: the folder has annotations already.
        OSError: the folder is not writable.

    Examples:
        >>> from sa2va import Sa2VA
        >>> from sa2va.writers import CocoWriter
        >>> model = Sa2VA.from_pretrained("tiny")
        >>> with CocoWriter("found") as writer:
        ...     writer.add("shapes.png", model.segment("shapes.png", ["the yellow cloud", "the letter Z"]))
    """

    label_file = "annotations.json"

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        self._categories: dict[str, int] = {}
        self._last_id = 0
        # Both wait on disk, so that memory does not grow with the images and their masks.
        self._images = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._annotations = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115

    def close(self) -> None:
        """Write the annotations."""
        with (
            self._images,
            self._annotations,
            replacing(self.path) as temporary,
            temporary.open("w", encoding="utf-8") as out,
        ):
            out.writelines(self._pieces())

    def abort(self) -> None:
        """Discard the dataset: no annotations appear, and the images written for them are removed."""
        self._images.close()
        self._annotations.close()
        super().abort()

    def _label(self, name: str, size: Size, segments: Sequence[Segment]) -> None:
        number = len(self._written)
        for segment in segments:
            self._categories.setdefault(segment.phrase or "object", len(self._categories) + 1)
        annotations = exports.coco_annotations(segments, number, self._categories, self._last_id + 1)
        self._last_id += len(annotations)
        image = {"id": number, "file_name": name, "width": size[1], "height": size[0]}
        with naming(tempfile.gettempdir()):
            _append(self._images, [image])
            _append(self._annotations, annotations)

    def _pieces(self) -> Iterator[str]:
        categories = [{"id": number, "name": name} for name, number in self._categories.items()]
        head = {"info": {"description": "found by sa2va"}, "licenses": [], "categories": categories}
        yield json.dumps(head, ensure_ascii=False)[:-1] + ', "images": ['
        yield from _lines(self._images)
        yield '\n], "annotations": ['
        yield from _lines(self._annotations)
        yield "\n]}\n"


def _append(spool: IO[str], records: Sequence[dict[str, Any]]) -> None:
    spool.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _lines(spool: IO[str]) -> Iterator[str]:
    """The records of a spool, with commas between them."""
    spool.seek(0)
    for number, line in enumerate(spool):
        yield (",\n" if number else "\n") + line.rstrip("\n")
