"""Results of many images and videos as tasks of Label Studio, for people to look through and correct."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from sa2va.atomic import naming, replacing
from sa2va.masks.mask import Size
from sa2va.masks.segment import Segment
from sa2va.writers.dataset_writer import IMAGES, DatasetWriter

#: Bits of the lengths of runs that the format offers, and of a value.
_LENGTHS, _VALUE = (3, 4, 8, 16), 8


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
            "result": [_result(segment, size) for segment in seen],
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


def _result(segment: Segment, size: Size) -> dict[str, Any]:
    label = segment.phrase or "object"
    return {
        "id": str(segment.id),
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "original_height": size[0],
        "original_width": size[1],
        "image_rotation": 0,
        "score": float(segment.score),
        "value": {"format": "rle", "rle": list(encode_brush(segment.mask.array)), "brushlabels": [label]},
    }


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
