"""Segments as JSON for clients, their masks in the form they asked for."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from sa2va.masks.mask import Mask, Segment, segment_record

MaskForm = Literal["rle", "png", "polygon"]


def segment_payloads(segments: Sequence[Segment], form: MaskForm = "rle") -> list[dict[str, Any]]:
    """Segments as in ``Answer.to_json``, with ``mask`` for a picture, and ``masks``, one per frame, for a video."""
    payloads = []
    for segment in segments:
        record = segment_record(segment)
        masks = [_encoded(mask, form) for mask in segment.masks]
        del record["masks"]
        payloads.append(record | ({"mask": masks[0]} if len(masks) == 1 else {"mask": None, "masks": masks}))
    return payloads


def _encoded(mask: Mask, form: MaskForm) -> Any:
    if form == "rle":
        return mask.rle
    if form == "polygon":
        return [outline.ravel().tolist() for outline in mask.polygons()]
    file = io.BytesIO()
    Image.fromarray(mask.array.astype(np.uint8) * 255).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
