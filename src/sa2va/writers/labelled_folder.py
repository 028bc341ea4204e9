"""A track as a folder that another tool takes in: a file of labels, and the frames that it speaks of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

from sa2va.atomic import replacing
from sa2va.results.answer import Frame
from sa2va.writers.frame_writer import FrameWriter, Pixels


class LabelledFolderWriter(FrameWriter):
    """Writes ``label_file`` and what goes with it into a folder.

    A folder that was written here is replaced, and others with something in them are refused. Until all frames are
    there, the file has no labels.

    Attributes:
        label_file: the name of the file of labels. mark: what its beginning has if it was written here.
        media: glob patterns of the files that go with it.
    """

    label_file: ClassVar[str]
    mark: ClassVar[str]
    media: ClassVar[tuple[str, ...]]

    def _open(self, fps: float | Fraction | None, source: str | Path | None, resume: bool) -> None:
        self._fps = fps
        self._source = Path(source).name if source is not None else "video"
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"expected a folder to write to, but {self.path} is a file; choose another name")
        if self.path.is_dir() and any(self.path.iterdir()) and not self._is_ours():
            raise ValueError(f"{self.path} holds something that was not written here; choose another folder")
        self._count = 0

    def _is_ours(self) -> bool:
        path = self.path / self.label_file
        return path.is_file() and self.mark.encode() in path.read_bytes()[:200]

    def _write(self, frame: Frame, pixels: Pixels | None) -> None:
        if not self._count:  # only now: a run that fails before costs nothing
            self._clear()
            self._write_labels()  # tells the next run that the folder is ours, should this one be killed
        self._add(frame, pixels)
        self._count += 1

    def _finish(self, partial: bool) -> None:
        self._write_labels()

    def _discard(self) -> None:
        if self._count:
            self._clear()

    def _write_labels(self) -> None:
        with replacing(self.path / self.label_file) as temporary, temporary.open("w", encoding="utf-8") as out:
            out.writelines(self._pieces())

    def _clear(self) -> None:
        """Remove the frames of an earlier run, or of one that failed, and what was said of them."""
        for pattern in (*self.media, self.label_file):
            for stale in self.path.glob(pattern):
                stale.unlink(missing_ok=True)

    @abstractmethod
    def _add(self, frame: Frame, pixels: Pixels | None) -> None:
        """Keep a frame, the ``_count``-th of them."""

    @abstractmethod
    def _pieces(self) -> Iterator[str]:
        """The text of the file of labels, with the labels of the frames so far."""
