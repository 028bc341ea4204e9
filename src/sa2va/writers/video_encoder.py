"""Encode frames into a video file: H.264 for mp4, mov and mkv, VP9 (with alpha) for webm, and gif.

The file is written beside its target and renamed at the end. Frames keep their times, so a source of variable frame
rate stays in step with its sound, which is copied from the source (re-encoded where the container cannot hold it).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from sa2va.atomic import check_target, naming, remove_leftovers, temporary_beside
from sa2va.writers.audio_copy import AudioCopy

if TYPE_CHECKING:
    import av
    from av.container import OutputContainer
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

DEFAULT_FPS = 24
# Ticks per frame: fine enough for variable frame rates, a multiple of one so that steady ones come out exact.
_TICKS = 120
_BT709 = 1  # the code of BT.709 for matrix, primaries and transfer in every video standard
_LIMITED_RANGE = 1


@dataclass(frozen=True)
class _Format:
    container: str
    codec: str
    pixels: str
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    audio_kept: frozenset[str] = frozenset()
    audio_codec: str | None = None


# x264's cheapest searches, with the two of its tools back that save most bytes for their time: CABAC, and B-frames of a
# fixed pattern. Beside "veryfast" at 18 that takes a third of the time, for files half as large again of a higher PSNR.
_X264 = {"preset": "ultrafast", "crf": "20", "x264-params": "cabac=1:bframes=3:b-adapt=0"}
_VP9 = {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}
_FASTSTART = {"movflags": "+faststart"}  # the index goes to the front, so that a browser can start at once
_MP4_AUDIO = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"})
_MKV_AUDIO = _MP4_AUDIO | {"vorbis", "pcm_s16le", "pcm_s24le"}

_FORMATS = {
    ".mp4": _Format("mp4", "libx264", "yuv420p", _X264, _FASTSTART, _MP4_AUDIO, "aac"),
    ".mov": _Format("mov", "libx264", "yuv420p", _X264, _FASTSTART, _MKV_AUDIO - {"opus", "flac", "vorbis"}, "aac"),
    ".mkv": _Format("matroska", "libx264", "yuv420p", _X264, {}, _MKV_AUDIO, "aac"),
    ".webm": _Format("webm", "libvpx-vp9", "yuv420p", _VP9, {}, frozenset({"opus", "vorbis"}), "libopus"),
    ".gif": _Format("gif", "gif", "pal8"),
}

VIDEO_SUFFIXES = frozenset(_FORMATS)


class VideoEncoder:
    """Encodes frames into a video file.

    The video has the size of the frames. H.264 with subsampled colour (yuv420p, which everything plays) only allows
    even sides, so frames with an odd side are stored as yuv444p: Chromium, VLC, mpv and FFmpeg play that, Apple's
    players do not. A .webm of any size plays in every browser.

    Args:
        path: target; its suffix selects the format. It appears or changes only at ``close``.
        size: (height, width) of the frames in pixels.
        fps: nominal frames per second; None means 24.
        alpha: keep transparency (webm only): frames are RGBA.
        audio_from: file whose first audio stream is copied, if it has one.

    Raises:
        ValueError: the suffix is no video format, or alpha is not supported by it, or fps is not positive.

    Examples:
        >>> import numpy as np
        >>> from sa2va.writers import VideoEncoder
        >>> video = VideoEncoder("black.mp4", size=(48, 64), fps=8)
        >>> for _ in range(8):
        ...     video.write(np.zeros((48, 64, 3), np.uint8))
        >>> video.close()
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: tuple[int, int],
        fps: float | Fraction | None = None,
        alpha: bool = False,
        audio_from: str | Path | None = None,
    ) -> None:
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in _FORMATS:
            raise ValueError(f"expected a video name ending in {', '.join(sorted(_FORMATS))}, got {self.path.name!r}")
        if alpha and suffix != ".webm":
            raise ValueError(f"only .webm keeps transparency, got {self.path.name!r}; use .webm or a folder of PNGs")
        if fps is not None and not fps > 0:
            raise ValueError(f"expected a positive fps, got {fps}")
        check_target(self.path, audio_from)
        remove_leftovers(self.path)
        self._format = _FORMATS[suffix]
        self._size = size
        # Bounded below and in its digits: containers count ticks in 32 bits.
        self._fps = max(Fraction(fps or DEFAULT_FPS).limit_denominator(10_000), Fraction(1, 10_000))
        self._channels = 4 if alpha else 3
        self._audio_from = audio_from
        self._first_time: float | None = None
        self._last_tick = -_TICKS
        self._output: _Output | None = None  # opened by the first frame, so that a file never begun leaves no trace

    @property
    def _pixel_format(self) -> str:
        if self._channels == 4:
            return "yuva420p"
        odd = any(side % 2 for side in self._size)
        return "yuv444p" if odd and self._format.codec == "libx264" else self._format.pixels

    def _open(self) -> _Output:
        import av
        from av.video.reformatter import VideoReformatter

        layout = self._format
        with contextlib.ExitStack() as opened:
            temporary = opened.enter_context(temporary_beside(self.path))
            container = av.open(
                str(temporary), "w", format=layout.container, container_options=layout.container_options
            )
            stream = cast("VideoStream", container.add_stream(layout.codec, rate=self._fps, options=layout.options))
            self._set_up(stream)
            audio = None
            if self._audio_from is not None and layout.audio_codec is not None:
                audio = AudioCopy.open(self._audio_from, container, layout.audio_kept, layout.audio_codec)
            return _Output(temporary, container, stream, VideoReformatter(), audio, opened.pop_all())

    def _set_up(self, stream: VideoStream) -> None:
        height, width = self._size
        context = stream.codec_context
        context.time_base = 1 / (self._fps * _TICKS)
        stream.pix_fmt = self._pixel_format
        stream.width, stream.height = width, height
        if self._format.codec != "gif":
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE

    def write(self, pixels: NDArray[np.uint8], time: float | None = None) -> None:
        """Add a frame.

        Args:
            pixels: RGB (RGBA with alpha) uint8 (H, W, 3 or 4).
            time: seconds since the source's first frame; the file starts at its first frame's. Without a time, or with
                one that does not grow, the frame follows the last one at the nominal rate.
        """
        if pixels.shape != (*self._size, self._channels) or pixels.dtype != np.uint8:
            expected = (*self._size, self._channels)
            raise ValueError(f"expected a uint8 frame {expected}, got {pixels.dtype} {pixels.shape}")
        with naming(self.path):
            self._encode(pixels, time)

    def _encode(self, pixels: NDArray[np.uint8], time: float | None) -> None:
        if self._output is None:
            self._output = self._open()
        frame = self._frame(pixels, self._output.reformatter)
        self._last_tick = frame.pts = self._tick(time)
        frame.time_base = self._output.stream.codec_context.time_base
        self._output.mux(frame)
        if self._output.audio is not None:
            self._output.audio.copy_until(self._end(), start=self._first_time or 0.0)

    @property
    def started(self) -> bool:
        """Whether a frame has been written."""
        return self._output is not None

    def _tick(self, time: float | None) -> int:
        following = self._last_tick + _TICKS
        if time is None:
            return following
        if self._first_time is None:
            self._first_time = time
        exact = float((time - self._first_time) * self._fps)
        # Times of a steady source carry rounding noise (containers count in milliseconds); take it out.
        steady = round(exact)
        tick = steady * _TICKS if abs(exact - steady) < 0.05 else round(exact * _TICKS)
        return tick if tick > self._last_tick else following

    def _end(self) -> float:
        """Seconds from the start of the file to the end of the last frame."""
        return float((self._last_tick + _TICKS) / (self._fps * _TICKS))

    def _frame(self, pixels: NDArray[np.uint8], reformatter: VideoReformatter) -> av.VideoFrame:
        import av
        from av.video.reformatter import ColorRange, Colorspace

        if self._format.codec == "gif":
            return _palette_frame(pixels)
        # Not copied: it is gone when this returns.
        frame = av.VideoFrame.from_numpy_buffer(
            np.ascontiguousarray(pixels), format="rgba" if self._channels == 4 else "rgb24"
        )
        return reformatter.reformat(
            frame,
            format=self._pixel_format,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,  # the encoder's threads have the other cores
        )

    def close(self) -> None:
        """Finish the file and put it in its place. Raises ValueError, leaving no file, when no frame was written."""
        if self._output is None:
            raise ValueError(f"no frames were written to {self.path}")
        output = self._output
        try:
            with naming(self.path):
                output.mux(None)
                if output.audio is not None:
                    output.audio.copy_until(self._end(), start=self._first_time or 0.0)
                    output.audio.finish()
                output.container.close()
                output.temporary.replace(self.path)
                output.kept.close()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Give the file up; what stood at its path before stays."""
        from av.error import FFmpegError

        if self._output is None:
            return
        if self._output.audio is not None:
            self._output.audio.close()
        with contextlib.suppress(FFmpegError, ValueError):
            self._output.container.close()
        self._output.kept.close()


@dataclass
class _Output:
    """The file being written; its temporary file is ``kept`` until that is closed."""

    temporary: Path
    container: OutputContainer
    stream: VideoStream
    reformatter: VideoReformatter  # kept: its tables take longer to make than a small frame to convert
    audio: AudioCopy | None
    kept: contextlib.ExitStack

    def mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self.stream.encode(frame):
            # The last frame of a file has no successor to tell how long it is shown.
            packet.duration = packet.duration or _TICKS
            self.container.mux(packet)


def _palette_frame(pixels: NDArray[np.uint8]) -> av.VideoFrame:
    """A gif frame with its own 256 best colours."""
    import av
    from PIL import Image

    picture = Image.fromarray(pixels).quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = np.full((256, 4), 255, np.uint8)
    colors = np.array(cast(Any, picture.getpalette()), np.uint8).reshape(-1, 3)
    palette[: len(colors), 1:] = colors  # alpha, red, green, blue
    return av.VideoFrame.from_ndarray(cast(Any, (np.asarray(picture), palette)), format="pal8")
