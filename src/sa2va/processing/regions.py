"""Region prompts: a mask or box of an image as cells of the coarse grid whose features describe it.

The model sees a region through cells of the picture's thumbnail: a 16 x 16 grid for tiles of 448 pixels. Numpy only.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from sa2va.processing.requests import REGION_NAME, REGIONS_ANNOUNCEMENT

Box: TypeAlias = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
Region: TypeAlias = "np.ndarray | Sequence[float]"  # mask (H, W), or box x0, y0, x1, y1


def region_cells(region: np.ndarray | Sequence[float], size: tuple[int, int], cells: int = 16) -> np.ndarray:
    """The grid cells of a region.

    These are its [`sampled_cells`], as the released checkpoints were trained. A region so small that it falls between
    the samples gets the one cell that holds most of it, so that every region can be described (the released code
    silently described nothing).

    Args:
        region: a mask (H, W), bool or integers 0 and not 0, or a box (x0, y0, x1, y1) in pixels.
        size: (H, W) of the picture in pixels.
        cells: cells per side: visual tokens per side of one tile.

    Returns:
        bool (cells, cells), at least one True.

    Raises:
        ValueError: the region is neither a mask nor a box, is empty, or does not fit the picture.
    """
    array = np.asarray(region)
    mask = _box_mask(checked_box(array), size) if array.shape == (4,) else checked_mask(array, size)
    if not mask.any():
        raise ValueError(f"the region is empty: none of its {size[0]} x {size[1]} pixels is set; mark at least one")
    grid = sampled_cells(mask, cells)
    return grid if grid.any() else _fullest_cell(mask, cells)


def as_regions(regions: Any) -> list[Any]:
    """Regions as a list, also where one was given bare: a box of four numbers, or a mask (H, W).

    Args:
        regions: a box, a mask, or any number of them; as an array (N, 4) boxes, or (N, H, W) masks.
    """
    if isinstance(regions, np.ndarray):
        boxes = regions.ndim == 2 and regions.shape[1] == 4 and regions.dtype != bool
        return list(regions) if boxes or regions.ndim == 3 else [regions]
    if len(regions) == 4 and all(isinstance(value, numbers.Real) for value in regions):
        return [regions]
    return list(regions)


def checked_box(box: np.ndarray | Sequence[float]) -> Box:
    """A box as (x0, y0, x1, y1).

    Raises:
        ValueError: it is not four finite numbers with x0 < x1 and y0 < y1.
    """
    try:
        x0, y0, x1, y1 = (float(value) for value in box)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"a box is four numbers x0, y0, x1, y1; got {box!r}") from None
    if not (all(map(math.isfinite, (x0, y0, x1, y1))) and x0 < x1 and y0 < y1):
        raise ValueError(
            f"a box is x0, y0, x1, y1 (left, top, right, bottom) with x0 < x1 and y0 < y1; got {(x0, y0, x1, y1)}"
        )
    return x0, y0, x1, y1


def box_inside(box: Box, size: tuple[int, int]) -> Box:
    """The part of a box that lies in a picture.

    Args:
        size: (H, W) of the picture in pixels.

    Raises:
        ValueError: no part does, or the box is given in shares of the picture (0 to 1) instead of pixels.
    """
    height, width = size
    x0, y0, x1, y1 = box
    # In pixels this would be a part of the one pixel in the corner, which nobody marks.
    if min(box) >= 0 and max(box) <= 1 and min(size) > 1:
        raise ValueError(
            f"the box {box} looks like shares of the picture; boxes are (x0, y0, x1, y1) in pixels: "
            f"multiply x by {width} and y by {height}"
        )
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        raise ValueError(
            f"the box {box} lies outside the picture of {height} x {width} pixels (height x width); "
            "boxes are (x0, y0, x1, y1) in pixels"
        )
    return max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)


def sampled_cells(mask: np.ndarray, cells: int) -> np.ndarray:
    """bool (cells, cells) of a bool mask (H, W): each cell by its top-left pixel, so that all may be unset."""
    rows, columns = (np.arange(cells) * length // cells for length in mask.shape)
    return mask[np.ix_(rows, columns)]


def region_prompt(counts: Sequence[int], image_token: str) -> str:
    """The text that announces regions, right after the image block: a format constant of the released checkpoints.

    Args:
        counts: cells of each region.
        image_token: the token whose places the region's features take.
    """
    named = ((REGION_NAME.format(number=number), count) for number, count in enumerate(counts, start=1))
    marks = [f"{name}<vp>{image_token * count}</vp>" for name, count in named]
    return REGIONS_ANNOUNCEMENT.format(count=len(counts), regions=", ".join(marks))


def checked_mask(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask as bool (H, W). Raises ValueError for another dtype, or another size than the picture's."""
    if array.ndim != 2:
        raise ValueError(f"expected a mask (H, W) or a box (x0, y0, x1, y1), got an array of shape {array.shape}")
    if array.shape != tuple(size):
        raise ValueError(
            f"the mask is {array.shape[0]} x {array.shape[1]} but the picture {size[0]} x {size[1]} (height x width); "
            "pass a mask of the picture's full size"
        )
    if not (array.dtype == bool or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"expected a mask of bool or integers, got {array.dtype}; threshold it first, e.g. mask > 0.5")
    return array != 0


def _box_mask(box: Box, size: tuple[int, int]) -> np.ndarray:
    """Every pixel the box touches."""
    x0, y0, x1, y1 = box_inside(box, size)
    mask = np.zeros(size, dtype=bool)
    mask[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)] = True
    return mask


def _fullest_cell(mask: np.ndarray, cells: int) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    cell = rows * cells // mask.shape[0] * cells + columns * cells // mask.shape[1]
    grid = np.zeros(cells * cells, dtype=bool)
    grid[np.bincount(cell).argmax()] = True
    return grid.reshape(cells, cells)
