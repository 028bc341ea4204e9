"""Own pictures with polygons and phrases, in the layout that users of the reference fine-tune on.

``ROOT/annotations.json`` is a list of ``{"image": name, "mask": [[polygon, ...], ...], "text": [phrase, ...]}`` with
one list of polygons and one phrase per object; the pictures are in ``ROOT/images``. A polygon is
``[x0, y0, x1, y1, ...]``.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from sa2va.data.formats.coco import decode_segmentation
from sa2va.data.formats.pictures import lazy_picture
from sa2va.data.sample import Sample
from sa2va.data.sources.wording import ANSWERS, REQUESTS, phrase_of
from sa2va.results import Turn


class Annotations:
    """Samples of one folder, one per picture, a turn per object.

    Args:
        root: the folder. seed: of the wordings.

    Raises:
        ValueError: a file is missing or an entry malformed; the message names the entry.
    """

    def __init__(self, root: str | Path, seed: int = 0):
        self.root, self.seed = Path(root), seed
        path = self.root / "annotations.json"
        if not path.is_file():
            raise ValueError(f"{path} does not exist; expected annotations.json and a folder images in {self.root}")
        try:
            self.entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(self.entries, list):
            raise ValueError(f"{path} must hold a list of entries, got {type(self.entries).__name__}")
        for number, entry in enumerate(self.entries):
            self._check(entry, f"{path}, entry {number}")

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        frame = lazy_picture(self.root / "images" / entry["image"])
        rng = random.Random(f"{self.seed}/{index}")
        phrases = [phrase_of(phrase) for phrase in entry["text"]]
        return Sample(
            id=entry["image"],
            frames=(frame,),
            turns=tuple(Turn(rng.choice(REQUESTS).format(phrase), rng.choice(ANSWERS)) for phrase in phrases),
            masks=tuple(decode_segmentation(polygons, frame.size).array[None] for polygons in entry["mask"]),
            source="annotations",
        )

    def _check(self, entry: Any, where: str) -> None:
        if not isinstance(entry, dict) or not {"image", "mask", "text"} <= entry.keys():
            raise ValueError(f"{where}: expected image, mask and text, got {entry!r:.200}")
        if len(entry["mask"]) != len(entry["text"]) or not entry["text"]:
            raise ValueError(
                f"{where} ({entry['image']}): {len(entry['mask'])} masks but {len(entry['text'])} texts; each object "
                "needs one of both"
            )
        if not all(isinstance(text, str) and text.strip() for text in entry["text"]):
            raise ValueError(f"{where} ({entry['image']}): a text is empty; say what the object is")
        for polygons in entry["mask"]:
            if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
                raise ValueError(
                    f"{where} ({entry['image']}): a mask is a list of polygons [x0, y0, x1, y1, ...] of three points "
                    "or more"
                )
        if not (self.root / "images" / entry["image"]).is_file():
            raise ValueError(f"{where}: picture {self.root / 'images' / entry['image']} does not exist")
