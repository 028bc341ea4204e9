"""Results of many images and videos as labelme's files: polygons that most annotation tools read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sa2va.atomic import replacing
from sa2va.masks.mask import Segment, Size
from sa2va.writers.dataset_writer import IMAGES, DatasetWriter

#: The version of the format that is written.
_VERSION = "5.5.0"
#: Pixels by which polygons may miss the edge of a mask: people are to correct them, corner by corner.
_TOLERANCE = 1.0


class LabelmeWriter(DatasetWriter):
    """Collects results as ``FOLDER/images``, a JSON of polygons beside each image, and the labels in ``labels.txt``.

    labelme, AnyLabeling, X-AnyLabeling and ``sa2va data check`` read them. Parts of one object are polygons with its
    id as ``group_id``; holes are filled. Edges are followed within a pixel, so that polygons have corners that a person
    can move.

    Images whose names differ in their suffix alone would share a file and are refused.

    Args:
        folder: new, or without labels.

    Raises:
        ValueError: the folder has labels already.
        OSError: the folder is not writable.
    """

    label_file = "labels.txt"

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        self._labels: dict[str, None] = {}
        self._labelled: set[Path] = set()

    def close(self) -> None:
        """Write the labels."""
        with replacing(self.path) as temporary:
            temporary.write_text("".join(f"{label}\n" for label in self._labels), encoding="utf-8")

    def abort(self) -> None:
        """Discard the dataset: no labels appear, and the images written for them are removed."""
        for path in self._labelled:
            path.unlink(missing_ok=True)
        super().abort()

    def _label(self, name: str, size: Size, segments: Sequence[Segment]) -> None:
        image = PurePosixPath(name)
        path = self.folder / IMAGES / image.with_suffix(".json")
        if path in self._labelled:
            raise ValueError(f"another image than {name} has the label file {path.name}; rename one of them")
        self._labelled.add(path)
        shapes = [
            {
                "label": segment.phrase or "object",
                "points": outline.tolist(),
                "group_id": segment.id,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "score": float(segment.score),
            }
            for segment in segments
            for outline in segment.mask.polygons(_TOLERANCE)
        ]
        self._labels.update(dict.fromkeys(shape["label"] for shape in shapes))
        about = {"imagePath": image.name, "imageData": None, "imageHeight": size[0], "imageWidth": size[1]}
        with replacing(path) as temporary:
            record = {"version": _VERSION, "flags": {}, "shapes": shapes, **about}
            temporary.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
