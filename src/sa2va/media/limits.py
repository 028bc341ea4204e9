"""Limits on what a media file may expand to; far more than its size is an attack or damage."""

from __future__ import annotations

import os
from pathlib import Path

#: Pixels of all frames together that any file may have; some 2,000 frames of 1920x1080.
_FREE_PIXELS = 4 * 10**9
#: Beyond that, per byte of the file. A black video of 3840x2160 has 300,000.
_PIXELS_PER_BYTE = 10**6


def check_weight(path: Path, frames: int, size: tuple[int, int]) -> None:
    """Refuse a video whose frames are out of all proportion to its file.

    Args:
        size: (height, width) of a frame.

    Raises:
        ValueError: it is.
    """
    height, width = size
    weight = os.path.getsize(path)
    if frames * height * width > max(_FREE_PIXELS, _PIXELS_PER_BYTE * weight):
        raise ValueError(
            f"{path} claims {frames} frames of {width}x{height} in {weight} bytes; it is no real video, or damaged"
        )
