"""Writers of JSON: one line per frame while the track runs, or one YouTube-VOS file at its end."""

from __future__ import annotations

import json
import math
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from io import FileIO
from pathlib import Path
from typing import Any

from sa2va.atomic import append, replacing, sole_writer
from sa2va.masks.mask import Segment
from sa2va.results.answer import Frame
from sa2va.untrusted import STUMBLES, parse_json
from sa2va.writers.frame_writer import FrameWriter, Pixels


class JsonLinesWriter(FrameWriter):
    """One line per frame, as [`Frame.to_json`] writes it. Lines are always whole, and a run can be resumed."""

    default_name = "frames.jsonl"
    resumable = True

    def _open(self, fps: float | Fraction | None, source: str | Path | None, resume: bool) -> None:
        self._file: FileIO | None = None
        self._held = ExitStack()
        self._keep = 0
        if resume and self.path.exists():
            self._keep = self._read_done()

    def _read_done(self) -> int:
        """Note the frames that are there; the length of the whole lines, since a killed run can leave half of one."""
        done = []
        length = 0
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                try:
                    record = parse_json(line)
                    index, size = int(record["index"]), tuple(record["size"])
                except STUMBLES as error:
                    raise ValueError(f"{self.path} does not hold frames written here; choose another name") from error
                if size != self.size:
                    raise ValueError(f"{self.path} holds frames of size (h, w) {size}, not {self.size}")
                done.append(index)
                length += len(line)
        self.done = frozenset(done)
        return length

    def _write(self, frame: Frame, pixels: Pixels | None) -> None:
        append(self._lines(), frame.to_json().encode() + b"\n")

    def _lines(self) -> FileIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._held.enter_context(self.path.open("ab", buffering=0))
            self._held.enter_context(sole_writer(self.path))
            self._file.truncate(self._keep)
        return self._file

    def _finish(self, partial: bool) -> None:
        self._lines()
        self._held.close()

    def _discard(self) -> None:
        self._held.close()


@dataclass
class _Object:
    """What is kept of an object until the end: numbers per frame it was in; its masks wait in the spool file."""

    phrase: str
    positions: array[int] = field(default_factory=lambda: array("l"))
    areas: array[int] = field(default_factory=lambda: array("l"))
    boxes: array[float] = field(default_factory=lambda: array("d"))
    scores: array[float] = field(default_factory=lambda: array("d"))
    presences: array[float] = field(default_factory=lambda: array("d"))

    def add(self, position: int, segment: Segment) -> None:
        box = segment.mask.box
        x0, y0, x1, y1 = box or (0.0, 0.0, 0.0, 0.0)
        self.positions.append(position)
        self.areas.append(segment.mask.area)
        self.boxes.extend((x0, y0, x1 - x0, y1 - y0))
        self.scores.append(segment.score)
        self.presences.append(segment.presence)


class JsonWriter(FrameWriter):
    """One file in YouTube-VOS (COCO video) format with compressed RLE.

    ```text
    {"info": {"complete": bool, "source": file name | null},
     "videos": [{"id": 1, "height", "width", "length", "fps": float | null,
                 "frame_indices": [...], "times": [...]}],
     "categories": [{"id": 1, "name": "object"}],
     "annotations": [{"id", "video_id": 1, "category_id": 1, "iscrowd": 0, "height", "width", "length",
                      "object_id", "phrase", "score": mean over its frames,
                      "scores": [...], "presences": [...], "areas": [...], "bboxes": [[x, y, w, h] | null, ...],
                      "segmentations": [rle | null, ...]}]}
    ```

    Each list of an annotation has one entry per frame: null if the object was not tracked there or, in bboxes and
    segmentations, if its mask is empty.
    """

    default_name = "annotations.json"

    def _open(self, fps: float | Fraction | None, source: str | Path | None, resume: bool) -> None:
        self._fps = None if fps is None else float(fps)
        self._source = None if source is None else Path(source).name
        self._indices = array("l")
        self._times: list[float | None] = []
        self._objects: dict[int, _Object] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Masks come by frame and leave by object. They wait on disk, so that memory does not grow with the video.
        self._spool = tempfile.TemporaryFile("w+", dir=self.path.parent, encoding="ascii")  # noqa: SIM115

    def _write(self, frame: Frame, pixels: Pixels | None) -> None:
        position = len(self._indices)
        for segment in frame.segments:
            mask = segment.mask
            record = json.dumps(mask.rle) if mask.box is not None else "null"
            self._spool.write(f"{segment.id}\t{position}\t{record}\n")
            self._objects.setdefault(segment.id, _Object(segment.phrase)).add(position, segment)
        self._times.append(frame.time)
        self._indices.append(frame.index)

    def _finish(self, partial: bool) -> None:
        try:
            with replacing(self.path) as temporary, temporary.open("w", encoding="utf-8") as out:
                for piece in self._pieces(partial):
                    out.write(piece)
        finally:
            self._spool.close()

    def _discard(self) -> None:
        self._spool.close()

    def _pieces(self, partial: bool) -> Iterator[str]:
        height, width = self.size
        shape = {"height": height, "width": width, "length": len(self._indices)}
        times = {"fps": self._fps, "frame_indices": list(self._indices), "times": self._times}
        head = {
            "info": {"complete": not partial, "source": self._source},
            "videos": [{"id": 1, **shape, **times}],
            "categories": [{"id": 1, "name": "object"}],
        }
        yield _dump(head)[:-1] + ', "annotations": ['
        for number, (object_id, track) in enumerate(self._objects.items(), start=1):
            about = {"id": number, "video_id": 1, "category_id": 1, "iscrowd": 0, **shape, "object_id": object_id}
            yield (
                ("" if number == 1 else ",") + "\n" + _dump(about | self._summary(track))[:-1] + ', "segmentations": ['
            )
            yield from self._segmentations(object_id)
            yield "]}"
        yield "\n]}\n"

    def _summary(self, track: _Object) -> dict[str, Any]:
        """The lists of an annotation, spread over all frames."""
        length = len(self._indices)
        rows: list[list[Any]] = [[None] * length for _ in range(4)]
        scores, presences, areas, boxes = rows
        for row, position in enumerate(track.positions):
            scores[position], presences[position] = track.scores[row], track.presences[row]
            areas[position] = track.areas[row]
            boxes[position] = track.boxes[4 * row : 4 * row + 4].tolist() if track.areas[row] else None
        mean = math.fsum(track.scores) / len(track.scores)
        lists = {"scores": scores, "presences": presences, "areas": areas, "bboxes": boxes}
        return {"phrase": track.phrase, "score": mean, **lists}

    def _segmentations(self, object_id: int) -> Iterator[str]:
        """The spooled masks of one object, copied as they are, null for frames without it."""
        self._spool.seek(0)
        following = 0
        for line in self._spool:
            owner, position, record = line.rstrip("\n").split("\t")
            if int(owner) == object_id and int(position) < len(self._indices):
                yield from (", null" if place else "null" for place in range(following, int(position)))
                following = int(position) + 1
                yield (", " if following > 1 else "") + record
        yield from (", null" if place else "null" for place in range(following, len(self._indices)))


def _dump(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False)
