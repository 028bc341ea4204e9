"""Writers of playable videos."""

from __future__ import annotations

from abc import abstractmethod
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sa2va.results.answer import Frame
from sa2va.visualization.overlay import ClipOverlay, cutout
from sa2va.writers.frame_writer import FrameWriter, Pixels
from sa2va.writers.video_encoder import VideoEncoder


class _VideoWriter(FrameWriter):
    """A video whose frames ``_picture`` makes, in the size of the frames."""

    def _open(self, fps: float | Fraction | None, source: str | Path | None, resume: bool) -> None:
        self._file = VideoEncoder(self.path, size=self.size, fps=fps, alpha=self._alpha(), audio_from=source)

    def _alpha(self) -> bool:
        return False

    def _write(self, frame: Frame, pixels: Pixels | None) -> None:
        self._file.write(self._picture(frame, pixels), frame.time)

    @abstractmethod
    def _picture(self, frame: Frame, pixels: Pixels | None) -> Pixels: ...

    def _finish(self, partial: bool) -> None:
        if partial and not self._file.started:
            return
        self._file.close()

    def _discard(self) -> None:
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
        return np.asarray(self._overlay.draw(pixels, frame.segments))


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
