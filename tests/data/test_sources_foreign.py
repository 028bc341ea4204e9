"""Exports of labelling tools: recognised, read to the pixel, and refused with a reason where they are malformed."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from miniatures import foreign
from miniatures.images import area, save, write_json
from sa2va.cli import main
from sa2va.data.annotations.label_studio import decode_brush
from sa2va.data.annotations.labelled_images import placed
from sa2va.data.check import KNOWN_SETS, check_set, kind_of_data, present_sets
from sa2va.data.mixture import Source
from sa2va.data.sample import Sample
from sa2va.eval.benchmarks.own import own_row
from sa2va.train.presets import finetune


def asked(sample: Sample) -> dict[str, np.ndarray]:
    """The mask of each phrase of the miniatures that a sample asks for."""
    phrases = ("red thing", "blue box", "red car", "tree")
    turns = [turn.question for turn in sample.turns if "[SEG]" in turn.answer]
    named = [next(phrase for phrase in phrases if phrase in question) for question in turns]
    return dict(zip(named, sample.masks, strict=True))


def opened(root: Path, kind: str) -> Source:
    return KNOWN_SETS[kind].open(root)


@pytest.mark.parametrize("kind", foreign.WRITERS)
def test_it_is_recognised_and_every_mask_is_as_drawn(kind: str, tmp_path: Path):
    truth = foreign.WRITERS[kind](tmp_path)
    assert present_sets(tmp_path) == [kind] and kind_of_data(str(tmp_path)) == kind
    source = opened(tmp_path, kind)
    assert len(source) == len(truth) == 2
    for index in range(2):
        sample = source[index].validate()
        name = next(name for name in truth if name in sample.id)
        found = asked(sample)
        assert found.keys() == truth[name].keys()
        for phrase, mask in truth[name].items():
            assert np.array_equal(found[phrase][0], mask), (name, phrase)
        assert sample.picture(0).shape == (*mask.shape, 3)
    assert check_set(tmp_path, kind, None).good
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again[0].masks[0], source[0].masks[0])


@pytest.mark.parametrize("kind", [*foreign.WRITERS, "cvat-video"])
def test_fine_tuning_takes_it_as_it_is(kind: str, tmp_path: Path):
    writers: dict[str, Callable[[Path], object]] = {**foreign.WRITERS, "cvat-video": foreign.write_cvat_video}
    writers[kind](tmp_path)
    (source,) = finetune("tiny", str(tmp_path)).data
    assert source.kind == kind and len(source.open().source) >= 100
    assert main(["data", "check", str(tmp_path), "-q"]) == 0
    row = own_row("own")
    assert row is not None and sum(len(item.queries) for item in row.open(tmp_path).items()) in (2, 4)


def test_tracks_of_a_video(tmp_path: Path):
    truth = foreign.write_cvat_video(tmp_path)
    assert present_sets(tmp_path) == ["cvat-video"]
    sample = opened(tmp_path, "cvat-video")[0].validate()
    found = asked(sample)
    assert sample.video and found.keys() == truth.keys()
    for label, mask in truth.items():
        assert np.array_equal(found[label], mask)


def test_a_video_without_its_frames_says_how_to_get_them(tmp_path: Path):
    foreign.write_cvat_video(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    (tmp_path / "drive.mp4").touch()
    with pytest.raises(ValueError, match=r"ffmpeg -i drive\.mp4 .*images/frame_%06d\.png"):
        opened(tmp_path, "cvat-video")


def test_a_track_with_a_gap_is_no_track(tmp_path: Path):
    foreign.write_cvat_video(tmp_path)
    path = tmp_path / "annotations.xml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if ' frame="1"' not in line))
    with pytest.raises(ValueError, match=r"annotations\.xml, track 0: no shape on frame 1"):
        opened(tmp_path, "cvat-video")


def test_captions_and_sentences_beside_coco(tmp_path: Path):
    truth = foreign.write_coco_published(tmp_path)
    source = opened(tmp_path, "coco-published")
    assert [sum("[SEG]" not in turn.answer for turn in source[index].turns) for index in range(2)] == [2, 1]
    sentences = [{"sent": "the red thing on the left", "raw": "The red thing on the left!"}]
    references = [{"ann_id": 0, "sentences": sentences}, {"ann_id": 99, "sentences": sentences}]
    (tmp_path / "annotations/refs(unc).p").write_bytes(pickle.dumps(references))
    sample = opened(tmp_path, "coco-published")[0]
    questions = [turn.question for turn in sample.turns if "[SEG]" in turn.answer]
    (place,) = (place for place, question in enumerate(questions) if "the red thing on the left" in question)
    assert np.array_equal(sample.masks[place][0], truth["one"]["red thing"]) and len(questions) == 2


def test_splits_of_coco(tmp_path: Path):
    foreign.write_coco_published(tmp_path)
    with pytest.raises(ValueError, match=r"expected annotations/instances_test\*\.json, found .*train2017"):
        KNOWN_SETS["coco-published"].open(tmp_path, split="test")
    with pytest.raises(ValueError, match="instances_val2017"):
        KNOWN_SETS["coco-published"].open(tmp_path, split="val")
    assert len(KNOWN_SETS["coco-published"].open(tmp_path, split="train2017")) == 2


def test_coco_of_roboflow(tmp_path: Path):
    truth = foreign.write_roboflow(tmp_path)
    assert present_sets(tmp_path) == ["coco-published"]
    sample = opened(tmp_path, "coco-published")[1]
    assert np.array_equal(asked(sample)["red thing"][0], truth["two"]["red thing"])


@pytest.mark.parametrize(
    "yaml",
    [
        "train: ../images/train\n",
        "path: /content/datasets/mine\ntrain: images/train\n",
        "train: [images/train]\n",
        "train: /home/someone/mine/images/train\n",
        "train: train.txt\n",
    ],
)
def test_yolo_names_its_folders_in_many_ways(yaml: str, tmp_path: Path):
    root = tmp_path / "mine"
    truth = foreign.write_yolo(root, yaml)
    (root / "train.txt").write_text("./images/train/one.jpg\n./images/train/two.jpg\n")
    source = opened(root, "yolo")
    assert [len(source), *(len(asked(source[index])) for index in range(2))] == [2, 2, 2]
    assert np.array_equal(asked(source[0])["blue box"][0], truth["one"]["blue box"])


def test_yolo_never_leaves_its_folder(tmp_path: Path):
    foreign.write_yolo(tmp_path / "other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/data.yaml").write_text(f"path: {tmp_path}/other\ntrain: images/train\nnames: [a, b]\n")
    with pytest.raises(ValueError, match="the pictures of 'train' are not where it says"):
        opened(tmp_path / "mine", "yolo")


def test_turned_boxes(tmp_path: Path):
    foreign.write_cvat(tmp_path)
    path = tmp_path / "annotations.xml"
    # A quarter turn about the centre (36, 16) makes 12 x 16 pixels 16 x 12.
    path.write_text(path.read_text().replace('ybr="24.00"', 'ybr="24.00" rotation="90.00"', 1))
    assert np.array_equal(asked(opened(tmp_path, "cvat")[0])["blue box"][0], area((28, 10, 44, 22)))


def test_boxes_of_which_no_turn_is_told_are_straight(tmp_path: Path):
    """As wide as the picture: a degree would move its ends by half a pixel."""
    foreign.write_cvat(tmp_path / "cvat")
    path = tmp_path / "cvat/annotations.xml"
    path.write_text(re.sub(r'xtl="[^>]*"', 'xtl="0" ytl="20" xbr="64" ybr="24"', path.read_text()))
    assert np.array_equal(asked(opened(path.parent, "cvat")[0])["blue box"][0], area((0, 20, 64, 24)))
    foreign.write_label_studio(tmp_path / "studio")
    (path,) = (tmp_path / "studio").glob("*.json")
    wide = '"x": 0, "y": 50, "width": 100, "height": 25, "no'
    path.write_text(re.sub(r'"x": [^}]*"height": [\d.]+, "ro', wide, path.read_text()))
    assert np.array_equal(asked(opened(path.parent, "label-studio")[0])["blue box"][0], area((0, 24, 64, 36)))


def test_a_quarter_turn_in_label_studio(tmp_path: Path):
    foreign.write_label_studio(tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text().replace('"rotation": 0', '"rotation": 90', 1))
    # About the upper left corner (30, 8): what went right goes down, what went down goes left.
    assert np.array_equal(asked(opened(tmp_path, "label-studio")[0])["blue box"][0], area((14, 8, 30, 20)))


def test_boxes_and_points_are_spoken_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    foreign.write_cvat(tmp_path)
    with caplog.at_level(logging.WARNING, logger="sa2va"):
        opened(tmp_path, "cvat")
    assert "left out what has no area: 2 points" in caplog.text and "2 boxes are taken as masks" in caplog.text


CHANGES: dict[str, tuple[str, str, str, str]] = {
    "no label": ("cvat", 'label="blue box"', "", "picture cannot be read .*label"),
    "two corners": ("cvat", "2.00,4.00;14.00,4.00;14.00,20.00;2.00,20.00", "2.00,4.00;14.00,4.00", "three corners"),
    "no numbers": ("cvat", "14.00,4.00", "14.00,many", "polygon: .*many"),
    "an infinite corner": ("cvat", "14.00,4.00", "inf,4.00", "infinite"),
    "no size": ("cvat", 'width="64"', 'width="wide"', "picture cannot be read"),
    "cut": ("cvat", "</annotations>", "", "not XML"),
    "another file": ("cvat", "annotations>", "annotation>", "expected <annotations>"),
    "an entity": ("cvat", "<annotations>", '<!DOCTYPE a [<!ENTITY b "c">]><annotations>', "not XML that can be read"),
    "a class without name": ("yolo", "1: red thing", "2: red thing", "class 1 has no name"),
    "no names": ("yolo", "names:", "nothing:", "'names' is missing"),
    "no mapping": ("yolo", "path: .", "[1, 2", "is not YAML"),
    "code": ("yolo", "path: .", "path: !!python/object/apply:os.getcwd []", "is not YAML"),
    "a turned picture": ("label-studio", '"image_rotation": 0', '"image_rotation": 90', "turned in the editor"),
    "no picture": ("label-studio", ".jpg", ".pdf", "name of a picture"),
    "two sizes": ("label-studio", '"original_width": 64', '"original_width": 65', "different sizes"),
    "no points": ("labelme", '"points"', '"dots"', "shape 0: 'points' is missing"),
    "an empty label": ("labelme", '"Red thing"', '" "', "shape 0: expected a label"),
    "no rows": ("labelme", '"imageHeight": 48', '"imageHeight": 0', "imageHeight and imageWidth in pixels"),
    "no columns": ("labelme", '"imageWidth": 64', '"imageWidth": 0', "imageHeight and imageWidth in pixels"),
    "no rows in cvat": ("cvat", 'height="48"', 'height="0"', "expected width and height in pixels"),
    "no columns in cvat": ("cvat", 'width="64"', 'width="0"', "expected width and height in pixels"),
    "no rows in label-studio": ("label-studio", '"original_height": 48', '"original_height": 0', "in pixels"),
    "no columns in label-studio": ("label-studio", '"original_width": 64', '"original_width": 0', "in pixels"),
    "a size in words": ("labelme", '"imageHeight": 48', '"imageHeight": "48"', "imageHeight and imageWidth in pixels"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_malformed_is_refused_with_a_reason(name: str, tmp_path: Path):
    kind, old, new, message = CHANGES[name]
    foreign.WRITERS[kind](tmp_path)
    pattern = {"cvat": "*.xml", "yolo": "*.yaml"}.get(kind, "*.json")
    path = sorted(tmp_path.glob(pattern))[0]
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 2 if old == "annotations>" else 1))
    with pytest.raises(ValueError, match=message) as error:
        opened(tmp_path, kind)
    assert tmp_path.name in str(error.value)
    with pytest.raises(ValueError, match=message):
        list(map(repr, [opened(tmp_path, kind)]))


@pytest.mark.parametrize(
    ("kind", "pattern", "old", "new"),
    [
        ("labelme", "*.json", '"imageWidth": 64', '"imageWidth": 1'),
        ("labelme", "*.json", '"imageHeight": 48', '"imageHeight": 1'),
        ("cvat", "*.xml", 'width="64"', 'width="1"'),
        ("label-studio", "*.json", '"original_width": 64', '"original_width": 1'),
    ],
)
def test_a_picture_may_be_one_pixel_wide(kind: str, pattern: str, old: str, new: str, tmp_path: Path):
    """What the file says is taken, and only found wrong when the picture is opened."""
    foreign.WRITERS[kind](tmp_path)
    for path in tmp_path.glob(pattern):
        path.write_text(path.read_text().replace(old, new))
    found = opened(tmp_path, kind)
    with pytest.raises(ValueError, match=r"says (48 x 1|1 x 64)|does not fit|outside|drawn on"):
        _ = found[0]


def test_a_label_file_with_a_word(tmp_path: Path):
    foreign.write_yolo(tmp_path)
    path = tmp_path / "labels/train/two.txt"
    path.write_text("0 0.5 0.5 here 0.5\n")
    with pytest.raises(ValueError, match=r"two\.txt, line 1: .*here"):
        opened(tmp_path, "yolo")
    path.write_text("0 10 10 50 10 50 50\n")
    with pytest.raises(ValueError, match=r"two\.txt, line 1: expected numbers between 0 and 1"):
        opened(tmp_path, "yolo")
    assert len(KNOWN_SETS["yolo"].open(tmp_path, skip_broken=True)) == 1


def test_a_picture_of_another_size(tmp_path: Path):
    foreign.write_labelme(tmp_path)
    save(np.zeros((20, 30, 3), np.uint8), tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"one.png has 20 x 30 pixels .* says 48 x 64"):
        _ = opened(tmp_path, "labelme")[0]


@pytest.mark.parametrize(
    ("left", "top", "fits"),
    [(0, 0, True), (6, 0, True), (0, 3, True), (-1, 0, False), (0, -1, False), (7, 0, False), (0, 4, False)],
)
def test_a_mask_of_a_part_ends_at_the_edge_of_its_picture(left: int, top: int, fits: bool):
    if fits:
        assert placed(np.ones((2, 3), bool), left, top, (5, 9)).box == (left, top, left + 3, top + 2)
    else:
        with pytest.raises(ValueError, match="does not fit into a picture of 5 x 9"):
            placed(np.ones((2, 3), bool), left, top, (5, 9))


def test_what_lies_outside_of_its_picture_is_no_empty_mask(tmp_path: Path):
    foreign.write_labelme(tmp_path)
    foreign.rewrite(
        tmp_path / "one.json",
        lambda record: record["shapes"].__setitem__(
            slice(None), [{"label": "gone", "points": [[64, 10], [90, 10], [90, 20]]}]
        ),
    )
    with pytest.raises(ValueError, match="'gone' covers no pixel"):
        _ = opened(tmp_path, "labelme")[0]


def test_brushes_of_label_studio():
    values = np.random.default_rng(0).choice(np.array([0, 0, 0, 7, 255], np.uint8), 5000)
    values[1000:4000] = 255
    packed = bytes(foreign.pack(values))
    assert np.array_equal(decode_brush(packed, 5000), values)
    with pytest.raises(ValueError, match="has not 4 values"):
        decode_brush(packed, 4996)
    for end in (0, 3, 7, 100, len(packed) - 4):
        with pytest.raises(ValueError, match=re.compile("ends early|has not")):
            decode_brush(packed[:end], 5000)


def test_files_of_other_kinds_are_passed_over(tmp_path: Path):
    foreign.write_labelme(tmp_path)
    write_json({"shapes": "of what"}, tmp_path / "notes.json")
    (tmp_path / "broken.json").write_text("{")
    assert len(opened(tmp_path, "labelme")) == 2
