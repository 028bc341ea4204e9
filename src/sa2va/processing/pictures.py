"""Any picture a user hands over, as one upright RGB picture: paths, URLs, bytes, PIL images of every mode, arrays."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import re
import time
import urllib.request
from typing import IO, TypeAlias

import numpy as np
from PIL import Image, ImageOps

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"

MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3
"""The largest picture decoded by default: 89 megapixels, where Pillow begins to warn of decompression bombs."""

# Pillow knows more formats; those left out run other programs (EPS) or have no signature to be recognised by.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_URL = re.compile(r"([a-z][a-z0-9+.-]+):(//|[^\\/])", re.IGNORECASE)
_MAX_DOWNLOAD_BYTES = 64 << 20
_MAX_DOWNLOAD_SECONDS = 30.0
_STALL_SECONDS = 10.0


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as an upright RGB PIL image.

    EXIF orientation is applied, also to PIL images. Transparency is pasted on white, as the vision-language models were
    trained. 16-bit greys are scaled to 8 bits. Of an animation the first frame is taken.

    Args:
        source: a path, an http(s) URL, the bytes of a picture file, a PIL image of any mode, or a uint8 array (H, W),
            (H, W, 3) or (H, W, 4) in RGB(A) order. A URL is fetched from wherever it points: a server must check
            its clients' URLs before they come here.
        max_pixels: refuse to decode larger pictures (height * width). Above twice Pillow's own limit Pillow refuses.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a picture, damaged, empty, too large, or an array of the wrong shape or type.
    """
    if isinstance(source, np.ndarray):
        return to_rgb(Image.fromarray(_checked_array(source)))
    if isinstance(source, Image.Image):
        return _upright_rgb(source, f"the {source.mode} image", max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), f"the {len(source)} bytes given", max_pixels)
    if isinstance(source, str) and is_url(source):
        return _decode(io.BytesIO(_download(source)), source, max_pixels)
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
        return _decode(file, repr(path), max_pixels)


def load_pixels(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Like ``load_image``, as a uint8 array (H, W, 3). An RGB array comes back as it is, not copied."""
    if isinstance(source, np.ndarray) and source.ndim == 3 and source.shape[2] == 3:
        return np.ascontiguousarray(_checked_array(source))
    return np.array(load_image(source, max_pixels=max_pixels))


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
        raise ValueError(f"{name} is a damaged picture: {error}") from error
    _check_size(image, name, max_pixels)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded PIL image of any mode as RGB, transparency pasted on white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    # Pillow converts premultiplied alpha only to its plain counterpart.
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    paper = Image.new("RGB", layer.size, (255, 255, 255))
    paper.paste(layer, mask=layer.getchannel("A"))
    return paper


def _decode(file: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    with open_picture(file, name, max_pixels) as image:
        return _upright_rgb(image, name, max_pixels)


def _upright_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(image, name, max_pixels)
    try:
        image.load()
    except Exception as error:
        # As in open_picture: a damaged file may raise anything.
        raise ValueError(f"{name} is damaged or cut short: {error}") from error
    # EXIF data that cannot be parsed says nothing about orientation, and the pixels are fine.
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    return to_rgb(image)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if not width or not height:
        raise ValueError(f"{name} is empty: its size is {width}x{height}")
    if width * height > max_pixels:
        raise ValueError(f"{name} has {width}x{height} pixels, more than max_pixels={max_pixels}")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of a 16-bit, 32-bit or float image as uint8."""
    low, high = float(values.min()), float(values.max())
    limit = 255.0 if mode == "F" else 65535.0
    if not (low >= 0 and high <= limit):
        raise ValueError(f"an image of mode {mode} must hold 0 to {limit:.0f}, it holds {low:g} to {high:g}: scale it")
    if mode == "F" and 0 < high <= 1:
        raise ValueError("an image of mode F must hold 0 to 255, this one holds 0 to 1: multiply it by 255")
    # Pillow reads some 8-bit data as 32-bit integers, which are then no darker than they look.
    scale = 255.0 / 65535.0 if mode != "F" and (high > 255 or mode != "I") else 1.0
    return (values.astype(np.float32) * scale + 0.5).astype(np.uint8)


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


def _download(url: str) -> bytes:
    """The body of an http(s) URL, limited in size and time; redirects to other schemes are not followed."""
    scheme = url.split(":", 1)[0].lower()
    if scheme not in ("http", "https"):
        raise ValueError(f"only http and https URLs are read, not {scheme!r}: {url[:80]}")
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    deadline = time.monotonic() + _MAX_DOWNLOAD_SECONDS
    body = bytearray()
    try:
        with opener.open(urllib.request.Request(url, headers={"User-Agent": "sa2va"}), timeout=_STALL_SECONDS) as reply:
            while chunk := reply.read1(1 << 16):
                body += chunk
                if len(body) > _MAX_DOWNLOAD_BYTES or time.monotonic() > deadline:
                    raise ValueError(f"larger than {_MAX_DOWNLOAD_BYTES >> 20} MiB or slower than allowed")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ValueError(f"cannot fetch {url}: {error}") from error
    return bytes(body)
