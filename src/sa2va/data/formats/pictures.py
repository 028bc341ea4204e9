"""Annotated pictures as stored: annotations speak of a file's pixels, whatever its EXIF data say about orientation."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sa2va.data.sample import FrameLike, LazyFrame
from sa2va.mask import Size
from sa2va.processing.pictures import MAX_PIXELS, open_picture, to_rgb


def stored_size(path: Path) -> Size:
    """(height, width) of a picture file, from its header. ValueError when it is not a picture."""
    with path.open("rb") as file, open_picture(file, str(path), MAX_PIXELS) as image:
        return image.height, image.width


def read_picture(path: Path, size: Size | None = None) -> np.ndarray:
    """Decode a picture: uint8 RGB (H, W, 3).

    Args:
        path: the file. size: (height, width) that its annotations claim; where only the picture turned upright by its
            EXIF data has this size, that one is taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another size; the message names it.
    """
    image = _decoded(path)
    if size is not None and (image.height, image.width) != size:
        image = _upright(image, path, size)
    return np.array(to_rgb(image))


def read_numbers(path: Path) -> np.ndarray:
    """Decode a mask file: integers (H, W), the palette index or grey value of each pixel.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or in colour without a palette; the message names it.
    """
    image = _decoded(path)
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise ValueError(f"{path} is a colour picture of mode {image.mode}; save masks with a palette or in grey")
    return np.asarray(image, dtype=np.int64)


def lazy_picture(path: Path, size: Size | None = None) -> LazyFrame:
    """The picture as a frame of a sample, decoded when asked for. size: as in [`read_picture`]; read when not given."""
    size = size or stored_size(path)
    return LazyFrame(partial(read_picture, path, size), size)


def file_of(frame: FrameLike) -> Path | None:
    """The picture file that a frame of a sample is read from; None where it is none, or not known."""
    if isinstance(frame, LazyFrame) and isinstance(frame.load, partial) and frame.load.func is read_picture:
        return frame.load.args[0]
    return None


def _upright(image: Image.Image, path: Path, size: Size) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if (upright.height, upright.width) != size:
        raise ValueError(
            f"{path} has {image.height} x {image.width} pixels (height x width) but its annotation says "
            f"{size[0]} x {size[1]}; annotate the file as it is, or get the original one"
        )
    return upright


def _decoded(path: Path) -> Image.Image:
    with path.open("rb") as file, open_picture(file, str(path), MAX_PIXELS) as image:
        try:
            image.load()
        except Exception as error:
            # Pillow's decoders fail on damaged files with whatever they stumble over.
            raise ValueError(f"{path} is damaged or cut short: {error}") from error
        return image
