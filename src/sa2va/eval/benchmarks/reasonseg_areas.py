"""ReasonSeg: an area that a question or a phrase implies, with pixels that do not count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sa2va.data.datasets.reasonseg import ReasonPicture, read_reasonseg, reasonseg_folder
from sa2va.eval.benchmark import BenchmarkSpec, Expected, Item, Prediction, Query, Scores
from sa2va.eval.benchmarks.file_benchmark import FileBenchmark, by_tag, first_mask, picture, row
from sa2va.eval.metrics import Overlap, ciou, giou, overlap
from sa2va.masks.mask import Mask
from sa2va.processing.requests import REASONING_REQUEST, REASONING_SENTENCE_REQUEST

_PROTOCOL = (
    "The first text of each picture is asked, a sentence as "
    f"{REASONING_SENTENCE_REQUEST.format(phrase='{}')!r}, a phrase as {REASONING_REQUEST.format(phrase='{}')!r}. The "
    "first mask counts; an answer without one counts as an empty mask. Pixels marked to be ignored do not count. gIoU: "
    "mean IoU over pictures, 1 where nothing is to be found and nothing is; cIoU: sum of intersections over sum of "
    "unions. Groups: long (sentences) and short (phrases)."
)


class Reasoning(FileBenchmark[ReasonPicture]):
    """One request per picture."""

    def item(self, entry: ReasonPicture) -> Item:
        """One picture with its request."""
        request = (REASONING_SENTENCE_REQUEST if entry.is_sentence else REASONING_REQUEST).format(phrase=entry.texts[0])
        (name,) = self.ids(entry)
        query = Query(name, request, tag=_tag(entry))
        return Item(name, picture(entry.image, entry.size), False, entry.size, (query,))

    def ids(self, entry: ReasonPicture) -> Sequence[str]:
        """``benchmark/picture``."""
        return [f"{self.name}/{entry.id}"]

    def expected(self, query_id: str) -> Expected:
        """The area meant."""
        entry, _ = self.find(query_id)
        return Expected(masks=((Mask.from_array(entry.masks()[0]),),))

    def count(self, predictions: Mapping[str, Prediction]) -> Scores:
        """gIoU and cIoU, of all and of long and short requests."""
        overlaps = {name: _overlap(entry, predictions[name]) for entry in self.entries for name in self.ids(entry)}
        groups = by_tag(map(_tag, self.entries), overlaps.values())
        return Scores(
            _values(list(overlaps.values())),
            {tag: {"count": len(own), **_values(own)} for tag, own in groups.items()},
            {name: one.iou for name, one in overlaps.items()},
            "giou",
        )


def _tag(entry: ReasonPicture) -> str:
    return "long" if entry.is_sentence else "short"


def _overlap(entry: ReasonPicture, prediction: Prediction) -> Overlap:
    target, ignored = entry.masks()
    masks = first_mask(prediction, entry.size)
    return overlap(masks[0].array if masks else np.zeros_like(target), target, ignored)


def _values(overlaps: list[Overlap]) -> dict[str, float]:
    return {"giou": giou(overlaps), "ciou": ciou(overlaps)}


def _open(split: str, root: Path) -> Reasoning:
    return Reasoning(f"reasonseg/{split}", _PROTOCOL, "segment", read_reasonseg(root, split))


def _files(split: str, root: Path) -> Mapping[Path, str]:
    return {reasonseg_folder(root, split): "the ReasonSeg archives linked at github.com/dvlab-research/LISA"}


ROWS: tuple[BenchmarkSpec, ...] = tuple(
    row(f"reasonseg/{split}", f"ReasonSeg {split}", partial(_open, split), partial(_files, split))
    for split in ("val", "test")
)
