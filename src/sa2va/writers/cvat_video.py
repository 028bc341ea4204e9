"""A track as CVAT's own XML, "CVAT for video 1.1": every object a track of masks."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from PIL import Image

from sa2va.atomic import naming, replacing
from sa2va.masks.mask import Mask
from sa2va.results.answer import Frame
from sa2va.writers.frame_writer import FrameWriter, Pixels

_FILE, _IMAGES = "annotations.xml", "images"
_OURS = "<!-- written by sa2va -->"


class CvatVideoWriter(FrameWriter):
    """A folder with ``annotations.xml``, and the frames as ``images/frame_000000.png`` where their pixels are known.

    Import the file into a task made of these frames ("CVAT for video 1.1"), whose labels are the phrases (``"object"``
    where there is none); ``sa2va data check`` reads the folder. Until all frames are there, the file has no tracks.

    A folder that was written here is replaced, and others with something in them are refused.
    """

    default_name = "cvat"

    def _open(self, fps: float | Fraction | None, source: str | Path | None, resume: bool) -> None:
        self._source = Path(source).name if source is not None else "video"
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"expected a folder to write to, but {self.path} is a file; choose another name")
        if self.path.is_dir() and any(self.path.iterdir()) and not self._is_ours():
            raise ValueError(f"{self.path} holds something that was not written here; choose another folder")
        self._frames = array("l")
        self._labels: dict[int, str] = {}
        # Masks come by frame and leave by object. They wait on disk, so that memory does not grow with the video.
        self._spool = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115

    def _is_ours(self) -> bool:
        path = self.path / _FILE
        return path.is_file() and _OURS.encode() in path.read_bytes()[:200]

    def _write(self, frame: Frame, pixels: Pixels | None) -> None:
        number = len(self._frames)
        if not number:  # only now: a run that fails before costs nothing
            self._clear()
            self._write_file()  # tells the next run that the folder is ours, should this one be killed
        self._frames.append(frame.index)
        if pixels is not None:
            with replacing(self.path / _IMAGES / f"frame_{number:06d}.png") as temporary:
                Image.fromarray(pixels).save(temporary, "PNG")
        with naming(tempfile.gettempdir()):
            for segment in frame.segments:
                self._labels.setdefault(segment.id, segment.phrase or "object")
                self._spool.write(f"{segment.id}\t{number}\t{_mask_values(segment.mask)}\n")

    def _finish(self, partial: bool) -> None:
        with self._spool:
            self._write_file()

    def _write_file(self) -> None:
        with replacing(self.path / _FILE) as temporary, temporary.open("w", encoding="utf-8") as out:
            out.writelines(self._pieces())

    def _discard(self) -> None:
        self._spool.close()
        if self._frames:
            self._clear()

    def _clear(self) -> None:
        """Remove the frames of an earlier run, or of one that failed, and what was said of them."""
        for stale in (*self.path.glob(f"{_IMAGES}/frame_*.png"), self.path / _FILE):
            stale.unlink(missing_ok=True)

    def _pieces(self) -> Iterator[str]:
        height, width = self.size
        names = "".join(
            f"<label><name>{escape(name)}</name><type>mask</type><attributes></attributes></label>"
            for name in dict.fromkeys(self._labels.values())
        )
        yield (
            '<?xml version="1.0" encoding="utf-8"?>\n'
            f"{_OURS}\n<annotations>\n<version>1.1</version>\n<meta><task>"
            f"<name>{escape(self._source)}</name><size>{len(self._frames)}</size><mode>interpolation</mode>"
            f"<start_frame>0</start_frame><stop_frame>{max(len(self._frames) - 1, 0)}</stop_frame>"
            f"<labels>{names}</labels><original_size><width>{width}</width><height>{height}</height></original_size>"
            "</task></meta>\n"
        )
        for place, (identity, label) in enumerate(self._labels.items()):
            yield f'<track id="{place}" label={quoteattr(label)} source="auto">\n'
            yield from self._shapes(identity)
            yield "</track>\n"
        yield "</annotations>\n"

    def _shapes(self, identity: int) -> Iterator[str]:
        """The masks of an object; where it is out of sight, its last one as "outside", as CVAT writes it."""
        self._spool.seek(0)
        shown = last = ""
        for line in self._spool:
            owner, number, values = line.rstrip("\n").split("\t")
            if int(owner) != identity:
                continue
            if values:
                yield f'  <mask frame="{number}" keyframe="1" outside="0" occluded="0" {values} z_order="0"></mask>\n'
            elif shown:
                yield f'  <mask frame="{number}" keyframe="1" outside="1" occluded="0" {last} z_order="0"></mask>\n'
            shown, last = values, values or last


def _mask_values(mask: Mask) -> str:
    """Runs along the rows of a mask's box, first of pixels outside of it; "" for an empty one."""
    if mask.box is None:
        return ""
    x0, y0, x1, y1 = map(int, mask.box)
    flat = mask.crop((x0, y0, x1, y1)).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=False))
    runs = ", ".join(map(str, np.diff(starts, prepend=0, append=flat.size).tolist()))
    return f'rle="{runs}" left="{x0}" top="{y0}" width="{x1 - x0}" height="{y1 - y0}"'
