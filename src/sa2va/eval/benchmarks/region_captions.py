"""Describing a marked region on RefCOCOg: one mask goes in, a few words come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sa2va.data.annotations.coco import AnnotationId, CocoInstances
from sa2va.data.annotations.layout import first_existing, read_json
from sa2va.eval.benchmark import BenchmarkSpec, Expected, Item, Prediction, Query, Scores
from sa2va.eval.benchmarks.file_benchmark import FileBenchmark, picture, row
from sa2va.eval.benchmarks.published import REGION_CAPTION
from sa2va.eval.captions import CaptionScores, caption_scores, plain_caption, region_caption
from sa2va.masks.mask import Mask, Size
from sa2va.processing.requests import REGION_REQUEST
from sa2va.untrusted import reading

_REQUEST = REGION_REQUEST.format(number=1)
_PROTOCOL = (
    f"Each region is asked for alone, as {_REQUEST!r}. METEOR and CIDEr against RefCOCOg's expressions, of the cleaned "
    "answer: opening and closing phrases of the template (such as 'region1 is', 'it is', 'in the image') are taken off "
    "its two ends, words inside it stay. Values marked raw are of the answer as it came, without special tokens."
)


@dataclass(frozen=True, eq=False)
class RegionCaption:
    """One region with what people called it.

    Attributes:
        id: of the picture entry. image: the file. size: (height, width). references: one or more.
        annotation: number of the region in ``instances``.
    """

    id: int
    image: Path
    size: Size
    references: tuple[str, ...]
    annotation: AnnotationId
    instances: CocoInstances

    def mask(self) -> Mask:
        """The region. ValueError when it is malformed."""
        return self.instances.mask(self.annotation)


class RegionCaptions(FileBenchmark[RegionCaption]):
    """One region per item."""

    def item(self, entry: RegionCaption) -> Item:
        """One picture with one region."""
        (name,) = self.ids(entry)
        query = Query(name, _REQUEST, region=entry.mask().array)
        return Item(name, picture(entry.image, entry.size), False, entry.size, (query,))

    def ids(self, entry: RegionCaption) -> Sequence[str]:
        """``benchmark/picture entry``."""
        return [f"{self.name}/{entry.id}"]

    def expected(self, query_id: str) -> Expected:
        """The first reference, and the region itself."""
        entry, _ = self.find(query_id)
        return Expected(entry.references[0], ((entry.mask(),),))

    def count(self, predictions: Mapping[str, Prediction]) -> Scores:
        """METEOR and CIDEr of cleaned and of raw answers."""
        references = {name: entry.references for entry in self.entries for name in self.ids(entry)}
        texts = {name: predictions[name].text for name in references}
        cleaned = caption_scores({name: region_caption(text) for name, text in texts.items()}, references)
        raw = caption_scores({name: plain_caption(text) for name, text in texts.items()}, references)
        values = {**cleaned.values, **{f"{name}_raw": value for name, value in raw.values.items()}}
        return Scores(values, {}, cleaned.samples, _headline(cleaned), cleaned.notices)


def _headline(scores: CaptionScores) -> str:
    return "meteor" if "meteor" in scores.values else "word_f1"


def read_region_captions(root: Path) -> list[RegionCaption]:
    """The regions of RefCOCOg's val split, in the order of the file.

    Args:
        root: the folder that holds ``region_caption``.

    Raises:
        ValueError: a file is malformed, or a region has no reference.
    """
    regions_path, captions_path, folder = region_files(root)
    instances = CocoInstances(regions_path)
    references: dict[int, list[str]] = {}
    with reading(captions_path, f"COCO captions (image_id, caption), and one region per image in {regions_path}"):
        for entry in read_json(captions_path)["annotations"]:
            references.setdefault(int(entry["image_id"]), []).append(str(entry["caption"]))
        owners = {int(annotation["image_id"]): number for number, annotation in instances.annotations.items()}
    bare = [number for number in instances.images if number not in owners or number not in references]
    if bare:
        raise ValueError(
            f"{len(bare)} of {len(instances.images)} images of {regions_path} have no region or no caption in "
            f"{captions_path}, e.g. {bare[:3]}; the two files do not belong together"
        )
    return [
        RegionCaption(
            number,
            folder / Path(image.file_name).name,
            image.size,
            tuple(references[number]),
            owners[number],
            instances,
        )
        for number, image in instances.images.items()
    ]


def region_files(root: Path) -> dict[Path, str]:
    """The files of the benchmark under a data root, and where each comes from."""
    folder = root / "region_caption"
    places = (
        "glamm_data/images/coco2014/train2014",
        "ref_seg/refcocog/coco2014/train2014",
        "coco2014/train2014",
        "train2014",
    )
    return {
        folder
        / "refcocog"
        / "finetune_refcocog_val_with_mask.json": "RefCOCOg region captions, see Osprey's evaluation",
        folder
        / "mdetr_annotations"
        / "finetune_refcocog_val_captions.json": "GLaMM's MDETR annotations (region captioning)",
        first_existing([root / place for place in places]): "COCO 2014 train images, cocodataset.org",
    }


def _open(root: Path) -> RegionCaptions:
    return RegionCaptions("region-caption/refcocog", _PROTOCOL, "region", read_region_captions(root))


ROWS: tuple[BenchmarkSpec, ...] = (
    row("region-caption/refcocog", "Region captions, RefCOCOg val", _open, region_files, REGION_CAPTION, "meteor"),
)
