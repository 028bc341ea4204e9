"""Live cameras, read by FFmpeg's device input: one endless stream of frames."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import count
from pathlib import Path

import av
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from sa2va.media.frames import DecodedFrame, FrameSource, frames_at
from sa2va.media.video_file import to_rgb

CAMERA_PREFIX = "camera:"


class Camera(FrameSource):
    """A live camera. A new pass goes on where the last one stopped; there is no random or backward access.

    Each pass numbers its frames from 0; ``source_index`` and ``time`` count from the camera's first frame.

    Args:
        device: number of the camera, or the system's name for it (Windows needs the name).
        driver: FFmpeg's input device; by default the system's own (v4l2, avfoundation or dshow).

    Raises:
        ValueError: there is no such camera, or it cannot be opened.
    """

    def __init__(self, device: str | int = 0, *, driver: str | None = None) -> None:
        driver, name, options = (driver, str(device), {}) if driver else _system_device(str(device))
        try:
            self._container = av.open(name, format=driver, options=options)
        except (FFmpegError, ValueError) as error:
            present = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) or "none"
            hint = f"; video devices here: {present}" if sys.platform == "linux" else ""
            raise ValueError(f"cannot open {CAMERA_PREFIX}{device} as {name}: {error}{hint}") from error
        self._stream = self._container.streams.video[0]
        self._stored = self._stream.width, self._stream.height
        self._frames = self._container.decode(self._stream)
        self._seen = count()
        self._first_time: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        width, height = self._stored
        return height, width

    @property
    def frame_count(self) -> None:
        return None

    @property
    def fps(self) -> Fraction | None:
        return self._stream.average_rate

    def close(self) -> None:
        self._container.close()

    def pick(self, indices: Iterable[int]) -> Iterator[DecodedFrame]:
        return frames_at(self._live(), indices)

    def _live(self) -> Iterator[DecodedFrame]:
        reformatter = VideoReformatter()
        for index, frame in enumerate(self._frames):
            if self._first_time is None:
                self._first_time = frame.time or 0.0
            time = (frame.time or 0.0) - self._first_time
            yield DecodedFrame(index, time, to_rgb(reformatter, frame, self._stored), next(self._seen))


def _system_device(device: str) -> tuple[str, str, dict[str, str]]:
    """FFmpeg's driver, device name and options for a camera of this operating system."""
    if sys.platform == "darwin":
        # Without a rate, avfoundation asks for 29.97, which most built-in cameras refuse.
        return "avfoundation", device, {"framerate": "30"}
    if sys.platform == "win32":
        return "dshow", f"video={device}", {}
    return "v4l2", f"/dev/video{device}" if device.isdecimal() else device, {}
