"""Scale images of more than 8 bits per sample to 8, by the depth their file states, else by their values.

Cameras of 10, 12 or 14 bits store their values unscaled in files of 16, where they would look black.
"""

from __future__ import annotations

import contextlib
import io
from typing import cast

import av
import numpy as np
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

_DEPTHS = (8, 10, 12, 14, 16)
_TIFF_LARGEST, _TIFF_BITS = (341, 281), 258  # SMaxSampleValue and MaxSampleValue; BitsPerSample
_FFMPEG = {"PNG": "png", "TIFF": "tiff"}
# The most bytes of a PNG before its pixels that are searched for what it states.
_PNG_HEAD = 1 << 20


class SampleDepth:
    """How many bits the samples of a picture use, or those of a video's frames.

    The first frame decides for all, so that brightness does not jump; only one that needs more bits gets more.
    """

    def __init__(self) -> None:
        self._first: int | None = None

    def bits(self, largest: int, stated: int | None) -> int:
        """The depth of the next frame: 8, 10, 12, 14 or 16, or what is stated.

        Args:
            largest: its largest value. stated: see ``stated_bits``.
        """
        if stated is None:
            own = next(bits for bits in _DEPTHS if largest < 1 << bits)
        else:
            own = stated if largest < 1 << stated else _DEPTHS[-1]
        if self._first is None:
            self._first = own
        return max(own, self._first)


def stated_bits(image: Image.Image) -> int | None:
    """Bits per sample as a file opened by Pillow, not loaded yet, states them; None where it says nothing of use."""
    if image.format in ("PPM", "JPEG2000"):
        return _DEPTHS[-1]  # Pillow stretches them
    stated: list[int] = []
    # What stands there may be of any type.
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
        if isinstance(image, TiffImageFile):
            tags = image.tag_v2
            stated += [int(np.max(tags[tag])).bit_length() for tag in _TIFF_LARGEST if tag in tags]
            stated += [int(np.max(tags[_TIFF_BITS]))] if _TIFF_BITS in tags else []
        elif image.format == "PNG":
            stated += _significant_bits(cast("io.BufferedIOBase", getattr(image, "fp", None)))
    return next((bits for bits in stated if _DEPTHS[0] <= bits < _DEPTHS[-1]), None)


def _significant_bits(file: io.BufferedIOBase) -> list[int]:
    """The largest of a PNG's sBIT chunk."""
    here = file.tell()
    try:
        file.seek(8)
        head = file.read(_PNG_HEAD)
    finally:
        file.seek(here)
    position = 0
    while (kind := head[position + 4 : position + 8]) not in (b"", b"IDAT"):
        length = int.from_bytes(head[position : position + 4])
        if kind == b"sBIT":
            return [max(head[position + 8 : position + 8 + length], default=0)]
        position += 12 + length
    return []


def grey_as_bytes(values: np.ndarray, mode: str, depth: SampleDepth, stated: int | None) -> np.ndarray:
    """Grey values of a 16-bit, 32-bit or float image as uint8.

    Raises:
        ValueError: values below 0, or above 65535 (255 where they are floats).
    """
    low, high = float(values.min()), float(values.max())
    limit = 255.0 if mode == "F" else 65535.0
    if not (low >= 0 and high <= limit):
        raise ValueError(f"an image of mode {mode} must hold 0 to {limit:.0f}, it holds {low:g} to {high:g}: scale it")
    if mode == "F" and 0 < high <= 1:
        raise ValueError("an image of mode F must hold 0 to 255, this one holds 0 to 1: multiply it by 255")
    bits = 8 if mode == "F" else depth.bits(int(high), stated)
    return _scaled(values, bits)


def has_deep_colours(image: Image.Image) -> bool:
    """Whether a file opened by Pillow, not loaded yet, has colours of 16 bits, of which Pillow keeps the upper 8."""
    return image.format in _FFMPEG and image.mode in ("LA", "RGB", "RGBA") and ";16" in str(getattr(image, "tile", ""))


def brighten(image: Image.Image, data: bytes, depth: SampleDepth, stated: int | None) -> None:
    """Scale a loaded picture with deep colours anew, in place, where it does not use all 16 bits.

    Args:
        data: the whole file.
    """
    colours = image.getextrema()[: 1 if image.mode == "LA" else 3]
    largest = 256 * max(int(high) for _, high in cast("list[tuple[int, int]]", colours)) + 255
    if largest >= 1 << _DEPTHS[-2]:
        depth.bits(largest, stated)
        return
    samples = _sixteen_bits(data, _FFMPEG[image.format or ""], image.tell() + 1)
    if samples is not None and samples.shape[:2] == (image.height, image.width):
        bits = depth.bits(int(samples[..., :3].max()), stated)
        image.paste(Image.fromarray(_scaled(samples, bits)).convert(image.mode))


def _sixteen_bits(data: bytes, codec: str, page: int) -> np.ndarray | None:
    """uint16 (H, W, 4) RGBA of a picture file by FFmpeg; None where it cannot decode it."""
    decoder = cast("VideoCodecContext", av.CodecContext.create(codec, "r"))
    if codec == "tiff":
        decoder.options = {"page": str(page)}
    try:
        frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
    except FFmpegError:
        return None
    return frames[0].reformat(format="rgba64le").to_ndarray() if frames else None


def _scaled(values: np.ndarray, bits: int) -> np.ndarray:
    """Values of so many bits as uint8; larger ones (alpha of another depth) are full."""
    scale = np.float32(255 / ((1 << bits) - 1))
    return np.minimum(values.astype(np.float32) * scale + np.float32(0.5), 255).astype(np.uint8)
