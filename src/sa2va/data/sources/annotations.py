"""Own pictures with polygons and phrases, in the layout that users of the reference fine-tune on.

``ROOT/annotations.json`` is a list of ``{"image": name, "mask": [[polygon, ...], ...], "text": [phrase, ...]}`` with
one list of polygons and one phrase per object; the pictures are in ``ROOT/images``. A polygon is
``[x0, y0, x1, y1, ...]``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sa2va.data.formats.coco import decode_segmentation, is_segmentation
from sa2va.data.formats.layout import PictureFolders, Problems, read_json, require_files
from sa2va.data.formats.pictures import stored_size
from sa2va.data.sample import Sample
from sa2va.data.sources.requests import MOST_PHRASES, Draws, Request, requests_sample
from sa2va.mask import Mask, Size


class Annotations:
    """Samples of one folder, one per picture, a turn per object.

    Args:
        root: the folder. seed, phrases, views: see [`Draws`].
        skip_broken: leave out entries that are malformed or whose picture is missing, with a warning.

    Raises:
        MissingData: files are missing; the message names them. ValueError: entries are malformed.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        seed: int = 0,
        phrases: int = MOST_PHRASES,
        views: int = 1,
        skip_broken: bool = False,
    ):
        self.draws = Draws(seed, phrases, views)
        path, self.folder = Path(root) / "annotations.json", Path(root) / "images"
        require_files("own annotations", {path: "you: polygons and phrases", self.folder: "your pictures"})
        entries = read_json(path)
        if not isinstance(entries, list):
            raise ValueError(f"{path} must hold a list of entries, got {type(entries).__name__}")
        problems, folders = Problems(str(path)), PictureFolders((self.folder,))
        self.entries: list[dict[str, Any]] = []
        for number, entry in enumerate(entries):
            trouble = _trouble(entry)
            if trouble:
                problems.malformed(trouble, f"entry {number}")
            elif not folders.has(self.folder / entry["image"]):
                problems.missing(self.folder / entry["image"], "your pictures")
            else:
                self.entries.append(entry)
        problems.settle(len(self.entries), skip=skip_broken)

    def __len__(self) -> int:
        return len(self.entries) * self.draws.views

    def key(self, index: int) -> str:
        """The file name of a sample's picture."""
        return self.entries[self.draws.view(index, len(self.entries)).place]["image"]

    def __getitem__(self, index: int) -> Sample:
        view = self.draws.view(index, len(self.entries))
        entry = self.entries[view.place]
        image = self.folder / entry["image"]
        size = stored_size(image)
        objects = self.draws.choose(list(zip(entry["text"], entry["mask"], strict=True)), view)
        return requests_sample(
            [Request(text, partial(_mask, polygons, size, entry["image"])) for text, polygons in objects],
            self.draws.wording(index),
            name=f"annotations/{entry['image']}{view.suffix}",
            image=image,
            size=size,
            source="annotations",
        )


def _mask(polygons: Any, size: Size, name: str) -> Mask:
    try:
        return decode_segmentation(polygons, size)
    except ValueError as error:
        raise ValueError(f"annotations.json, picture {name}: {error}") from error


def _trouble(entry: Any) -> str | None:
    """What is wrong with an entry, if anything."""
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        return "an entry is no object with image, mask and text"
    masks, texts = entry.get("mask"), entry.get("text")
    if not isinstance(masks, list) or not isinstance(texts, list) or len(masks) != len(texts) or not texts:
        return "an entry has not one text for each of its masks"
    if not all(isinstance(text, str) and text.strip(" .") for text in texts):
        return "an entry has a text that says nothing"
    if not all(isinstance(mask, list) and is_segmentation(mask) for mask in masks):
        return "an entry has a mask that is no list of polygons [x0, y0, x1, y1, ...] of three points or more"
    return None
