"""Video files: they play in a browser, keep times, colours and sound, and appear whole or not at all."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from sa2va.media.open import open_media
from sa2va.writers import VideoEncoder

SIZE = (96, 128)
NTSC = Fraction(30000, 1001)


def picture(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((*size, 3), (40 * (index % 6), 100, 20), np.uint8)


def encode(
    path: Path,
    count: int,
    fps: Fraction = NTSC,
    size: tuple[int, int] = SIZE,
    source: Path | str | None = None,
    first: int = 0,
) -> Path:
    video = VideoEncoder(path, size=size, fps=fps, audio_from=source)
    for index in range(first, first + count):
        video.write(picture(index, size), float(index / fps))
    video.close()
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as media:
        return [picture.to_ndarray(format="rgb24") for picture in media.decode(video=0)]


def packet_times(path: Path, kind: str) -> list[float]:
    with av.open(str(path)) as media:
        stream = getattr(media.streams, kind)[0]
        return sorted(float(p.pts * p.time_base) for p in media.demux(stream) if p.pts is not None)


def make_source(path: Path, seconds: float = 2.0, codec: str = "aac") -> Path:
    """A film with a tone that gets louder second by second."""
    with av.open(str(path), "w") as media:
        video: Any = media.add_stream("libx264", rate=NTSC)
        video.width, video.height, video.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        audio: Any = media.add_stream(codec, rate=44100)
        audio.layout = "mono"
        for index in range(int(seconds * NTSC)):
            media.mux(video.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        media.mux(video.encode(None))
        for start in range(0, int(seconds * 44100), 1024):
            time = (start + np.arange(1024)) / 44100
            tone = (0.1 * (1 + np.floor(time)) * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
            sound = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 44100, start, Fraction(1, 44100)
            media.mux(audio.encode(sound))
        media.mux(audio.encode(None))
    return path


def loudness(path: Path) -> float:
    with av.open(str(path)) as media:
        resampler = av.AudioResampler("flt", "mono", 44100)
        frames = [mono for sound in media.decode(audio=0) for mono in resampler.resample(sound)]
        sound = np.concatenate([mono.to_ndarray().ravel() for mono in frames])
    return float(np.sqrt((sound**2).mean()))


class TestVideo:
    @pytest.mark.parametrize("fps", [NTSC, Fraction(25), Fraction(24000, 1001), Fraction(15, 2)])
    def test_mp4_round_trip(self, tmp_path, fps):
        path = tmp_path / "out.mp4"
        encode(path, 30, fps)
        with av.open(str(path)) as media:
            stream: Any = media.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            assert stream.average_rate == fps
            assert (stream.height, stream.width) == SIZE
            assert float(stream.duration * stream.time_base) == pytest.approx(30 / fps, abs=1e-3)
        frames = decoded(path)
        assert len(frames) == 30
        for index in (0, 7, 29):  # away from the masks, the picture is what it was
            np.testing.assert_allclose(frames[index][90, 5], picture(index)[0, 0], atol=8)

    def test_a_moving_picture_is_kept_closely_in_a_small_file(self, tmp_path):
        rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
        moving = [127 + 60 * np.sin((columns + 3 * t) / 9) + 50 * np.cos(rows / 7) for t in range(25)]
        noise = np.random.default_rng(0).normal(0, 2, (25, *SIZE))
        given = [np.repeat(frame[..., None], 3, axis=2).clip(0, 255).astype(np.uint8) for frame in moving + noise]
        video = VideoEncoder(tmp_path / "out.mp4", size=SIZE, fps=25)
        for frame in given:
            video.write(frame)
        video.close()
        error = np.mean((np.stack(decoded(video.path)).astype(np.float32) - np.stack(given)) ** 2)
        assert 10 * np.log10(255**2 / error) > 38
        assert video.path.stat().st_size < 25 * 1200

    def test_pixels_may_be_used_again_at_once(self, tmp_path):
        video, pixels = VideoEncoder(tmp_path / "out.mp4", size=SIZE, fps=25), np.zeros((*SIZE, 3), np.uint8)
        for index in range(12):
            pixels[:] = picture(index)
            video.write(pixels)
        pixels[:] = 255
        video.close()
        for index, frame in enumerate(decoded(video.path)):
            np.testing.assert_allclose(frame[20, 20], picture(index)[0, 0], atol=8)

    def test_mp4_starts_fast(self, tmp_path):
        path = tmp_path / "out.mp4"
        encode(path, 10)
        data, boxes, at = path.read_bytes(), [], 0
        while at < len(data):
            length, name = struct.unpack_from(">I4s", data, at)
            boxes.append(name)
            at += length
        assert boxes.index(b"moov") < boxes.index(b"mdat")

    def test_colours_are_tagged_and_kept(self, tmp_path):
        path = tmp_path / "out.mp4"
        video = VideoEncoder(path, size=SIZE, fps=10)
        red = np.full((*SIZE, 3), (220, 40, 60), np.uint8)
        video.write(red)
        video.close()
        with av.open(str(path)) as media:
            shown = next(media.decode(video=0))
            assert shown.colorspace == 1  # BT.709
            np.testing.assert_allclose(shown.to_ndarray(format="rgb24")[20, 20], red[0, 0], atol=4)

    @pytest.mark.parametrize("name", ["out.mov", "out.mkv", "out.webm", "out.gif"])
    def test_other_containers(self, tmp_path, name):
        encode(tmp_path / name, 8, Fraction(10))
        frames = decoded(tmp_path / name)
        assert len(frames) == 8 and frames[0].shape == (*SIZE, 3)
        np.testing.assert_allclose(frames[3][90, 5], picture(3)[0, 0], atol=10)
        assert packet_times(tmp_path / name, "video")[-1] == pytest.approx(0.7, abs=0.01)

    @pytest.mark.parametrize("name", ["odd.mp4", "odd.mov", "odd.mkv", "odd.webm", "odd.gif"])
    @pytest.mark.parametrize("size", [(97, 101), (96, 101), (97, 128), (17, 17)])
    def test_odd_sizes_are_kept(self, tmp_path, name, size):
        encode(tmp_path / name, 3, size=size)
        assert open_media(tmp_path / name).size == size
        last = decoded(tmp_path / name)[1]
        assert last.shape == (*size, 3)
        np.testing.assert_allclose(last[-1, -1], picture(1)[0, 0], atol=10)

    def test_even_sizes_play_everywhere(self, tmp_path):
        encode(tmp_path / "even.mp4", 2)
        with av.open(str(tmp_path / "even.mp4")) as media:
            assert media.streams.video[0].codec_context.pix_fmt == "yuv420p"

    def test_transparency_of_odd_sizes(self, tmp_path):
        video = VideoEncoder(tmp_path / "odd.webm", size=(97, 101), fps=10, alpha=True)
        for _ in range(2):
            video.write(np.full((97, 101, 4), (200, 30, 60, 0), np.uint8))
        video.close()
        shown = next(iter(open_media(tmp_path / "odd.webm"))).pixels
        assert shown.shape == (97, 101, 3) and shown.min() > 250

    def test_variable_frame_rate_keeps_its_times(self, tmp_path):
        times = [5.0, 5.1, 5.15, 5.4, 5.9, 6.0]
        video = VideoEncoder(tmp_path / "out.mp4", size=SIZE, fps=10)
        for time in times:
            video.write(picture(0), time)
        video.close()
        np.testing.assert_allclose(packet_times(tmp_path / "out.mp4", "video"), np.array(times) - 5, atol=2e-3)

    def test_times_that_do_not_grow_still_give_every_frame_a_place(self, tmp_path):
        video = VideoEncoder(tmp_path / "out.mp4", size=SIZE, fps=10)
        for time in (0.0, 0.0, None, 0.1, 0.4):
            video.write(picture(0), time)
        video.close()
        assert len(decoded(tmp_path / "out.mp4")) == 5
        assert (np.diff(packet_times(tmp_path / "out.mp4", "video")) > 0.05).all()

    def test_webm_keeps_transparency(self, tmp_path):
        rgba = np.zeros((*SIZE, 4), np.uint8)
        rgba[10:30, 20:60] = (200, 30, 60, 255)
        video = VideoEncoder(tmp_path / "out.webm", size=SIZE, fps=10, alpha=True)
        for _ in range(3):
            video.write(rgba)
        video.close()
        with av.open(str(tmp_path / "out.webm")) as media:
            assert media.streams.video[0].metadata["alpha_mode"] == "1"
            decoder: Any = av.CodecContext.create("libvpx-vp9", "r")  # FFmpeg's own VP9 decoder drops the alpha plane
            shown = [f for packet in media.demux(video=0) for f in decoder.decode(packet)]
        inside, outside = shown[1].to_ndarray(format="rgba")[[20, 80], [40, 40]].astype(int)
        np.testing.assert_allclose(inside, (200, 30, 60, 255), atol=8)
        assert outside[3] < 5

    def test_wrong_input_is_named_and_leaves_nothing(self, tmp_path):
        with pytest.raises(ValueError, match=r"\.avi"):
            VideoEncoder(tmp_path / "out.avi", size=SIZE)
        with pytest.raises(ValueError, match="transparency"):
            VideoEncoder(tmp_path / "out.mp4", size=SIZE, alpha=True)
        with pytest.raises(ValueError, match="positive"):
            VideoEncoder(tmp_path / "out.mp4", size=SIZE, fps=-1)
        video = VideoEncoder(tmp_path / "out.mp4", size=SIZE)
        with pytest.raises(ValueError, match="no frames"):
            video.close()
        with pytest.raises(ValueError, match=r"\(96, 128, 3\)"):
            video.write(np.zeros((3, 3, 3), np.uint8))
        assert files(tmp_path) == []

    def test_giving_up_keeps_what_was_there(self, tmp_path):
        (tmp_path / "out.mp4").write_bytes(b"old")
        video = VideoEncoder(tmp_path / "out.mp4", size=SIZE)
        video.write(picture(0))
        video.abort()
        assert files(tmp_path) == ["out.mp4"]
        assert (tmp_path / "out.mp4").read_bytes() == b"old"


class TestSound:
    @pytest.mark.parametrize(
        ("source", "codec", "target", "expected"),
        [
            ("in.mp4", "aac", "out.mp4", "aac"),
            ("in.mp4", "aac", "out.mkv", "aac"),
            ("in.mov", "pcm_s16le", "out.mp4", "aac"),
            ("in.mp4", "aac", "out.webm", "opus"),
        ],
    )
    def test_sound_is_kept(self, tmp_path, source, codec, target, expected):
        film = make_source(tmp_path / source, codec=codec)
        encode(tmp_path / target, 59, source=film)
        with av.open(str(tmp_path / target)) as media:
            assert media.streams.audio[0].codec_context.name == expected
        assert len(decoded(tmp_path / target)) == 59
        times = packet_times(tmp_path / target, "audio")
        assert times[0] < 0.06 and times[-1] == pytest.approx(59 / NTSC, abs=0.08)
        assert loudness(tmp_path / target) == pytest.approx(loudness(film), rel=0.05)

    def test_packets_are_copied_not_encoded_again(self, tmp_path):
        film = make_source(tmp_path / "in.mp4")
        encode(tmp_path / "out.mp4", 59, source=film)

        def packets(path: Path) -> list[bytes]:
            with av.open(str(path)) as media:
                return [bytes(packet) for packet in media.demux(audio=0) if packet.size]

        copied = packets(tmp_path / "out.mp4")
        assert len(copied) > 80
        assert copied == packets(film)[: len(copied)]

    def test_a_part_of_the_film_gets_its_own_sound(self, tmp_path):
        film = make_source(tmp_path / "in.mp4")
        for name, first in (("first.mp4", 3), ("second.mp4", 33)):
            encode(tmp_path / name, 24, source=film, first=first)
            assert packet_times(tmp_path / name, "audio")[-1] <= 24 / NTSC
        # The tone is twice as loud in the film's second second.
        assert loudness(tmp_path / "second.mp4") / loudness(tmp_path / "first.mp4") == pytest.approx(2, rel=0.1)

    def test_sources_without_sound_are_passed_over(self, tmp_path):
        text = tmp_path / "frames.txt"
        text.write_text("no film")
        for number, source in enumerate([text, tmp_path, tmp_path / "missing.mp4", "camera:0"]):
            assert len(decoded(encode(tmp_path / f"{number}.mp4", 2, source=source))) == 2

    def test_a_film_that_breaks_off_ends_its_sound_not_the_video(self, tmp_path):
        film = make_source(tmp_path / "in.mkv")
        film.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
        encode(tmp_path / "out.mp4", 59, source=film)
        assert len(decoded(tmp_path / "out.mp4")) == 59
        assert 0.2 < packet_times(tmp_path / "out.mp4", "audio")[-1] < 1.5

    def test_damaged_packets_are_left_out_with_a_warning(self, tmp_path, caplog):
        film = make_source(tmp_path / "in.mkv")
        data = bytearray(film.read_bytes())
        with av.open(str(film)) as media:
            sizes = [(packet.pos, packet.size) for packet in media.demux(audio=0) if packet.size]
        for position, size in sizes[20:30]:
            at = data.index(0xA3, position)  # the start of Matroska's block, its header before the sound
            data[at + 8 : at + size] = b"\xff" * (size - 8)
        film.write_bytes(data)
        encode(tmp_path / "out.webm", 59, source=film)
        assert len(decoded(tmp_path / "out.webm")) == 59
        assert packet_times(tmp_path / "out.webm", "audio")[-1] > 1.8
        assert "damaged packets" in caplog.text
