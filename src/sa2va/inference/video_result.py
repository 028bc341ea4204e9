"""The frames of a video as they are computed, readable again without computing them again."""

from __future__ import annotations

import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sa2va.atomic import naming
from sa2va.masks.mask import Size
from sa2va.media.frames import first_indices, uniform_indices
from sa2va.results.answer import Frame
from sa2va.visualization.colors import ObjectColors
from sa2va.visualization.overlay import contact_sheet, overlay
from sa2va.writers import JsonWriter, kind_of_path, write_track

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB


class Track:
    """A lazy sequence of [`Frame`]: each is computed when it is first asked for, and nothing is kept in memory.

    Reading starts at the first frame every time. Frames that were read before come from a temporary file, where they
    are kept as run lengths (without probabilities), and their pixels are decoded again; so looking at a track and then
    saving it computes it once. Closing it, or leaving its ``with`` block, releases what the computation holds.

    Several threads may read one track at the same time: each gets every frame in order, and whichever comes first to a
    frame computes it while the others wait. Those that call ``next`` on the track itself share its one reading.

    Attributes:
        source: path of the video, for its name and its sound; None when there is no file.
        fps: frames per second of what is yielded; None where there is no clock.
        size: (height, width) in pixels.
        total: number of frames that will come; None when it is not known.
        reasons: for each phrase that nothing is followed for, why.
    """

    def __init__(
        self,
        frames: Iterable[tuple[Frame, Pixels | None]],
        *,
        source: str | Path | None = None,
        fps: float | Fraction | None = None,
        size: Size,
        total: int | None = None,
        reasons: Mapping[str, str] | None = None,
        pixels: Callable[[], Iterable[Pixels]] | None = None,
    ) -> None:
        """
        Args:
            frames: pairs of a frame and its pixels, or None where nobody kept them.
            pixels: reads the pixels of all frames once more, from the first; None where that cannot be (a camera).
        """
        self.source = source
        self.fps = fps
        self.size = size
        self.total = total
        self.reasons = dict(reasons or {})
        self._frames = iter(frames)
        self._pixels = pixels
        self._record = _Record()
        self._colors = ObjectColors()
        self._ended = self._complete = False
        self._cursor: Iterator[Frame] | None = None
        # Reentrant, because a track may be closed by whoever is computing it (a signal, the garbage collector).
        self._lock = threading.RLock()

    def __iter__(self) -> Iterator[Frame]:
        """All frames from the first. Raises RuntimeError where the computation failed or was given up."""
        return (frame for frame, _ in self._read(with_pixels=False))

    def __next__(self) -> Frame:
        """The next frame of one reading that ``next`` keeps for itself."""
        with self._lock:
            if self._cursor is None:
                self._cursor = iter(self)
            return next(self._cursor)

    def pairs(self) -> Iterator[tuple[Frame, Pixels | None]]:
        """All frames from the first, each with its pixels; None for frames read before, where they are gone."""
        return self._read(with_pixels=True)

    def save(self, *paths: str | Path, on_frame: Callable[[Frame], None] | None = None) -> None:
        """Write every frame to every path, in one pass.

        A path that ends in .mp4, .mov, .mkv, .webm or .gif gets a video with the masks drawn over it, .json the masks
        in YouTube-VOS form, .jsonl one line per frame; a folder gets DAVIS palette PNGs. ``sa2va.writers`` has more.

        Args:
            on_frame: called after each frame is written, e.g. to show progress.

        Raises:
            ValueError: a path of another kind, or a video of a track that carries no pixels.
        """
        about = {"size": self.size, "fps": self.fps, "source": self.source}
        kinds = [(kind_of_path(Path(path)), Path(path)) for path in paths]
        with ExitStack() as opened:
            # A path that cannot be written ends this before anything is computed and undoes those before it.
            write_track(self, [opened.enter_context(kind(path, **about)) for kind, path in kinds], on_frame)

    def to_json(self, path: str | Path) -> None:
        """Like ``save``, as JSON whatever the name."""
        write_track(self, [JsonWriter(path, size=self.size, fps=self.fps, source=self.source)])

    def preview(self, count: int = 8, columns: int = 4) -> Image.Image:
        """A sheet of frames spread over the video with masks drawn over them, e.g. for a notebook.

        Args:
            count: how many frames; of a video of unknown length, the first ones.
        """
        wanted = uniform_indices(self.total, count) if self.total else first_indices(count, count)
        shown = [
            (frame, overlay(pixels, frame.segments))
            for frame, pixels in self.pairs()
            if frame.index in wanted and pixels is not None
        ]
        labels = [f"frame {frame.index}" for frame, _ in shown]
        return contact_sheet([picture for _, picture in shown], columns, labels)

    def results(self) -> list[Frame]:
        """Every frame, kept in memory."""
        return list(self)

    def close(self) -> None:
        """Stop computing and forget; the frames not yet read are given up."""
        with self._lock:
            self._ended = True
            self._complete = False
            self._record.close()
            if (close := getattr(self._frames, "close", None)) is not None:
                close()

    def __enter__(self) -> Track:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "complete" if self._complete else "ended" if self._ended else "open"
        frames = f"{self._record.count}/{self.total or '?'}"
        return f"Track({self.size[0]}x{self.size[1]}, fps={self.fps}, read {frames}, {state})"

    def _read(self, *, with_pixels: bool) -> Iterator[tuple[Frame, Pixels | None]]:
        position, offset = 0, 0
        # Pixels of frames that were read before, and how many of them have been decoded.
        again: Iterator[Pixels] = iter(())
        decoded = 0
        while True:
            with self._lock:
                known = self._record.read(offset) if position < self._record.count else None
                pair = self._compute() if known is None else None
                offset = self._record.size if known is None else known[1]
            if known is not None:
                pixels = None
                if with_pixels and self._pixels is not None:
                    again = again if decoded else iter(self._pixels())
                    pixels, decoded = next(islice(again, position - decoded, None)), position + 1
                yield known[0], pixels
            elif pair is not None:
                yield pair
            else:
                return
            position += 1

    def _compute(self) -> tuple[Frame, Pixels | None] | None:
        """The next frame that nobody has read yet; None after the last."""
        if self._complete:
            return None
        if self._ended:
            raise RuntimeError(
                f"this track ended after {self._record.count} frames, because it was closed or its computation failed; "
                "run the model again"
            )
        try:
            pair = next(self._frames)
        except StopIteration:
            self._complete = True
            return None
        except BaseException:
            self._ended = True
            raise
        frame, pixels = pair
        if pixels is not None:
            frame = replace(frame, segments=self._colors.apply(pixels, frame.segments))
        self._record.append(frame)
        return frame, pixels


class _Record:
    """Frames in a temporary file, one JSON line each."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- lives as long as the track
        weakref.finalize(self, self._file.close)
        self.count = 0
        self.size = 0

    def append(self, frame: Frame) -> None:
        with naming(tempfile.gettempdir()):
            self._file.seek(self.size)
            self.size += self._file.write(frame.to_json().encode() + b"\n")
        self.count += 1

    def read(self, offset: int) -> tuple[Frame, int]:
        """The frame at a byte offset, and the offset of the one after it."""
        self._file.seek(offset)
        line = self._file.readline()
        return Frame.from_json(line.decode()), offset + len(line)

    def close(self) -> None:
        self._file.close()
        self.count = self.size = 0
