"""Videos in: every kind of source, exact random access, sampling, damage, and bounded memory."""

from __future__ import annotations

import logging
import os
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sa2va.media.camera import Camera
from sa2va.media.open import (
    DecodedFrame,
    FrameSource,
    first_indices,
    is_video,
    load_image,
    open_media,
    prefetch,
    uniform_indices,
)

HEIGHT, WIDTH, FRAMES = 48, 64, 40


# Making clips


def drawn(index: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Moving noise, with the frame's number (below 40) as the brightness of a corner patch."""
    noise = np.random.default_rng(7).integers(0, 255, (height, width, 3), dtype=np.uint8)
    picture = np.roll(noise, 2 * index, axis=1)
    picture[:24, :24] = 8 + 6 * max(0, index)
    return picture


def number_in(pixels: np.ndarray) -> int:
    return round((float(pixels[4:20, 4:20].mean()) - 8) / 6)


def encode(
    path: Path,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    *,
    frames: Sequence[np.ndarray] = (),
    pts: Sequence[int] = (),
    tick: Fraction = Fraction(1, 1000),
    container: dict[str, str] | None = None,
    prepare: Callable[[VideoStream], object] = lambda _: None,
    change: Callable[[av.Packet], av.Packet] = lambda packet: packet,
) -> Path:
    pictures = frames or [drawn(index) for index in range(FRAMES)]
    with av.open(str(path), "w", options=container or {}) as output:
        stream = cast(
            "VideoStream", output.add_stream(codec, rate=30, options=options or (GOP if codec == "libx264" else {}))
        )
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if pts:
            stream.codec_context.time_base = tick
        prepare(stream)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
            if pts:
                frame.pts, frame.time_base = pts[index], tick
            for packet in stream.encode(frame):
                output.mux(change(packet))
        for packet in stream.encode(None):
            output.mux(change(packet))
    return path


def earlier(packet: av.Packet) -> av.Packet:
    """Five frames earlier, so that an edit list cuts the first five out."""
    assert packet.pts is not None and packet.dts is not None
    packet.pts, packet.dts = packet.pts - 5, packet.dts - 5
    return packet


def animate(path: Path, *, lossless: bool = False) -> Path:
    pictures = [Image.fromarray(drawn(index)) for index in range(FRAMES)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, lossless=lossless)
    return path


GOP = {"g": "12", "bf": "3", "crf": "8", "x264-params": "scenecut=0"}
OPEN_GOP = {**GOP, "x264-params": "scenecut=0:open-gop=1"}
INTRA_REFRESH = {"g": "12", "bf": "0", "crf": "8", "x264-params": "intra-refresh=1"}
MPEG = {"g": "12", "bf": "2", "b": "4000k"}
VPX = {"g": "12", "deadline": "realtime", "cpu-used": "8", "b": "4000k"}
VFR_MS = [0, 40, 100, 130, 200] + [300 + 37 * index + 11 * (index % 3) for index in range(FRAMES - 5)]
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
FROM_MINUS_FIVE = {"avoid_negative_ts": "disabled"}
CLIPS: dict[str, Callable[[Path], Path]] = {
    "bframes.mp4": encode,
    "open_gop.mp4": lambda path: encode(path, options=OPEN_GOP),
    "intra_refresh.mp4": lambda path: encode(path, options=INTRA_REFRESH),
    "fragmented.mov": lambda path: encode(path, container=FRAGMENTED),
    "cut_start.mp4": lambda path: encode(
        path, container=FROM_MINUS_FIVE, frames=[drawn(index) for index in range(-5, 35)], change=earlier
    ),
    "vfr.mp4": lambda path: encode(path, pts=VFR_MS),
    "vfr.mkv": lambda path: encode(path, pts=VFR_MS),
    "vp9.webm": lambda path: encode(path, "libvpx-vp9", options=VPX),
    "vp8.webm": lambda path: encode(path, "libvpx", options=VPX),
    "lossless.mkv": lambda path: encode(path, "ffv1", "yuv444p", frames=[drawn(i, 47, 63) for i in range(FRAMES)]),
    "mpeg4.avi": lambda path: encode(path, "mpeg4", options=MPEG),
    "h264.avi": encode,
    "mjpeg.avi": lambda path: encode(path, "mjpeg", "yuvj420p"),
    "mpeg2.ts": lambda path: encode(path, "mpeg2video", options=MPEG),
    "animated.gif": animate,
    "animated.webp": lambda path: animate(path, lossless=True),
    "animated.png": animate,
}


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("clips")
    return lambda name: folder / name if (folder / name).exists() else CLIPS[name](folder / name)


def frames_of(path: Path) -> list[np.ndarray]:
    return [frame.pixels for frame in open_media(path)]


# Videos


@pytest.mark.parametrize("name", CLIPS)
def test_every_access_gives_the_same_frames(clip: Callable[[str], Path], name: str) -> None:
    shown = 35 if name == "cut_start.mp4" else FRAMES
    counted = open_media(clip(name))
    assert counted.frame_count == shown, "before anything is decoded"

    forward = list(counted)
    assert [frame.index for frame in forward] == [frame.source_index for frame in forward] == list(range(shown))
    assert [number_in(frame.pixels) for frame in forward] == list(range(shown))
    assert {frame.pixels.shape[:2] for frame in forward} == {counted.size}
    assert all(frame.pixels.dtype == np.uint8 and frame.pixels.flags.c_contiguous for frame in forward)
    assert [frame.time for frame in forward] == counted.times()
    assert counted.decode_errors == 0

    scattered = [int(index) for index in np.random.default_rng(0).permutation(shown)]
    for source in (counted, open_media(clip(name))):
        for index in scattered[:12]:
            np.testing.assert_array_equal(source.read([index])[0], forward[index].pixels)
        for index, pixels in zip(scattered, source.read(scattered), strict=True):
            np.testing.assert_array_equal(pixels, forward[index].pixels)

    for chunk in (1, 7, 1000):
        source = open_media(clip(name))
        source.backward_bytes = chunk * 3 * source.size[0] * source.size[1]
        backward = list(source.iter_backward(shown - 2))
        assert [frame.index for frame in backward] == list(range(shown - 2, -1, -1))
        for frame in backward:
            np.testing.assert_array_equal(frame.pixels, forward[frame.index].pixels)
            assert frame.time == forward[frame.index].time


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_variable_frame_rate_keeps_its_times(clip: Callable[[str], Path], name: str) -> None:
    times = [frame.time for frame in open_media(clip(name))]
    assert times == pytest.approx([time / 1000 for time in VFR_MS], abs=1e-6)


def test_constant_rate_times_and_fps(clip: Callable[[str], Path]) -> None:
    source = open_media(clip("bframes.mp4"))
    assert source.fps == 30 and source.path == clip("bframes.mp4") and source.start_time == 0
    np.testing.assert_allclose(source.times() or [], np.arange(FRAMES) / 30, atol=1e-9)
    gif = open_media(clip("animated.gif"))
    assert gif.fps == 10 and gif.times() == [index / 10 for index in range(FRAMES)]


def test_a_late_first_frame_is_told(tmp_path: Path) -> None:
    path = encode(tmp_path / "late.mkv", pts=[500 + 40 * index for index in range(FRAMES)])
    source = open_media(path)
    assert source.start_time == 0.5
    assert [frame.time for frame in islice(source, 2)] == [0, 0.04]


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((1, 0, 0, 1), lambda a: a),
        ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),
        ((-1, 0, 0, -1), lambda a: np.rot90(a, 2)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), lambda a: a[:, ::-1]),
        ((1, 0, 0, -1), lambda a: a[::-1]),
        ((0, 1, 1, 0), lambda a: a.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda a: np.rot90(a, 2).swapaxes(0, 1)),
    ],
)
def test_orientation_is_applied(
    tmp_path: Path, clip: Callable[[str], Path], matrix: tuple[int, int, int, int], upright: Callable
) -> None:
    data = bytearray(clip("bframes.mp4").read_bytes())
    # The transformation matrix of an mp4: a, b, u, c, d, v, x, y, w in the track header.
    start = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    turned = open_media(tmp_path / "turned.mp4")
    for before, after in zip(frames_of(clip("bframes.mp4")), turned, strict=True):
        np.testing.assert_array_equal(after.pixels, upright(before))
        assert after.pixels.shape[:2] == turned.size and after.pixels.flags.c_contiguous


def test_orientation_written_by_an_encoder(tmp_path: Path) -> None:
    path = encode(tmp_path / "turned.mp4", prepare=lambda stream: stream.set_display_rotation(90))
    assert [number_in(frame.pixels[::-1].swapaxes(0, 1)) for frame in open_media(path)] == list(range(FRAMES))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("png.mov", "png", "rgba", {}),
        ("prores.mov", "prores_ks", "yuva444p10le", {}),
        ("vp9.webm", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0", "g": "4"}),
        ("vp8.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0", "g": "4"}),
    ],
)
def test_transparency_is_composited_on_white(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, options: dict[str, str]
) -> None:
    picture = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    picture[:, WIDTH // 2 :, 3] = 255
    path = encode(tmp_path / name, codec, pix_fmt, options, frames=[picture] * 10)
    source = open_media(path)
    for pixels in [*source.read([7, 2]), *(frame.pixels for frame in source)]:
        assert pixels[:, : WIDTH // 2 - 8].min() > 250
        assert pixels[:, WIDTH // 2 + 8 :].max() < 8


def test_frames_of_changing_size_are_scaled_to_the_first(tmp_path: Path) -> None:
    small, large = (
        encode(tmp_path / f"{side}.webm", "libvpx-vp9", options=VPX, frames=[drawn(3, side, side)] * 5)
        for side in (48, 96)
    )
    with av.open(str(small)) as first, av.open(str(large)) as second, av.open(str(tmp_path / "both.webm"), "w") as both:
        stream = both.add_stream_from_template(first.streams.video[0])
        for shift, container in ((0, first), (200, second)):
            for packet in container.demux(video=0):
                if packet.pts is not None and packet.dts is not None:
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                    both.mux(packet)
    frames = list(open_media(tmp_path / "both.webm"))
    assert [frame.pixels.shape for frame in frames] == [(48, 48, 3)] * 10
    assert [number_in(frame.pixels) for frame in frames[:5]] == [3] * 5
    guarded = open_media(tmp_path / "both.webm", max_pixels=48 * 48)
    assert len(list(guarded)) == 5 and guarded.decode_errors == 5, "what grows above the limit is not decoded"


def test_packets_that_show_nothing_are_not_counted(tmp_path: Path) -> None:
    numbers = count()

    def hide(packet: av.Packet) -> av.Packet:
        if next(numbers) not in (7, 20):
            return packet
        data = bytearray(bytes(packet))
        data[0] &= ~0x10  # the show_frame bit
        hidden = av.Packet(bytes(data))
        hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
        hidden.is_keyframe, hidden.stream = packet.is_keyframe, packet.stream
        return hidden

    source = open_media(encode(tmp_path / "hidden.webm", "libvpx", options=VPX, change=hide))
    forward = list(source)
    assert source.frame_count == len(forward) == FRAMES - 2 and source.decode_errors == 0
    np.testing.assert_array_equal(open_media(source.path or "").read([25])[0], forward[25].pixels)


def test_pauses_in_an_avi_are_not_damage(tmp_path: Path) -> None:
    pts = [index + (6 if index > 20 else 0) for index in range(FRAMES)]
    path = encode(tmp_path / "pause.avi", "mpeg4", options={**MPEG, "bf": "0"}, pts=pts, tick=Fraction(1, 30))
    source = open_media(path)
    assert [number_in(frame.pixels) for frame in source] == list(range(FRAMES)) and source.decode_errors == 0


def test_one_frame_and_pictures_are_short_videos(tmp_path: Path, clip: Callable[[str], Path]) -> None:
    one = open_media(encode(tmp_path / "one.mp4", frames=[drawn(9)]))
    assert one.frame_count == 1 and [number_in(frame.pixels) for frame in one] == [9]
    assert [number_in(frame.pixels) for frame in one.iter_backward()] == [9]
    Image.fromarray(drawn(4)).save(tmp_path / "still.png")
    Image.fromarray(drawn(4)).save(tmp_path / "still.gif")
    for source in (tmp_path / "still.png", tmp_path / "still.gif", drawn(4), Image.fromarray(drawn(4))):
        still = open_media(source)
        assert still.frame_count == 1 and number_in(still.read([0])[0]) == 4 and not is_video(source)


# Damage


def damaged(source: Path, target: Path, packets: Iterable[int]) -> list[int]:
    """Overwrite the payload of some packets with zeros; return the numbers of the frames they hold."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        stored = [packet for packet in container.demux(video=0) if packet.size]
        ranks = {pts: rank for rank, pts in enumerate(sorted(packet.pts or 0 for packet in stored))}
        for packet in packets:
            position, size = stored[packet].pos or 0, stored[packet].size
            data[position : position + size] = bytes(size)
    target.write_bytes(data)
    return sorted(ranks[stored[packet].pts or 0] for packet in packets)


def test_a_frame_lost_in_the_middle_repeats_the_one_before(
    tmp_path: Path, clip: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    lost = damaged(clip("bframes.mp4"), tmp_path / "damaged.mp4", [15, 16, 17])
    early, source = open_media(tmp_path / "damaged.mp4"), open_media(tmp_path / "damaged.mp4")
    before = early.read(lost)
    with caplog.at_level(logging.WARNING, "sa2va"):
        forward = list(source)
    assert [frame.index for frame in forward] == list(range(FRAMES)) and source.frame_count == FRAMES
    assert source.decode_errors == len(lost) == 3
    assert [record for record in caplog.records if "3 frames" in record.getMessage()]
    for index, pixels in zip(lost, before, strict=True):
        np.testing.assert_array_equal(forward[index].pixels, forward[index - 1].pixels)
        np.testing.assert_array_equal(pixels, forward[index].pixels)
    np.testing.assert_allclose([frame.time or 0 for frame in forward], np.arange(FRAMES) / 30, atol=1e-9)
    for backward in source.iter_backward():
        np.testing.assert_array_equal(backward.pixels, forward[backward.index].pixels)


def test_a_lost_key_frame_spoils_no_agreement(tmp_path: Path, clip: Callable[[str], Path]) -> None:
    damaged(clip("bframes.mp4"), tmp_path / "damaged.mp4", [12])
    forward = frames_of(tmp_path / "damaged.mp4")
    assert len(forward) == FRAMES
    for index in (12, 15, 22, 23, 30):
        np.testing.assert_array_equal(open_media(tmp_path / "damaged.mp4").read([index])[0], forward[index])


@pytest.mark.parametrize("name", ["bframes.mp4", "vp9.webm", "vfr.mkv", "h264.avi", "animated.gif"])
def test_a_file_cut_short_gives_what_is_there(
    tmp_path: Path, clip: Callable[[str], Path], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    whole = encode(tmp_path / "whole.mp4", container={"movflags": "faststart"}) if "mp4" in name else clip(name)
    data = whole.read_bytes()
    cut = tmp_path / f"cut_{name}"
    cut.write_bytes(data[: int(0.6 * len(data))])
    intact = frames_of(whole)
    source = open_media(cut)
    claimed = source.frame_count
    with caplog.at_level(logging.WARNING, "sa2va"):
        left = [frame.pixels for frame in source]
    assert 5 < len(left) < FRAMES and source.frame_count == len(left)
    assert source.decode_errors > 0 and "is damaged" in caplog.text
    # The decoder may smear what it has of the last frames; all before those are whole.
    for before, after in zip(intact[: len(left) - 3], left, strict=False):
        np.testing.assert_array_equal(before, after)
    assert claimed is not None and len(left) <= claimed <= len(left) + 3
    last = open_media(cut).read([claimed - 1, 2])
    np.testing.assert_array_equal(last[0], left[-1])
    np.testing.assert_array_equal(last[1], left[2])
    assert [frame.index for frame in open_media(cut).iter_backward()] == list(range(len(left)))[::-1]


def test_files_without_a_frame_are_refused(tmp_path: Path, clip: Callable[[str], Path]) -> None:
    data = clip("bframes.mp4").read_bytes()
    sound = tmp_path / "sound.m4a"
    with av.open(str(sound), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        silence.sample_rate = 44100
        output.mux([*stream.encode(silence), *stream.encode(None)])
    damaged(clip("bframes.mp4"), tmp_path / "zeros.mp4", range(FRAMES))
    for name, content in {
        "no_index.mp4": data[: len(data) // 2],
        "garbage.mp4": data[:40] + bytes(5000),
        "text.mp4": b"hello, this is not a video\n" * 40,
        "empty.mp4": b"",
        "gif.gif": b"GIF89a" + bytes(20),
        "list.m3u8": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n",
        "list.txt": b"ffconcat version 1.0\nfile /etc/passwd\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            open_media(tmp_path / name)
    with pytest.raises(ValueError, match=r"no video in it; it holds: audio"):
        open_media(sound)
    with pytest.raises(ValueError, match="nothing can be decoded"):
        open_media(tmp_path / "zeros.mp4")
    with pytest.raises(ValueError, match="64x48, above max_pixels=1000"):
        open_media(clip("bframes.mp4"), max_pixels=1000)
    with pytest.raises(FileNotFoundError):
        open_media(tmp_path / "absent.mp4")
    with pytest.raises(ValueError, match="local file"):
        open_media("https://example.com/clip.mp4")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for read in (open_media, load_image):
        with pytest.raises(ValueError, match="regular file"):
            read(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("name", ["bframes.mp4", "vfr.mkv", "vp9.webm", "mpeg4.avi", "mpeg2.ts", "animated.gif"])
def test_random_damage_raises_nothing_else(tmp_path: Path, clip: Callable[[str], Path], name: str) -> None:
    data = np.frombuffer(clip(name).read_bytes(), np.uint8)
    for seed in range(12):
        random = np.random.default_rng(seed)
        spoilt = data.copy()
        spoilt[random.integers(20, len(data), 30)] = random.integers(0, 256, 30)
        path = tmp_path / f"{seed}_{name}"
        path.write_bytes(spoilt.tobytes())
        try:
            source = open_media(path)
            numbers = [frame.index for frame in source]
            assert numbers == list(range(len(numbers)))
            source.read([0, (source.frame_count or 1) // 2])
            list(source.iter_backward())
        except ValueError:
            pass


# Folders, lists, arrays, cameras


def test_a_folder_plays_in_natural_order(tmp_path: Path) -> None:
    for index in (0, 2, 10, 1):
        Image.fromarray(drawn(index)).save(tmp_path / f"frame{index}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "._frame0.png").write_bytes(b"\0")
    source = open_media(tmp_path)
    assert is_video(tmp_path) and source.frame_count == 4 and source.size == (HEIGHT, WIDTH)
    assert source.fps is None and source.times() is None and source.path == tmp_path
    assert [number_in(frame.pixels) for frame in source] == [0, 1, 2, 10]
    assert [number_in(frame.pixels) for frame in source.iter_backward(2)] == [2, 1, 0]
    assert [number_in(pixels) for pixels in source.read([3, 0, 3])] == [10, 0, 10]
    second = open_media(tmp_path, stride=2)
    assert second.fps is None and second.times() is None and second.path == tmp_path and second.frame_count == 2

    Image.fromarray(drawn(3, 50, 64)).save(tmp_path / "frame3.png")
    with pytest.raises(ValueError, match=r"frame3\.png is 64x50, the first is 64x48"):
        list(open_media(tmp_path))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a frame")
    with pytest.raises(ValueError, match=r"no pictures .* among its 1 files"):
        open_media(tmp_path)


def test_lists_and_arrays(tmp_path: Path) -> None:
    Image.fromarray(drawn(2)).save(tmp_path / "2.png")
    mixed = open_media([drawn(0), Image.fromarray(drawn(1)), tmp_path / "2.png", str(tmp_path / "absent.png")])
    assert [number_in(frame.pixels) for frame in islice(mixed, 3)] == [0, 1, 2], "files are read when their turn comes"
    with pytest.raises(FileNotFoundError):
        mixed.read([3])
    stack = np.stack([drawn(index) for index in range(5)])
    np.testing.assert_array_equal(np.stack([frame.pixels for frame in open_media(stack)]), stack)
    np.testing.assert_array_equal(open_media(stack).read([4])[0], stack[4])
    bad_lists: list[tuple[Any, str]] = [
        ([], "at least one frame"),
        (stack.astype(np.float32), r"frame 0: .*uint8.*not float32"),
        (stack.transpose(0, 3, 1, 2), "channels last"),
        ([1, 2], "frame 0: a picture is"),
    ]
    for bad, message in bad_lists:
        with pytest.raises(ValueError, match=message):
            open_media(bad)


@pytest.mark.parametrize("index", [-1, FRAMES])
def test_indices_outside_are_refused(clip: Callable[[str], Path], index: int) -> None:
    source = open_media(clip("bframes.mp4"))
    with pytest.raises(ValueError, match=f"{index} is outside the video: it has 40 frames"):
        source.read([0, index])
    with pytest.raises(ValueError, match="outside the video"):
        source.iter_backward(index)


@pytest.mark.parametrize("control", [b"", b"\x21\xf9\x04\x01\x0a\x00\x00\x00"])
def test_a_frame_that_is_whole_and_cannot_be_shown_is_told(tmp_path: Path, control: bytes) -> None:
    size, pixel, palette = b"\x01\x00\x01\x00", b"\x02\x02\x44\x01\x00", b"\x80\x00\x00\x00\xff\xff\xff"
    image = control + b"\x2c" + bytes(4) + size
    path = tmp_path / "late-palette.gif"  # on which Pillow fails an assertion, or says that there is none
    path.write_bytes(b"GIF89a" + size + bytes(3) + image + b"\x00" + pixel + image + palette + pixel + b";")
    with pytest.raises(ValueError, match=r"late-palette\.gif: frame 1 of 2 cannot be shown"):
        list(open_media(path))


def test_gif_is_no_transport_stream(tmp_path: Path) -> None:
    """Which begins with a G, too, and has another after 188 bytes; here that is a colour of the palette."""
    pages = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 255)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:], optimize=False)
    data = bytearray((tmp_path / "a.gif").read_bytes())
    assert data[10] & 0b10000111 == 0b10000111  # 256 colours, from byte 13 on
    data[188] = ord("G")
    (tmp_path / "a.gif").write_bytes(data)
    assert open_media(tmp_path / "a.gif").frame_count == 2


def test_transparent_gif_frames_build_on_each_other(tmp_path: Path) -> None:
    layers = []
    for index in range(3):
        layer = Image.new("RGBA", (30, 10))
        layer.paste((200, 0, 0, 255), (10 * index, 0, 10 * index + 10, 10))
        layers.append(layer)
    layers[0].save(tmp_path / "a.gif", save_all=True, append_images=layers[1:], duration=[50, 0, 70], disposal=2)
    source = open_media(tmp_path / "a.gif")
    for index, frame in enumerate(source):
        expected = np.full((10, 30, 3), 255)
        expected[:, 10 * index : 10 * index + 10] = 200, 0, 0
        np.testing.assert_array_equal(frame.pixels, expected)
    assert source.times() == [0, 0.05, 0.15], "a frame without duration lasts 0.1 s"


def test_camera() -> None:
    with pytest.raises(ValueError, match="cannot open camera:77"):
        open_media("camera:77")
    assert is_video("camera:0")
    with Camera("testsrc2=size=64x48:rate=20", driver="lavfi") as camera:
        assert camera.size == (48, 64) and camera.frame_count is None and camera.fps == 20
        first = list(islice(camera, 3))
        assert [frame.index for frame in first] == [0, 1, 2] and [frame.time for frame in first] == [0, 0.05, 0.1]
        sampled = list(open_media(camera, stride=2, max_frames=3))
        assert [frame.index for frame in sampled] == [0, 1, 2]
        assert [frame.source_index for frame in sampled] == [3, 5, 7], "a camera goes on"
        for access in (lambda: camera.read([0]), lambda: camera.iter_backward()):
            with pytest.raises(ValueError, match="live"):
                access()
    camera.close()


def test_is_video(tmp_path: Path, clip: Callable[[str], Path]) -> None:
    (tmp_path / "note.mp4").write_text("text")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.avif")
    videos = [*(clip(name) for name in CLIPS), np.zeros((2, 8, 8, 3), np.uint8), [drawn(0)], open_media([drawn(0)])]
    pictures = [tmp_path / "note.mp4", tmp_path / "a.avif", drawn(0), b"", Image.new("L", (1, 1)), "http://a.b/c.gif"]
    assert all(is_video(source) for source in videos)
    assert not any(is_video(source) for source in pictures)
    with pytest.raises(FileNotFoundError):
        is_video(tmp_path / "absent.mp4")


# Sampling


class Clock(FrameSource):
    """Black frames at given times; ``live`` hides the end."""

    def __init__(self, times: list[float], live: bool = False) -> None:
        self._times, self._live = times, live

    @property
    def size(self) -> tuple[int, int]:
        return 1, 1

    @property
    def frame_count(self) -> int | None:
        return None if self._live else len(self._times)

    def times(self) -> list[float] | None:
        return None if self._live else self._times

    def pick(self, indices: Iterable[int]) -> Iterator[DecodedFrame]:
        for index in indices:
            if index >= len(self._times):
                return
            yield DecodedFrame(index, self._times[index], np.zeros((1, 1, 3), np.uint8), index)


gaps = st.lists(st.integers(1, 400), min_size=1, max_size=60)
maybe = st.none() | st.integers(0, 70)


@given(gaps=gaps, stride=st.integers(1, 9), start=maybe, end=maybe, maximum=st.none() | st.integers(1, 30))
def test_stride_and_range_are_a_slice(
    gaps: list[int], stride: int, start: int | None, end: int | None, maximum: int | None
) -> None:
    times = [float(time) / 1000 for time in np.cumsum([0, *gaps])]
    expected = list(range(len(times)))[start:end:stride][:maximum]
    live = open_media(Clock(times, live=True), stride=stride, start=start, end=end, max_frames=maximum)
    assert [frame.source_index for frame in live] == expected
    if not expected:
        with pytest.raises(ValueError, match="holds no frame"):
            open_media(Clock(times), stride=stride, start=start, end=end, max_frames=maximum)
        return
    source = open_media(Clock(times), stride=stride, start=start, end=end, max_frames=maximum)
    frames = list(source)
    assert [frame.source_index for frame in frames] == expected
    assert [frame.index for frame in frames] == list(range(len(expected)))
    assert [frame.time for frame in frames] == [times[index] for index in expected]
    assert source.frame_count == len(expected)
    assert [frame.source_index for frame in source.iter_backward()] == expected[::-1]


@given(gaps=gaps, rate=st.integers(1, 60), first=st.integers(0, 20))
def test_fps_keeps_the_first_frame_of_every_interval(gaps: list[int], rate: int, first: int) -> None:
    times = [float(time) / 1000 for time in np.cumsum([0, *gaps])]
    start = times[min(first, len(times) - 1)]
    source = open_media(Clock(times), fps=rate, start=start)
    kept = [frame.source_index for frame in source]
    inside = [index for index, time in enumerate(times) if time >= start - 0.001]
    interval = {index: int((times[index] - times[inside[0]] + 0.001) * rate) for index in inside}
    assert kept == [index for index in inside if index == inside[0] or interval[index] > interval[index - 1]]
    live = open_media(Clock(times, live=True), fps=rate, start=start)
    assert [frame.source_index for frame in live] == kept
    assert source.times() == [times[index] for index in kept]


def test_sampling_a_file(clip: Callable[[str], Path]) -> None:
    path = clip("bframes.mp4")
    thirds = open_media(path, fps=10)
    assert thirds.fps == 10 and thirds.frame_count == 14
    assert [number_in(frame.pixels) for frame in thirds] == list(range(0, FRAMES, 3))
    assert [number_in(pixels) for pixels in thirds.read([13, 1])] == [39, 3]
    assert open_media(path, fps=100).frame_count == FRAMES, "no frame is repeated"
    assert open_media(path, stride=4).fps == Fraction(30, 4)
    seconds = open_media(path, start=0.5, end=1.0)
    assert [number_in(frame.pixels) for frame in seconds] == list(range(15, 30))
    far = open_media(path, stride=38)
    assert [number_in(frame.pixels) for frame in far] == [0, 38]
    nested = open_media(open_media(path, stride=2), start=3, stride=3)
    assert [(frame.index, frame.source_index) for frame in nested] == list(enumerate(range(6, FRAMES, 6)))
    # Matroska rounds times to the millisecond: every second frame of 24 must still be every second frame.
    webm = open_media(clip("vp9.webm"), fps=15)
    assert [number_in(frame.pixels) for frame in webm] == list(range(0, FRAMES, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride must be"),
        ({"stride": 1.5}, "stride must be"),
        ({"max_frames": 0}, "max_frames must be"),
        ({"fps": 0}, "fps must be"),
        ({"fps": float("nan")}, "fps must be"),
        ({"fps": 5, "stride": 2}, "not both"),
        ({"start": -1}, "start must be"),
        ({"end": "3s"}, "end must be"),
        ({"start": 40}, "holds no frame: the video has 40 frames"),
        ({"start": 5, "end": 5}, "holds no frame"),
    ],
)
def test_contradictory_sampling_is_refused(clip: Callable[[str], Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_media(clip("bframes.mp4"), **options)


@pytest.mark.parametrize("options", [{"fps": 5}, {"start": 1.0}])
def test_sources_without_times_are_not_sampled_by_time(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no times"):
        open_media([drawn(0), drawn(1)], **options)


@given(count=st.integers(1, 5000), n=st.integers(1, 40))
def test_chosen_indices(count: int, n: int) -> None:
    uniform = uniform_indices(count, n)
    assert uniform == list(dict.fromkeys(np.linspace(0, count - 1, n).astype(int).tolist()))
    assert uniform[0] == 0 and uniform[-1] == (count - 1 if n > 1 else 0) and len(uniform) == min(n, count)
    assert first_indices(count, n) == list(range(count))[:n]


@pytest.mark.parametrize("choose", [uniform_indices, first_indices])
def test_choosing_from_nothing_is_refused(choose: Callable[[int, int], list[int]]) -> None:
    for arguments in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match="at least one"):
            choose(*arguments)


# Memory and threads


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Rows of this width are padded by FFmpeg, so that numpy owns each frame and tracemalloc sees it.
    pictures = [drawn(index % 40, 150, 198) for index in range(300)]
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return encode(path, frames=pictures, options={"preset": "ultrafast", "g": "150", "bf": "2"})


def peak_frames(frames: Iterator[DecodedFrame]) -> tuple[int, float]:
    """How many frames came, and the peak of memory meanwhile in frames."""
    tracemalloc.start()
    seen = sum(1 for _ in frames)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seen, peak / (150 * 198 * 3)


def test_memory_does_not_grow_with_length(long_clip: Path) -> None:
    source = open_media(long_clip)
    source.backward_bytes = 12 * 150 * 198 * 3
    source.read([0, 200])
    for frames, limit in (
        (iter(source), 4),
        (prefetch(source, depth=4), 9),
        (source.iter_backward(), 12 + 4),
        (iter(open_media(source, stride=1, max_frames=300)), 4),
    ):
        seen, peak = peak_frames(frames)
        assert seen == 300 and 0.9 < peak < limit


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux's list of open files")
def test_leaving_a_pass_early_closes_the_file(clip: Callable[[str], Path]) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    path, before = clip("bframes.mp4"), descriptors()
    source = open_media(path)
    passes = [iter(source), source.iter_backward(), prefetch(source)]
    for frames in passes:
        next(frames)
    assert descriptors() > before
    for frames in passes:
        frames.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert descriptors() == before


def test_passes_may_run_side_by_side(clip: Callable[[str], Path]) -> None:
    source = open_media(clip("bframes.mp4"))
    for ahead, behind in zip(islice(source, 5, None), source, strict=False):
        assert number_in(ahead.pixels) - number_in(behind.pixels) == 5
        assert number_in(source.read([20])[0]) == 20


def test_prefetch_keeps_order_and_stays_within_its_depth() -> None:
    made = []

    def source() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    for consumed, number in enumerate(prefetch(source(), depth=3)):
        assert number == consumed
        assert len(made) <= consumed + 1 + 3 + 1
    assert made == list(range(50))
    assert list(prefetch([])) == []


def test_prefetch_works_while_its_consumer_does() -> None:
    ahead = threading.Event()

    def source() -> Iterator[int]:
        yield from range(3)
        ahead.set()
        yield 3

    frames = prefetch(source(), depth=2)
    assert next(frames) == 0
    assert ahead.wait(10), "two more items are made without being asked for"
    assert list(frames) == [1, 2, 3]


def test_prefetch_passes_exceptions_on_after_the_items_before() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("broken")

    seen = []
    with pytest.raises(KeyError, match="broken"):
        for item in prefetch(failing(), depth=5):
            seen.append(item)
    assert seen == [1, 2]


@pytest.mark.parametrize("consumed", [0, 1, 5])
def test_prefetch_stops_with_its_consumer(consumed: int) -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            yield from count()
        finally:
            closed.set()

    frames = prefetch(endless(), depth=2)
    for expected in range(consumed):
        assert next(frames) == expected
    frames.close()
    assert closed.is_set() == (consumed > 0)
    assert not [thread for thread in threading.enumerate() if thread.name == "sa2va-prefetch"]
