"""Normalise resized images for the towers, on the device of the model.

Pictures travel as uint8, a quarter of the bytes of float32, through data loaders and to the device. Shapes: N pictures,
H and W pixels, F frames, S grounding side. Arithmetic is float32, in the order of the released code, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Mean and deviation of the colours of ImageNet.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The released models keep the statistics of SAM 2's pixels in bfloat16.
_GROUNDING_MEAN, _GROUNDING_STD = (torch.tensor(values).bfloat16().float().tolist() for values in IMAGENET)


def normalized_tiles(tiles_NHW3: Tensor) -> Tensor:
    """Tiles for the vision tower of an InternVL model: uint8 RGB (N, H, W, 3) to float32 (N, 3, H, W).

    Raises:
        ValueError: no such pictures.
    """
    return normalized(tiles_NHW3, *IMAGENET)


def normalized_frames(frames_FSS3: Tensor) -> Tensor:
    """Squashed frames for SAM 2: uint8 RGB (F, S, S, 3) to float32 (F, 3, S, S).

    Raises:
        ValueError: no such pictures.
    """
    return normalized(frames_FSS3, _GROUNDING_MEAN, _GROUNDING_STD)


def normalized(pictures_NHW3: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pictures with the statistics of a model: uint8 RGB (N, H, W, 3) to float32 (N, 3, H, W).

    Raises:
        ValueError: no such pictures.
    """
    shape, dtype = tuple(pictures_NHW3.shape), pictures_NHW3.dtype
    if dtype != torch.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise ValueError(
            f"expected pictures as uint8 (pictures, height, width, 3), got {dtype} {shape}; "
            "the processor resizes them, and the model normalises what it is given"
        )
    values = pictures_NHW3.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    mean_C11, std_C11 = (torch.tensor(numbers, device=values.device)[:, None, None] for numbers in (mean, std))
    return values.div_(255).sub_(mean_C11).div_(std_C11)
