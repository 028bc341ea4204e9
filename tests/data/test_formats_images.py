"""Annotation files of pictures: what readers make of every form and corner case, and what they refuse."""

from __future__ import annotations

import collections
import json
import pickle
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from miniatures import images as mini
from sa2va.data.annotations.annotated_images import lazy_picture, read_picture, stored_size
from sa2va.data.annotations.coco import CocoInstances, decode_segmentation, is_segmentation, unite
from sa2va.data.annotations.conversations import PackedRecords, place_image, read_conversation
from sa2va.data.annotations.layout import MissingData, PictureFolders, Problems, first_existing, require_files, shown
from sa2va.data.annotations.mask_files import read_numbers
from sa2va.data.annotations.polygons import paint_polygon
from sa2va.data.annotations.unpickle import load_plain
from sa2va.data.datasets.gcg import read_gcg, read_gcg_truth
from sa2va.data.datasets.reasonseg import read_reasonseg
from sa2va.data.datasets.refer import read_refer
from sa2va.masks.mask import Mask

SIZE = mini.SIZE

# -- pickles -----------------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(plain, st.integers(0, 5))
def test_plain_values_come_back_from_every_protocol(
    tmp_path_factory: pytest.TempPathFactory, value: Any, protocol: int
):
    path = tmp_path_factory.mktemp("pickle") / "values.p"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert load_plain(path) == value


def test_sets_and_numbers_of_numpy_become_plain(tmp_path: Path):
    value = {"a": {1, 2}, "b": collections.OrderedDict(x=frozenset({3})), "n": np.int64(7), "f": np.float32(0.5)}
    arrays = {"m": np.arange(6, dtype=np.int32).reshape(2, 3), "t": np.asfortranarray([[1.5, 2.5], [3.5, 4.5]])}
    for protocol in range(6):
        path = tmp_path / f"{protocol}.p"
        path.write_bytes(pickle.dumps(value | arrays | {"end": np.array([1, 2], dtype=">u2")}, protocol=protocol))
        loaded = load_plain(path)
        assert {key: loaded[key] for key in value} == {**value, "n": 7, "f": 0.5}
        assert type(loaded["n"]) is int and type(loaded["f"]) is float
        assert loaded["m"] == [[0, 1, 2], [3, 4, 5]] and loaded["t"] == [[1.5, 2.5], [3.5, 4.5]]
        assert loaded["end"] == [1, 2]


def test_pickles_of_python_2_and_json(tmp_path: Path):
    (tmp_path / "old.p").write_bytes(b"(dp0\nS'caf\\xe9'\np1\nV\\u00fc\np2\ns.")
    assert load_plain(tmp_path / "old.p") == {"café": "ü"}
    (tmp_path / "new.json").write_text('{"a": [1]}')
    assert load_plain(tmp_path / "new.json") == {"a": [1]}


class _Evil:
    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "name"), [(eval, "eval"), (Path, "Path"), (getattr, "getattr"), (__import__, "__import__")]
)
def test_a_pickle_that_asks_for_code_is_refused_and_runs_nothing(
    tmp_path: Path, function: Any, name: str, protocol: int
):
    path = tmp_path / "refs(unc).p"
    trace = tmp_path / "ran"
    path.write_bytes(pickle.dumps([_Evil(function, f"open({str(trace)!r}, 'w')")], protocol=protocol))
    with pytest.raises(ValueError, match=rf"refs\(unc\).*{name}.*could run any code"):
        load_plain(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x80\x04",
        b"junk",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.",
        pickle.dumps(np.array([object()])),
        pickle.dumps(np.array(["text"])),
        pickle.dumps(np.zeros(2, dtype=[("a", int)])),
        pickle.dumps(np.zeros(3))[:-20],
    ],
)
def test_damaged_and_strange_pickles_are_refused_by_name(tmp_path: Path, raw: bytes):
    path = tmp_path / "mask_dict.pkl"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="mask_dict"):
        load_plain(path)


# -- masks of COCO -----------------------------------------------------------------------------------------------------

boxes = st.tuples(st.integers(0, 63), st.integers(0, 47), st.integers(1, 64), st.integers(1, 48)).map(
    lambda box: (min(box[0], box[2] - 1), min(box[1], box[3] - 1), box[2], box[3])
)


@given(st.lists(boxes, min_size=1, max_size=4))
def test_every_form_of_a_segmentation_is_the_union_of_its_parts(parts: list[mini.Box]):
    truth = mini.area(*parts)
    forms = [
        [mini.polygon(part) for part in parts],
        [mini.rle(mini.area(part)) for part in parts],
        mini.rle(truth),
        mini.uncompressed(truth),
        {**mini.rle(truth), "counts": mini.rle(truth)["counts"].encode()},
    ]
    for form in forms:
        assert is_segmentation(form)
        assert np.array_equal(decode_segmentation(form, SIZE).array, truth)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        {},
        "text",
        [[]],
        [[1, 2, 3, 4]],  # a box, to pycocotools
        [[1, 2, 3, 4, 5, 6, 7]],
        [["a"] * 6],
        [[0, 0, 1, 1, float("nan"), 2]],
        [[0, 0, 1e12, 0, 1e12, 1e12]],
        [[1, 1, 9, 1, 9, 9], {"size": [48, 64], "counts": [3072]}],
        {"size": [48, 65], "counts": [48 * 65]},
        {"size": [48, 64], "counts": "not runs"},
        {"size": [48, 64], "counts": [10**18, 10**18]},
    ],
)
def test_malformed_segmentations_are_refused(segmentation: Any):
    with pytest.raises(ValueError, match=r"expected|outside"):
        decode_segmentation(segmentation, SIZE)


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-4, -4), (2**14, 2**14 + 1), (4.0, 4)])
def test_pictures_that_cannot_be_have_no_masks(size: tuple[int, int], tmp_path: Path):
    with pytest.raises(ValueError, match="expected a picture of 1 to 268435456 pixels"):
        decode_segmentation([[0, 0, 4, 0, 4, 4]], size)
    if all(isinstance(side, int) for side in size):
        image = {"id": 1, "file_name": "a.jpg", "height": size[0], "width": size[1]}
        mini.write_json({"images": [image], "annotations": []}, tmp_path / "instances.json")
        with pytest.raises(ValueError, match="image 1 has size"):
            CocoInstances(tmp_path / "instances.json")


def test_the_smallest_and_the_largest_picture(tmp_path: Path):
    assert decode_segmentation([[0, 0, 1, 0, 1, 1, 0, 1]], (1, 1)).area == 1
    images = [{"id": n, "file_name": f"{n}.jpg", "height": n, "width": 2**28 // n} for n in (1, 2**14, 2**28)]
    mini.write_json({"images": images, "annotations": []}, tmp_path / "instances.json")
    assert [image.size[0] for image in CocoInstances(tmp_path / "instances.json").images.values()] == [1, 2**14, 2**28]


def test_parts_without_area_and_edges_just_outside_do_no_harm():
    box = mini.polygon((2, 2, 10, 10))
    decoded = decode_segmentation([box, [5, 5, 6, 6], [-1, -1, 3, -1, 3, 3, -1, 3]], SIZE).array
    assert np.array_equal(decoded, mini.area((2, 2, 10, 10), (0, 0, 3, 3)))
    assert unite([], SIZE) == Mask.from_array(np.zeros(SIZE, bool))


def test_instances_name_what_is_wrong(tmp_path: Path):
    path = tmp_path / "instances.json"
    image = {"id": 1, "file_name": "a.jpg", "height": 48, "width": 64}
    annotation = {"id": 5, "image_id": 1, "segmentation": [[0, 0, 1, 1]]}
    mini.write_json({"images": [image], "annotations": [annotation]}, path)
    with pytest.raises(ValueError, match=r"instances\.json, annotation 5: expected polygons of three points"):
        CocoInstances(path).mask(5)
    for content in ([], {"images": [image]}, {"images": [{"id": 1}], "annotations": []}):
        mini.write_json(content, path)
        with pytest.raises(ValueError, match=r"instances\.json is not a COCO file"):
            CocoInstances(path)
    mini.write_json({"images": [{**image, "height": 10**9}], "annotations": []}, path)
    with pytest.raises(ValueError, match="size"):
        CocoInstances(path)


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_are_read_as_stored_unless_their_annotation_means_the_upright_one(tmp_path: Path):
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    path = tmp_path / "turned.png"
    assert stored_size(path) == (4, 6)
    assert np.array_equal(read_picture(path), picture) and np.array_equal(read_picture(path, (4, 6)), picture)
    assert np.array_equal(read_picture(path, (6, 4)), np.rot90(picture, -1))
    with pytest.raises(ValueError, match=r"turned\.png has 4 x 6 pixels .* says 5 x 6"):
        read_picture(path, (5, 6))
    frame = pickle.loads(pickle.dumps(lazy_picture(path)))
    assert frame.size == (4, 6) and np.array_equal(frame.load(), picture)


def test_damaged_pictures_and_masks_in_colour_are_named(tmp_path: Path):
    whole = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"cut\.png is damaged"):
        read_picture(tmp_path / "cut.png")
    with pytest.raises(ValueError, match=r"text\.png is not a picture"):
        stored_size(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"a\.png is a colour picture of mode RGB"):
        read_numbers(whole)


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_numbers_of_masks_are_indices_not_colours(tmp_path: Path, mode: str):
    numbers = np.array([[0, 1], [1, 0]]) if mode == "1" else np.array([[0, 1], [200, 7]])
    numbers = numbers * (300 if mode == "I;16" else 1)
    if mode == "1":
        image = Image.fromarray(numbers.astype(bool))
    else:
        image = Image.fromarray(numbers.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image.putpalette([255 - k % 256 for k in range(768)])
    assert image.mode == mode
    image.save(tmp_path / "m.png")
    assert np.array_equal(read_numbers(tmp_path / "m.png"), numbers)


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_all_missing_files_are_said_at_once(tmp_path: Path):
    (tmp_path / "there").mkdir()
    files = {tmp_path / "there": "x", tmp_path / "a.json": "the publisher", tmp_path / "b": "COCO"}
    with pytest.raises(MissingData, match="2 of 3") as caught:
        require_files("RefCOCO", files)
    assert all(word in str(caught.value) for word in (str(tmp_path / "a.json"), "the publisher", "(from COCO)"))
    require_files("RefCOCO", {tmp_path / "there": ""})
    assert first_existing([tmp_path / "a", tmp_path / "there"]) == tmp_path / "there"
    assert first_existing([tmp_path / "a", tmp_path / "b"]) == tmp_path / "a"


def test_problems_are_counted_and_the_first_are_named(caplog: pytest.LogCaptureFixture):
    problems = Problems("mine")
    problems.settle(3, skip=False)
    for number in range(5):
        problems.malformed("an entry has no phrase", f"entry {number}")
    with pytest.raises(ValueError, match=r"no phrase, 5 times: entry 0, entry 1, entry 2 and 2 more") as caught:
        problems.settle(3, skip=False)
    assert not isinstance(caught.value, MissingData) and "skip_broken=true" in str(caught.value)
    problems.missing(Path("a.jpg"), "COCO")
    with pytest.raises(MissingData, match=r"1 files are missing \(COCO\): a\.jpg"):
        problems.settle(3, skip=False)
    problems.settle(3, skip=True)
    assert "3 entries are good" in caplog.text and "a.jpg" in caplog.text
    with pytest.raises(MissingData, match="no entry is good"):
        problems.settle(0, skip=True)
    with pytest.raises(ValueError, match="has no entries"):
        Problems("none").settle(0, skip=True)
    assert shown(["a", "b"]) == "a, b" and shown(["a", "b", "c"]) == "a, b, c"


@pytest.mark.parametrize(("kinds", "rest"), [(12, 0), (13, 1), (20, 8)])
def test_twelve_kinds_of_problems_are_named(kinds: int, rest: int):
    problems = Problems("mine")
    for number in range(kinds):
        problems.malformed(f"kind {number}.", "a.json")
    with pytest.raises(ValueError, match=r"kind 11\.") as caught:
        problems.settle(1, skip=False)
    assert "kind 12." not in str(caught.value)
    assert [line for line in str(caught.value).splitlines() if "other things" in line] == [
        f"  and {rest} other things" for _ in range(rest > 0)
    ]


def test_files_that_are_not_there_are_noted(tmp_path: Path):
    (tmp_path / "there.jpg").touch()
    (tmp_path / "folder").mkdir()
    problems = Problems("mine")
    assert problems.present(tmp_path / "there.jpg", "COCO")
    problems.settle(1, skip=False)
    assert not problems.present(tmp_path / "folder", "COCO") and not problems.present(tmp_path / "x" / "1.jpg", "COCO")
    with pytest.raises(MissingData, match=r"2 files are missing \(COCO\): .*folder, .*1\.jpg"):
        problems.settle(1, skip=False)


def test_pictures_are_found_in_the_first_folder_that_has_them(tmp_path: Path):
    for name in ("x/1.jpg", "y/1.jpg", "y/deep/2.jpg", "y/3.jpg"):
        mini.save(mini.painted(), tmp_path / name)
    folders = PictureFolders([tmp_path / "none", tmp_path / "x", tmp_path / "y"])
    assert folders.find("1.jpg") == tmp_path / "x/1.jpg"
    assert folders.find("deep/2.jpg") == tmp_path / "y/deep/2.jpg"
    assert folders.find("elsewhere/3.jpg") == tmp_path / "y/3.jpg"
    lost = folders.find("lost/4.jpg")
    assert lost == tmp_path / "none/lost/4.jpg" and not folders.has(lost)
    assert not folders.has(tmp_path / "y/deep")  # a folder is no picture


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=3), max_size=5))
def test_packed_records_come_back(records: list[dict]):
    packed = pickle.loads(pickle.dumps(PackedRecords(records)))
    assert len(packed) == len(records) and list(packed) == records
    with pytest.raises(IndexError):
        packed[len(records)]


# -- referring expressions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", sorted(mini.SPLITS))
def test_expressions_with_their_masks(tmp_path: Path, dataset: str):
    for split, truth in mini.write_refer(tmp_path, dataset).items():
        pictures = [picture for picture in read_refer(tmp_path, dataset, split) if picture.id in truth.pictures]
        assert [picture.id for picture in pictures] == list(truth.pictures)
        found = {expression.id: (picture, expression) for picture in pictures for expression in picture.expressions}
        assert found.keys() == truth.said.keys()
        for name, said in truth.said.items():
            picture, expression = found[name]
            assert (expression.raw, expression.text) == (said.text, said.text.lower().rstrip("."))
            assert picture.id == said.picture and picture.size == SIZE
            assert np.array_equal(picture.mask(expression).array, said.mask)
            assert bool(expression.targets) == said.mask.any()
        assert np.abs(pictures[0].load().astype(int) - truth.pictures[pictures[0].id]).max() < 40


def test_the_overlapping_test_sets_of_refclef(tmp_path: Path):
    truths = mini.write_refer(tmp_path, "refclef")
    both = {*truths["testB"].pictures, *truths["testBC"].pictures}
    assert {picture.id for picture in read_refer(tmp_path, "refclef", "testB")} == both
    assert {picture.id for picture in read_refer(tmp_path, "refclef", "testC")} == {*truths["testBC"].pictures}


def test_a_split_that_is_not_there_is_said_with_those_that_are(tmp_path: Path):
    mini.write_refer(tmp_path, "refcoco")
    with pytest.raises(ValueError, match=r"no split 'test'; .*'testA': 8.*'train': 8"):
        read_refer(tmp_path, "refcoco", "test")
    with pytest.raises(ValueError, match=r"unknown data set 'coco'.*grefcoco"):
        read_refer(tmp_path, "coco", "train")
    with pytest.raises(MissingData, match=r"instances\.json.*\n.*refs\(unc\)\.p.*\n.*train2014"):
        read_refer(tmp_path / "nowhere", "refcoco", "train")


def test_references_of_another_release_are_refused(tmp_path: Path):
    mini.write_refer(tmp_path, "grefcoco")
    path = tmp_path / "ref_seg/grefcoco/grefs(unc).json"
    references = json.loads(path.read_text())
    mini.write_json([{**references[0], "ann_id": [999]}], path)
    with pytest.raises(ValueError, match=r"reference 10: .*no annotations \[999\] of picture 1"):
        read_refer(tmp_path, "grefcoco", "train")
    mini.write_json([{"ref_id": 1}], path)
    with pytest.raises(ValueError, match="expected a list of references"):
        read_refer(tmp_path, "grefcoco", "train")


def test_sentences_without_unique_numbers_are_named_by_their_reference(tmp_path: Path):
    mini.write_refer(tmp_path, "grefcoco")
    path = tmp_path / "ref_seg/grefcoco/grefs(unc).json"
    references = json.loads(path.read_text())
    for reference in references:
        for sentence in reference["sentences"]:
            sentence["sent_id"] = 0
    mini.write_json(references, path)
    first = read_refer(tmp_path, "grefcoco", "train")[0]
    assert [expression.id for expression in first.expressions][:3] == ["10-0", "10-1", "11-0"]


# -- reasoning ---------------------------------------------------------------------------------------------------------


def test_areas_of_reasonseg(tmp_path: Path):
    truth = mini.write_reasonseg(tmp_path, "val")
    phrase, sentence = read_reasonseg(tmp_path, "val")
    target, ignored = phrase.masks()
    assert np.array_equal(target, truth.said["phrase/0"].mask)
    assert np.array_equal(ignored, mini.ignored_of_reasonseg()) and not (target & ignored).any()
    assert (phrase.id, phrase.is_sentence, sentence.is_sentence) == ("phrase", False, True)
    assert sentence.texts == ("What warms a café?", "Where is the heat?")
    assert sentence.load().shape == (*SIZE, 3)


def test_reasonseg_in_the_layout_of_lisa_and_what_is_missing(tmp_path: Path):
    truth = mini.write_reasonseg(tmp_path)
    place = tmp_path / "reason_seg/ReasonSeg"
    place.mkdir(parents=True)
    truth.folder.rename(place / "train")
    assert len(read_reasonseg(tmp_path, "train")) == 2
    with pytest.raises(MissingData, match=r"lisa_reasoning/test"):
        read_reasonseg(tmp_path, "test")
    (place / "train/phrase.json").write_text('{"text": [" "], "shapes": []}')
    with pytest.raises(ValueError, match=r"phrase\.json: expected text"):
        read_reasonseg(tmp_path, "train")
    (place / "train/phrase.json").unlink()
    with pytest.raises(MissingData, match=r"1 pictures .*phrase\.jpg"):
        read_reasonseg(tmp_path, "train")


@pytest.mark.parametrize("sign", [1, -1])
def test_a_polygon_of_reasonseg_reaches_a_million_pixels_at_most(tmp_path: Path, sign: int):
    path = mini.write_reasonseg(tmp_path).folder / "phrase.json"

    def write(reach: int) -> None:
        shape = {"label": "target", "points": [[8, 8], [sign * reach, 8], [sign * reach, 20], [8, 20]]}
        path.write_text(json.dumps({"text": ["it"], "shapes": [shape]}))

    write(10**6)
    columns = slice(8, None) if sign > 0 else slice(0, 9)
    expected = np.zeros(SIZE, dtype=bool)
    expected[8:21, columns] = True
    assert np.array_equal(read_reasonseg(tmp_path, "train")[0].masks()[0], expected)
    write(10**6 + 1)
    with pytest.raises(ValueError, match=r"phrase\.json.*a polygon has points that are no pixels"):
        read_reasonseg(tmp_path, "train")


@pytest.mark.parametrize("corner", [(-64, 0), (0, -48), (128, 0), (0, 96)])
def test_a_polygon_reaches_as_far_as_the_picture_is_long_at_most(corner: tuple[int, int]):
    """On each side, and not a hundredth of a pixel more."""
    assert SIZE == (48, 64)
    points = np.array([corner, (8, 8), (8, 20)], dtype=float)
    assert decode_segmentation([points.ravel().tolist()], SIZE).area > 0
    points[0] += 0.01 * np.sign(points[0])
    with pytest.raises(ValueError, match="far outside the picture of 48 x 64 pixels"):
        decode_segmentation([points.ravel().tolist()], SIZE)


#: Corners, and the rows that cv2.polylines and cv2.fillPoly of OpenCV 5.0 paint together.
OPENCV = [
    ([[10, 10], [6, 9], [3, 5]], 5, ["...#", "....##", "....###", ".....###", "......####", ".........##"]),
    (
        [[1, 1], [10, 3], [2, 8], [9, 10], [5, 0]],
        0,
        [
            *("....##", ".#####", "....####", "......#####", ".......###", ".......#", ".....###", "...######"),
            *("..#######", "....######", "........##"),
        ],
    ),
    (
        [[2, 2], [9, 2], [9, 9], [2, 9], [4, 5]],
        2,
        [
            "..########",
            "...#######",
            "...#######",
            "....######",
            "...#######",
            "...#######",
            "..########",
            "..########",
        ],
    ),
]


@pytest.mark.parametrize(("corners", "top", "rows"), OPENCV)
def test_polygons_are_painted_as_opencv_paints_them(corners: list[list[int]], top: int, rows: list[str]):
    truth = np.zeros((12, 12), dtype=bool)
    for y, row in enumerate(rows, start=top):
        truth[y, : len(row)] = [pixel == "#" for pixel in row]
    assert np.array_equal(paint_polygon(np.array(corners), (12, 12)), truth)


corner = st.tuples(st.integers(-8, 24), st.integers(-8, 24))


@given(st.lists(corner, max_size=8))
def test_a_polygon_that_leaves_the_picture_is_cut_and_otherwise_the_same(corners: list[tuple[int, int]]):
    points = np.array(corners, dtype=int).reshape(-1, 2)
    painted = paint_polygon(points, (16, 12))
    assert np.array_equal(painted, paint_polygon(points + 8, (40, 40))[8:24, 8:20])
    for x, y in corners:
        assert not (0 <= x < 12 and 0 <= y < 16) or painted[y, x]


# -- grounded captions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["refcocog", "grandf", "flickr30k", "openpsg"])
def test_phrases_of_captions_do_not_overlap_and_have_their_masks(tmp_path: Path, dataset: Any):
    ((name, (_, masks)),) = mini.write_gcg(tmp_path, dataset).items()
    (picture,) = read_gcg(tmp_path, dataset)
    assert picture.id == name and len(picture.groundings) == len(masks)
    for grounding, mask in zip(picture.groundings, masks, strict=True):
        assert np.array_equal(picture.mask(grounding).array, mask)
    ends = [(grounding.start, grounding.end) for grounding in picture.groundings]
    assert all(first[1] <= second[0] for first, second in pairwise(ends))
    assert picture.overlapping == (0 if dataset == "flickr30k" else 1)
    assert picture.caption == picture.caption.strip('" ')


def test_a_picture_with_two_captions_has_two_names(tmp_path: Path):
    mini.write_gcg(tmp_path, "grandf")
    path = tmp_path / "glamm_data/annotations/GranDf_HA_GCG_train.json"
    entry, _ = json.loads(path.read_text())
    mini.write_json([entry, entry], path)
    assert [picture.id for picture in read_gcg(tmp_path, "grandf")] == ["9", "9-2"]
    with pytest.raises(MissingData, match=r"OpenPsgGCG_train\.json"):
        read_gcg(tmp_path, "openpsg")


def test_ground_truth_of_the_grounded_captions(tmp_path: Path):
    truth = mini.write_gcg_truth(tmp_path, "test")
    found = read_gcg_truth(tmp_path, "test")
    assert [picture.id for picture in found] == list(truth.pictures)
    for picture in found:
        for number, (label, mask) in enumerate(zip(picture.labels, picture.masks(), strict=True)):
            said = truth.said[f"{picture.id}/{number}"]
            assert label == said.text and np.array_equal(mask.array, said.mask)
        assert picture.load().shape == (*picture.size, 3)
    captions = truth.folder / "test_gcg_coco_caption_gt.json"
    content = json.loads(captions.read_text())
    content["annotations"][0]["labels"].pop()
    mini.write_json(content, captions)
    with pytest.raises(ValueError, match=r"labels and masks of 1 pictures differ .*sa_1"):
        read_gcg_truth(tmp_path, "test")
    found[1].image.unlink()
    with pytest.raises(MissingData, match=r"1 of 2 pictures .*sa_2"):
        read_gcg_truth(tmp_path, "test")


# -- conversations -----------------------------------------------------------------------------------------------------


def _messages(*said: str) -> list[dict[str, str]]:
    """Messages from "h: text" and "g: text"."""
    return [{"from": {"h": "human", "g": "gpt"}[text[0]], "value": text[3:]} for text in said]


@pytest.mark.parametrize(
    ("said", "turns"),
    [
        (("h: a", "g:  b\n", "h: c", "g: d"), [("a", "b"), ("c", "d")]),
        (("g: first", "h: a", "h: b", "g: c"), [("ab", "c")]),
        (("h: a", "g: b", "h: never answered"), [("a", "b")]),
        (("h: a", "g: b", "g: again", "h: c", "g: d"), [("a", "b")]),
        (("h: a", "g: b", "h: c", "g: ", "h: e", "g: f"), [("a", "b")]),
        (("h: a", "g: b", "h: see <p>", "g: d"), [("a", "b")]),
        (("h: a", "g: it is [SEG]"), []),
        ((), []),
    ],
)
def test_conversations_as_turns(said: tuple[str, ...], turns: list[tuple[str, str]]):
    assert read_conversation(_messages(*said)) == turns


@pytest.mark.parametrize("messages", [None, "text", ["text"], [{"from": "system", "value": "x"}], [{"from": "human"}]])
def test_strange_conversations_are_refused(messages: Any):
    with pytest.raises(ValueError, match=r"conversations|message"):
        read_conversation(messages)


def test_where_the_picture_stands():
    later = ("more", "b")
    assert place_image([("<image>\nq", "a"), later], picture=True) == [("q", "a"), later]
    assert place_image([("q\n<image>", "a")], picture=True) == [("q\n<image>", "a")]
    assert place_image([("<image>\nq", "a")], picture=False) == [("q", "a")]
    assert place_image([("q", "a"), ("<image>", "b"), later], picture=False) == [("q", "a")]
    for turns in ([("<image><image>", "a")], [("q", "a"), ("<image>", "b")]):
        with pytest.raises(ValueError, match="more than once"):
            place_image(turns, picture=True)


def test_random_bytes_are_never_taken_for_data(tmp_path: Path):
    rng = random.Random(0)
    path = tmp_path / "x.p"
    for _ in range(300):
        path.write_bytes(bytes(rng.choices(b"().0}]abct\x80\x02q\x00X\x01K\x8c\x94sR", k=12)) + b".")
        try:
            load_plain(path)
        except ValueError as error:
            assert "x.p" in str(error)
