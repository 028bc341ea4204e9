"""Results of many images and videos as tasks of Label Studio, for people to look through and correct."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from sa2va.atomic import naming, replacing
from sa2va.masks.mask import Segment, Size
from sa2va.results.answer import Frame
from sa2va.writers.dataset_writer import IMAGES, DatasetWriter

#: Bits of the lengths of runs that the format offers, and of a value.
_LENGTHS, _VALUE = (3, 4, 8, 16), 8
#: Pixels by which polygons may miss the edge of a mask: people are to correct them, corner by corner.
_TOLERANCE = 1.0


@dataclass(frozen=True)
class Control:
    """A tag of a project's configuration that makes regions.

    Attributes:
        kind: the ``type`` of its results, its tag in lower case. name: its own. to_name: of the picture or video.
    """

    kind: str
    name: str
    to_name: str

    def result(self, value: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
        """A region that was made by it."""
        tag = {"type": self.kind, "from_name": self.name, "to_name": self.to_name}
        return {"id": uuid.uuid4().hex[:10], **tag, **about, "value": value}


_BRUSH = Control("brushlabels", "label", "image")


class LabelStudioWriter(DatasetWriter):
    """Collects results as ``FOLDER/tasks.json``, ``FOLDER/images`` and ``FOLDER/config.xml``, the labels of a project.

    Import the tasks into a project with that configuration, whose local storage holds the folder: masks are
    predictions, which the editor shows as brush strokes with their scores, and whose corrected copies it exports.

    Args:
        folder: new, or without tasks.

    Raises:
        ValueError: the folder has tasks already.
        OSError: the folder is not writable.
    """

    label_file = "tasks.json"

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        self._labels: dict[str, None] = {}
        self._spool = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115

    def close(self) -> None:
        """Write the configuration, then the tasks."""
        labels = "".join(f"    <Label value={quoteattr(label)}/>\n" for label in self._labels)
        with replacing(self.folder / "config.xml") as temporary:
            temporary.write_text(
                '<View>\n  <Image name="image" value="$image"/>\n  <BrushLabels name="label" toName="image">\n'
                f"{labels}  </BrushLabels>\n</View>\n",
                encoding="utf-8",
            )
        with self._spool, replacing(self.path) as temporary, temporary.open("w", encoding="utf-8") as out:
            out.writelines(self._pieces())

    def abort(self) -> None:
        """Discard the dataset: no tasks appear, and the images written for them are removed."""
        self._spool.close()
        super().abort()

    def _label(self, name: str, size: Size, segments: Sequence[Segment]) -> None:
        seen = [segment for segment in segments if segment.mask.area]
        self._labels.update(dict.fromkeys(segment.phrase or "object" for segment in seen))
        prediction = {
            "model_version": "sa2va",
            "score": min((float(segment.score) for segment in seen), default=0.0),
            "result": [one for segment in seen for one in regions(segment, segment.phrase or "object", _BRUSH)],
        }
        task = {
            "data": {"image": f"/data/local-files/?d={quote(f'{self.folder.name}/{IMAGES}/{name}')}"},
            "annotations": [],
            "predictions": [prediction],
        }
        with naming(tempfile.gettempdir()):
            self._spool.write(json.dumps(task, ensure_ascii=False) + "\n")

    def _pieces(self) -> Iterator[str]:
        yield "["
        self._spool.seek(0)
        for number, line in enumerate(self._spool):
            yield (",\n" if number else "\n") + line.rstrip("\n")
        yield "\n]\n"


def regions(segment: Segment, label: str, control: Control) -> list[dict[str, Any]]:
    """A segment of one picture as results: one for each outline, or one for its strokes or its box.

    Args:
        label: of the project's. control: of the kind ``brushlabels``, ``polygonlabels`` or ``rectanglelabels``.
    """
    height, width = segment.mask.size
    percent = 100 / np.array([width, height])
    values: list[dict[str, Any]]
    if control.kind == "brushlabels":
        values = [{"format": "rle", "rle": list(encode_brush(segment.mask.array))}]
    elif control.kind == "polygonlabels":
        outlines = segment.mask.polygons(_TOLERANCE)
        values = [{"points": (outline * percent).tolist(), "closed": True} for outline in outlines]
    else:
        values = [_box(segment) | {"rotation": 0}] if segment.mask.area else []
    about = {"original_height": height, "original_width": width, "image_rotation": 0, "score": float(segment.score)}
    return [control.result(value | {control.kind: [label]}, about) for value in values]


class VideoBoxes:
    """The objects of a track as results of ``VideoRectangle``: their boxes in each frame of the editor.

    The editor counts frames of its own, from 1, so many a second (``frameRate`` of its tag); of frames of the video
    that fall into one of these the first is taken.

    Args:
        fps: frames of the editor in a second.
    """

    def __init__(self, fps: float):
        self._fps, self._last = fps, 0
        self._objects: dict[int, tuple[str, list[dict[str, Any]]]] = {}  # phrase and boxes

    def add(self, frame: Frame) -> None:
        """Take in the next frame."""
        number = frame.index + 1 if frame.time is None else int(frame.time * self._fps + 1.5)
        if number <= self._last:
            return
        self._last = number
        about = {"rotation": 0, "frame": number, "time": (number - 1) / self._fps, "enabled": True}
        for segment in frame.segments:
            _, boxes = self._objects.setdefault(segment.id, (segment.phrase, []))
            if segment.mask.area:
                boxes.append(_box(segment) | about | {"score": float(segment.score)})
            elif boxes:
                boxes[-1]["enabled"] = False  # the box ends here, until the next one

    def results(self, labels: Mapping[str, str], control: Control) -> list[dict[str, Any]]:
        """One result for each object that was seen.

        Args:
            labels: of the project, by phrase. control: of the kind ``videorectangle``.
        """
        about = {"framesCount": self._last, "duration": self._last / self._fps}
        results = []
        for phrase, boxes in self._objects.values():
            if boxes:
                sequence = [{key: value for key, value in box.items() if key != "score"} for box in boxes]
                sequence[-1]["enabled"] = boxes[-1]["enabled"] and boxes[-1]["frame"] == self._last
                value = about | {"sequence": sequence, "labels": [labels[phrase]]}
                score = sum(box["score"] for box in boxes) / len(boxes)
                results.append(control.result(value, {"score": score}))
        return results


def _box(segment: Segment) -> dict[str, float]:
    """The box of a mask that is not empty, in percent of its picture."""
    height, width = segment.mask.size
    x0, y0, x1, y1 = segment.mask.box or (0.0, 0.0, 0.0, 0.0)
    across, down = 100 / width, 100 / height
    return {"x": x0 * across, "y": y0 * down, "width": (x1 - x0) * across, "height": (y1 - y0) * down}


def encode_brush(mask: NDArray[np.bool_]) -> bytes:
    """A mask, bool (H, W), as the editor packs its RGBA picture, 255 where the mask is and 0 elsewhere.

    The bit stream is described where it is read, in ``sa2va.data.annotations.label_studio.decode_brush``.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    bits = [f"{4 * flat.size:032b}{_VALUE - 1:05b}", *(f"{length - 1:04b}" for length in _LENGTHS)]
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), flat.size], strict=True):
        value, left = (255 if flat[start] else 0), 4 * (end - start)
        while left:
            count = min(left, 1 << _LENGTHS[-1])
            choice = next(number for number, length in enumerate(_LENGTHS) if count <= 1 << length)
            bits.append(f"1{choice:02b}{count - 1:0{_LENGTHS[choice]}b}{value:08b}")
            left -= count
    return np.packbits(np.frombuffer("".join(bits).encode(), np.uint8) - ord("0")).tobytes()
