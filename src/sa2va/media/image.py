"""Any picture a user hands over, as one upright RGB picture: paths, URLs, bytes, PIL images of every mode, arrays.

Samples of more than 8 bits are scaled to 8, by the depth their file states, else by their values: cameras of 10, 12 or
14 bits store their values unscaled in files of 16, where they would look black.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import IO, TypeAlias, cast

import av
import numpy as np
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from sa2va.media.download import download

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"

MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3
"""The largest picture decoded by default: 89 megapixels, where Pillow begins to warn of decompression bombs."""

# Pillow knows more formats; those left out run other programs (EPS) or have no signature to be recognised by.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_URL = re.compile(r"([a-z][a-z0-9+.-]+):(//|[^\\/])", re.IGNORECASE)

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


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, depth: SampleDepth | None = None) -> Image.Image:
    """Read an image as an upright RGB PIL image.

    EXIF orientation is applied, to PIL images too. Transparency is composited on white, as in the training of the
    vision-language models. Of an animation, or a TIFF with several pages, the first frame is taken.

    Samples of more than 8 bits are scaled to 8: by the depth the file states (sBIT, BitsPerSample, MaxSampleValue),
    else by the smallest of 8, 10, 12, 14 and 16 bits that holds its largest value. Float images range from 0 to 255.

    Args:
        source: a path, an http(s) URL, the bytes of an image file, a PIL image of any mode, or a uint8 array (H, W),
            (H, W, 3) or (H, W, 4) in RGB(A) order. URLs are fetched unchecked: a server must check its clients' URLs
            first.
        max_pixels: refuse to decode larger images (height * width). Pillow itself refuses above twice its own limit.
        depth: shared by the frames of a video, so that they are scaled alike.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an image, damaged, empty, too large, or an array of the wrong shape or dtype.

    Examples:
        >>> from sa2va.media.image import load_image
        >>> image = load_image("shapes.png")
        >>> image.mode, image.size
        ('RGB', (256, 256))
    """
    depth = depth or SampleDepth()
    if isinstance(source, np.ndarray):
        return to_rgb(Image.fromarray(_checked_array(source)))
    if isinstance(source, Image.Image):
        return upright_rgb(source, f"the {source.mode} image", max_pixels, depth)
    if isinstance(source, bytes | bytearray | memoryview):
        return decode_image(io.BytesIO(source), f"the {len(source)} bytes given", max_pixels, depth)
    if isinstance(source, str) and is_url(source):
        return decode_image(io.BytesIO(download(source)), source, max_pixels, depth)
    if not isinstance(source, str | os.PathLike):
        raise ValueError(
            f"a picture is a path, an http(s) URL, bytes, a PIL image or a uint8 array (H, W, 3), "
            f"not {type(source).__module__}.{type(source).__qualname__}"
            + ("; convert a tensor with .cpu().numpy(), channels last" if hasattr(source, "numpy") else "")
        )
    path = os.fspath(source)
    if os.path.isdir(path):
        raise ValueError(f"{path!r} is a folder, a picture was expected: a folder of frames is a video")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path!r} is not a regular file")
    with open(path, "rb") as file:
        return decode_image(file, repr(path), max_pixels, depth)


def load_pixels(source: ImageSource, *, max_pixels: int = MAX_PIXELS, depth: SampleDepth | None = None) -> np.ndarray:
    """Like ``load_image``, as a uint8 array (H, W, 3). An RGB array comes back as it is, not copied."""
    if isinstance(source, np.ndarray) and source.ndim == 3 and source.shape[2] == 3:
        return np.ascontiguousarray(_checked_array(source))
    return np.array(load_image(source, max_pixels=max_pixels, depth=depth))


def is_url(source: str) -> bool:
    """Whether a string names a location rather than a file. One letter before the colon is a Windows drive."""
    match = _URL.match(source)
    return match is not None and (match[2] == "//" or match[1].lower() in ("data", "file", "http", "https"))


def open_picture(file: IO[bytes] | str, name: str, max_pixels: int) -> Image.Image:
    """Read a picture file's header: Pillow's lazy image, its size already checked.

    Raises:
        ValueError: not a picture in a supported format, or too large.
    """
    Image.init()
    try:
        image = Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} is too large to decode: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture in a format that can be read: {', '.join(_FORMATS)}") from error
    except Exception as error:
        # Pillow's plugins fail on damaged files with whatever the parser stumbles over.
        raise ValueError(f"{name} is a damaged picture: {str(error) or type(error).__name__}") from error
    _check_size(image, name, max_pixels)
    return image


def to_rgb(image: Image.Image, depth: SampleDepth | None = None, stated: int | None = None) -> Image.Image:
    """A loaded PIL image of any mode as RGB, transparency pasted on white.

    Args:
        depth, stated: of deep grey, see [`SampleDepth`].
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(grey_as_bytes(np.asarray(image), image.mode, depth or SampleDepth(), stated))
    # Pillow converts premultiplied alpha only to its plain counterpart.
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    paper = Image.new("RGB", layer.size, (255, 255, 255))
    paper.paste(layer, mask=layer.getchannel("A"))
    return paper


def decode_image(file: IO[bytes], name: str, max_pixels: int, depth: SampleDepth | None = None) -> Image.Image:
    with open_picture(file, name, max_pixels) as image:
        return upright_rgb(image, name, max_pixels, depth or SampleDepth(), file)


def upright_rgb(
    image: Image.Image, name: str, max_pixels: int, depth: SampleDepth, file: IO[bytes] | None = None
) -> Image.Image:
    """A PIL image as ``load_image`` gives it.

    Args:
        file: what it was opened from, if that is at hand.
    """
    _check_size(image, name, max_pixels)
    stated, deep = stated_bits(image), file is not None and has_deep_colours(image)
    try:
        image.load()
    except Exception as error:
        # As in open_picture: a damaged file may raise anything.
        raise ValueError(f"{name} is damaged or cut short: {str(error) or type(error).__name__}") from error
    if file is not None and deep:
        file.seek(0)
        brighten(image, file.read(), depth, stated)
    # EXIF data that cannot be parsed says nothing about orientation, and the pixels are fine.
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    try:
        return to_rgb(image, depth, stated)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:
        raise ValueError(f"{name} is damaged: {str(error) or type(error).__name__}") from error


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if not width or not height:
        raise ValueError(f"{name} is empty: its size is {width}x{height}")
    if width * height > max_pixels:
        raise ValueError(f"{name} has {width}x{height} pixels, more than max_pixels={max_pixels}")


def _checked_array(array: np.ndarray) -> np.ndarray:
    expected = "a picture array is uint8 with shape (H, W, 3), (H, W, 4) or (H, W)"
    if array.dtype != np.uint8:
        cure = {
            "f": "values 0 to 1 become pixels by (array * 255).round().astype(np.uint8)",
            "b": "a mask becomes a picture by array.astype(np.uint8) * 255",
        }.get(array.dtype.kind, "scale it to 0 to 255 and use .astype(np.uint8)")
        raise ValueError(f"{expected}, not {array.dtype}: {cure}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        cure = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            cure = ": put the channels last with array.transpose(1, 2, 0)"
        elif array.ndim == 4:
            cure = ": four axes are a video"
        raise ValueError(f"{expected}, not shape {array.shape}{cure}")
    if not array.size:
        raise ValueError(f"{expected}, not an empty one of shape {array.shape}")
    return array


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
