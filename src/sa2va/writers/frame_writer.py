"""The interface of all writers: they take frames in order, and are closed, closed early or aborted at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sa2va.atomic import check_target, naming, remove_leftovers
from sa2va.masks.mask import Size
from sa2va.results.answer import Frame
from sa2va.visualization.colors import ObjectColors

Pixels = NDArray[np.uint8]


@runtime_checkable
class FramePairs(Protocol):
    """Frames with their pixels, such as a [`sa2va.Track`]."""

    def pairs(self) -> Iterator[tuple[Frame, Pixels | None]]:
        """Every frame from the first, with its RGB pixels, uint8 (H, W, 3), or None if they cannot be read again."""
        ...


class FrameWriter(ABC):
    """Base class of the writers of videos.

    Args:
        path: file or folder to write; parent folders are created.
        size: (height, width) of every frame in pixels.
        fps: nominal frames per second, for videos and JSON.
        source: the video file or folder the frames come from, for its name and its audio.
        resume: continue what is already at ``path``, if the kind is ``resumable``.

    Attributes:
        default_name: name of the output in a folder.
        needs_pixels: whether ``write`` needs the pixels of a frame.
        resumable: whether the kind can resume.
        done: indices of the frames that were complete when the writer was opened.

    Raises:
        ValueError: the kind cannot resume, or the path does not suit it or is that of the source.
        OSError: the path is not writable.

    Examples:
        >>> from pathlib import Path
        >>> from sa2va import Sa2VA
        >>> from sa2va.writers import JsonLinesWriter, PaletteWriter, write_track
        >>> model = Sa2VA.from_pretrained("tiny")
        >>> track = model.track("shapes.mp4", "the orange hat", sampling={"max_frames": 2})
        >>> options = {"size": track.size, "fps": track.fps}
        >>> write_track(track, [PaletteWriter("masks", **options), JsonLinesWriter("frames.jsonl", **options)])
        >>> sorted(path.name for path in Path("masks").glob("*.png"))
        ['00000.png', '00001.png']
    """

    default_name: ClassVar[str]
    needs_pixels: ClassVar[bool] = False
    resumable: ClassVar[bool] = False

    def __init__(
        self,
        path: str | Path,
        *,
        size: Size,
        fps: float | Fraction | None = None,
        source: str | Path | None = None,
        resume: bool = False,
    ) -> None:
        if resume and not self.resumable:
            raise ValueError(
                f"{type(self).__name__} cannot resume, since its file appears only when it is complete; "
                "folders and JSON lines can be resumed"
            )
        self.path = Path(path)
        check_target(self.path, source)
        remove_leftovers(self.path)
        self.size = size
        self.done: frozenset[int] = frozenset()
        self._colors = ObjectColors()
        self._closed = False
        self._last_index = -1
        self._open(fps, source, resume)

    def write(self, frame: Frame, pixels: Pixels | None = None) -> None:
        """Add a frame.

        Args:
            frame: its index must be larger than that of the frame before.
            pixels: its pixels, uint8 RGB (H, W, 3); may be None unless the kind ``needs_pixels``.

        Raises:
            ValueError: the frame is out of order or of another size, its pixels are missing or misshapen, or the writer
                is closed.
        """
        if self._closed:
            raise ValueError(f"{self.path} is closed; make a new writer to write more")
        if frame.index <= self._last_index:
            raise ValueError(f"expected frames in order, got index {frame.index} after {self._last_index}")
        if frame.size != self.size:
            raise ValueError(f"expected frames of size (h, w) {self.size}, got {frame.size}")
        if self.needs_pixels and pixels is None:
            raise ValueError(f"{type(self).__name__} draws on the picture, but frame {frame.index} carries no pixels")
        if pixels is not None and (pixels.shape != (*self.size, 3) or pixels.dtype != np.uint8):
            raise ValueError(f"expected uint8 pixels {(*self.size, 3)}, got {pixels.dtype} {pixels.shape}")
        if pixels is not None:
            frame = replace(frame, segments=self._colors.apply(pixels, frame.segments))
        if frame.index not in self.done:
            with naming(self.path):
                self._write(frame, pixels)
        self._last_index = frame.index

    def close(self, *, partial: bool = False) -> None:
        """Finish the output. ``partial`` means that frames are missing at the end, which then is no error."""
        if not self._closed:
            self._closed = True
            with naming(self.path):
                self._finish(partial)

    def abort(self) -> None:
        """Discard the output: no file appears; a folder keeps its complete frames."""
        if not self._closed:
            self._closed = True
            self._discard()

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close(partial=kind is not None)
        else:
            self.abort()

    @abstractmethod
    def _open(self, fps: float | Fraction | None, source: str | Path | None, resume: bool) -> None: ...

    @abstractmethod
    def _write(self, frame: Frame, pixels: Pixels | None) -> None: ...

    @abstractmethod
    def _finish(self, partial: bool) -> None: ...

    @abstractmethod
    def _discard(self) -> None: ...
