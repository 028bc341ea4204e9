"""TIFFs of several pages are videos, a page a frame; and media that would unfold into far more than they weigh."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from sa2va import Sa2VA
from sa2va.media.open import is_video, load_image, open_media
from synthetic_checkpoint import picture

PAGES = [picture(75, 48, seed) for seed in range(5)]


def save_pages(path: Path, pages: list[np.ndarray] = PAGES, **options: object) -> Path:
    first, *rest = [Image.fromarray(page) for page in pages]
    first.save(path, save_all=True, append_images=rest, **options)
    return path


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}])
def test_every_page_is_a_frame(tmp_path: Path, options: dict) -> None:
    path = save_pages(tmp_path / "scan.tif", **options)
    source = open_media(path)
    assert is_video(path) and source.frame_count == 5 and source.size == (48, 75) and source.path == path
    assert source.times() is None and source.fps is None
    np.testing.assert_array_equal(np.stack([frame.pixels for frame in source]), PAGES)
    np.testing.assert_array_equal(source.read([3, 0]), [PAGES[3], PAGES[0]])
    np.testing.assert_array_equal(np.asarray(load_image(path)), PAGES[0])


def test_pages_are_tracked(sa2va: Sa2VA, tmp_path: Path) -> None:
    path, short = save_pages(tmp_path / "scan.tif"), {"max_new_tokens": 24}
    assert sa2va.segment(path, "the dog", **short) == sa2va.segment(PAGES, "the dog", **short)
    tracked = [frame.to_json() for frame in sa2va.track(path, "the dog", **short)]
    assert tracked == [frame.to_json() for frame in sa2va.track(PAGES, "the dog", **short)]


def test_one_page_is_a_picture(tmp_path: Path) -> None:
    Image.fromarray(PAGES[0]).save(tmp_path / "one.tif")
    assert not is_video(tmp_path / "one.tif")
    assert open_media(tmp_path / "one.tif").frame_count == 1


def test_thumbnails_are_no_pages(tmp_path: Path) -> None:
    """A smaller copy after each of two pages, marked as such; and a picture with nothing but its copy."""
    for name, kinds in (("two.tif", [0, 1, 0, 1]), ("one.tif", [0, 1])):
        images = []
        for index, kind in enumerate(kinds):
            image = Image.fromarray(PAGES[index] if kind == 0 else PAGES[index][::4, ::4])
            info = TiffImagePlugin.ImageFileDirectory_v2()
            info[254] = kind
            image.encoderinfo = {"tiffinfo": info}
            images.append(image)
        images[0].save(tmp_path / name, save_all=True, append_images=images[1:])
    assert not is_video(tmp_path / "one.tif")
    np.testing.assert_array_equal(np.stack([f.pixels for f in open_media(tmp_path / "two.tif")]), [PAGES[0], PAGES[2]])


def test_pages_of_different_sizes_are_refused(tmp_path: Path) -> None:
    path = save_pages(tmp_path / "mixed.tif", [PAGES[0], PAGES[1][:40]])
    with pytest.raises(ValueError, match=r"page 2 of .*mixed\.tif is 75x40, the first 75x48; save the page you mean"):
        list(open_media(path))


def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    path = save_pages(tmp_path / "scan.tif", compression="tiff_deflate")
    data = bytearray(path.read_bytes())
    with Image.open(path) as image:
        image.seek(3)
        start = image.tag_v2[273][0]
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)
    np.testing.assert_array_equal(open_media(path).read([2])[0], PAGES[2])
    with pytest.raises(ValueError, match=r"page 4 of .*scan\.tif is damaged"):
        open_media(path).read([3])


# Out of all proportion


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def track(*, samples: int = 1, runs: int = 1, edits: int = 1, sound: bool = False) -> bytes:
    """A track whose tables claim so many samples."""
    return box(
        b"trak",
        box(b"edts", box(b"elst", struct.pack(">II", 0, edits))),
        box(
            b"mdia",
            box(b"hdlr", bytes(8), b"soun" if sound else b"vide"),
            box(
                b"minf",
                box(
                    b"stbl",
                    box(b"stts", struct.pack(">IIII", 0, 1, runs, 1)),
                    box(b"stsz", struct.pack(">III", 0, 1, samples)),
                ),
            ),
        ),
    )


FTYP = box(b"ftyp", b"isom", bytes(4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (box(b"moov", track(samples=10**9)), "claims 1000000000 samples in"),
        (box(b"moov", track(runs=10**9)), "claims 1000000000 samples in"),
        (box(b"moov", track(samples=100, edits=10**6)), "claims 100000000 samples in"),
        (box(b"moov", track(samples=150), track(samples=150)), "claims 300 samples in"),
        (box(b"moof", box(b"traf", box(b"trun", struct.pack(">II", 0, 10**9)))), "claims 1000000000 samples in"),
        (box(b"moov", *[track()] * 201), "has 201 tracks; at most 200 are read"),
        (box(b"moov", box(b"cmov", bytes(8))), "compressed header"),
    ],
)
def test_tables_that_claim_too_much_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bomb.mp4").write_bytes(FTYP + content)
    with pytest.raises(ValueError, match=f"bomb.mp4 {message}|bomb.mp4 has a {message}"):
        open_media(tmp_path / "bomb.mp4")


def test_sound_may_have_more_samples_than_bytes(tmp_path: Path) -> None:
    """Tracks that count ticks, as compressed sound in old films does, are none of the above; this has no picture."""
    (tmp_path / "old.mov").write_bytes(FTYP + box(b"moov", track(samples=10**6, runs=10**6, sound=True)))
    with pytest.raises(ValueError, match="no video in it; it holds: audio"):
        open_media(tmp_path / "old.mov")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_a_header_cannot_promise_more_frames_than_the_file_holds(tmp_path: Path) -> None:
    """An animated PNG of one frame that says it has 300 million."""
    row = zlib.compress(bytes(33 * 32))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 0, 0, 0, 0))
    data += chunk(b"acTL", struct.pack(">II", 3 * 10**8, 0))
    data += chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 32, 32, 0, 0, 1, 10, 0, 0)) + chunk(b"IDAT", row)
    (tmp_path / "many.png").write_bytes(data + chunk(b"IEND", b""))
    source = open_media(tmp_path / "many.png")
    assert source.frame_count is not None and source.frame_count < 40
    assert len(list(source)) == source.frame_count == 1


def test_frames_times_pixels_stay_in_proportion(tmp_path: Path) -> None:
    """Five hundred pictures of 36 megapixels in a few kilobytes: every one would have to be drawn to reach the last."""
    head = b"GIF89a" + struct.pack("<HHBBB", 6000, 6000, 0x80, 0, 0) + bytes(6)
    dot = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    (tmp_path / "bomb.gif").write_bytes(head + dot * 500 + b";")
    with pytest.raises(ValueError, match=r"bomb\.gif claims 500 frames of 6000x6000 in \d+ bytes"):
        open_media(tmp_path / "bomb.gif")


def test_what_pillow_stumbles_over_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its assertions come up only when a decoded frame is converted: the file goes on, but nobody can see the frame."""
    save_pages(tmp_path / "a.gif")
    has_transparency = Image.Image.has_transparency_data
    calls = iter([False, False, False])

    def stumble(image: Image.Image) -> bool:
        if next(calls, None) is None:
            raise AssertionError
        return has_transparency.fget(image)  # type: ignore[attr-defined]

    monkeypatch.setattr(Image.Image, "has_transparency_data", property(stumble))
    source = open_media(tmp_path / "a.gif")  # looks at one frame
    with pytest.raises(ValueError, match=r"a\.gif: frame 2 of 5 cannot be shown \(AssertionError\)"):
        list(source)
    with pytest.raises(ValueError, match=r"a\.gif"):
        load_image(tmp_path / "a.gif")


@pytest.mark.parametrize(("share", "readable"), [(0.5, 2), (0.7, 3), (0.85, 4)])
def test_a_cut_gif_promises_one_frame_more_than_it_has(tmp_path: Path, share: float, readable: int) -> None:
    data = save_pages(tmp_path / "whole.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(data[: int(len(data) * share)])
    source = open_media(tmp_path / "cut.gif")
    assert source.frame_count == readable + 1 and source.decode_errors == 0
    assert [frame.index for frame in source] == list(range(readable))
    assert source.frame_count == readable and source.decode_errors == 1


def test_wherever_a_gif_is_cut_it_promises_at_most_one_frame_more(tmp_path: Path) -> None:
    """Pillow counts the frames of most of them, and gives up on others."""
    data = save_pages(tmp_path / "whole.gif").read_bytes()
    for end in range(len(data) // 2, len(data) - 1, 29):
        (tmp_path / "cut.gif").write_bytes(data[:end])
        source = open_media(tmp_path / "cut.gif")
        promised = source.frame_count or 0
        assert 0 <= promised - len(list(source)) <= 1


# Key frames that are gone


@pytest.mark.parametrize("others", [[], [1]])
def test_a_key_frame_that_is_lost_has_the_last_good_one_in_its_place(
    sa2va: Sa2VA, tmp_path: Path, others: list[int]
) -> None:
    """A cut GIF still promises a frame more than it has."""
    data = save_pages(tmp_path / "whole.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(data[: len(data) * 7 // 10])
    promised = open_media(tmp_path / "cut.gif").frame_count
    assert promised is not None
    readable = [frame.pixels for frame in open_media(tmp_path / "cut.gif")]
    assert 2 < len(readable) < promised
    short = {"mode": "released", "max_new_tokens": 24}
    found, expected = (
        [frame.segments for frame in sa2va.track(source, "the dog", key_frames=[*others, last], **short)]
        for source, last in ((tmp_path / "cut.gif", promised - 1), (readable, len(readable) - 1))
    )
    assert found == expected and all(found)


@pytest.mark.parametrize("use", ["segment", "track", "chat"])
@pytest.mark.parametrize("form", ["list", "array", "folder"])
def test_a_video_without_frames_is_refused(sa2va: Sa2VA, tmp_path: Path, use: str, form: str) -> None:
    source = {"list": [], "array": np.zeros((0, 48, 75, 3), np.uint8), "folder": tmp_path}[form]
    call: Callable = getattr(sa2va, use)
    with pytest.raises(ValueError, match=r"at least one frame; the list is empty|holds no pictures"):
        call(source, "the dog")
