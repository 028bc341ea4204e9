"""Results of many images and videos as one dataset in YOLO's segmentation format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import yaml
from numpy.typing import NDArray

from sa2va.atomic import replacing
from sa2va.masks.mask import Mask, Segment, Size
from sa2va.writers.dataset_writer import IMAGES, DatasetWriter

_LABELS = "labels"


class YoloWriter(DatasetWriter):
    """Collects results as ``FOLDER/data.yaml``, ``FOLDER/images`` and a text file of outlines per image in ``labels``.

    There is one class per phrase (``"object"`` if there is none). An object is one line: the parts of its mask are
    joined by lines without width, and its holes are filled, because the format has neither. An image in which nothing
    was found has an empty file, which YOLO trains on as background.

    Images whose names differ in their suffix alone would share a label file and are refused.

    Args:
        folder: new, or without ``data.yaml``.

    Raises:
        ValueError: the folder has labels already.
        OSError: the folder is not writable.
    """

    label_file = "data.yaml"

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        self._classes: dict[str, int] = {}
        self._labelled: set[Path] = set()

    def close(self) -> None:
        """Write ``data.yaml``, whose one split serves for training and validation; split it as you like."""
        names = {number: name for name, number in self._classes.items()}
        record = {"path": ".", "train": IMAGES, "val": IMAGES, "names": names}
        with replacing(self.path) as temporary:
            temporary.write_text(yaml.safe_dump(record, allow_unicode=True, sort_keys=False), encoding="utf-8")

    def abort(self) -> None:
        """Discard the dataset: no labels appear, and the images written for them are removed."""
        for path in self._labelled:
            path.unlink(missing_ok=True)
        super().abort()

    def _label(self, name: str, size: Size, segments: Sequence[Segment]) -> None:
        path, lines = self.folder / _LABELS / PurePosixPath(name).with_suffix(".txt"), []
        if path in self._labelled:
            raise ValueError(f"another image than {name} has the label file {path.name}; rename one of them")
        self._labelled.add(path)
        for segment in segments:
            if segment.mask.area:
                number = self._classes.setdefault(segment.phrase or "object", len(self._classes))
                shares = joined_outline(segment.mask) / np.array([size[1], size[0]])
                lines.append(" ".join([str(number), *(f"{share:.6f}" for share in shares.ravel())]) + "\n")
        with replacing(path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")


def joined_outline(mask: Mask) -> NDArray[np.float32]:
    """The outlines of all parts as one polygon, float32 (P, 2): from part to part there and back along one line."""
    first, *others = sorted(mask.polygons(), key=len, reverse=True)
    joined = first
    for part in others:
        distances = ((joined[:, None] - part[None]) ** 2).sum(axis=2)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        loop = np.concatenate([part[there:], part[: there + 1]])
        joined = np.concatenate([joined[: here + 1], loop, joined[here:]])
    return joined
