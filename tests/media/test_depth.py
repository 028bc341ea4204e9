"""Pictures of more than eight bits a sample look as bright as their cameras meant them to."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from PIL import Image

from sa2va.media.open import load_image, open_media

# Columns from black to white, as shares of the largest value.
RAMP = np.linspace(0, 1, 64)
TOPS = {4095: 12, 1023: 10, 16383: 14, 65535: 16, 255: 8}


def ramp(top: int) -> np.ndarray:
    """uint16 (8, 64)."""
    return np.tile((RAMP * top).round().astype(np.uint16), (8, 1))


def shown(source: object) -> np.ndarray:
    """The row of brightness that comes out; all rows and channels must be alike."""
    pixels = np.asarray(load_image(cast("Any", source))).astype(int)
    assert (pixels == pixels[:1, :, :1]).all()
    return pixels[0, :, 0]


def as_file(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk right after its header."""
    return png[:33] + chunk(kind, body) + png[33:]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def in_colour(values: np.ndarray, codec: str, pix_fmt: str) -> bytes:
    """A picture file of 16 bits a colour; where it has alpha, that is full at the values' own depth."""
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = *values.shape, pix_fmt, 1
    samples = np.repeat(values[..., None], 4, axis=2)
    samples[..., 3] = 65535
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(samples), format="rgba64le").reformat(format=pix_fmt)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "array"])
def test_grey_uses_its_whole_range(top: int, format: str) -> None:
    image = Image.fromarray(ramp(top))
    np.testing.assert_allclose(shown(image if format == "array" else as_file(image, format)), RAMP * 255, atol=1.01)


@pytest.mark.parametrize("top", [4095, 1023, 16383, 65535])
@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [("png", "rgb48be"), ("png", "rgba64be"), ("tiff", "rgb48le"), ("tiff", "rgba64le")],
)
def test_colours_use_their_whole_range(top: int, codec: str, pix_fmt: str) -> None:
    np.testing.assert_allclose(shown(in_colour(ramp(top), codec, pix_fmt)), RAMP * 255, atol=2.01)


@pytest.mark.parametrize("top", [4095, 65535])
def test_deep_grey_with_alpha(top: int) -> None:
    rows = [b"\0" + np.stack([row, np.full_like(row, 65535)], axis=-1).astype(">u2").tobytes() for row in ramp(top)]
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 8, 16, 4, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    np.testing.assert_allclose(shown(data), RAMP * 255, atol=2.01)


def test_deep_colours_keep_their_orientation() -> None:
    data = in_colour(ramp(4095), "png", "rgb48be")
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.asarray(load_image(with_chunk(data, b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))
    assert pixels.shape == (64, 8, 3)
    assert pixels[0].max() == 0 and pixels[-1].min() == 255


@pytest.mark.parametrize(
    ("tags", "white"),
    [({341: 4095}, 4095), ({281: 16383}, 16383), ({341: 65535}, 1023), ({341: 100}, 1023), ({}, 1023)],
)
def test_a_tiff_may_state_its_depth(tags: dict[int, int], white: int) -> None:
    """Which matters where the picture is dark: its largest value is 1023."""
    data = as_file(Image.fromarray(ramp(1023)), "TIFF", tiffinfo=tags)
    np.testing.assert_allclose(shown(data), RAMP * 255 * 1023 / white, atol=1.01)


@pytest.mark.parametrize(
    ("bits", "top", "white"), [(12, 1023, 4095), (12, 4095, 4095), (12, 9000, 65535), (16, 1023, 1023)]
)
def test_a_png_may_state_its_depth(bits: int, top: int, white: int) -> None:
    """Samples beyond the stated depth were stretched to 16 bits, as the format wants it."""
    data = with_chunk(as_file(Image.fromarray(ramp(top)), "PNG"), b"sBIT", bytes([bits]))
    np.testing.assert_allclose(shown(data), RAMP * 255 * top / white, atol=1.01)


def test_packed_twelve_bits() -> None:
    """A dark picture in the TIFF that really has twelve bits a sample."""
    values = ramp(1023)
    low, high = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    packed = np.stack([low >> 4, (low & 15) << 4 | high >> 8, high & 255], axis=-1).astype(np.uint8).tobytes()
    entries = [(256, 64), (257, 8), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, len(packed))]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    data = struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed + table + bytes(4)
    np.testing.assert_allclose(shown(data), RAMP * 255 * 1023 / 4095, atol=1.01)


@pytest.mark.parametrize("format", ["PPM", "JPEG2000"])
def test_what_the_reader_has_stretched_is_not_stretched_again(format: str) -> None:
    options = {"irreversible": False} if format == "JPEG2000" else {}
    data = as_file(Image.fromarray(ramp(16000)), format, **options)
    np.testing.assert_allclose(shown(data), RAMP * 255 * 16000 / 65535, atol=1.01)


@pytest.mark.parametrize("form", ["folder", "list", "pages"])
def test_frames_of_a_clip_are_scaled_alike(tmp_path: Path, form: str) -> None:
    """A dark frame in a clip of twelve bits stays dark; a brighter one than the first still fits."""
    pictures = [Image.fromarray(ramp(top)) for top in (4095, 500, 65535)]
    for index, picture in enumerate(pictures):
        picture.copy().save(tmp_path / f"{index}.png")
    pictures[0].save(tmp_path / "pages.tif", save_all=True, append_images=pictures[1:])
    source = {"folder": tmp_path, "list": pictures, "pages": tmp_path / "pages.tif"}[form]
    for order in ([0, 1, 2], [2, 1]):
        video = open_media(source)
        for index, pixels in zip(order, video.read(order), strict=True):
            assert pixels.max() == (255, 31, 255)[index]


@pytest.mark.parametrize("pix_fmt", ["gray10le", "gray12le", "gbrp12le", "yuv444p12le"])
def test_deep_videos(tmp_path: Path, pix_fmt: str) -> None:
    grey = np.repeat((RAMP * 255).round().astype(np.uint8)[None, :, None], 3, axis=2).repeat(48, axis=0)
    with av.open(str(tmp_path / "deep.mkv"), "w") as output:
        stream: Any = output.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(grey), format="rgb24").reformat(format=pix_fmt)
        output.mux([*stream.encode(frame), *stream.encode(None)])
    (pixels,) = open_media(tmp_path / "deep.mkv").read([0])
    np.testing.assert_allclose(pixels, grey.astype(int), atol=3)
