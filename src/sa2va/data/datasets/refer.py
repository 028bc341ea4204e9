"""Referring expressions on pictures: RefCOCO, RefCOCO+, RefCOCOg, RefCLEF, and gRefCOCO with many and no targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sa2va.data.annotations.annotated_images import lazy_picture, read_picture
from sa2va.data.annotations.coco import CocoInstances, is_segmentation, unite
from sa2va.data.annotations.layout import Problems, first_existing, require_files
from sa2va.data.annotations.unpickle import load_plain
from sa2va.data.datasets.conversation_sampling import MOST_PHRASES, Draws, MaskRequest, requests_sample
from sa2va.data.sample import Sample
from sa2va.masks.mask import Mask, Size
from sa2va.processing.requests import TRAINING_REQUESTS, TrainingRequests
from sa2va.untrusted import reading

#: Data sets, and who split them by default.
REFER_SPLITS_BY = {
    "refcoco": "unc",
    "refcoco+": "unc",
    "refcocog": "umd",
    "refclef": "unc",
    "grefcoco": "unc",
}
_ORIGINS = {
    "instances": "the data set's archive at github.com/lichengunc/refer, or github.com/henghuiding/gRefCOCO",
    "pictures": "COCO 2014 train images, cocodataset.org",
    "saiapr": "the SAIAPR TC-12 images, see github.com/lichengunc/refer",
}


class Refer:
    """Pictures with everything that people said about their objects.

    All sentences of all references to an object are shown, each as a turn of its own, in a random order that is the
    same whenever a sample is asked for. Masks are unions. An expression without target is answered in words.

    Args:
        root: the folder that holds ``ref_seg``, see [`read_refer`].
        dataset: ``refcoco``, ``refcoco+``, ``refcocog``, ``refclef`` or ``grefcoco``. split: e.g. ``train``.
        split_by: who made the splits; the customary one when None.
        seed, phrases, views, requests: see [`Draws`].
        skip_broken: leave out pictures that are missing or wrongly annotated, with a warning, instead of refusing.

    Raises:
        MissingData: files are missing; the message names them. ValueError: annotations are malformed.
    """

    def __init__(
        self,
        root: str | Path,
        dataset: str = "refcoco",
        *,
        split: str = "train",
        split_by: str | None = None,
        seed: int = 0,
        phrases: int = MOST_PHRASES,
        views: int = 1,
        requests: TrainingRequests = TRAINING_REQUESTS,
        skip_broken: bool = False,
    ):
        self.dataset, self.draws = dataset, Draws(seed, phrases, views, requests)
        pictures = read_refer(root, dataset, split, split_by=split_by)
        *_, origin = refer_files(root, dataset, split_by=split_by).values()
        problems = Problems(f"{dataset} {split} in {root}")
        there = [picture for picture in pictures if problems.present(picture.image, origin)]
        self.pictures = [picture for picture in there if _well_annotated(picture, problems)]
        problems.settle(len(self.pictures), skip=skip_broken)

    def __len__(self) -> int:
        return len(self.pictures) * self.draws.views

    def __getitem__(self, index: int) -> Sample:
        view = self.draws.view(index, len(self.pictures))
        picture = self.pictures[view.place]
        requests = [
            MaskRequest(expression.raw, partial(picture.mask, expression) if expression.targets else None)
            for expression in self.draws.choose(picture.expressions, view)
        ]
        return requests_sample(
            requests,
            self.draws.wording(index),
            name=f"{self.dataset}/{picture.id}{view.suffix}",
            frame=lazy_picture(picture.image, picture.size),
            source=self.dataset,
        )


def _well_annotated(picture: ReferPicture, problems: Problems) -> bool:
    targets = sorted({target for expression in picture.expressions for target in expression.targets})
    wrong = [n for n in targets if not is_segmentation(picture.instances.annotations[n].get("segmentation"))]
    silent = [expression.id for expression in picture.expressions if not expression.raw.strip(" .")]
    for number in wrong:
        problems.malformed("an annotation has no polygon of three points and no RLE", f"annotation {number}")
    for name in silent:
        problems.malformed("an expression has no words", f"expression {name}")
    return not wrong and not silent


# -- how it is read ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expression:
    """Words that mean some annotated objects of a picture.

    Attributes:
        id: unique in its data set. text: cleaned and in lower case, as benchmarks ask. raw: as people wrote it.
        targets: annotation ids; none: nothing in the picture is meant. ref_id: the reference it belongs to, which
            several people may have put into words.
    """

    id: str
    text: str
    raw: str
    targets: tuple[int, ...]
    ref_id: int


@dataclass(frozen=True)
class ReferPicture:
    """One picture with all its expressions of a split.

    Attributes:
        id: COCO's number. image: the file. size: (height, width) in pixels. expressions: in the order of the file.
        instances: the annotations, shared by all pictures.
    """

    id: int
    image: Path
    size: Size
    expressions: tuple[Expression, ...]
    instances: CocoInstances = field(repr=False, compare=False)

    def mask(self, expression: Expression) -> Mask:
        """The union of the expression's targets; empty when it has none.

        Crowds do not count beside single objects, as in gRefCOCO's own evaluation. ValueError for a malformed one.
        """
        single = [target for target in expression.targets if not self.instances.annotations[target].get("iscrowd")]
        return unite(map(self.instances.mask, single or expression.targets), self.size)

    def load(self) -> np.ndarray:
        """The picture, uint8 RGB (H, W, 3). FileNotFoundError or ValueError naming the file when it cannot be read."""
        return read_picture(self.image, self.size)


def refer_files(root: str | Path, dataset: str, *, split_by: str | None = None) -> dict[Path, str]:
    """The files a data set needs and where each comes from; of alternatives, the one that exists.

    Args:
        root: the folder that holds ``ref_seg``. dataset: a key of [`REFER_SPLITS_BY`]. split_by: e.g. ``"google"``.
    """
    if dataset not in REFER_SPLITS_BY:
        raise ValueError(f"unknown data set {dataset!r}; take one of {sorted(REFER_SPLITS_BY)}")
    root = Path(root)
    folder = root / "ref_seg" / dataset
    name = f"{'g' * (dataset == 'grefcoco')}refs({split_by or REFER_SPLITS_BY[dataset]})"
    references = [folder / f"{name}.p", folder / f"{name}.json"]
    if dataset == "grefcoco":
        references.reverse()
    pictures = first_existing(_picture_folders(root, dataset))
    return {
        folder / "instances.json": _ORIGINS["instances"],
        first_existing(references): _ORIGINS["instances"],
        pictures: _ORIGINS["saiapr" if dataset == "refclef" else "pictures"],
    }


def read_refer(root: str | Path, dataset: str, split: str, *, split_by: str | None = None) -> list[ReferPicture]:
    """The pictures of a split, in the order in which the references name them.

    Args:
        root: the folder that holds ``ref_seg/<dataset>/{instances.json, refs(<split_by>).p}``; pictures are looked for
            in ``ref_seg/<dataset>/coco2014/train2014``, ``glamm_data/images/coco2014/train2014``,
            ``coco2014/train2014`` and ``train2014``. A pickle is read by a reader that runs no code, JSON as well.
        dataset: ``refcoco``, ``refcoco+``, ``refcocog``, ``refclef`` or ``grefcoco``.
        split: ``train``, ``val``, ``testA``, ``testB`` (``testC``), or ``test`` where the references say so.
        split_by: who made the splits; the customary one when None.

    Raises:
        MissingData: the annotation files or the folder of pictures. Single pictures are not looked for.
        ValueError: the references have no such split, or are malformed.
    """
    files = refer_files(root, dataset, split_by=split_by)
    require_files(dataset, files)
    instances_path, references_path, folder = files
    references = _references(references_path, split)
    instances = CocoInstances(instances_path)
    with reading(references_path, "references with ref_id, ann_id, image_id and sentences"):
        return _pictures(references, instances, folder, references_path)


def _pictures(
    references: list[dict[str, Any]], instances: CocoInstances, folder: Path, references_path: Path
) -> list[ReferPicture]:
    """The pictures that references name. folder: of their files."""
    named = [(reference, _targets(reference)) for reference in references]
    _check_targets(named, instances, references_path)
    naming = _naming(references)
    expressions: dict[int, list[Expression]] = {}
    for reference, targets in named:
        for number, sentence in enumerate(reference["sentences"]):
            raw = str(sentence.get("raw") or sentence["sent"])
            text = str(sentence.get("sent") or raw).lower().strip()
            expression = Expression(naming(reference, number), text, raw, targets, int(reference["ref_id"]))
            expressions.setdefault(int(reference["image_id"]), []).append(expression)
    images = {number: instances.images[number] for number in expressions}
    needed = instances.only({target for _, targets in named for target in targets})
    return [
        ReferPicture(number, folder / images[number].file_name, images[number].size, tuple(found), needed)
        for number, found in expressions.items()
    ]


def _picture_folders(root: Path, dataset: str) -> list[Path]:
    if dataset == "refclef":
        places = ("saiapr_tc-12", "images/saiapr_tc-12")
        return [base / place for base in (root / "ref_seg" / dataset, root / "ref_seg", root) for place in places]
    own = [root / "ref_seg" / dataset / "coco2014" / "train2014"]
    return [*own, *(root / place / "train2014" for place in ("glamm_data/images/coco2014", "coco2014", "."))]


def _references(path: Path, split: str) -> list[dict[str, Any]]:
    content = load_plain(path)
    required = {"ref_id", "ann_id", "image_id", "split", "sentences"}
    if not isinstance(content, list) or not all(isinstance(one, dict) and required <= one.keys() for one in content):
        raise ValueError(f"{path}: expected a list of references with {sorted(required)}")
    found = [reference for reference in content if _in_split(str(reference["split"]), split)]
    if not found:
        counts = Counter(str(reference["split"]) for reference in content)
        raise ValueError(
            f"{path} has no split {split!r}; its splits and their references: {dict(sorted(counts.items()))}"
        )
    return found


def _in_split(own: str, wanted: str) -> bool:
    # RefCLEF's test sets overlap: a reference of "testBC" is in testB and in testC.
    tests = own.startswith("test") and own != "test" and len(wanted) == len("testA") and wanted.startswith("test")
    return own == wanted or (tests and wanted[-1] in own.removeprefix("test"))


def _targets(reference: dict[str, Any]) -> tuple[int, ...]:
    ids = reference["ann_id"]
    ids = ids if isinstance(ids, list | tuple) else [ids]
    return tuple(int(number) for number in ids if int(number) != -1)  # -1: no target


def _check_targets(named: list[tuple[dict[str, Any], tuple[int, ...]]], instances: CocoInstances, path: Path) -> None:
    for reference, targets in named:
        picture = int(reference["image_id"])
        unknown = [number for number in targets if instances.annotations.get(number, {}).get("image_id") != picture]
        if unknown or picture not in instances.images:
            raise ValueError(
                f"{path}, reference {reference['ref_id']}: {instances.path} has no "
                f"{f'annotations {unknown} of ' * bool(unknown)}picture {picture}; both files must be of one release"
            )
        if not instances.repeated.isdisjoint(targets):
            raise ValueError(
                f"{path}, reference {reference['ref_id']}: {instances.path} has several annotations {targets}"
            )


def _naming(references: list[dict[str, Any]]) -> Callable[[dict[str, Any], int], str]:
    """How expressions are named: by the number of their sentence where these are unique."""
    ids = [sentence.get("sent_id") for reference in references for sentence in reference["sentences"]]
    if None not in ids and len(set(ids)) == len(ids):
        return lambda reference, number: str(reference["sentences"][number]["sent_id"])
    return lambda reference, number: f"{reference['ref_id']}-{number}"
