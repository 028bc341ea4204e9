"""Data sets of results: what other tools and our own reader find in them is what the model said."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sa2va import Answer, Frame, Mask, Segment, Track
from sa2va.data.check import check_set
from sa2va.data.datasets.coco_instances import Coco
from sa2va.writers import CocoWriter

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (120, 160)
RNG = np.random.default_rng(0)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]


def ring(x: int, radius: int) -> np.ndarray:
    """A ring, whose hole polygons would fill and whose box is much larger than itself."""
    distance = np.hypot(ROWS - 60, COLUMNS - x)
    return (distance < radius) & (distance > radius - 4)


def segment(number: int, phrase: str, mask: np.ndarray) -> Segment:
    return Segment(number, phrase, (Mask.from_array(mask),), 0.9, 0.9)


def answer(*segments: Segment) -> Answer:
    return Answer("", "", segments, size=SIZE)


DOG, CAT, NOTHING = ring(50, 40), ring(110, 30) | ring(20, 10), np.zeros(SIZE, bool)


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Two pictures and a clip of three frames; the second picture shows one thing twice."""
    for name in ("a.png", "b.jpg"):
        Image.fromarray(RNG.integers(0, 256, (*SIZE, 3), np.uint8)).save(tmp_path / name)
    with CocoWriter(tmp_path / "found") as writer:
        writer.add(tmp_path / "a.png", [answer(segment(1, "the dog", DOG)), answer(segment(2, "a cat", CAT))])
        writer.add(tmp_path / "b.jpg", answer(segment(1, "the dog", DOG), segment(2, "the dog", CAT)))
        writer.add("clips/walk.mp4", track())
    return tmp_path / "found"


def track() -> Track:
    def pairs() -> Iterator[tuple[Frame, np.ndarray]]:
        for index in range(3):
            segments = (segment(1, "the dog", ring(50 + index, 40)), segment(2, "", CAT if index else NOTHING))
            yield Frame(index, index / 10, SIZE, segments), np.full((*SIZE, 3), 50 * index, np.uint8)

    return Track(pairs(), size=SIZE, total=3)


NAMES = ["a.png", "b.jpg", "walk/00000.png", "walk/00001.png", "walk/00002.png"]
MASKS = [
    {"the dog": DOG, "a cat": CAT},
    {"the dog": DOG | CAT},
    {"the dog": ring(50, 40)},
    {"the dog": ring(51, 40), "object": CAT},
    {"the dog": ring(52, 40), "object": CAT},
]


def load(path: Path) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_pycocotools_reads_equal_masks_under_unique_ids(data_set):
    loaded = load(data_set / "annotations.json")
    content = json.loads((data_set / "annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == NAMES
    assert [category["name"] for category in content["categories"]] == ["the dog", "a cat", "object"]
    ids = [annotation["id"] for annotation in content["annotations"]]
    assert len(set(ids)) == len(ids) == 9
    for image, masks in zip(content["images"], MASKS, strict=True):
        for category in content["categories"]:
            own = loaded.loadAnns(loaded.getAnnIds(imgIds=image["id"], catIds=category["id"]))
            found = np.any([loaded.annToMask(one) for one in own] or [NOTHING], axis=0)
            np.testing.assert_array_equal(found, masks.get(category["name"], NOTHING))
    for annotation in content["annotations"]:
        mask = loaded.annToMask(annotation).astype(bool)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()]
        assert annotation["area"] == mask.sum() and annotation["bbox"] == box and annotation["iscrowd"] == 0


def test_results_of_the_same_answers_score_full_marks_in_every_range_of_areas(data_set):
    truth = load(data_set / "annotations.json")
    categories = {category["name"]: category["id"] for category in truth.dataset["categories"]}
    first = answer(segment(1, "the dog", DOG), segment(2, "a cat", CAT))
    second = answer(segment(1, "the dog", DOG), segment(2, "the dog", CAT))
    results = [*first.to_coco(1, categories), *second.to_coco(2, categories)]
    with contextlib.redirect_stdout(io.StringIO()):
        scores = COCOeval(truth, truth.loadRes(results), "segm")
        scores.params.imgIds = [1, 2]
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    # Rings of 300 to 900 pixels are small, though their boxes are up to 79 x 79.
    assert scores.stats[0] == scores.stats[3] == 1.0
    assert scores.stats[4] == scores.stats[5] == -1


def test_supervision_reads_equal_masks(data_set):
    sv: Any = pytest.importorskip("supervision")
    loaded = sv.DetectionDataset.from_coco(
        str(data_set / "images"), str(data_set / "annotations.json"), force_masks=True
    )
    assert loaded.classes == ["the dog", "a cat", "object"] and len(loaded) == len(NAMES)
    for path, picture, detections in loaded:
        masks = MASKS[NAMES.index(Path(path).relative_to(data_set / "images").as_posix())]
        assert picture.shape[:2] == SIZE
        for number, name in enumerate(loaded.classes):
            found = np.any([*detections.mask[detections.class_id == number], NOTHING], axis=0)
            np.testing.assert_array_equal(found, masks.get(name, NOTHING))


def test_our_own_reader_takes_it_for_training(data_set):
    report = check_set(data_set, "coco", most=None)
    assert report.good and report.samples == len(NAMES)
    for sample, name, masks in zip(Coco(data_set), NAMES, MASKS, strict=True):
        assert sample.id == f"coco/{name}"
        assert len(sample.masks) == len(masks)
        assert {mask[0].tobytes() for mask in sample.masks} == {mask.tobytes() for mask in masks.values()}


def test_a_clip_whose_answer_holds_all_masks_becomes_its_frames(tmp_path):
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(
        tmp_path / "clip.gif", save_all=True, append_images=[Image.fromarray(np.full((*SIZE, 3), 200, np.uint8))]
    )
    masks = (Mask.from_array(DOG), Mask.from_array(CAT))
    with CocoWriter(tmp_path / "found") as writer:
        writer.add(tmp_path / "clip.gif", answer(Segment(1, "it", masks, 0.9, 0.9)))
    loaded = load(tmp_path / "found" / "annotations.json")
    assert [loaded.imgs[number]["file_name"] for number in (1, 2)] == ["clip/00000.png", "clip/00001.png"]
    for number, mask in enumerate((DOG, CAT), start=1):
        np.testing.assert_array_equal(loaded.annToMask(loaded.anns[number]), mask)


def test_a_picture_that_exif_turns_is_stored_as_its_masks_see_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((160, 120, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    with CocoWriter(tmp_path / "found") as writer:
        writer.add(tmp_path / "turned.jpg", answer(segment(1, "it", DOG)))
    with Image.open(tmp_path / "found" / "images" / "turned.jpg") as stored:
        assert stored.size == SIZE[::-1] and 0x0112 not in stored.getexif()


def test_it_appears_whole_or_not_at_all_and_replaces_nothing(tmp_path, data_set):
    before = {path: path.read_bytes() for path in data_set.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="exists; choose another folder"):
        CocoWriter(data_set)
    with pytest.raises(OSError, match="power cut"), CocoWriter(tmp_path / "new") as writer:
        writer.add(tmp_path / "a.png", answer(segment(1, "it", DOG)))
        raise OSError("power cut")
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    assert {path: path.read_bytes() for path in data_set.rglob("*") if path.is_file()} == before


def test_what_does_not_fit_is_named(tmp_path):
    picture = np.zeros((*SIZE, 3), np.uint8)
    with CocoWriter(tmp_path / "found") as writer:
        writer.add("one", answer(segment(1, "it", DOG)), picture)
        with pytest.raises(ValueError, match=r"an image named one\.png already"):
            writer.add("one", answer(segment(1, "it", DOG)), picture)
        with pytest.raises(ValueError, match=r"masks \(h, w\) \(120, 160\) of two\.png, got \(5, 5\)"):
            writer.add("two", answer(segment(1, "it", np.ones((5, 5), bool))), picture)
    assert len(load(tmp_path / "found" / "annotations.json").imgs) == 1
