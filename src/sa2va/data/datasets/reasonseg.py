"""ReasonSeg: pictures with questions whose answer is an area, drawn as polygons; some areas are ignored.

Lai et al., LISA, CVPR 2024. A picture ``x.jpg`` lies beside its ``x.json``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sa2va.data.annotations.annotated_images import lazy_picture, read_picture, stored_size
from sa2va.data.annotations.coco import refuse_normalised
from sa2va.data.annotations.layout import MissingData, Problems, text_encoding
from sa2va.data.annotations.polygons import paint_polygon
from sa2va.data.datasets.conversation_sampling import MOST_PHRASES, Draws, MaskRequest, requests_sample
from sa2va.data.sample import Sample
from sa2va.masks.mask import Mask, Size
from sa2va.processing.requests import TRAINING_REQUESTS, TrainingRequests
from sa2va.untrusted import parse_json, reading

_TARGET, _IGNORED = 1, 2
_ORIGIN = "the ReasonSeg archives linked at github.com/dvlab-research/LISA"


class ReasonSeg:
    """Pictures with questions that take thought, each answered by a mask.

    Areas that do not count are background here. Sentences keep their words, phrases are put into a request.

    Args:
        root: the folder that holds ``lisa_reasoning/<split>`` or ``ReasonSeg/<split>``.
        split: ``train``, ``val`` or ``test``.
        seed, phrases, views, requests: see [`Draws`].
        skip_broken: leave out pictures of which nothing counts, with a warning, instead of refusing.

    Raises:
        MissingData: files are missing; the message names them. ValueError: annotations are malformed.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: str = "train",
        seed: int = 0,
        phrases: int = MOST_PHRASES,
        views: int = 1,
        requests: TrainingRequests = TRAINING_REQUESTS,
        skip_broken: bool = False,
    ):
        self.draws = Draws(seed, phrases, views, requests)
        problems = Problems(f"ReasonSeg {split} in {root}")
        self.pictures = [picture for picture in read_reasonseg(root, split) if _has_target(picture, problems)]
        problems.settle(len(self.pictures), skip=skip_broken)

    def __len__(self) -> int:
        return len(self.pictures) * self.draws.views

    def __getitem__(self, index: int) -> Sample:
        view = self.draws.view(index, len(self.pictures))
        picture, wording = self.pictures[view.place], self.draws.wording(index)
        target = Mask.from_array(picture.masks()[0])
        templates = self.draws.requests.question if picture.is_sentence else self.draws.requests.reasoning
        requests = [
            MaskRequest(text, lambda: target, question=wording.draw(templates, phrase=text.strip()))
            for text in self.draws.choose(picture.texts, view)
        ]
        return requests_sample(
            requests,
            wording,
            name=f"reasonseg/{picture.id}{view.suffix}",
            frame=lazy_picture(picture.image, picture.size),
            source="reasonseg",
        )


def _has_target(picture: ReasonPicture, problems: Problems) -> bool:
    kinds = [label.lower() for label, points in picture.shapes if len(points) > 1]
    if any("flag" not in kind and "ignore" not in kind for kind in kinds):
        return True
    problems.malformed("a picture has no polygon that counts", f"{picture.id}.json")
    return False


# -- how it is read ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReasonPicture:
    """One picture with the ways to ask for its target.

    Attributes:
        id: name of the file without its ending. image: the file. size: (height, width) in pixels.
        texts: ways to ask for the same area; benchmarks take the first.
        is_sentence: the texts are whole questions, else short phrases.
        shapes: label and points (x, y) of each polygon.
    """

    id: str
    image: Path
    size: Size
    texts: tuple[str, ...]
    is_sentence: bool
    shapes: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]

    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """What is meant and what does not count, each bool (H, W).

        Polygons are painted with their outline from the largest to the smallest, so that a small one covers what it
        lies on; labels with "ignore" do not count, labels "flag" are notes.
        """
        # Corners are cut to whole pixels and painted as in LISA's evaluation.
        drawn = [
            (label.lower(), paint_polygon(np.array(points).astype(int), self.size)) for label, points in self.shapes
        ]
        drawn = [(label, area) for label, area in drawn if "flag" not in label]
        canvas = np.zeros(self.size, dtype=np.uint8)
        # Of equals the later comes first, as there.
        for label, area in sorted(drawn, key=lambda shape: int(shape[1].sum()))[::-1]:
            canvas[area] = _IGNORED if "ignore" in label else _TARGET
        return canvas == _TARGET, canvas == _IGNORED

    def load(self) -> np.ndarray:
        """The picture, uint8 RGB (H, W, 3). FileNotFoundError or ValueError naming the file when it cannot be read."""
        return read_picture(self.image, self.size)


def reasonseg_folder(root: str | Path, split: str) -> Path:
    """The folder of a split: the first that exists of those where people keep it."""
    root = Path(root)
    places = ("lisa_reasoning", "reason_seg/ReasonSeg", "ReasonSeg", "reasonseg", ".")
    return next((root / place / split for place in places if (root / place / split).is_dir()), root / places[0] / split)


def read_reasonseg(root: str | Path, split: str) -> list[ReasonPicture]:
    """The pictures of a split, sorted by name.

    Args:
        root: the folder that holds ``lisa_reasoning/<split>/*.{jpg,json}`` (or ``ReasonSeg/<split>``, ``<split>``).
        split: ``train``, ``val`` or ``test``.

    Raises:
        MissingData: there is no such folder, it holds no pictures, or pictures lack their JSON.
        ValueError: a JSON is malformed; the message names it.
    """
    folder = reasonseg_folder(root, split)
    pictures = sorted(folder.glob("*.jpg")) if folder.is_dir() else []
    if not pictures:
        raise MissingData(f"ReasonSeg {split}: expected pictures (*.jpg) in {folder.absolute()} (from {_ORIGIN})")
    alone = [path.name for path in pictures if not path.with_suffix(".json").is_file()]
    if alone:
        raise MissingData(f"ReasonSeg {split}: {len(alone)} pictures in {folder} lack their .json, e.g. {alone[:3]}")
    return [_picture(path) for path in pictures]


def _picture(path: Path) -> ReasonPicture:
    with reading(path.with_suffix(".json"), "text, is_sentence and shapes with label and points"):
        record = parse_json(_text(path.with_suffix(".json")))
        texts = record["text"] if isinstance(record["text"], list) else [record["text"]]
        size = stored_size(path)
        shapes = tuple((str(shape["label"]), _points(shape["points"], size)) for shape in record["shapes"])
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError("text must hold at least one request, none of them empty")
        return ReasonPicture(path.stem, path, size, tuple(texts), bool(record.get("is_sentence", False)), shapes)


def _text(path: Path) -> str:
    # Some of the published files were written on Windows.
    raw = path.read_bytes()
    try:
        return raw.decode(text_encoding(path)).removeprefix("\ufeff")
    except UnicodeDecodeError:
        return raw.decode("cp1252")


def _points(points: list[list[Any]], size: Size) -> tuple[tuple[float, float], ...]:
    numbers = np.asarray(points, dtype=float).reshape(-1, 2)
    if not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0) > 1e6:
        raise ValueError("a polygon has points that are no pixels")
    if len(numbers) > 1:
        refuse_normalised(numbers, size)
    return tuple((float(x), float(y)) for x, y in numbers)
