"""Where a video cuts from one scene to another, from what its frames look like.

A frame is looked at in 4 x 4 blocks, each a histogram of its colours. At a cut most of the picture changes, so the
median block must have little in common with the same block of the frame before. An object that enters, or moves fast,
changes the blocks where it is, fewer than half. Bounds: fades and dissolves are not seen; a flash, a light that is
switched on and a very fast pan are seen as cuts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

#: Frames between two cuts at the least; shorter scenes are part of the one before.
SHORTEST_SCENE = 5
#: Share of the colours of the median block that a cut changes, 0..1.
_CHANGED = 0.5
_BLOCKS = 4
#: Steps of each colour: coarse, so that noise and light that drifts change little.
_LEVELS = 4
#: Pixels along each side of a block that are counted: what a histogram of 64 bins needs.
_SAMPLES = 32


def scene_look(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a frame, uint8 (H, W, 3), looks like: a histogram of each block, float32 (16, 64), whose rows sum to 1."""
    side = _BLOCKS * _SAMPLES
    rows, columns = (np.arange(side) * length // side for length in pixels.shape[:2])
    levels = (pixels[np.ix_(rows, columns)] // (256 // _LEVELS)).astype(np.int64)
    bins = (levels[..., 0] * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]
    blocks = bins.reshape(_BLOCKS, _SAMPLES, _BLOCKS, _SAMPLES).swapaxes(1, 2).reshape(_BLOCKS**2, -1)
    counts = np.stack([np.bincount(block, minlength=_LEVELS**3) for block in blocks])
    return (counts / _SAMPLES**2).astype(np.float32)


def is_cut(before: NDArray[np.float32], now: NDArray[np.float32]) -> bool:
    """Whether two neighbouring frames, as [`scene_look`] gives them, are of two scenes."""
    changed = 1 - np.minimum(before, now).sum(axis=1)
    return bool(np.median(changed) >= _CHANGED)


def scene_starts(frames: Iterable[NDArray[np.uint8]]) -> Iterator[int]:
    """The index of the first frame of each scene; 0 is the first."""
    before, start = None, 0
    for index, pixels in enumerate(frames):
        now = scene_look(pixels)
        if before is None or (index - start >= SHORTEST_SCENE and is_cut(before, now)):
            start = index
            yield index
        before = now
