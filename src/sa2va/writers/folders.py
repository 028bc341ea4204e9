"""Writers of folders with one PNG per frame, named by the frame's index (00000.png), and a list of their objects.

``objects.json`` in the folder tells which index, id and phrase belong together, and that the folder is ours: a folder
of numbered pictures without it may be somebody's frames, and is never touched. Every picture appears whole, so what a
broken run leaves can be used, and resumed.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from sa2va.atomic import MANIFEST, replacing
from sa2va.results.answer import Frame
from sa2va.untrusted import STUMBLES, parse_json
from sa2va.visualization.overlay import cutout, palette_png
from sa2va.writers.frame_writer import FrameWriter, Pixels
from sa2va.writers.videos import union

_NUMBERED = re.compile(r"\d{5,}\.png")


class _FolderWriter(FrameWriter):
    resumable = True
    kind: ClassVar[str]

    def _open(self, fps: float | Fraction | None, source: str | Path | None, resume: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"expected a folder to write to, but {self.path} is a file; choose another name")
        self._objects: dict[int, str] = {}  # id -> phrase; the place in this order is the object's index, from 1
        self._stale: list[Path] = []
        self._started = False
        manifest = self._read_manifest()
        if manifest is None:
            if next(_numbered(self.path), None) is not None:
                raise ValueError(
                    f"{self.path} holds numbered pictures that were not written here; choose another folder"
                )
            return
        if manifest["kind"] != self.kind or (resume and manifest["size"] != list(self.size)):
            raise ValueError(
                f"{self.path} holds {manifest['kind']} of size (h, w) {manifest['size']}, not {self.kind} of size "
                f"{list(self.size)}; choose another folder"
            )
        objects = {entry["id"]: entry["phrase"] for entry in manifest["objects"]}
        if resume:
            self._objects = objects
            self.done = frozenset(int(path.stem) for path in self._finished_files())
        else:
            self._stale = [path for folder in self._folders(objects) for path in _numbered(folder)]

    def _read_manifest(self) -> dict[str, Any] | None:
        path = self.path / MANIFEST
        if not path.is_file():
            return None
        try:
            manifest = parse_json(path.read_text(encoding="utf-8"))
            return {key: manifest[key] for key in ("kind", "size", "objects")}
        except STUMBLES as error:
            raise ValueError(f"{path} is not a list of objects written here; choose another folder") from error

    def _write(self, frame: Frame, pixels: Pixels | None) -> None:
        # The old frames go only now, when new ones exist: a run that fails before costs nothing.
        for path in self._stale:
            path.unlink(missing_ok=True)
        self._stale = []
        known = len(self._objects)
        for segment in frame.segments:
            self._objects.setdefault(segment.id, segment.phrase)
        if not self._started or len(self._objects) > known:
            self._write_manifest()
            self._started = True
        self._write_frame(frame, pixels, f"{frame.index:05d}.png")

    def _write_manifest(self) -> None:
        objects = [
            {"index": number, "id": object_id, "phrase": phrase}
            for number, (object_id, phrase) in enumerate(self._objects.items(), start=1)
        ]
        record = {"kind": self.kind, "size": list(self.size), "objects": objects}
        with replacing(self.path / MANIFEST) as temporary:
            temporary.write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")

    def _finished_files(self) -> Iterable[Path]:
        """One file per frame that is complete."""
        return _numbered(self.path)

    def _folders(self, objects: dict[int, str]) -> list[Path]:
        """Where the frames of these objects are."""
        return [self.path]

    @abstractmethod
    def _write_frame(self, frame: Frame, pixels: Pixels | None, name: str) -> None: ...

    def _finish(self, partial: bool) -> None:
        pass  # every frame is finished as it is written

    def _discard(self) -> None:
        pass


class PaletteWriter(_FolderWriter):
    """A folder of palette PNGs as in DAVIS: each pixel is its object's index (see objects.json), at most 255.

    Later objects are on top. An index has its object's colour in the overlay.
    """

    default_name = "masks"
    kind = "masks"

    def _write_frame(self, frame: Frame, pixels: Pixels | None, name: str) -> None:
        number = {object_id: index for index, object_id in enumerate(self._objects, start=1)}
        indices = [number[segment.id] for segment in frame.segments]
        masks = [segment.mask.array for segment in frame.segments]
        colors = [segment.color for segment in frame.segments]
        # An empty mask stands in where there is no object, for a picture of pure background.
        nothing = [np.zeros(frame.size, np.bool_)]
        _save(palette_png(masks or nothing, indices or [1], colors or [None]), self.path / name)


class ObjectsWriter(_FolderWriter):
    """One folder of black-and-white PNGs (mode L, 0 and 255) per object, from the frame where it first appears."""

    default_name = "objects"
    kind = "objects"

    def _write_frame(self, frame: Frame, pixels: Pixels | None, name: str) -> None:
        masks = {segment.id: segment.mask.array for segment in frame.segments}
        # The first object comes last: its file is the sign that the frame is complete.
        for object_id, folder in reversed([*zip(self._objects, self._folders(self._objects), strict=True)]):
            mask = masks.get(object_id)
            white = np.zeros(frame.size, np.uint8) if mask is None else mask.astype(np.uint8) * 255
            _save(Image.fromarray(white), folder / name)

    def _finished_files(self) -> Iterable[Path]:
        return [path for folder in self._folders(self._objects)[:1] for path in _numbered(folder)]

    def _folders(self, objects: dict[int, str]) -> list[Path]:
        return [self.path / f"{object_id:03d}{_slug(phrase)}" for object_id, phrase in objects.items()]


class CutoutWriter(_FolderWriter):
    """A folder of RGBA PNGs: the objects on a transparent background."""

    default_name = "cutout"
    kind = "cutout"
    needs_pixels = True

    def _write_frame(self, frame: Frame, pixels: Pixels | None, name: str) -> None:
        assert pixels is not None
        _save(cutout(pixels, union(frame)), self.path / name)


def _numbered(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("*.png") if _NUMBERED.fullmatch(path.name))


def _slug(phrase: str) -> str:
    """The phrase as the end of a folder's name: nothing in it can be a path."""
    words = re.sub(r"[^a-z0-9]+", "-", phrase.lower()).strip("-")[:40].rstrip("-")
    return f"-{words}" if words else ""


def _save(picture: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        # The fast setting: at the default one, compressing a cut-out takes longer than everything before it.
        picture.save(temporary, compress_level=1 if picture.mode == "RGBA" else 6)
