"""Own pictures with polygons and phrases, in the layout that users of the reference fine-tune on.

``ROOT/annotations.json`` is a list of ``{"image": name, "mask": [[polygon, ...], ...], "text": [phrase, ...]}`` with
one list of polygons and one phrase per object; the pictures are in ``ROOT/images``. A polygon is
``[x0, y0, x1, y1, ...]``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sa2va.data.annotations.annotated_images import Orientation, UprightPicture, checked_orientation, upright_picture
from sa2va.data.annotations.coco import decode_segmentation, is_segmentation, size_of, unite
from sa2va.data.annotations.layout import Doubts, PictureFolders, Problems, read_json, require_files
from sa2va.data.datasets.conversation_sampling import MOST_PHRASES, Draws, MaskRequest, requests_sample, united
from sa2va.data.sample import Sample
from sa2va.masks.mask import Mask
from sa2va.processing.requests import TRAINING_REQUESTS, TrainingRequests


class Annotations:
    """Samples of one folder, one per picture, a turn per phrase. Entries of one picture are one sample.

    Args:
        root: the folder. seed, phrases, views, requests: see [`Draws`].
        orientation: of pictures that their EXIF data turn, how they were annotated: ``"upright"``, as browsers show
            them, or ``"stored"``. None takes upright and warns, but for run lengths, which say it by their size.
        skip_broken: leave out entries that are malformed or whose picture is missing, with a warning.

    Attributes:
        doubts: what was decided without being told.

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
        requests: TrainingRequests = TRAINING_REQUESTS,
        orientation: Orientation | None = None,
        skip_broken: bool = False,
    ):
        self.draws = Draws(seed, phrases, views, requests)
        self.orientation: Orientation | None = checked_orientation(orientation)
        path, folder = Path(root) / "annotations.json", Path(root) / "images"
        require_files("own annotations", {path: "you: polygons and phrases", folder: "your pictures"})
        entries = read_json(path)
        if not isinstance(entries, list):
            raise ValueError(f"{path} must hold a list of entries, got {type(entries).__name__}")
        self.doubts, problems, folders = Doubts(str(path)), Problems(str(path)), PictureFolders((folder,))
        pictures: dict[Path, tuple[str, list[tuple[str, Any]]]] = {}
        for number, entry in enumerate(entries):
            trouble = _trouble(entry)
            if trouble:
                problems.malformed(trouble, f"entry {number}")
            elif image := problems.found(folders, entry["image"], "your pictures"):
                _, said = pictures.setdefault(image, (entry["image"], []))
                said += zip(entry["text"], entry["mask"], strict=True)
        self.entries = [(image, name, list(united(said).items())) for image, (name, said) in pictures.items()]
        problems.settle(len(self.entries), skip=skip_broken)

    def __len__(self) -> int:
        return len(self.entries) * self.draws.views

    def key(self, index: int) -> str:
        """The file name of a sample's picture."""
        _, name, _ = self.entries[self.draws.view(index, len(self.entries)).place]
        return name

    def __getitem__(self, index: int) -> Sample:
        view = self.draws.view(index, len(self.entries))
        image, name, said = self.entries[view.place]
        size = next(filter(None, (size_of(mask) for _, masks in said for mask in masks)), None)
        picture = upright_picture(image, size, self.orientation, self.doubts)
        return requests_sample(
            [MaskRequest(text, partial(_mask, masks, picture, name)) for text, masks in self.draws.choose(said, view)],
            self.draws.wording(index),
            name=f"annotations/{name}{view.suffix}",
            frame=picture.frame,
            source="annotations",
        )


def _mask(segmentations: list[Any], picture: UprightPicture, name: str) -> Mask:
    """The union of everything that a phrase means."""
    try:
        masks = [decode_segmentation(segmentation, picture.canvas) for segmentation in segmentations]
    except ValueError as error:
        raise ValueError(f"annotations.json, picture {name}: {error}") from error
    return picture.turned_mask(unite(masks, picture.canvas))


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
