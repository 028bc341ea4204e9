"""Osprey-724K as samples: conversations about marked regions of a picture, and descriptions of each.

Yuan et al., Osprey, CVPR 2024. Regions are masks that questions call ``region1``, ``region2``, ...
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from sa2va.data.annotations.annotated_images import lazy_picture
from sa2va.data.annotations.coco import decode_segmentation, is_segmentation
from sa2va.data.annotations.conversations import IMAGE_MARK, PackedRecords, read_conversation
from sa2va.data.annotations.layout import PictureFolders, Problems, read_json, require_files
from sa2va.data.datasets.conversation_sampling import MOST_PHRASES, Draws
from sa2va.data.sample import Sample
from sa2va.masks.mask import Size
from sa2va.processing.requests import REGION_NAME, SHORT_ANSWER_REQUEST, TRAINING_REQUESTS, TrainingRequests
from sa2va.results.history import Turn
from sa2va.untrusted import STUMBLES, stumbled

#: Kinds of annotations and their files.
OSPREY_FILES = {
    "conversation": "osprey_conversation.json",
    "description": "osprey_detail_description.json",
    "part": "osprey_part_level.json",
    "positive_neg": "osprey_lvis_positive_negative.json",
    "short": "osprey_short_form.json",
}
_FOLDERS = ("train2014", "val2014", "train2017", "val2017")
_ORIGINS = "AntGroup-MI/Osprey-724K", "COCO images, cocodataset.org"
_REGION = re.compile(r"region(\d+)")


class Osprey:
    """Pictures with questions about marked regions.

    Descriptions are a turn per region; of more than ``phrases`` of them, so many are drawn and numbered anew.
    Conversations speak of all their regions and stay whole.

    Args:
        root: the folder that holds ``osprey-724k``. kind: a key of [`OSPREY_FILES`].
        seed, phrases, views, requests: see [`Draws`].
        skip_broken: leave out entries that are malformed or whose picture is missing, with a warning.

    Raises:
        MissingData: files are missing; the message names them. ValueError: entries are malformed.
    """

    def __init__(
        self,
        root: str | Path,
        kind: str = "conversation",
        *,
        seed: int = 0,
        phrases: int = MOST_PHRASES,
        views: int = 1,
        requests: TrainingRequests = TRAINING_REQUESTS,
        skip_broken: bool = False,
    ):
        if kind not in OSPREY_FILES:
            raise ValueError(f"unknown kind {kind!r}; take one of {sorted(OSPREY_FILES)}")
        self.kind, self.draws = kind, Draws(seed, phrases, views, requests)
        base = Path(root) / "osprey-724k"
        path = base / "Osprey-724K" / OSPREY_FILES[kind]
        require_files("Osprey-724K", {path: _ORIGINS[0], base / "coco": _ORIGINS[1]})
        entries = read_json(path)
        if not isinstance(entries, list):
            raise ValueError(f"{path} must hold a list of entries, got {type(entries).__name__}")
        self._folders = PictureFolders([base / "coco" / folder for folder in _FOLDERS])
        problems = Problems(str(path))
        found = (self._record(number, entry, problems) for number, entry in enumerate(entries))
        self.records = PackedRecords(record for record in found if record is not None)
        problems.settle(len(self.records), skip=skip_broken)

    def __len__(self) -> int:
        return len(self.records) * self.draws.views

    def __getitem__(self, index: int) -> Sample:
        view = self.draws.view(index, len(self.records))
        number, image, (height, width), segmentations, texts = self.records[view.place]
        if self.kind == "description":
            chosen, wording = self.draws.choose(range(len(texts)), view), self.draws.wording(index)
            segmentations = [segmentations[place] for place in chosen]
            texts = [
                (wording.draw(self.draws.requests.region, region=REGION_NAME.format(number=name)), texts[place])
                for name, place in enumerate(chosen, start=1)
            ]
        return Sample(
            id=f"osprey-{self.kind}/{number}{view.suffix}",
            frames=(lazy_picture(Path(image), (height, width)),),
            turns=tuple(Turn(*turn) for turn in texts),
            regions=tuple(_region(one, (height, width), number) for one in segmentations),
            source=f"osprey-{self.kind}",
        )

    def _record(self, number: int, entry: Any, problems: Problems) -> tuple[Any, ...] | None:
        """Number, picture, size, regions and texts of a good entry."""
        try:
            size = (int(entry["height"]), int(entry["width"]))
            segmentations = [region["segmentation"] for region in entry["annotation"]]
            texts = self._descriptions(entry) if self.kind == "description" else self._turns(entry)
            image = self._folders.find(entry["file_name"])
        except STUMBLES as error:
            problems.malformed(f"an entry has another form ({stumbled(error)})", f"entry {number}")
            return None
        trouble = _trouble(segmentations, texts, described=self.kind == "description")
        if trouble:
            problems.malformed(trouble, f"entry {number}")
        elif problems.present(image, _ORIGINS[1]):
            return number, str(image), size, segmentations, texts
        return None

    def _descriptions(self, entry: dict[str, Any]) -> list[str]:
        texts = entry["description"] if "description" in entry else entry["descriptions"]
        return [_plain(text) for text in texts]

    def _turns(self, entry: dict[str, Any]) -> list[tuple[str, str]]:
        suffix = f" {SHORT_ANSWER_REQUEST}" if self.kind == "short" else ""
        messages = [{**message, "value": _plain(message["value"])} for message in entry["conversations"]]
        return [(question + suffix, answer) for question, answer in read_conversation(messages)]


def _plain(text: str) -> str:
    """Without the image mark and angle brackets: ``<region1>`` is written ``region1``."""
    return text.replace(IMAGE_MARK, "").replace("<", "").replace(">", "").strip()


def _trouble(segmentations: list[Any], texts: list[Any], *, described: bool) -> str | None:
    """What is wrong with an entry, if anything."""
    if not segmentations or not all(map(is_segmentation, segmentations)):
        return "an entry has a region that is neither polygons nor RLE, or none"
    if described:
        good = len(texts) == len(segmentations) and all(texts)
        return None if good else "an entry has not one description per region"
    named = [int(name) for question, _ in texts for name in _REGION.findall(question)]
    if not named:
        return "no question of an entry speaks of a region"
    there = min(named) >= 1 and max(named) <= len(segmentations)
    return None if there else "a question names a region that is not there"


def _region(segmentation: Any, size: Size, number: int) -> np.ndarray:
    try:
        return decode_segmentation(segmentation, size).array
    except ValueError as error:
        raise ValueError(f"Osprey entry {number}: {error}") from error
