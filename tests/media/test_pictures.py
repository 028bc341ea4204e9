"""Pictures in: every kind of source and mode, orientation, transparency, and everything that must be refused."""

from __future__ import annotations

import contextlib
import http.server
import io
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sa2va.media.download import _is_public
from sa2va.media.open import load_image


def drawn(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_every_kind_of_source_gives_the_same_picture(tmp_path: Path) -> None:
    array = drawn(3)
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    opaque = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    for source in (array, array[::1], opaque, Image.fromarray(array), path, str(path), path.read_bytes()):
        picture = load_image(source)
        assert picture.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(picture), array)
    np.testing.assert_array_equal(np.asarray(load_image(array[..., 0])), array[..., :1].repeat(3, axis=2))
    np.testing.assert_array_equal(np.asarray(load_image(array[::-1, ::2])), array[::-1, ::2])


def one(mode: str, value: object, **info: object) -> Image.Image:
    image = Image.new(mode, (3, 2), value)  # pyright: ignore[reportArgumentType]
    image.info.update(info)
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (one("1", 1), (255, 255, 255)),
        (one("L", 77), (77, 77, 77)),
        (one("L", 77, transparency=77), (255, 255, 255)),
        (one("LA", (100, 0)), (255, 255, 255)),
        (one("LA", (100, 255)), (100, 100, 100)),
        (one("LA", (100, 255)).convert("La"), (100, 100, 100)),
        (one("P", 5, transparency=5), (255, 255, 255)),
        (one("PA", (0, 255)), (0, 0, 0)),
        (one("RGB", (1, 2, 3)), (1, 2, 3)),
        (one("RGB", (1, 2, 3), transparency=(1, 2, 3)), (255, 255, 255)),
        (one("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (one("RGBA", (0, 100, 200, 128)), (127, 177, 227)),
        (one("RGBA", (10, 20, 30, 255)).convert("RGBa"), (10, 20, 30)),
        (one("RGBX", (10, 20, 30, 0)), (10, 20, 30)),
        (one("CMYK", (0, 0, 0, 255)), (0, 0, 0)),
        (one("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
        (one("YCbCr", (255, 128, 128)), (255, 255, 255)),
        (one("HSV", (0, 0, 200)), (200, 200, 200)),
        (one("LAB", (255, 128, 128)), (255, 255, 255)),
        (one("I;16", 65535), (255, 255, 255)),
        (one("I;16", 200), (200, 200, 200)),
        (one("I;16", 4095), (255, 255, 255)),
        (one("I;16B", 1023), (255, 255, 255)),
        (one("I", 8000), (125, 125, 125)),
        (one("I;16B", 32896), (128, 128, 128)),
        (one("I", 65535), (255, 255, 255)),
        (one("I", 200), (200, 200, 200)),
        (one("F", 99.6), (100, 100, 100)),
        (one("F", 0.0), (0, 0, 0)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    picture = load_image(image)
    assert picture.mode == "RGB" and picture.size == image.size
    if image.mode == "LAB":
        assert min(picture.getpixel((1, 1))) >= 0  # pyright: ignore
        return
    assert picture.getpixel((1, 1)) == expected


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_modes_survive_a_file(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(drawn(0)[..., 0])
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), np.asarray(load_image(image)))
    if mode != "1":
        np.testing.assert_array_equal(np.asarray(load_image(image))[..., 1], np.asarray(grey))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a.swapaxes(0, 1)[::-1, ::-1]),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, upright: Callable) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(drawn(0)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), upright(drawn(0)))
    with Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(np.asarray(load_image(opened)), upright(drawn(0)))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3)), r"uint8.*not float64.*\* 255"),
        (np.zeros((4, 4), bool), "not bool: a mask becomes"),
        (np.zeros((4, 4, 3), np.int64), "not int64"),
        (np.zeros((3, 4, 5), np.uint8), r"not shape \(3, 4, 5\).*transpose"),
        (np.zeros((2, 4, 4, 3), np.uint8), "four axes are a video"),
        (np.zeros((4,), np.uint8), r"not shape \(4,\)"),
        (np.zeros((0, 4, 3), np.uint8), r"empty one of shape \(0, 4, 3\)"),
        (Image.new("RGB", (0, 5)), "0x5"),
        (one("F", 0.5), "multiply it by 255"),
        (one("F", float("nan")), "holds nan"),
        (one("F", 300.0), "scale it"),
        (one("I", 70000), "0 to 65535"),
        (b"", "the 0 bytes given is not a picture"),
        (b"hello", "not a picture in a format"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "not a picture in a format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture in a format"),
        (bomb(20000, 20000), "too large to decode"),
        (bomb(10000, 9500), "too large to decode|more than max_pixels"),
        (None, "not builtins.NoneType"),
        ([drawn(0)], "not builtins.list"),
        ("ftp://example.com/a.png", "only http and https URLs are read, not 'ftp'"),
        ("file:///etc/passwd", "not 'file'"),
        ("data:image/png;base64,AAAA", "not 'data'"),
        ("http://127.0.0.1:9/a.png", "cannot fetch"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_wrong_pictures_are_refused(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_image(source)  # pyright: ignore[reportArgumentType]


def test_wrong_picture_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    for name in ("cut.png", "cut.jpg", "cut.webp", "cut.gif", "cut.tiff"):
        whole = io.BytesIO()
        Image.fromarray(drawn(0)).save(whole, format={"jpg": "JPEG"}.get(name[4:], name[4:].upper()))
        (tmp_path / name).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            load_image(tmp_path / name)
    with pytest.raises(ValueError, match=r"text\.png' is not a picture"):
        load_image(tmp_path / "text.png")
    with pytest.raises(ValueError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        load_image(tmp_path / "absent.png")
    Image.fromarray(drawn(0)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"64x48 pixels, more than max_pixels=3000"):
        load_image(tmp_path / "a.png", max_pixels=3000)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60)
@given(
    format=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]),
    spots=st.lists(st.tuples(st.integers(8, 10**6), st.integers(0, 255)), max_size=12),
    keep=st.floats(0.05, 1),
)
def test_damaged_pictures_raise_nothing_but_value_errors(
    format: str, spots: list[tuple[int, int]], keep: float
) -> None:
    file = io.BytesIO()
    Image.fromarray(drawn(0, 20, 24)).save(file, format=format)
    data = bytearray(file.getvalue())
    for position, value in spots:
        data[position % len(data)] = value
    with contextlib.suppress(ValueError):
        assert load_image(bytes(data[: int(keep * len(data))]), max_pixels=10**6).mode == "RGB"


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """A web server with a picture, redirects, an endless body and errors."""
    picture = io.BytesIO()
    Image.fromarray(drawn(6)).save(picture, format="PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/slow-headers":
                self.drip(b"HTTP/1.0 200 OK\r\nX-Long: ")
                return
            target = {
                "/there": "/a.png",
                "/file": "file:///etc/passwd",
                "/loop": "/loop",
                "/slow-redirect": "/slow-headers",
                "/endless-redirect": "/missing",
            }.get(self.path)
            self.send_response(302 if target else 200 if self.path in ("/a.png", "/endless", "/slow-body") else 404)
            if target:
                self.send_header("Location", target)
            self.end_headers()
            try:
                if self.path == "/a.png":
                    self.wfile.write(picture.getvalue())
                while self.path in ("/endless", "/endless-redirect"):
                    self.wfile.write(bytes(1 << 20))
                if self.path == "/slow-body":
                    self.drip(b"")
            except OSError:
                pass

        def drip(self, head: bytes) -> None:
            with contextlib.suppress(OSError):
                self.wfile.write(head)
                for _ in range(500):
                    self.wfile.write(b"x")
                    time.sleep(0.02)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_urls(web: str) -> None:
    for path in ("/a.png", "/there"):
        np.testing.assert_array_equal(np.asarray(load_image(web + path)), drawn(6))
    for path, message in (
        ("/missing", "404"),
        ("/file", "file:///etc/passwd"),
        ("/loop", "infinite loop"),
        ("/endless", "larger than 64 MiB"),
        ("/endless-redirect", "404"),
    ):
        with pytest.raises(ValueError, match=f"cannot fetch .*{message}"):
            load_image(web + path)


@pytest.mark.parametrize("path", ["/slow-headers", "/slow-body", "/slow-redirect"])
def test_a_server_that_drips_meets_one_deadline(web: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No single wait is long; together they would never end."""
    monkeypatch.setattr("sa2va.media.download._MAX_SECONDS", 0.4)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"cannot fetch .*longer than 0 s"):
        load_image(web + path)
    assert time.monotonic() - started < 5
    waiting = [thread for thread in threading.enumerate() if thread.name == "sa2va-download"]
    for thread in waiting:
        thread.join(5)
    assert not any(thread.is_alive() for thread in waiting)


def test_a_redirect_does_not_lead_inside(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a public address to this machine; between private ones it may."""
    load_image(web + "/there")
    public = iter([True])
    monkeypatch.setattr("sa2va.media.download._is_public", lambda _: next(public, False))
    with pytest.raises(ValueError, match=r"cannot fetch .*redirects to 127\.0\.0\.1, a private address"):
        load_image(web + "/there")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
    ],
)
def test_private_addresses_are_known(address: str, public: bool) -> None:
    assert _is_public(address) == public
