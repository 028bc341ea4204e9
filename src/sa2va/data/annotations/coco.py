"""COCO instance files, and masks from every way COCO writes a segmentation."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, cast

import numpy as np
from pycocotools import mask as coco

from sa2va.data.annotations.layout import read_json
from sa2va.masks.mask import MAX_PIXELS, Mask, Size
from sa2va.untrusted import reading

# Three points; fewer enclose nothing, and pycocotools reads four numbers as a box.
_FEWEST_NUMBERS = 6
# pycocotools walks along every edge, so an absurd coordinate would cost absurd memory.
_FARTHEST = 2


AnnotationId = int | str


@dataclass(frozen=True)
class CocoImage:
    """A picture of a COCO file.

    Attributes:
        id: its number. file_name: as written in the file. size: (height, width) in pixels.
    """

    id: int
    file_name: str
    size: Size


class CocoInstances:
    """The pictures and annotations of a COCO file; masks are decoded when asked for.

    Attributes:
        path: the file. images: by id. annotations: by id, as in the file (id, image_id, segmentation, ...); another
            one of an id that is taken has a name of its own, such as ``"7 (2)"``. repeated: ids that are taken so.
        categories: names by id. captions: by id of the picture, where pictures carry any themselves.

    Raises:
        ValueError: the file is not JSON, a picture or annotation lacks what it needs, or two pictures have one id; the
            message names it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        content = read_json(self.path)
        with reading(
            f"{self.path} is not a COCO file", "images with id, file_name, height and width, annotations with id"
        ):
            self.images = {image["id"]: _image(image) for image in content["images"]}
            self.annotations, self.repeated = _by_id(content["annotations"])
            # Both are looked up, which a list or an object cannot be.
            hash(tuple((entry.get("image_id"), entry.get("category_id")) for entry in self.annotations.values()))
            self.categories = {entry["id"]: str(entry["name"]) for entry in content.get("categories", ())}
            self.captions = {image["id"]: str(image["caption"]) for image in content["images"] if image.get("caption")}
        for image in content["images"]:
            first = self.images[image["id"]].file_name
            if first != str(image["file_name"]):
                raise ValueError(
                    f"{self.path}: pictures {image['file_name']} and {first} have the same id {image['id']}, so nobody "
                    "can tell whose annotations are whose; give each its own, as files of COCO that are joined need it"
                )

    def mask(self, annotation_id: AnnotationId, size: Size | None = None) -> Mask:
        """The mask of one annotation.

        Args:
            annotation_id: a key of ``annotations``. size: (height, width) of what it was drawn on; as the file says.

        Raises:
            ValueError: it is malformed; the message names it.
        """
        annotation = self.annotations[annotation_id]
        with reading(f"{self.path}, annotation {annotation_id}"):
            return decode_segmentation(annotation["segmentation"], size or self.images[annotation["image_id"]].size)

    def only(self, annotation_ids: Collection[AnnotationId]) -> CocoInstances:
        """The same with these annotations and their pictures alone, to hold less in memory."""
        kept = copy.copy(self)
        kept.annotations = {number: self.annotations[number] for number in annotation_ids}
        shown = {annotation["image_id"] for annotation in kept.annotations.values()}
        kept.images = {number: image for number, image in self.images.items() if number in shown}
        return kept


def decode_segmentation(segmentation: Any, size: Size) -> Mask:
    """The mask of a COCO segmentation.

    Args:
        segmentation: a list of polygons ``[x0, y0, x1, y1, ...]``, which are united (those of fewer than three points
            enclose nothing); an RLE ``{"size", "counts"}``, its counts text, bytes or a list; or a list of RLEs.
        size: (height, width) of the picture in pixels.

    Raises:
        ValueError: none of these, nothing to enclose, coordinates far outside the picture or between 0 and 1, or an RLE
            of another size.
    """
    if not all(isinstance(side, int) and side > 0 for side in size) or size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"expected a picture of 1 to {MAX_PIXELS} pixels, got {str(size)[:60]} (height, width)")
    if isinstance(segmentation, dict):
        mask = Mask.from_rle(segmentation)
        if mask.size != tuple(size):
            raise ValueError(f"expected an RLE of size {list(size)} (height, width), got {list(mask.size)}")
        return mask
    if isinstance(segmentation, list) and segmentation and all(isinstance(part, dict) for part in segmentation):
        return unite((decode_segmentation(part, size) for part in segmentation), size)
    return _from_polygons(_checked_polygons(segmentation, size), size)


def size_of(segmentation: Any) -> Size | None:
    """(height, width) that run lengths say of themselves; None for polygons, and for what is malformed."""
    if isinstance(segmentation, list) and segmentation:
        segmentation = segmentation[0]
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(side, int) for side in size):
        return None
    return (size[0], size[1])


def is_segmentation(segmentation: Any) -> bool:
    """Whether a segmentation has the form that [`decode_segmentation`] reads; its numbers are not looked at."""
    if isinstance(segmentation, dict):
        size = segmentation.get("size")
        return isinstance(size, list | tuple) and len(size) == 2 and "counts" in segmentation
    if not isinstance(segmentation, list) or not segmentation:
        return False
    if all(isinstance(part, dict) for part in segmentation):
        return all(map(is_segmentation, segmentation))
    lists = all(isinstance(part, list) and len(part) % 2 == 0 for part in segmentation)
    return lists and any(len(part) >= _FEWEST_NUMBERS for part in segmentation)


def unite(masks: Iterable[Mask], size: Size) -> Mask:
    """The union of masks of one picture; empty for none. size: (height, width)."""
    first, *others = [*masks] or [Mask.from_array(np.zeros(size, dtype=bool))]
    return reduce(Mask.__or__, others, first)


def _by_id(entries: list[dict[str, Any]]) -> tuple[dict[AnnotationId, dict[str, Any]], frozenset[int]]:
    """Annotations by id, equal ones once, others of an id that is taken under a name of their own; and such ids."""
    found: dict[AnnotationId, dict[str, Any]] = {}
    times: Counter[int] = Counter()
    for entry in entries:
        number = entry["id"]
        if found.setdefault(number, entry) != entry:
            times[number] += 1
            found[f"{number} ({times[number] + 1})"] = entry
    return found, frozenset(times)


def _image(record: dict[str, Any]) -> CocoImage:
    size = (int(record["height"]), int(record["width"]))
    if not 0 < size[0] * size[1] <= MAX_PIXELS or min(size) < 1:
        raise ValueError(f"image {record['id']} has size {size}")
    return CocoImage(record["id"], str(record["file_name"]), size)


def _checked_polygons(segmentation: Any, size: Size) -> list[list[float]]:
    parts = segmentation if isinstance(segmentation, list) else []
    kept = []
    for part in parts:
        numbers = np.asarray(part, dtype=object) if isinstance(part, list) else None
        if numbers is None or numbers.size % 2 or not all(map(_is_coordinate, numbers.flat)):
            raise ValueError(f"expected polygons [x0, y0, x1, y1, ...] or RLE, got a part {str(part)[:60]}")
        if numbers.size < _FEWEST_NUMBERS:
            continue
        points = numbers.astype(float).reshape(-1, 2)
        limits = np.array([size[1], size[0]])
        if not ((points >= (1 - _FARTHEST) * limits) & (points <= _FARTHEST * limits)).all():
            raise ValueError(
                f"a polygon reaches {np.abs(points).max():g}, far outside the picture of {size[0]} x {size[1]} pixels"
            )
        kept.append(points)
    if not kept:
        raise ValueError(f"expected polygons of three points or more, or RLE, got {str(segmentation)[:60]}")
    refuse_normalised(np.concatenate(kept), size)
    return [points.ravel().tolist() for points in kept]


def refuse_normalised(points: np.ndarray, size: Size) -> None:
    """ValueError where points (P, 2) are parts of the picture's sides rather than pixels."""
    if points.min() >= 0 and points.max() <= 1 and (points % 1).any():
        raise ValueError(
            f"a polygon lies between 0 and 1, so its coordinates seem to be normalised; multiply x by the width "
            f"{size[1]} and y by the height {size[0]}: pixels are expected"
        )


def _is_coordinate(number: object) -> bool:
    return isinstance(number, int | float) and -MAX_PIXELS < number < MAX_PIXELS


def _from_polygons(polygons: list[list[float]], size: Size) -> Mask:
    merged = coco.merge(coco.frPyObjects(cast(Any, polygons), *size))
    return Mask(size, cast(bytes, merged["counts"]).decode("ascii"))
