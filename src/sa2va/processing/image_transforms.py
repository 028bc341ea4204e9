"""Resizing and tiling of RGB images for the towers, bit for bit as the released checkpoints saw them.

Shapes: T tiles, F frames, S side of a square in pixels, L patches of a Qwen picture, D numbers per patch.
PIL resizes (never torchvision). Tiles and frames stay uint8: the model normalises them on its device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image


@dataclass(frozen=True)
class QwenPixels:
    """How a Qwen family cuts a picture into patches.

    Attributes:
        patch: side of a patch, pixels. merge: patches per visual token and side. frames: equal time steps per patch.
        mean, std: normalisation of values 0..1.
        min_pixels, max_pixels: limits of the resized picture's area.
    """

    patch: int
    merge: int
    frames: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min_pixels: int = 512 * 28 * 28
    max_pixels: int = 2048 * 28 * 28

    def __post_init__(self) -> None:
        """Raises ValueError for a setting of a wrong type or out of range."""
        for name in ("patch", "merge", "frames", "min_pixels", "max_pixels"):
            value = getattr(self, name)
            most = 2**26 if name.endswith("_pixels") else 256
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name}: expected a whole number from 1 to {most}, got {value!r}")
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels: expected at most max_pixels {self.max_pixels}, got {self.min_pixels}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            numbers = isinstance(values, tuple) and all(type(value) in (int, float) for value in values)
            if not numbers or len(values) != 3 or (name == "std" and 0 in values):
                raise ValueError(f"{name}: expected three numbers, of std none 0, got {values!r}")


def tile_image(image: Image.Image, side: int, max_tiles: int = 12) -> torch.Tensor:
    """Cut a picture into square tiles, row by row; the whole picture as a last tile when there is more than one.

    Returns:
        uint8 (T, side, side, 3); T is 1 or 3 to ``max_tiles + 1``.
    """
    columns, rows = tile_grid(image.width, image.height, side, max_tiles)
    large = _resized(image, columns * side, rows * side)
    tiles = large.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    if len(tiles) > 1:
        tiles = np.concatenate([tiles, _resized(image, side, side)[None]])
    return torch.from_numpy(tiles)


def squashed_frames(frames: Sequence[Image.Image], side: int) -> torch.Tensor:
    """Frames squashed to squares, for SAM 2, and as one tile each for an InternVL vision tower.

    Returns:
        uint8 (F, side, side, 3).
    """
    return torch.from_numpy(np.stack([_resized(frame, side, side) for frame in frames]))


def qwen_patches(
    image: Image.Image, settings: QwenPixels, budget: tuple[int, int] | None = None
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Patches of a picture for a Qwen vision tower.

    The picture is resized twice, as released inference did: by PIL to multiples of 28 (for Qwen3-VL too), then to the
    family's own multiple and area limits by torch's antialiased bicubic filter on uint8, which rounds unlike PIL's.

    Args:
        budget: limits of the area instead of the settings'; the picture is then resized once, by torch's filter, as
            released training did.

    Returns:
        float32 (L, D), D = 3 * frames * patch**2, patches of one visual token side by side; and the grid (time, rows,
        columns) in patches.

    Raises:
        ValueError: the picture is more than 200 times as long as wide.
    """
    first = image.size if budget else _smart_size(image.width, image.height, 28, 4 * 28 * 28, 16384 * 28 * 28)
    pixels = torch.from_numpy(_resized(image, *first)).permute(2, 0, 1)
    low, high = budget or (settings.min_pixels, settings.max_pixels)
    width, height = _smart_size(*first, settings.patch * settings.merge, low, high)
    if (width, height) != first:
        pixels = torch.nn.functional.interpolate(
            pixels[None], (height, width), mode="bicubic", antialias=True, align_corners=False
        )[0]
    mean, std = (torch.tensor(values)[:, None, None] * 255 for values in (settings.mean, settings.std))
    values = (pixels.float() - mean) / std
    rows, columns = height // settings.patch, width // settings.patch
    merge, patch = settings.merge, settings.patch
    values = values.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
    values = values.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, 3, 1, patch * patch)
    patches = values.expand(-1, -1, settings.frames, -1).reshape(rows * columns, -1)
    return patches, (1, rows, columns)


def tile_grid(width: int, height: int, side: int, max_tiles: int) -> tuple[int, int]:
    """Columns and rows of tiles, their ratio nearest the picture's; of equal ones the larger that it half fills."""
    grids = [(i, j) for i in range(1, max_tiles + 1) for j in range(1, max_tiles // i + 1)]
    best, best_difference = (1, 1), math.inf
    for columns, rows in sorted(grids, key=math.prod):
        difference = abs(width / height - columns / rows)
        half_filled = width * height > 0.5 * side * side * columns * rows
        if difference < best_difference or (difference == best_difference and half_filled):
            best, best_difference = (columns, rows), difference
    return best


def _smart_size(width: int, height: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (width, height) nearest in shape with both a multiple of ``factor`` and the area within the limits."""
    if max(width, height) > 200 * min(width, height):
        raise ValueError(
            f"the picture is {width} x {height} pixels; expected sides that differ by at most a factor of 200: crop it"
        )
    # Python rounds halves to even, which is part of the released rule.
    sides = [max(factor, round(length / factor) * factor) for length in (width, height)]
    if math.prod(sides) > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        sides = [max(factor, math.floor(length / shrink / factor) * factor) for length in (width, height)]
    elif math.prod(sides) < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        sides = [math.ceil(length * grow / factor) * factor for length in (width, height)]
    return sides[0], sides[1]


def _resized(image: Image.Image, width: int, height: int) -> np.ndarray:
    """uint8 (height, width, 3)."""
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))
