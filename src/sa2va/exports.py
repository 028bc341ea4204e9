"""Results in the form other tools take: COCO annotations and supervision's detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sa2va.runtime import require_extra

if TYPE_CHECKING:
    import supervision

    from sa2va.results import Segment


def coco_annotations(
    segments: Sequence[Segment], image_id: int, category_id: int, first_id: int
) -> list[dict[str, Any]]:
    """One annotation per segment whose mask is not empty, ids counting on from ``first_id``."""
    annotations = []
    for segment in segments:
        if (box := segment.mask.box) is None:
            continue
        x0, y0, x1, y1 = box
        annotations.append(
            {
                "id": first_id + len(annotations),
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": segment.mask.rle,
                "area": segment.mask.area,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
                "score": float(segment.score),
                "phrase": segment.phrase,
            }
        )
    return annotations


def detections(segments: Sequence[Segment]) -> supervision.Detections:
    """The segments whose masks are not empty; the fields are told in ``Answer.to_supervision``."""
    sv = require_extra("supervision", "vision")
    seen = [segment for segment in segments if segment.mask.box is not None]
    if not seen:
        return sv.Detections.empty()
    phrases = [segment.phrase for segment in seen]
    classes = {phrase: number for number, phrase in enumerate(dict.fromkeys(phrases))}
    return sv.Detections(
        xyxy=np.array([segment.mask.box for segment in seen], np.float32),
        mask=np.stack([segment.mask.array for segment in seen]),
        confidence=np.array([segment.score for segment in seen], np.float32),
        class_id=np.array([classes[phrase] for phrase in phrases]),
        tracker_id=np.array([segment.id for segment in seen]),
        data={"phrase": np.array(phrases), "class_name": np.array(phrases)},
    )
