"""Grounded captions: pictures with a caption some of whose phrases have masks, in the three schemas of GLaMM's data.

Rasheed et al., GLaMM, CVPR 2024. Training files hold captions with spans; the ground truth of the benchmark on GranDf
holds captions, labels and masks in two COCO files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sa2va.data.annotations.annotated_images import lazy_picture, read_picture, stored_size
from sa2va.data.annotations.coco import decode_segmentation, is_segmentation, unite
from sa2va.data.annotations.layout import (
    MissingData,
    PictureFolders,
    Problems,
    first_existing,
    read_json,
    require_files,
)
from sa2va.data.datasets.conversation_sampling import Draws
from sa2va.data.sample import Sample
from sa2va.masks.mask import Mask, Size
from sa2va.processing.requests import GROUNDED_PHRASE, TRAINING_REQUESTS, TrainingRequests
from sa2va.results.history import Turn
from sa2va.untrusted import STUMBLES, reading

_ORIGIN = "the GranD-f annotations of GLaMM, github.com/mbzuai-oryx/groundingLMM"
_IMAGES = "glamm_data/images"
# As in the reference: shorter captions and smaller pictures teach nothing.
_FEWEST_WORDS, _SHORTEST_SIDE = 3, 32


class Gcg:
    """Pictures with one grounded caption each; every ``<p> phrase </p> [SEG]`` has the union of the phrase's masks.

    Args:
        root: the folder that holds ``glamm_data``. dataset: ``refcocog``, ``grandf``, ``flickr30k`` or ``openpsg``.
        seed: of the wordings. requests: their templates. views: samples per picture, each with a request of its own.
        skip_broken: leave out pictures that are missing or wrongly annotated, with a warning, instead of refusing.

    Raises:
        MissingData: files are missing; the message names them. ValueError: annotations are malformed.
    """

    def __init__(
        self,
        root: str | Path,
        dataset: str = "refcocog",
        *,
        seed: int = 0,
        views: int = 1,
        requests: TrainingRequests = TRAINING_REQUESTS,
        skip_broken: bool = False,
    ):
        self.dataset, self.draws = dataset, Draws(seed, views=views, requests=requests)
        self.pictures = read_gcg(root, dataset, skip_broken=skip_broken)

    def __len__(self) -> int:
        return len(self.pictures) * self.draws.views

    def __getitem__(self, index: int) -> Sample:
        view = self.draws.view(index, len(self.pictures))
        picture, request = self.pictures[view.place], self.draws.wording(index).draw(self.draws.requests.gcg)
        return Sample(
            id=f"gcg-{self.dataset}/{picture.id}{view.suffix}",
            frames=(lazy_picture(picture.image, picture.size()),),
            turns=(Turn(request, _marked(picture)),),
            masks=tuple(picture.mask(grounding).array[None] for grounding in picture.groundings),
            source=f"gcg-{self.dataset}",
        )


def _marked(picture: GroundedPicture) -> str:
    """The caption with its grounded phrases marked."""
    pieces, done = [], 0
    for span in picture.groundings:
        phrase = picture.caption[span.start : span.end]
        pieces += [picture.caption[done : span.start], GROUNDED_PHRASE.format(phrase=phrase)]
        done = span.end
    return "".join([*pieces, picture.caption[done:]])


# -- how it is read ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grounding:
    """A phrase of a caption with what it means.

    Attributes:
        start, end: first and (exclusive) last character in the caption.
        segmentations: of everything the phrase means, as in the file; their union is its mask.
    """

    start: int
    end: int
    segmentations: tuple[Any, ...]


@dataclass(frozen=True)
class GroundedPicture:
    """One picture with a grounded caption.

    Attributes:
        id: unique in its file. image: the file. caption: without quotes and spaces around it.
        groundings: sorted by start, none overlapping another: of overlapping spans the one that starts first counts,
            and of those the longest; equal spans are one with all their masks.
        overlapping: spans that were left out because of that.
    """

    id: str
    image: Path
    caption: str
    groundings: tuple[Grounding, ...]
    overlapping: int = 0

    def size(self) -> Size:
        """(height, width) of the picture: what its run lengths say, or for polygons its header."""
        first = self.groundings[0].segmentations[0]
        return (first["size"][0], first["size"][1]) if isinstance(first, dict) else stored_size(self.image)

    def mask(self, grounding: Grounding) -> Mask:
        """The union of what a phrase means. ValueError naming the picture when it is malformed or empty."""
        size = self.size()
        try:
            mask = unite((decode_segmentation(one, size) for one in grounding.segmentations), size)
            if not mask.area:
                raise ValueError("its mask is empty")
            return mask
        except ValueError as error:
            phrase = self.caption[grounding.start : grounding.end]
            raise ValueError(f"picture {self.id!r}, phrase {phrase!r}: {error}") from error

    def load(self) -> np.ndarray:
        """The picture, uint8 RGB (H, W, 3). FileNotFoundError or ValueError naming the file when it cannot be read."""
        return read_picture(self.image, self.size())


@dataclass(frozen=True)
class GcgTruth:
    """Ground truth of one picture of the GranDf benchmark.

    Attributes:
        id: name of the picture without its ending. image: the file. caption: the reference caption.
        labels: phrases of the caption, in the order of the masks. size: (height, width) in pixels.
        segmentations: of each mask, as in the file.
    """

    id: str
    image: Path
    caption: str
    labels: tuple[str, ...]
    size: Size
    segmentations: tuple[Any, ...]

    def masks(self) -> tuple[Mask, ...]:
        """One mask per label. ValueError naming the picture when one is malformed."""
        try:
            return tuple(decode_segmentation(one, self.size) for one in self.segmentations)
        except ValueError as error:
            raise ValueError(f"picture {self.id!r}: {error}") from error

    def load(self) -> np.ndarray:
        """The picture, uint8 RGB (H, W, 3). FileNotFoundError or ValueError naming the file when it cannot be read."""
        return read_picture(self.image, self.size)


@dataclass(frozen=True)
class _Schema:
    """Where a training set lies, what its entries are, and how one is read; None for one that teaches nothing."""

    annotations: str
    folders: tuple[str, ...]
    entries: Callable[[Any], Iterable[Any]]
    read: Callable[[Any, PictureFolders], GroundedPicture | None]


def gcg_files(root: str | Path, dataset: str) -> dict[Path, str]:
    """The files a training set needs and where each comes from. dataset: as in [`read_gcg`]."""
    if dataset not in _SCHEMAS:
        raise ValueError(f"unknown data set {dataset!r}; take one of {sorted(_SCHEMAS)}")
    schema = _SCHEMAS[dataset]
    folders = [Path(root) / _IMAGES / folder for folder in schema.folders]
    annotations = Path(root) / "glamm_data" / "annotations" / schema.annotations
    return {annotations: _ORIGIN, first_existing(folders): f"the pictures of {dataset}, see {_ORIGIN}"}


def read_gcg(root: str | Path, dataset: str, *, skip_broken: bool = False) -> list[GroundedPicture]:
    """The pictures of a training set that have at least one grounded phrase, in the order of the file.

    Args:
        root: the folder that holds ``glamm_data/{annotations,images}``.
        dataset: ``refcocog``, ``grandf``, ``flickr30k`` or ``openpsg``.
        skip_broken: leave out entries that are malformed or whose picture is missing, with a warning.

    Raises:
        MissingData: the annotations, or pictures. ValueError: entries are malformed; the message names them.
    """
    files = gcg_files(root, dataset)
    require_files(f"GCG {dataset}", files)
    (annotations, _), schema = files, _SCHEMAS[dataset]
    folders = PictureFolders([Path(root) / _IMAGES / folder for folder in schema.folders])
    problems, names, found = Problems(str(annotations)), Counter[str](), []
    for number, entry in enumerate(_entries(annotations, schema)):
        picture = _checked(entry, schema, folders, problems, f"entry {number}")
        if picture and picture.groundings:
            names[picture.id] += 1
            # A picture may have several captions.
            found.append(replace(picture, id=f"{picture.id}-{names[picture.id]}") if names[picture.id] > 1 else picture)
    problems.settle(len(found), skip=skip_broken)
    return found


def _entries(annotations: Path, schema: _Schema) -> list[Any]:
    content = read_json(annotations)
    with reading(annotations, "the entries of this set"):
        return list(schema.entries(content))


def _checked(
    entry: Any, schema: _Schema, folders: PictureFolders, problems: Problems, where: str
) -> GroundedPicture | None:
    """The picture of an entry if all is well with it."""
    try:
        picture = schema.read(entry, folders)
    except STUMBLES as error:
        problems.malformed(f"an entry cannot be read ({type(error).__name__}: {error})", where)
        return None
    if picture is None or not picture.groundings:
        return None
    if not all(is_segmentation(one) for span in picture.groundings for one in span.segmentations):
        problems.malformed("a phrase has a mask that is neither polygons nor RLE", where)
    elif problems.present(picture.image, f"the pictures of {schema.annotations}, see {_ORIGIN}"):
        return picture
    return None


def gcg_truth_files(root: str | Path, split: str) -> dict[Path, str]:
    """The files of the GranDf benchmark and where each comes from. split: ``val`` or ``test``."""
    folder = Path(root) / "glamm_data" / "annotations" / "gcg_val_test"
    return {
        folder / f"{split}_gcg_coco_caption_gt.json": _ORIGIN,
        folder / f"{split}_gcg_coco_mask_gt.json": _ORIGIN,
        Path(root) / _IMAGES / "grandf" / "val_test": f"the pictures of GranDf, see {_ORIGIN}",
    }


def read_gcg_truth(root: str | Path, split: str) -> list[GcgTruth]:
    """The ground truth of the GranDf benchmark, in the order of the captions.

    Args:
        root: the folder that holds ``glamm_data``. split: ``val`` or ``test``.

    Raises:
        MissingData: a file, the folder, or pictures in it.
        ValueError: labels and masks of a picture differ in number, or a file is malformed.
    """
    files = gcg_truth_files(root, split)
    require_files(f"GCG {split}", files)
    captions_path, masks_path, folder = files
    with reading(f"{captions_path} or {masks_path.name}"):
        masks, sizes = _truth_masks(read_json(masks_path))
        captions = {
            str(entry["image_id"]): (str(entry["caption"]), tuple(map(str, entry["labels"])))
            for entry in read_json(captions_path)["annotations"]
        }
    pictures = {path.stem: path for path in folder.iterdir() if not path.name.startswith(".")}
    missing = [name for name in captions if name not in pictures]
    if missing:
        raise MissingData(f"GCG {split}: {len(missing)} of {len(captions)} pictures are not in {folder}: {missing[:3]}")
    uneven = [name for name, (_, labels) in captions.items() if len(labels) != len(masks.get(name, ()))]
    if uneven:
        raise ValueError(f"GCG {split}: labels and masks of {len(uneven)} pictures differ in number: {uneven[:3]}")
    return [
        GcgTruth(name, pictures[name], *text, sizes.get(name) or stored_size(pictures[name]), masks.get(name, ()))
        for name, text in captions.items()
    ]


def _truth_masks(content: Any) -> tuple[dict[str, tuple[Any, ...]], dict[str, Size]]:
    """Segmentations of each picture in the order of the file, and sizes where it says them."""
    masks: dict[str, list[Any]] = {}
    for entry in content["annotations"]:
        masks.setdefault(str(entry["image_id"]), []).append(entry["segmentation"])
    sizes = {
        str(image["id"]): (int(image["height"]), int(image["width"]))
        for image in content.get("images", ())
        if "height" in image
    }
    return {name: tuple(own) for name, own in masks.items()}, sizes


def _read_refcocog(entry: dict[str, Any], folders: PictureFolders) -> GroundedPicture:
    ((name, record),) = entry.items()
    caption = _bare(record["caption"]).lower()
    spans: list[Grounding] = []
    for reference in record["refs"]:
        # The second of two equal sentences means the second place, if there is one.
        taken = {span.start for span in spans}
        places = [match.span() for match in _whole_words(reference["sentence"], caption)]
        free = [place for place in places if place[0] not in taken] or places
        spans += [Grounding(*place, (reference["segmentation"],)) for place in free[:1]]
    return _picture(str(name), folders.find(record["img_file_name"]), caption, spans)


def _read_generic(entry: dict[str, Any], folders: PictureFolders) -> GroundedPicture:
    caption = _bare(entry["caption"])
    spans = [
        Grounding(*_placed(phrase, one["token_positives"], entry["caption"], caption), tuple(one["rle_masks"]))
        for phrase, one in entry["groundings"].items()
        if one["rle_masks"]
    ]
    return _picture(Path(entry["file_name"]).stem, folders.find(entry["file_name"]), caption, spans)


def _flickr_entries(content: Any) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    annotations: dict[int, list[dict[str, Any]]] = {}
    for entry in content["annotations"]:
        annotations.setdefault(entry["image_id"], []).append(entry)
    for image in content["images"]:
        yield image, annotations.get(image["id"], [])


def _read_flickr(entry: tuple[dict[str, Any], list[dict[str, Any]]], folders: PictureFolders) -> GroundedPicture | None:
    image, annotations = entry
    caption, size = image["caption"], (image["height"], image["width"])
    if len(caption.split(" ")) < _FEWEST_WORDS or min(size) < _SHORTEST_SIDE:
        return None
    spans = [
        Grounding(one["tokens_positive"][0][0], one["tokens_positive"][0][1], (one["sam_mask"],))
        for one in annotations
        if _counts(one, size)
    ]
    return _picture(str(image["id"]), folders.find(image["file_name"]), caption, spans)


def _counts(entry: dict[str, Any], size: Size) -> bool:
    """Whether a box of Flickr30k is of any use: in the picture, and of at least a pixel."""
    x, y, width, height = entry["bbox"]
    inside = min(x + width, size[1]) > max(x, 0) and min(y + height, size[0]) > max(y, 0)
    return inside and not entry.get("ignore") and entry["area"] > 0 and width >= 1 and height >= 1


def _picture(name: str, image: Path, caption: str, spans: list[Grounding]) -> GroundedPicture:
    kept: list[Grounding] = []
    left_out = 0
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if not 0 <= span.start < span.end <= len(caption):
            raise ValueError("a span lies outside of its caption")
        if kept and (span.start, span.end) == (kept[-1].start, kept[-1].end):
            kept[-1] = Grounding(span.start, span.end, kept[-1].segmentations + span.segmentations)
        elif kept and span.start < kept[-1].end:
            left_out += 1
        else:
            kept.append(span)
    return GroundedPicture(name, image, caption, tuple(kept), left_out)


def _bare(caption: str) -> str:
    return caption.strip('" ')


def _whole_words(phrase: str, caption: str) -> Iterator[re.Match[str]]:
    # "man" is not meant in "woman".
    return re.finditer(rf"(?<!\w){re.escape(phrase.lower())}(?!\w)", caption)


def _placed(phrase: str, token_positives: list[int], stored: str, caption: str) -> tuple[int, int]:
    """The span in the bare caption: some files count from it, others from the stored one; the phrase tells."""
    start, end = token_positives
    if caption[start:end].strip().lower() == phrase.strip().lower():
        return start, end
    stripped = stored.index(caption)
    return start - stripped, end - stripped


_SCHEMAS = {
    "refcocog": _Schema("RefCOCOg_GCG_train.json", ("coco2014/train2014",), iter, _read_refcocog),
    "grandf": _Schema("GranDf_HA_GCG_train.json", ("grandf/train",), iter, _read_generic),
    "flickr30k": _Schema(
        "flickr_mergedGT_GCG_train.json", ("flickr30k/Flickr30K", "flickr30k"), _flickr_entries, _read_flickr
    ),
    "openpsg": _Schema(
        "OpenPsgGCG_train.json", ("coco2017", "coco2017/train2017", "coco2017/val2017"), iter, _read_generic
    ),
}
