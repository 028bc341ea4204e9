"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: one expression, one area of a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from sa2va.data.datasets.refer import Expression, ReferPicture, read_refer, refer_files
from sa2va.eval.benchmark import BenchmarkSpec, Expected, Item, Prediction, Query, Scores
from sa2va.eval.benchmarks.file_benchmark import FileBenchmark, empty_mask, masks_of, picture, row
from sa2va.eval.benchmarks.published import REFCOCO
from sa2va.eval.metrics import Areas, ciou, generalized_areas, giou, mask_areas, precision_at
from sa2va.masks.mask import Mask
from sa2va.processing.requests import REFERRING_BENCHMARK_REQUEST

_PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)
_GENERAL_PRECISIONS = (0.7, 0.8, 0.9)
#: Some papers on gRefCOCO take a mask of fewer pixels for "no target".
_FEW_PIXELS = 50
_ASKED = (
    "Each expression (cleaned, lower case) is asked alone as "
    f"{REFERRING_BENCHMARK_REQUEST.format(phrase='{}')!r}. The union of all masks of the answer counts; an answer "
    "without a mask counts as an empty one. Targets are unions of their polygons. "
)
_PROTOCOL = _ASKED + (
    "cIoU: sum of intersections over sum of unions, over expressions. gIoU: mean IoU over expressions. Pr@k: share of "
    "expressions whose IoU reaches k. The paper's own early numbers counted the first mask and left out answers "
    "without one, which is more lenient in cIoU."
)
_GENERAL_PROTOCOL = _ASKED + (
    "The official definition (ReLA): gIoU is the mean IoU over all expressions, where one without target scores 1 for "
    "an answer without a pixel and 0 otherwise; cIoU sums over all; N-acc: share of expressions without target that "
    "were answered so; T-acc: share of the others that were answered with a mask; Pr@k over expressions with a target. "
    f"'No target' means: no mask, or not one pixel. Values ending in <{_FEW_PIXELS}px take fewer than {_FEW_PIXELS} "
    "pixels for 'no target', as some papers do."
)


class Referring(FileBenchmark[ReferPicture]):
    """Expressions that each mean one thing."""

    def item(self, entry: ReferPicture) -> Item:
        """One picture with all its expressions."""
        queries = [
            Query(name, REFERRING_BENCHMARK_REQUEST.format(phrase=expression.text), tag=self.tag(expression))
            for name, expression in zip(self.ids(entry), entry.expressions, strict=True)
        ]
        return Item(f"{self.name}/{entry.id}", picture(entry.image, entry.size), False, entry.size, tuple(queries))

    def ids(self, entry: ReferPicture) -> Sequence[str]:
        """``benchmark/expression``."""
        return [f"{self.name}/{expression.id}" for expression in entry.expressions]

    def tag(self, expression: Expression) -> str:
        """No groups."""
        return ""

    def expected(self, query_id: str) -> Expected:
        """The mask meant."""
        entry, index = self.find(query_id)
        return Expected(masks=((entry.mask(entry.expressions[index]),),))

    def areas(self, predictions: Mapping[str, Prediction]) -> dict[str, Areas]:
        """Counts of pixels, by query."""
        return {
            name: mask_areas(_union(predictions[name], entry), entry.mask(expression))
            for entry in self.entries
            for name, expression in zip(self.ids(entry), entry.expressions, strict=True)
        }

    def count(self, predictions: Mapping[str, Prediction]) -> Scores:
        """cIoU, gIoU, Pr@k."""
        overlaps = {name: areas.overlap for name, areas in self.areas(predictions).items()}
        counted = list(overlaps.values())
        precisions = {f"pr@{at}": precision_at(counted, at) for at in _PRECISIONS}
        values = {"ciou": ciou(counted), "giou": giou(counted), **precisions}
        return Scores(values, {}, {name: one.iou for name, one in overlaps.items()}, "ciou")


class GeneralizedReferring(Referring):
    """Expressions that mean one thing, several, or nothing."""

    def tag(self, expression: Expression) -> str:
        """By the number of targets."""
        return ("no target", "one target", "several targets")[min(len(expression.targets), 2)]

    def count(self, predictions: Mapping[str, Prediction]) -> Scores:
        """gIoU, cIoU, N-acc, T-acc, Pr@k."""
        areas = self.areas(predictions)
        official = generalized_areas(areas.values())
        lenient = generalized_areas(areas.values(), least_pixels=_FEW_PIXELS)
        values = {
            **{name: getattr(official, name) for name in ("giou", "ciou", "n_acc", "t_acc")},
            **{f"pr@{at}": official.precision_at(at) for at in _GENERAL_PRECISIONS},
            **{f"{name}<{_FEW_PIXELS}px": getattr(lenient, name) for name in ("giou", "n_acc", "t_acc")},
        }
        tags = [self.tag(expression) for entry in self.entries for expression in entry.expressions]
        groups: dict[str, dict[str, float]] = {}
        for tag in sorted(set(tags)):
            own = generalized_areas(one for one, other in zip(areas.values(), tags, strict=True) if other == tag)
            groups[tag] = {"count": len(own.ious), "giou": own.giou, "ciou": own.ciou}
        return Scores(values, groups, dict(zip(areas, official.ious, strict=True)), "giou")


def _union(prediction: Prediction, entry: ReferPicture) -> Mask:
    union = empty_mask(entry.size)
    for (mask,) in masks_of(prediction, entry.size, 1):
        union = union | mask
    return union


def _open(dataset: str, split: str, root: Path) -> Referring:
    general = dataset == "grefcoco"
    kind, protocol = (GeneralizedReferring, _GENERAL_PROTOCOL) if general else (Referring, _PROTOCOL)
    return kind(f"{dataset}/{split}", protocol, "segment", read_refer(root, dataset, split))


def _files(dataset: str, root: Path) -> Mapping[Path, str]:
    return refer_files(root, dataset)


_SPLITS = {
    "refcoco": ("RefCOCO", ("val", "testA", "testB")),
    "refcoco+": ("RefCOCO+", ("val", "testA", "testB")),
    "refcocog": ("RefCOCOg (UMD)", ("val", "test")),
    "grefcoco": ("gRefCOCO", ("val", "testA", "testB")),
}

ROWS: tuple[BenchmarkSpec, ...] = tuple(
    row(name, f"{title} {split}", partial(_open, dataset, split), partial(_files, dataset), REFCOCO.get(name))
    for dataset, (title, splits) in _SPLITS.items()
    for split in splits
    for name in [f"{dataset}/{split}"]
)
