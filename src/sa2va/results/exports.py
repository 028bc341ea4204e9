"""Exports of results: COCO annotations and supervision's detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sa2va.masks.mask import Segment
from sa2va.runtime import require_extra

if TYPE_CHECKING:
    import supervision


def coco_results(
    segments: Sequence[Segment], image_id: int, category_id: int | Mapping[str, int]
) -> list[dict[str, Any]]:
    """One result per segment whose mask is not empty; the fields are told in ``Answer.to_coco``."""
    return [
        {
            "image_id": image_id,
            "category_id": category_id if isinstance(category_id, int) else _category(segment, category_id),
            "segmentation": segment.mask.rle,
            "score": float(segment.score),
            "phrase": segment.phrase,
            "object_id": segment.id,
        }
        for segment in segments
        if segment.mask.box is not None
    ]


def coco_annotations(
    segments: Sequence[Segment], image_id: int, categories: Mapping[str, int], first_id: int
) -> list[dict[str, Any]]:
    """The same as annotations of a data set, ids counting on from ``first_id``."""
    seen = [segment for segment in segments if segment.mask.box is not None]
    results = coco_results(seen, image_id, categories)
    annotations = []
    for number, (segment, result) in enumerate(zip(seen, results, strict=True), start=first_id):
        x0, y0, x1, y1 = segment.mask.box or (0.0, 0.0, 0.0, 0.0)
        about = {"area": segment.mask.area, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
        annotations.append({"id": number, **result, **about})
    return annotations


def _category(segment: Segment, categories: Mapping[str, int]) -> int:
    name = segment.phrase or "object"
    if name not in categories:
        raise ValueError(f"no category is given for {name!r}; there are {', '.join(map(repr, categories))}")
    return categories[name]


def detections(segments: Sequence[Segment], *, compact: bool = False) -> supervision.Detections:
    """The segments whose masks are not empty; the fields are told in ``Answer.to_supervision``."""
    sv = require_extra("supervision", "vision")
    if compact and not hasattr(sv, "CompactMask"):
        raise ImportError("compact masks came with supervision 0.28; pip install 'supervision>=0.28'")
    seen = [segment for segment in segments if segment.mask.box is not None]
    if not seen:
        return sv.Detections.empty()
    phrases = [segment.phrase for segment in seen]
    classes = {phrase: number for number, phrase in enumerate(dict.fromkeys(phrases))}
    boxes = np.array([segment.mask.box for segment in seen], np.float32)
    if compact:
        inside = boxes - np.array([0, 0, 1, 1], np.float32)  # its ends are inclusive
        masks = sv.CompactMask.from_coco_rle([segment.mask.rle for segment in seen], inside, seen[0].mask.size)
    else:
        masks = np.stack([segment.mask.array for segment in seen])
    return sv.Detections(
        xyxy=boxes,
        mask=masks,
        confidence=np.array([segment.score for segment in seen], np.float32),
        class_id=np.array([classes[phrase] for phrase in phrases]),
        tracker_id=np.array([segment.id for segment in seen]),
        data={"phrase": np.array(phrases), "class_name": np.array(phrases)},
    )
