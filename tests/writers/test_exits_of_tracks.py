"""A track in other tools' formats: what our own readers find there is what was tracked."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sa2va import Frame, Mask, Segment, Track
from sa2va.cli import main
from sa2va.data.annotations.cvat import is_cvat_video, read_cvat_video
from sa2va.data.annotations.label_studio import export_file, read_label_studio
from sa2va.data.annotations.labelme import read_labelme
from sa2va.data.annotations.layout import Problems
from sa2va.data.annotations.yolo import read_yolo
from sa2va.media.open import open_media
from sa2va.serve.label_studio_backend import Project
from sa2va.writers import (
    CvatVideoWriter,
    LabelmeWriter,
    LabelStudioVideoWriter,
    LabelStudioWriter,
    YoloWriter,
    write_track,
)
from sa2va.writers.label_studio_tasks import Control

SIZE = (48, 64)
Y, X = np.mgrid[: SIZE[0], : SIZE[1]]
DOG, CAT = 'the <dog> & "friend"', "a cat"
NOTHING = np.zeros(SIZE, bool)
RING = (np.hypot(Y - 20, X - 20) < 12) & ~(np.hypot(Y - 20, X - 20) < 4)
EDGE = (X >= 60) | (Y < 2)  # two sides, to the corner
#: The dog is out of sight in the third frame, and the cat comes with the second.
DOGS, CATS = [RING, np.roll(RING, 5, 1), NOTHING, EDGE], [None, EDGE, RING, RING]


@pytest.fixture
def track():
    def frames():
        for number, (dog, cat) in enumerate(zip(DOGS, CATS, strict=True)):
            shown = [(1, DOG, dog)] + ([(2, CAT, cat)] if cat is not None else [])
            segments = [Segment(n, phrase, (Mask.from_array(mask),), 0.5, 1.0) for n, phrase, mask in shown]
            yield Frame(number, number / 8, SIZE, tuple(segments)), np.full((*SIZE, 3), 40 * number, np.uint8)

    return Track(frames(), source="clip.mp4", fps=8, size=SIZE, total=4)


def rows(found):
    """Masks by name of the file and label."""
    return {(one.image.stem, label): draw(SIZE) for one in found for label, draw in one.shapes}


def test_cvat(track, tmp_path):
    folder = tmp_path / "clip"
    write_track(track, [CvatVideoWriter(folder, size=SIZE, fps=8, source="clip.mp4")])
    assert is_cvat_video(folder)
    (video,) = read_cvat_video(folder)
    assert len(video.frames) == 4
    dog, cat = (next(one for one in video.expressions if one.text == name) for name in (DOG, CAT))
    assert (video.masks(dog) == np.stack(DOGS)).all()
    assert (video.masks(cat) == np.stack([NOTHING, *CATS[1:]])).all()
    assert main(["data", "check", str(folder)]) == 0
    # Written again, it is replaced; what somebody else put there is not.
    with CvatVideoWriter(folder, size=SIZE) as writer:
        writer.write(Frame(0, 0.0, SIZE), np.zeros((*SIZE, 3), np.uint8))
    assert [path.name for path in (folder / "images").iterdir()] == ["frame_000000.png"]
    with pytest.raises(RuntimeError), CvatVideoWriter(folder, size=SIZE) as writer:
        writer.write(Frame(0, 0.0, SIZE), np.zeros((*SIZE, 3), np.uint8))
        raise RuntimeError
    assert not [path for path in folder.rglob("*") if path.is_file()]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/annotations.xml").write_text("<annotations></annotations>")
    with pytest.raises(ValueError, match="not written here"):
        CvatVideoWriter(tmp_path / "other", size=SIZE)


def test_polygons(track, tmp_path):
    with LabelmeWriter(tmp_path / "found") as writer:
        writer.add("clip.mp4", track)
    problems = Problems("labelme")
    found = read_labelme(tmp_path / "found", problems)
    assert [one.image.relative_to(tmp_path / "found/images").as_posix() for one in found] == [
        f"clip/{number:05d}.png" for number in range(4)
    ]
    filled = np.hypot(Y - 20, X - 20) < 12  # polygons have no holes
    read = rows(found)
    assert read["00000", DOG].iou(Mask.from_array(filled)) > 0.9
    assert read["00003", DOG] == Mask.from_array(EDGE)
    assert ("00002", DOG) not in read
    assert (tmp_path / "found/labels.txt").read_text().splitlines() == [DOG, CAT]
    assert main(["data", "check", str(tmp_path / "found")]) == 0


def test_images_that_would_share_a_file_are_refused(tmp_path):
    nothing = Frame(0, None, SIZE)
    with pytest.raises(ValueError, match="has the label file"), LabelmeWriter(tmp_path / "found") as writer:
        for name in ("a.png", "a.jpg"):
            writer.add(name, nothing, np.zeros((*SIZE, 3), np.uint8))
    assert not list((tmp_path / "found").rglob("a.*"))


def test_yolo(track, tmp_path):
    with YoloWriter(tmp_path / "found") as writer:
        writer.add("clip.mp4", track)
    read = rows(read_yolo(tmp_path / "found", "train", Problems("yolo")))
    assert set(read) == {("00000", DOG), ("00001", DOG), ("00001", CAT), ("00002", CAT), ("00003", DOG), ("00003", CAT)}
    assert read["00003", DOG] == Mask.from_array(EDGE)


def test_label_studio(track, tmp_path):
    with LabelStudioWriter(tmp_path / "found") as writer:
        writer.add("clip.mp4", track)
    # As predictions they are not labels yet: somebody accepts them.
    path = export_file(tmp_path / "found")
    text = path.read_text().replace('"annotations": [], "predictions"', '"predictions_": 0, "annotations"')
    path.write_text(text)
    read = rows(read_label_studio(path, Problems("label studio")))
    assert read["00000", DOG] == Mask.from_array(RING) and read["00002", CAT] == Mask.from_array(RING)
    assert ("00002", DOG) not in read


def test_label_studio_video(track, tmp_path):
    folder = tmp_path / "clip"
    write_track(track, [LabelStudioVideoWriter(folder, size=SIZE, fps=8, source="a clip.mov")])
    (task,) = json.loads((folder / "tasks.json").read_text())
    assert task["data"]["video"] == "/data/local-files/?d=clip/videos/a%20clip.mp4"
    with open_media(folder / "videos/a clip.mp4") as video:
        assert [round(float(decoded.pixels.mean()), -1) for decoded in video] == [0, 40, 80, 120]
    project = Project.parse((folder / "config.xml").read_text())
    assert (project.kind, project.key, project.frame_rate) == ("video", "video", 8)
    assert project.controls == ((Control("videorectangle", "box", "video"), (DOG, CAT)),)
    (prediction,) = task["predictions"]
    read = {result["value"]["labels"][0]: boxes_by_frame(result) for result in prediction["result"]}
    for name, masks in ((DOG, DOGS), (CAT, CATS)):
        boxes = {n: Mask.from_array(mask).box for n, mask in enumerate(masks, 1) if mask is not None and mask.any()}
        assert read[name] == {number: pytest.approx(box) for number, box in boxes.items()}
    # Written again, it is replaced; what somebody else put there is not.
    with LabelStudioVideoWriter(folder, size=SIZE) as writer:
        writer.write(Frame(7, None, SIZE), np.zeros((*SIZE, 3), np.uint8))
    assert [path.name for path in (folder / "videos").iterdir()] == ["video.mp4"]
    assert json.loads((folder / "tasks.json").read_text())[0]["predictions"][0]["result"] == []
    with pytest.raises(RuntimeError), LabelStudioVideoWriter(folder, size=SIZE) as writer:
        writer.write(Frame(0, 0.0, SIZE), np.zeros((*SIZE, 3), np.uint8))
        raise RuntimeError
    assert not [path for path in folder.rglob("*") if path.is_file()]
    (folder / "tasks.json").write_text("[]")
    with pytest.raises(ValueError, match="not written here"):
        LabelStudioVideoWriter(folder, size=SIZE)


def boxes_by_frame(result):
    """Where the editor shows a box, and where: from each that is listed until the next, if it is enabled."""
    value, shown = result["value"], {}
    assert (result["type"], result["from_name"], result["to_name"]) == ("videorectangle", "box", "video")
    for key, following in zip(value["sequence"], [*value["sequence"][1:], None], strict=True):
        x, y = key["x"] * SIZE[1] / 100, key["y"] * SIZE[0] / 100
        box = x, y, x + key["width"] * SIZE[1] / 100, y + key["height"] * SIZE[0] / 100
        end = (following["frame"] if following else value["framesCount"] + 1) if key["enabled"] else key["frame"] + 1
        shown |= dict.fromkeys(range(key["frame"], end), box)
    return shown


@pytest.mark.parametrize("compact", [False, True])
def test_supervision(track, compact):
    sv = pytest.importorskip("supervision")
    first, second, third, fourth = track.to_supervision(compact=compact)
    assert first.data["phrase"].tolist() == [DOG] and second.tracker_id.tolist() == [1, 2]
    assert (third.class_id.tolist(), third.data["phrase"].tolist()) == ([1], [CAT])  # the number that it had before
    assert isinstance(second.mask, sv.CompactMask) == compact
    assert (np.asarray(second.mask) == np.stack([DOGS[1], EDGE])).all()
    assert fourth.xyxy.tolist() == [[0, 0, 64, 48], [9, 9, 32, 32]]
    assert sv.MaskAnnotator().annotate(np.zeros((*SIZE, 3), np.uint8), second).any()


def test_outlines_with_fewer_corners():
    disc = np.hypot(*(np.mgrid[:200, :200] - 100)) < 80
    mask = Mask.from_array(disc | (np.hypot(*(np.mgrid[:200, :200] - 195)) < 3))
    exact = sorted(mask.polygons(), key=len)
    for tolerance in (0.5, 1.0, 4.0):
        fewer = sorted(mask.polygons(tolerance), key=len)
        for before, after in zip(exact, fewer, strict=True):
            assert 3 <= len(after) <= len(before)
            # Every corner that was left out lies within the tolerance of the new outline.
            ends = np.roll(after, -1, 0)
            along = (ends - after).astype(float)
            offset = before[:, None] - after[None]
            share = np.clip((offset * along).sum(2) / (along**2).sum(1), 0, 1)
            apart = np.linalg.norm(offset - share[..., None] * along, axis=2).min(1)
            assert apart.max() <= tolerance + 1e-6 or len(after) == 3
    assert len(max(mask.polygons(1.0), key=len)) < 40 < len(max(exact, key=len))
