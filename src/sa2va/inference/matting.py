"""Opacity of objects for cut-outs: hair and blur at their edges, from VitMatte (arXiv 2305.15272)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from sa2va.inference.work import Matte
from sa2va.masks.mask import Segment
from sa2va.masks.mask_ops import dilate, erode

#: Half the width of the edge that is unknown, as a share of the root of an object's area, and its limits in pixels.
_EDGE, _LEAST_EDGE, _MOST_EDGE = 0.04, 2.0, 32.0
#: Around an object, in widths of its edge; and the longer side of what VitMatte sees, pixels.
_AROUND, _LONGEST = 4, 1024


async def with_alpha(image: Image.Image, segment: Segment, weights: str) -> Segment:
    """A segment of a picture with ``alpha``: 1 well inside its mask, 0 well outside, and VitMatte's opacity between."""
    mask = segment.mask.array
    edge = min(max(_LEAST_EDGE, _EDGE * float(mask.sum()) ** 0.5), _MOST_EDGE)
    sure, possible = erode(mask, edge), dilate(mask, edge)
    alpha = sure.astype(np.float32)
    unknown = possible & ~sure
    if unknown.any():
        x0, y0, x1, y1 = window = _window(possible, round(_AROUND * edge))
        trimap = Image.fromarray((sure * np.uint8(255) + unknown * np.uint8(128))[y0:y1, x0:x1])
        found = await _matted(image.crop(window), trimap, weights)
        alpha[y0:y1, x0:x1][unknown[y0:y1, x0:x1]] = found[unknown[y0:y1, x0:x1]]
    return replace(segment, alpha=alpha)


async def _matted(image: Image.Image, trimap: Image.Image, weights: str) -> np.ndarray:
    """VitMatte's opacity, float32 (H, W); of a large part it sees a smaller picture."""
    scale = min(1.0, _LONGEST / max(image.size))
    width, height = (max(1, round(length * scale)) for length in image.size)
    size = (width, height)
    small = image.resize(size, Image.Resampling.BILINEAR) if scale < 1 else image
    seen = trimap.resize(size, Image.Resampling.NEAREST) if scale < 1 else trimap
    alpha = (await Matte(small, seen, weights)).cpu().numpy()
    if scale == 1:
        return alpha
    return np.asarray(Image.fromarray(alpha).resize(image.size, Image.Resampling.BILINEAR))


def _window(mask: np.ndarray, margin: int) -> tuple[int, int, int, int]:
    """The box (x0, y0, x1, y1) of a mask with a margin, inside the picture."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return (
        max(int(columns[0]) - margin, 0),
        max(int(rows[0]) - margin, 0),
        min(int(columns[-1]) + 1 + margin, width),
        min(int(rows[-1]) + 1 + margin, height),
    )
