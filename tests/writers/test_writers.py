"""Writers: outputs that open elsewhere, that appear whole or not at all, and that can be stopped and resumed."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from sa2va.inference.video_result import Track
from sa2va.masks.mask import Mask, Segment
from sa2va.results.answer import Frame
from sa2va.visualization.colors import FILL
from sa2va.writers import WRITERS, FrameWriter, write_track

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (96, 128)
NTSC = Fraction(30000, 1001)
FOLDERS = ["masks", "objects", "cutout"]


def box_mask(x: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[10:30, x : x + 12] = True
    return mask


def frame(index: int, fps: Fraction = NTSC, size: tuple[int, int] = SIZE) -> Frame:
    """Object 5 moves right all the time, object 2 comes at frame 2 and is out of sight in frame 4."""
    segments = [Segment(5, "the red car", (Mask.from_array(box_mask(index, size)),), 0.5, 0.75)]
    if index >= 2:
        mask = np.zeros(size, bool) if index == 4 else box_mask(40, size)
        segments.append(Segment(2, "a dog/../cat", (Mask.from_array(mask),), 1.0, 0.25))
    return Frame(index, float(index / fps), size, tuple(segments))


def picture(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((*size, 3), (40 * (index % 6), 100, 20), np.uint8)


def make_track(count: int = 6, fps: Fraction = NTSC, size: tuple[int, int] = SIZE, source: Path | None = None) -> Track:
    pairs = ((frame(index, fps, size), picture(index, size)) for index in range(count))
    return Track(pairs, fps=fps, size=size, source=source, total=count)


def writer(kind: str, folder: Path, **options) -> FrameWriter:
    return WRITERS[kind](folder / WRITERS[kind].default_name, size=SIZE, fps=NTSC, **options)


def write(target: FrameWriter, indices) -> None:
    for index in indices:
        target.write(frame(index), picture(index))


def files(folder: Path) -> list[str]:
    """Everything below a folder, hidden files included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as media:
        return [picture.to_ndarray(format="rgb24") for picture in media.decode(video=0)]


class TestVideos:
    def test_the_overlay_has_the_masks_and_the_sources_rate_and_size(self, tmp_path):
        make_track().save(tmp_path / "out.mp4", tmp_path / "masks")
        shown = decoded(tmp_path / "out.mp4")
        assert len(shown) == 6 and shown[0].shape == (*SIZE, 3)
        palette: Any = Image.open(tmp_path / "masks" / "00003.png")
        color = np.array(palette.getpalette()[3:6])  # of object 5, which is the first
        np.testing.assert_allclose(shown[3][20, 9], (1 - FILL) * picture(3)[0, 0] + FILL * color, atol=12)
        np.testing.assert_allclose(shown[3][90, 120], picture(3)[0, 0], atol=8)
        with av.open(str(tmp_path / "out.mp4")) as media:
            assert media.streams.video[0].average_rate == NTSC

    def test_binary_is_white_on_black(self, tmp_path):
        with writer("binary", tmp_path) as target:
            write(target, range(6))
        for index, shown in enumerate(decoded(tmp_path / "binary.mp4")):
            np.testing.assert_array_equal(shown[..., 0] > 127, frame(index).masks.any(axis=0))

    @pytest.mark.parametrize("kind", ["overlay", "cutout", "cutout-video"])
    def test_pixels_are_asked_for_where_they_are_needed(self, tmp_path, kind):
        with pytest.raises(ValueError, match="no pixels"), writer(kind, tmp_path) as target:
            target.write(frame(0), None)
        with pytest.raises(ValueError, match=r"\(96, 128, 3\)"), writer(kind, tmp_path) as target:
            target.write(frame(0), np.zeros((3, 3, 3), np.uint8))
        assert files(tmp_path) == []


class TestFolders:
    def test_palette_pngs(self, tmp_path):
        make_track().save(tmp_path / "masks")
        assert files(tmp_path / "masks") == [*(f"{i:05d}.png" for i in range(6)), "objects.json"]
        shown: Any = Image.open(tmp_path / "masks" / "00003.png")
        assert shown.mode == "P"
        first, second = make_track().results()[3].segments
        assert shown.getpalette()[3:9] == [*(first.color or ()), *(second.color or ())]
        expected = np.where(box_mask(40), 2, box_mask(3))  # index 1: object 5, seen first
        np.testing.assert_array_equal(np.asarray(shown), expected)
        manifest = json.loads((tmp_path / "masks" / "objects.json").read_text())
        assert manifest["objects"] == [
            {"index": 1, "id": 5, "phrase": "the red car"},
            {"index": 2, "id": 2, "phrase": "a dog/../cat"},
        ]

    def test_a_frame_without_objects_is_background(self, tmp_path):
        with writer("masks", tmp_path) as target:
            target.write(Frame(0, None, SIZE), None)
        shown = Image.open(tmp_path / "masks" / "00000.png")
        assert shown.mode == "P" and not np.asarray(shown).any()

    def test_objects_have_a_folder_each(self, tmp_path):
        with writer("objects", tmp_path) as target:
            write(target, range(6))
        first, second = tmp_path / "objects" / "005-the-red-car", tmp_path / "objects" / "002-a-dog-cat"
        assert files(first) == [f"{i:05d}.png" for i in range(6)]
        assert files(second) == [f"{i:05d}.png" for i in range(2, 6)]
        shown = Image.open(first / "00004.png")
        assert shown.mode == "L"
        np.testing.assert_array_equal(np.asarray(shown), box_mask(4) * 255)
        assert not np.asarray(Image.open(second / "00004.png")).any()

    def test_cutouts_are_rgba(self, tmp_path):
        with writer("cutout", tmp_path) as target:
            write(target, range(3))
        shown = Image.open(tmp_path / "cutout" / "00002.png")
        assert shown.mode == "RGBA"
        union = frame(2).masks.any(axis=0)
        np.testing.assert_array_equal(np.asarray(shown)[..., 3], union * 255)
        assert (np.asarray(shown)[union][:, :3] == picture(2)[0, 0]).all()

    @pytest.mark.parametrize("kind", FOLDERS)
    def test_a_resumed_run_equals_an_uninterrupted_one(self, tmp_path, kind):
        with writer(kind, tmp_path / "whole") as target:
            write(target, range(6))
        with pytest.raises(OSError, match="power cut"), writer(kind, tmp_path / "parts") as target:
            write(target, range(3))
            raise OSError("power cut")
        with writer(kind, tmp_path / "parts", resume=True) as target:
            assert target.done == {0, 1, 2}
            before = {name: (tmp_path / "parts" / name).stat().st_mtime_ns for name in files(tmp_path / "parts")}
            write(target, range(6))
        assert files(tmp_path / "parts") == files(tmp_path / "whole")
        for name in files(tmp_path / "whole"):
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        kept = [name for name in before if name.endswith(".png")]
        assert kept and all((tmp_path / "parts" / name).stat().st_mtime_ns == before[name] for name in kept)

    @pytest.mark.parametrize("kind", FOLDERS)
    def test_a_new_run_leaves_no_frame_of_the_old_one(self, tmp_path, kind):
        with writer(kind, tmp_path) as target:
            write(target, range(6))
        old = files(tmp_path)
        with writer(kind, tmp_path) as target:
            assert files(tmp_path) == old  # nothing is lost before there is something new
            write(target, range(2))
        assert {Path(name).name for name in files(tmp_path)} == {"00000.png", "00001.png", "objects.json"}

    @pytest.mark.parametrize("resume", [False, True])
    def test_somebody_elses_frames_are_never_touched(self, tmp_path, resume):
        folder = tmp_path / "masks"
        folder.mkdir()
        (folder / "00000.png").write_bytes(b"precious")
        with pytest.raises(ValueError, match="not written here"):
            writer("masks", tmp_path, resume=resume)
        assert (folder / "00000.png").read_bytes() == b"precious"

    def test_another_kind_or_size_in_the_folder_is_refused(self, tmp_path):
        with writer("masks", tmp_path) as target:
            write(target, range(2))
        with pytest.raises(ValueError, match="holds masks"):
            WRITERS["cutout"](tmp_path / "masks", size=SIZE)
        with pytest.raises(ValueError, match=r"size \(h, w\) \[96, 128\]"):
            WRITERS["masks"](tmp_path / "masks", size=(5, 5), resume=True)
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match="is a file"):
            WRITERS["masks"](tmp_path / "file", size=SIZE)


class TestJson:
    def test_youtube_vos_form(self, tmp_path):
        path = tmp_path / "out.json"
        make_track(source=Path("/somewhere/clip.mp4")).save(path)
        record = json.loads(path.read_text())
        assert record["info"] == {"complete": True, "source": "clip.mp4"}
        video = record["videos"][0]
        assert (video["height"], video["width"], video["length"]) == (*SIZE, 6)
        assert video["frame_indices"] == list(range(6))
        car, dog = record["annotations"]
        assert (car["object_id"], car["phrase"], car["score"]) == (5, "the red car", 0.5)
        assert (dog["object_id"], dog["presences"]) == (2, [None, None, 0.25, 0.25, 0.25, 0.25])
        for index in range(6):
            np.testing.assert_array_equal(coco.decode(car["segmentations"][index]).astype(bool), box_mask(index))
            assert car["bboxes"][index] == [index, 10, 12, 20]
            assert car["areas"][index] == 240
        assert [rle is None for rle in dog["segmentations"]] == [True, True, False, False, True, False]
        assert dog["bboxes"][4] is None and dog["areas"] == [None, None, 240, 240, 0, 240]

    def test_a_track_of_no_frames_is_valid_json(self, tmp_path):
        make_track(0).to_json(tmp_path / "any-name")
        assert json.loads((tmp_path / "any-name").read_text())["annotations"] == []

    def test_json_lines_hold_the_frames(self, tmp_path):
        make_track().save(tmp_path / "out.jsonl")
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        assert [Frame.from_json(line) for line in lines] == [frame(index) for index in range(6)]

    def test_json_lines_resume_behind_a_broken_line(self, tmp_path):
        with writer("jsonl", tmp_path / "whole") as target:
            write(target, range(6))
        with writer("jsonl", tmp_path / "parts") as target:
            write(target, range(3))
        path = tmp_path / "parts" / "frames.jsonl"
        path.write_bytes(path.read_bytes()[:-30])  # a killed run
        with writer("jsonl", tmp_path / "parts", resume=True) as target:
            assert target.done == {0, 1}
            write(target, range(6))
        assert path.read_bytes() == (tmp_path / "whole" / "frames.jsonl").read_bytes()

    def test_json_lines_of_something_else_are_refused(self, tmp_path):
        path = tmp_path / "frames.jsonl"
        path.write_text('{"loss": 1}\n')
        with pytest.raises(ValueError, match="does not hold frames"):
            writer("jsonl", tmp_path, resume=True)
        with writer("jsonl", tmp_path / "b") as target:
            write(target, range(1))
        with pytest.raises(ValueError, match="size"):
            WRITERS["jsonl"](tmp_path / "b" / "frames.jsonl", size=(3, 3), resume=True)


class TestEnds:
    @pytest.mark.parametrize("kind", ["overlay", "binary", "cutout-video", "json"])
    def test_a_file_appears_only_at_the_end_and_replaces_the_old_one_whole(self, tmp_path, kind):
        name = WRITERS[kind].default_name
        (tmp_path / name).write_bytes(b"old")
        with writer(kind, tmp_path) as target:
            write(target, range(3))
            assert (tmp_path / name).read_bytes() == b"old"
        assert (tmp_path / name).read_bytes() != b"old"
        assert files(tmp_path) == [name]

    @pytest.mark.parametrize("kind", WRITERS)
    def test_an_error_leaves_nothing_half_written(self, tmp_path, kind):
        with pytest.raises(OSError, match="broken"), writer(kind, tmp_path) as target:
            write(target, range(3))
            raise OSError("broken")
        left = files(tmp_path)
        assert not any(Path(name).name.startswith(".") for name in left)
        if not WRITERS[kind].resumable:
            assert left == []

    @pytest.mark.parametrize("kind", WRITERS)
    def test_ctrl_c_leaves_a_valid_part(self, tmp_path, kind):
        with pytest.raises(KeyboardInterrupt), writer(kind, tmp_path) as target:
            write(target, range(3))
            raise KeyboardInterrupt
        path = tmp_path / WRITERS[kind].default_name
        assert not any(Path(name).name.startswith(".") for name in files(tmp_path))
        if path.suffix in (".mp4", ".webm"):
            assert len(decoded(path)) == 3
        elif kind == "json":
            record = json.loads(path.read_text())
            assert record["info"]["complete"] is False
            assert [len(entry["segmentations"]) for entry in record["annotations"]] == [3, 3]
        elif kind == "jsonl":
            assert len(path.read_text().splitlines()) == 3
        elif kind == "cvat":
            assert (path / "annotations.xml").read_text().count("<track ") == 2
        elif kind == "label-studio":
            assert (path / "tasks.json").read_text().count('"videorectangle"') == 2
            assert len(decoded(path / "videos/video.mp4")) == 3
        else:
            assert {Path(name).name for name in files(path)} >= {"00000.png", "00001.png", "00002.png"}

    @pytest.mark.parametrize("kind", ["overlay", "json"])
    def test_ctrl_c_before_the_first_frame(self, tmp_path, kind):
        with pytest.raises(KeyboardInterrupt), writer(kind, tmp_path):
            raise KeyboardInterrupt
        assert files(tmp_path) == ([] if kind == "overlay" else ["annotations.json"])

    def test_all_kinds_at_once_in_one_pass(self, tmp_path):
        seen = []
        writers = [writer(kind, tmp_path) for kind in WRITERS]
        write_track(make_track(), writers, on_frame=lambda done: seen.append(done.index))
        assert seen == list(range(6))
        made = {Path(name).parts[0] for name in files(tmp_path)}
        assert made == {kind.default_name for kind in WRITERS.values()}

    def test_save_writes_several_paths_in_one_pass(self, tmp_path):
        make_track().save(tmp_path / "a.mp4", tmp_path / "masks", tmp_path / "a.json")
        assert len(decoded(tmp_path / "a.mp4")) == 6
        assert (tmp_path / "masks" / "00005.png").exists() and (tmp_path / "a.json").exists()

    def test_save_refuses_unknown_names_before_it_computes(self, tmp_path):
        track = make_track()
        with pytest.raises(ValueError, match=r"out\.xyz"):
            track.save(tmp_path / "a.mp4", tmp_path / "out.xyz")
        assert files(tmp_path) == []
        assert len(track.results()) == 6

    def test_one_bad_path_leaves_no_trace_of_the_good_ones(self, tmp_path):
        (tmp_path / "masks").mkdir()
        (tmp_path / "masks" / "00000.png").write_bytes(b"precious")
        with pytest.raises(ValueError, match="not written here"):
            make_track().save(tmp_path / "a.mp4", tmp_path / "masks")
        assert files(tmp_path) == ["masks/00000.png"]

    def test_a_failing_track_ends_its_files(self, tmp_path):
        def pairs():
            yield frame(0), picture(0)
            raise OSError("the model failed")

        with pytest.raises(OSError, match="model"):
            Track(pairs(), size=SIZE).save(tmp_path / "a.mp4", tmp_path / "a.json")
        assert files(tmp_path) == []

    def test_frames_must_come_in_order_in_one_size_and_before_the_end(self, tmp_path):
        with writer("jsonl", tmp_path) as target:
            write(target, [1])
            with pytest.raises(ValueError, match="index 1 after 1"):
                write(target, [1])
            with pytest.raises(ValueError, match="size"):
                target.write(frame(2, size=(30, 128)), None)
        with pytest.raises(ValueError, match="closed"):
            write(target, [2])

    @pytest.mark.parametrize("kind", ["overlay", "json"])
    def test_files_cannot_be_resumed(self, tmp_path, kind):
        with pytest.raises(ValueError, match="cannot resume"):
            writer(kind, tmp_path, resume=True)


@pytest.mark.parametrize("kind", ["overlay", "cutout-video"])
def test_pixels_may_be_overwritten_once_a_video_has_them(kind: str, tmp_path: Path):
    """A camera fills the same memory again, while its last frames still wait to be encoded."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    with writer(kind, tmp_path / "one") as target:
        write(target, range(8))
    buffer = np.empty((*SIZE, 3), np.uint8)
    with writer(kind, tmp_path / "other") as target:
        for index in range(8):
            buffer[:] = picture(index)
            target.write(frame(index), buffer)
            assert (buffer == picture(index)).all()
            buffer[:] = 255
    name = WRITERS[kind].default_name
    first, second = decoded(tmp_path / "one" / name), decoded(tmp_path / "other" / name)
    assert len(first) == len(second) == 8
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("count", [1, 9], ids=["found at the end", "found on the way"])
def test_what_goes_wrong_while_a_video_is_encoded_beside_is_raised(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sa2va.writers.video_encoder.VideoEncoder.write", full)
    written = 0
    with pytest.raises(OSError, match="No space left"), writer("overlay", tmp_path) as target:
        for index in range(count):
            write(target, [index])
            written += 1
    assert written <= 4 and files(tmp_path) == []
