"""What people bring as their own data: turned pictures, shared ids, odd polygons, masks, paths and encodings."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from miniatures import images as mini
from sa2va.cli import main
from sa2va.data.check import check_set, present_sets
from sa2va.data.datasets.coco_instances import Coco
from sa2va.data.datasets.interchange import Chat, write_chat
from sa2va.data.datasets.llava import Llava
from sa2va.data.datasets.mask_folders import MaskFolder
from sa2va.data.datasets.phrase_polygons import Annotations
from sa2va.data.datasets.refer import Refer
from sa2va.data.sample import Sample
from sa2va.media.open import load_image

#: Of an upright picture, (height, width): what it shows in red.
UPRIGHT = (64, 48)
BOX: mini.Box = (4, 6, 20, 30)
#: What makes the picture as stored of the upright one, by the value of EXIF's orientation.
STORED_BY = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}


def photo(path: Path, orientation: int = 1, box: mini.Box = BOX, size: tuple[int, int] = UPRIGHT) -> np.ndarray:
    """Write a picture that is upright by its EXIF data alone. Returns the object as stored, bool (H, W)."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = Image.fromarray(mini.painted((box, mini.RED), size=size))
    area = Image.fromarray(mini.area(box, size=size))
    if orientation in STORED_BY:
        stored, area = stored.transpose(STORED_BY[orientation]), area.transpose(STORED_BY[orientation])
    stored.save(path, exif=exif, quality=100, subsampling=0)
    return np.asarray(area)


def fits(sample: Sample, mask: int = 0) -> bool:
    """Whether a mask lies on what is red in the picture."""
    red = sample.picture(0)[..., 0].astype(int) - sample.picture(0)[..., 2]
    return np.array_equal(red > 100, sample.validate().masks[mask][0])


def coco(root: Path, annotations: list[dict[str, Any]], images: list[dict[str, Any]]) -> Path:
    """Write a COCO file of one category."""
    known = [{"category_id": 1, "image_id": 1, "id": place} | one for place, one in enumerate(annotations)]
    pictures = [{"id": 1, "height": UPRIGHT[0], "width": UPRIGHT[1]} | one for one in images]
    content = {"images": pictures, "annotations": known, "categories": [{"id": 1, "name": "box"}]}
    mini.write_json(content, root / "annotations.json")
    return root


def polygon_of(area: np.ndarray) -> list[int]:
    """The outline of a box given as its area."""
    rows, columns = np.nonzero(area)
    return mini.polygon((int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))


# -- pictures that are turned ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [6, 7])
@pytest.mark.parametrize("seen", ["upright", "stored"])
def test_masks_of_turned_pictures_fit_what_inference_sees(tmp_path: Path, orientation: int, seen: str):
    stored = photo(tmp_path / "images/a.jpg", orientation)
    drawn = mini.area(BOX, size=UPRIGHT) if seen == "upright" else stored
    size = {"height": drawn.shape[0], "width": drawn.shape[1]}
    coco(tmp_path, [{"segmentation": [polygon_of(drawn)]}], [{"file_name": "a.jpg", **size}])
    samples = [Coco(tmp_path)[0]]
    mini.save(drawn.astype(np.uint8) * 255, tmp_path / "masks/a.png")
    mini.write_json({"a": "the box"}, tmp_path / "phrases.json")
    samples.append(MaskFolder(tmp_path)[0])
    mini.write_json([{"image": "a.jpg", "mask": [[mini.rle(drawn)]], "text": ["box"]}], tmp_path / "annotations.json")
    samples.append(Annotations(tmp_path)[0])
    turn = {"question": "Segment it.", "answer": "[SEG]"}
    line = {"id": "a", "image": "images/a.jpg", "turns": [turn], "masks": [mini.rle(drawn)]}
    mini.write_json(line, tmp_path / "chat.jsonl")
    samples.append(Chat(tmp_path)[0])
    for sample in samples:
        assert sample.size == UPRIGHT and fits(sample), sample.id
        assert np.array_equal(sample.picture(0), np.asarray(load_image(tmp_path / "images/a.jpg")))


@pytest.mark.parametrize("orientation", [3, 6])
def test_polygons_that_do_not_tell_are_upright_and_warned_of(
    tmp_path: Path, orientation: int, caplog: pytest.LogCaptureFixture
):
    for name in ("a", "b"):
        stored = photo(tmp_path / f"images/{name}.jpg", orientation)
    upright = polygon_of(mini.area(BOX, size=UPRIGHT))
    entries = [{"image": f"{name}.jpg", "mask": [[upright]], "text": ["box"]} for name in ("a", "b")]
    mini.write_json(entries, tmp_path / "annotations.json")
    source = Annotations(tmp_path)
    assert fits(source[0]) and fits(source[1]) and fits(source[0])
    assert [record.getMessage().count("orientation=stored") for record in caplog.records] == [1]
    (doubt,) = check_set(tmp_path, "annotations").doubts
    assert doubt.count == 2 and "a.jpg" in doubt.examples
    caplog.clear()
    mini.write_json([{**entries[0], "mask": [[polygon_of(stored)]]}], tmp_path / "annotations.json")
    assert fits(Annotations(tmp_path, orientation="stored")[0])
    assert not fits(Annotations(tmp_path, orientation="upright")[0])
    assert not caplog.records
    with pytest.raises(ValueError, match='orientation must be "upright", "stored" or null'):
        Annotations(tmp_path, orientation="sideways")  # type: ignore[arg-type]


def test_what_the_user_knows_counts_more_than_a_claimed_size(tmp_path: Path):
    photo(tmp_path / "images/a.jpg", 6)
    upright = polygon_of(mini.area(BOX, size=UPRIGHT))
    coco(tmp_path, [{"segmentation": [upright]}], [{"file_name": "a.jpg", "height": 48, "width": 64}])
    assert fits(Coco(tmp_path, orientation="upright")[0]) and not fits(Coco(tmp_path)[0])
    coco(tmp_path, [{"segmentation": [upright]}], [{"file_name": "a.jpg", "height": 50, "width": 64}])
    with pytest.raises(ValueError, match=r"a\.jpg has 48 x 64 pixels .* says 50 x 64"):
        Coco(tmp_path)[0]


def test_published_sets_are_read_as_stored_and_written_as_shown(tmp_path: Path):
    truth = mini.write_refer(tmp_path)["train"]
    path = tmp_path / "ref_seg/refcoco/coco2014/train2014/COCO_train2014_000000000001.jpg"
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(path) as image:
        stored = np.asarray(image)
        image.save(path, exif=exif, quality=100, subsampling=0)
    sample = Refer(tmp_path)[0]
    assert sample.id == "refcoco/1" and len(truth.pictures) == 2
    assert np.abs(sample.picture(0).astype(int) - stored).max() < 10  # not turned
    again = Chat(write_chat([sample], tmp_path / "chat.jsonl"))[0]
    assert np.array_equal(again.picture(0), sample.picture(0))


def test_conversations_are_about_upright_pictures(tmp_path: Path):
    mini.write_llava(tmp_path)
    photo(tmp_path / "llava_data/llava_images/coco/train2017/1.jpg", 6)
    assert Llava(tmp_path)[0].size == UPRIGHT


# -- ids and phrases that occur twice ----------------------------------------------------------------------------------


def test_annotations_that_share_an_id_are_all_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("a", "b"):
        photo(tmp_path / f"images/{name}.jpg")
    shape = {"id": 7, "segmentation": [mini.polygon(BOX)]}
    images = [{"file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    source = Coco(coco(tmp_path, [shape, shape | {"image_id": 2}, shape], images))
    assert [sample.id for sample in source] == ["coco/a.jpg", "coco/b.jpg"]
    assert all(fits(sample) for sample in source)
    assert "share an id; all are kept, first in id 7" in caplog.text
    assert [doubt.count for doubt in check_set(tmp_path, "coco").doubts] == [1]


def test_an_id_of_two_pictures_is_an_error_that_names_both(tmp_path: Path):
    for name in ("a", "b"):
        photo(tmp_path / f"images/{name}.jpg")
    shape = {"segmentation": [mini.polygon(BOX)]}
    coco(tmp_path, [shape], [{"file_name": "a.jpg"}, {"file_name": "b.jpg"}])
    report = check_set(tmp_path, "coco")
    assert not report.good and "a.jpg and b.jpg have the same id 1" in report.problems[0]
    coco(tmp_path, [shape], [{"file_name": "a.jpg"}, {"file_name": "a.jpg"}])
    assert len(Coco(tmp_path)) == 1


def test_entries_of_one_picture_and_equal_phrases_are_united(tmp_path: Path):
    photo(tmp_path / "images/a.jpg")
    left, right = (4, 6, 20, 18), (4, 18, 20, 30)
    images = [{"file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}]
    shapes = [{"segmentation": [mini.polygon(left)]}, {"segmentation": [mini.polygon(right)], "image_id": 2}]
    samples = [*Coco(coco(tmp_path, shapes, images))]
    entries = [
        {"image": "a.jpg", "mask": [[mini.polygon(left)]], "text": ["the box"]},
        {"image": "a.jpg", "mask": [[mini.polygon(right)]], "text": ["The box."]},
    ]
    mini.write_json(entries, tmp_path / "annotations.json")
    samples += Annotations(tmp_path)
    numbers = mini.area(left, size=UPRIGHT) + 2 * mini.area(right, size=UPRIGHT).astype(np.uint8)
    mini.save(numbers, tmp_path / "masks/a.png")
    for phrases in ({"a": {"1": "the box", "2": "the box"}}, {"1": "the box", "2": ["the box"]}):
        mini.write_json(phrases, tmp_path / "phrases.json")
        samples += MaskFolder(tmp_path)
    assert len(samples) == 4
    for sample in samples:
        assert len(sample.turns) == 1 and fits(sample), sample.id


def test_equal_questions_of_a_chat_with_different_masks_are_told(tmp_path: Path):
    photo(tmp_path / "a.jpg")
    turns = [{"question": "Segment it.", "answer": "[SEG]"}] * 2
    masks = [mini.rle(mini.area(box, size=UPRIGHT)) for box in (BOX, mini.LEFT)]
    mini.write_json({"id": "a", "image": "a.jpg", "turns": turns, "masks": masks}, tmp_path / "chat.jsonl")
    (doubt,) = check_set(tmp_path, "chat").doubts
    assert "equal questions" in doubt.what and doubt.examples == "a"


# -- polygons that enclose nothing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0.1, 0.2, 0.4, 0.2, 0.4, 0.5]], "normalised; multiply x by the width 48 and y by the height 64"),
        ([[20, 20, 20, 20, 20, 20]], "is empty"),
        ([[60, 70, 70, 70, 70, 80]], "is empty"),
        ({"size": list(UPRIGHT), "counts": [64 * 48]}, "is empty"),
        ({"size": [10, 10], "counts": [0, 100]}, "expected an RLE of size|its annotation says 10 x 10"),
    ],
)
def test_no_empty_mask_is_trained_on_silently(tmp_path: Path, segmentation: Any, message: str):
    photo(tmp_path / "images/a.jpg")
    photo(tmp_path / "a.jpg")
    coco(tmp_path, [{"segmentation": segmentation}], [{"file_name": "a.jpg"}])
    with pytest.raises(ValueError, match=message):
        Coco(tmp_path)[0]
    report = check_set(tmp_path, "coco")
    assert report.broken_count == 1 and not report.good
    entry = {"image": "a.jpg", "mask": [segmentation if isinstance(segmentation, list) else [segmentation]]}
    mini.write_json([entry | {"text": ["box"]}], tmp_path / "annotations.json")
    with pytest.raises(ValueError, match=message):
        Annotations(tmp_path)[0]
    turn = {"question": "Segment it.", "answer": "[SEG]"}
    mini.write_json({"id": "a", "image": "a.jpg", "turns": [turn], "masks": [segmentation]}, tmp_path / "chat.jsonl")
    with pytest.raises(ValueError, match=message):
        Chat(tmp_path)[0]


def test_a_speck_beside_what_is_meant_is_only_told(tmp_path: Path):
    photo(tmp_path / "images/a.jpg")
    shapes = [{"segmentation": [mini.polygon(BOX)]}, {"segmentation": [[5, 5, 5, 5, 5, 5]]}]
    source = Coco(coco(tmp_path, shapes, [{"file_name": "a.jpg"}]))
    assert fits(source[0]) and source.doubts.found[0].examples == "annotation 1"


def test_a_box_is_no_mask(tmp_path: Path):
    photo(tmp_path / "images/a.jpg")
    for boxed in ({"bbox": [4, 6, 16, 24]}, {"bbox": [4, 6, 16, 24], "segmentation": []}):
        coco(tmp_path, [boxed], [{"file_name": "a.jpg"}])
        with pytest.raises(ValueError, match="a bbox is no mask"):
            Coco(tmp_path)


# -- mask files --------------------------------------------------------------------------------------------------------

SMALL, LARGE = mini.area((4, 6, 12, 14), size=UPRIGHT), mini.area(BOX, size=UPRIGHT)


def through_jpeg(numbers: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(numbers).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def palette_picture(numbers: np.ndarray, *colors: int) -> Image.Image:
    image = Image.fromarray(numbers.astype(np.uint8))
    image.putpalette([*colors, *[200] * (768 - len(colors))])
    return image


BORDER = mini.area((2, 4, 22, 32), size=UPRIGHT) & ~LARGE
VOID = np.where(LARGE, 1, np.where(BORDER, 255, 0)).astype(np.uint8)


@pytest.mark.parametrize(
    ("mask", "phrases"),
    [
        (through_jpeg(LARGE.astype(np.uint8) * 255), {"a": "the box"}),
        (through_jpeg(LARGE.astype(np.uint8) * 255), {"a": {"1": "the box"}}),
        (LARGE.astype(np.uint8) * 255, {"a": {"1": "the box"}}),
        (LARGE.astype(np.uint8) * 255, {"3": "the box"}),
        (VOID, {"a": "the box"}),
        (VOID, {"a": {"1": "the box"}}),
        (palette_picture(VOID, 0, 0, 0, 128, 0, 0), {"a": "the box"}),
        (palette_picture(~LARGE, 255, 255, 255, 0, 0, 0), {"a": "the box"}),
        (palette_picture(~LARGE, 255, 255, 255, 0, 0, 0), {"a": {"1": "the box"}}),
        (palette_picture(LARGE, 255, 255, 255, 200, 0, 0), {"a": {"1": "the box"}}),
        (np.stack([LARGE.astype(np.uint8) * 255] * 3, axis=2), {"a": "the box"}),
        (np.where(LARGE, np.where(SMALL, 1, 2), 0).astype(np.uint8), {"a": "the box"}),
    ],
)
def test_masks_that_are_not_quite_masks_are_read_right(tmp_path: Path, mask: Any, phrases: dict[str, Any]):
    photo(tmp_path / "images/a.png")
    (tmp_path / "masks").mkdir()
    (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(tmp_path / "masks/a.png")
    mini.write_json(phrases, tmp_path / "phrases.json")
    sample = MaskFolder(tmp_path)[0]
    assert len(sample.masks) == 1 and np.array_equal(sample.masks[0][0], LARGE)


@pytest.mark.parametrize(
    ("mask", "phrases", "message"),
    [
        (LARGE.astype(np.uint8) * 255, {"a": {"1": "the box", "2": "else"}}, r"a\.png is black and white, .* \[1, 2\]"),
        (LARGE.astype(np.uint8) * 255, {"1": "road", "2": "car"}, r"a\.png is black and white"),
        (
            through_jpeg(LARGE.astype(np.uint8) * 40),
            {"a": {"40": "x", "9": "y"}},
            r"a\.png holds \d+ values where objects",
        ),
        (np.arange(64 * 48, dtype=np.uint8).reshape(UPRIGHT), {"a": "x"}, r"a\.png is grey in \d+% of its pixels"),
    ],
)
def test_masks_that_cannot_be_understood_are_named(tmp_path: Path, mask: np.ndarray, phrases: Any, message: str):
    photo(tmp_path / "images/a.png")
    mini.save(mask, tmp_path / "masks/a.png")
    mini.write_json(phrases, tmp_path / "phrases.json")
    with pytest.raises(ValueError, match=message):
        MaskFolder(tmp_path)[0]


def test_decisions_about_masks_are_told(tmp_path: Path):
    for name in ("a", "b"):
        photo(tmp_path / f"images/{name}.png")
        mini.save(through_jpeg(LARGE.astype(np.uint8) * 255), tmp_path / f"masks/{name}.png")
    mini.write_json({"a": "the box", "b": "the box"}, tmp_path / "phrases.json")
    report = check_set(tmp_path, "mask-folder")
    assert report.good and [doubt.count for doubt in report.doubts] == [2] and "JPEG" in report.doubts[0].what


# -- paths and encodings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["sub\\a.jpg", "D:\\data\\images\\sub\\a.jpg", "/old/disk/sub/a.jpg", "images/sub/a.jpg"]
)
def test_pictures_are_found_by_the_tail_of_their_path(tmp_path: Path, name: str):
    photo(tmp_path / "images/sub/a.jpg")
    shape = [mini.polygon(BOX)]
    samples = [Coco(coco(tmp_path, [{"segmentation": shape}], [{"file_name": name}]))[0]]
    mini.write_json([{"image": name, "mask": [shape], "text": ["box"]}], tmp_path / "annotations.json")
    samples.append(Annotations(tmp_path)[0])
    turn = {"question": "Segment it.", "answer": "[SEG]"}
    line = {"id": "a", "image": name, "turns": [turn], "masks": [shape]}
    mini.write_json(line, tmp_path / "images/chat.jsonl")
    samples.append(Chat(tmp_path / "images")[0])
    assert all(fits(sample) for sample in samples)
    entry = {"image": name, "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A box."}]}
    mini.write_json([entry], tmp_path / "llava.json")
    assert Llava(tmp_path, annotations="llava.json", images="images")[0].size == UPRIGHT


def test_phrases_may_name_pictures_by_their_path(tmp_path: Path):
    photo(tmp_path / "images/a.png")
    mini.save(LARGE.astype(np.uint8), tmp_path / "masks/a.png")
    for key in ("a", "a.png", "D:\\data\\images\\a.png"):
        mini.write_json({key: "the box"}, tmp_path / "phrases.json")
        assert fits(MaskFolder(tmp_path)[0])
    mini.write_json({"a": "the box", "a.png": "it"}, tmp_path / "phrases.json")
    with pytest.raises(ValueError, match=r"two keys mean one picture, 1 times: a\.png"):
        MaskFolder(tmp_path)


def test_two_names_of_one_file_are_refused(tmp_path: Path):
    photo(tmp_path / "images/a.jpg")
    shape = {"segmentation": [mini.polygon(BOX)]}
    images = [{"file_name": "x/a.jpg"}, {"id": 2, "file_name": "y/a.jpg"}]
    coco(tmp_path, [shape, shape | {"image_id": 2}], images)
    with pytest.raises(ValueError, match=r"two names mean one file, .*x/a\.jpg and y/a\.jpg"):
        Coco(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_files_that_windows_wrote_are_read(tmp_path: Path, encoding: str):
    photo(tmp_path / "images/a.jpg")
    coco(tmp_path, [{"segmentation": [mini.polygon(BOX)], "phrase": "die Büchse"}], [{"file_name": "a.jpg"}])
    path = tmp_path / "annotations.json"
    path.write_bytes(path.read_text("utf-8").encode(encoding))
    turn = {"question": "Wo ist \u0a0a\u2028 die Büchse?", "answer": "[SEG]"}
    line = {"id": "a", "image": "images/a.jpg", "turns": [turn], "masks": [[mini.polygon(BOX)]]}
    text = "".join(json.dumps(line | {"id": name}, ensure_ascii=False) + "\n" for name in ("a", "b"))
    (tmp_path / "chat.jsonl").write_bytes(text.encode(encoding))
    assert set(present_sets(tmp_path)) == {"coco", "chat"}
    assert fits(Coco(tmp_path)[0])
    assert [sample.id for sample in Chat(tmp_path)] == ["a", "b"]
    assert all(fits(sample) and sample.turns[0].question == turn["question"] for sample in Chat(tmp_path))


# -- the report --------------------------------------------------------------------------------------------------------


def test_the_command_tells_everything_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("a", "b", "c"):
        photo(tmp_path / f"images/{name}.jpg", 3)
    shape = {"segmentation": [mini.polygon(BOX)]}
    empty = {"segmentation": [[1, 1, 1, 1, 1, 1]], "image_id": 3}
    images = [{"id": number, "file_name": f"{name}.jpg"} for number, name in enumerate("abc", start=1)]
    coco(tmp_path, [shape, shape | {"image_id": 2}, empty], images)
    assert main(["data", "check", str(tmp_path), "--json"]) == 1
    told = capsys.readouterr()
    ((report,),) = [json.loads(told.out)["sets"]]
    assert report["broken_count"] == 1 and "coco/c.jpg" in report["broken"][0][1]
    assert [doubt["count"] for doubt in report["doubts"]] == [3, 1]
    assert "3 times" in told.err
    assert main(["data", "check", str(tmp_path), "--json", "--orientation", "stored"]) == 1
    assert [doubt["count"] for doubt in json.loads(capsys.readouterr().out)["sets"][0]["doubts"]] == [1]
    assert main(["data", "check", str(tmp_path), "--orientation", "left"]) == 2
