"""Writers of playable videos."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sa2va.results.answer import Frame
from sa2va.visualization.overlay import ClipOverlay, cutout
from sa2va.writers.frame_writer import FrameWriter, Pixels
from sa2va.writers.video_encoder import VideoEncoder

#: Frames that wait to be drawn and encoded: enough for a thread that never waits, few enough to keep in memory.
_AHEAD = 2


class _VideoWriter(FrameWriter):
    """A video whose frames ``_picture`` makes, in the size of the frames.

    They are made and encoded in a thread of its own, while the next frame is computed; what goes wrong there is raised
    by one of the next calls.
    """

    def _open(self, fps: float | Fraction | None, source: str | Path | None, resume: bool) -> None:
        self._file = VideoEncoder(self.path, size=self.size, fps=fps, alpha=self._alpha(), audio_from=source)
        self._thread = ThreadPoolExecutor(1, "sa2va-video")
        self._waiting: deque[Future[None]] = deque()

    def _alpha(self) -> bool:
        return False

    def _write(self, frame: Frame, pixels: Pixels | None) -> None:
        # Copied: who gave the pixels may use their memory again.
        self._waiting.append(self._thread.submit(self._encode, frame, None if pixels is None else pixels.copy()))
        while len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def _encode(self, frame: Frame, pixels: Pixels | None) -> None:
        self._file.write(self._picture(frame, pixels), frame.time)

    @abstractmethod
    def _picture(self, frame: Frame, pixels: Pixels | None) -> Pixels:
        """What is shown of a frame; may be drawn over its pixels."""

    def _finish(self, partial: bool) -> None:
        try:
            while self._waiting:
                self._waiting.popleft().result()
        except BaseException:
            self._discard()
            raise
        self._thread.shutdown()
        if partial and not self._file.started:
            return
        self._file.close()

    def _discard(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._file.abort()


class OverlayWriter(_VideoWriter):
    """The video with masks and labels drawn over it and the source's audio (.mp4, .mov, .mkv, .webm, .gif)."""

    default_name = "overlay.mp4"
    needs_pixels = True

    def _open(self, fps: float | Fraction | None, source: str | Path | None, resume: bool) -> None:
        super()._open(fps, source, resume)
        self._overlay = ClipOverlay()

    def _picture(self, frame: Frame, pixels: Pixels | None) -> Pixels:
        assert pixels is not None
        self._overlay.paint(pixels, frame.segments)
        return pixels


class BinaryWriter(_VideoWriter):
    """A video of the union of all masks, white on black, without audio (.mp4, .mov, .mkv, .webm, .gif)."""

    default_name = "binary.mp4"

    def _open(self, fps: float | Fraction | None, source: str | Path | None, resume: bool) -> None:
        super()._open(fps, None, resume)

    def _picture(self, frame: Frame, pixels: Pixels | None) -> Pixels:
        white = union(frame).astype(np.uint8) * 255
        return np.repeat(white[:, :, None], 3, axis=2)


class CutoutVideoWriter(_VideoWriter):
    """The objects on a transparent background, with the source's audio (.webm)."""

    default_name = "cutout.webm"
    needs_pixels = True

    def _alpha(self) -> bool:
        return True

    def _picture(self, frame: Frame, pixels: Pixels | None) -> Pixels:
        assert pixels is not None
        return np.asarray(cutout(pixels, union(frame)))


def union(frame: Frame) -> NDArray[np.bool_]:
    """The pixels of any object, bool (H, W)."""
    merged = np.zeros(frame.size, np.bool_)
    for segment in frame.segments:
        merged |= segment.mask.array
    return merged
