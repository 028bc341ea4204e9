"""A track as CVAT's own XML, "CVAT for video 1.1": every object a track of masks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from PIL import Image

from sa2va.atomic import naming, replacing
from sa2va.masks.mask import Mask
from sa2va.results.answer import Frame
from sa2va.writers.frame_writer import Pixels
from sa2va.writers.labelled_folder import LabelledFolderWriter


class CvatVideoWriter(LabelledFolderWriter):
    """A folder with ``annotations.xml``, and the frames as ``images/frame_000000.png`` where their pixels are known.

    Import the file into a task made of these frames ("CVAT for video 1.1"), whose labels are the phrases (``"object"``
    where there is none); ``sa2va data check`` reads the folder. Until all frames are there, the file has no tracks.

    A folder that was written here is replaced, and others with something in them are refused.
    """

    default_name = "cvat"
    label_file, mark, media = "annotations.xml", "<!-- written by sa2va -->", ("images/frame_*.png",)

    def _open(self, fps: float | Fraction | None, source: str | Path | None, resume: bool) -> None:
        super()._open(fps, source, resume)
        self._labels: dict[int, str] = {}
        # Masks come by frame and leave by object. They wait on disk, so that memory does not grow with the video.
        self._spool = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115

    def _add(self, frame: Frame, pixels: Pixels | None) -> None:
        if pixels is not None:
            with replacing(self.path / f"images/frame_{self._count:06d}.png") as temporary:
                Image.fromarray(pixels).save(temporary, "PNG")
        with naming(tempfile.gettempdir()):
            for segment in frame.segments:
                self._labels.setdefault(segment.id, segment.phrase or "object")
                self._spool.write(f"{segment.id}\t{self._count}\t{_mask_values(segment.mask)}\n")

    def _finish(self, partial: bool) -> None:
        with self._spool:
            super()._finish(partial)

    def _discard(self) -> None:
        self._spool.close()
        super()._discard()

    def _pieces(self) -> Iterator[str]:
        height, width = self.size
        names = "".join(
            f"<label><name>{escape(name)}</name><type>mask</type><attributes></attributes></label>"
            for name in dict.fromkeys(self._labels.values())
        )
        yield (
            '<?xml version="1.0" encoding="utf-8"?>\n'
            f"{self.mark}\n<annotations>\n<version>1.1</version>\n<meta><task>"
            f"<name>{escape(self._source)}</name><size>{self._count}</size><mode>interpolation</mode>"
            f"<start_frame>0</start_frame><stop_frame>{max(self._count - 1, 0)}</stop_frame>"
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
