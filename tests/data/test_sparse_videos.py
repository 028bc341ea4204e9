"""Own videos that are annotated in some frames only: what is shown, what is learnt from, and what is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from miniatures import images as mini
from miniatures.videos import FRAMES, write_own_videos
from sa2va import Sa2VA
from sa2va.data.check import check_set
from sa2va.data.collate import Collator
from sa2va.data.datasets.interchange import Chat, write_chat
from sa2va.data.datasets.rvos import OwnVideos
from sa2va.data.encode import EncodeOptions, SampleRejected, encode_clicks, encode_sample
from sa2va.data.preview import as_trained, preview
from sa2va.data.sample import Sample
from sa2va.train.config import SourceOptions, TrainConfig
from sa2va.train.losses import LossOptions, frame_shares, low_resolution_targets, mask_losses
from sa2va.train.run import prepare, train
from sa2va.train.trainer import counts_of

SIZE = (48, 64)


def box(frame: int, number: int = 0) -> mini.Box:
    return (4 + 2 * frame, 6 + 20 * number, 20 + 2 * frame, 20 + 20 * number)


def video(
    root: Path, masks: dict[str, Any], expressions: list[dict[str, Any]] | None = None, frames: int = 8, exif: int = 1
) -> Path:
    """Write one video, "v", of two boxes that move, in its own form."""
    tags = Image.Exif()
    tags[0x0112] = exif
    for frame in range(frames):
        path = root / f"JPEGImages/v/{frame:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = mini.painted((box(frame), mini.RED), (box(frame, 1), mini.BLUE), size=SIZE)
        Image.fromarray(picture).save(path, quality=100, subsampling=0, exif=tags)
    spoken = expressions or [{"exp": "the red box", "anno_id": [0], "obj_id": [1]}]
    names = [f"{frame:05d}" for frame in range(frames)]
    content = {"videos": {"v": {"frames": names, "expressions": dict(enumerate(spoken))}}}
    mini.write_json(content, root / "meta_expressions.json")
    if masks:
        mini.write_json(masks, root / "mask_dict.json")
    return root


def rle(frame: int, number: int = 0) -> dict[str, Any]:
    return mini.rle(mini.area(box(frame, number), size=SIZE))


def indexed(root: Path, frame: int, value: int = 1) -> None:
    mini.save(mini.area(box(frame), size=SIZE).astype(np.uint8) * value, root / f"Annotations/v/{frame:05d}.png")


def frames_of(sample: Sample) -> list[int]:
    """Which frames of the video a sample shows, by where red is."""
    columns = [
        np.flatnonzero((picture[10, :, 0].astype(int) - picture[10, :, 2]) > 100) for picture in sample.pictures()
    ]
    return [(int(found[0]) - 4) // 2 for found in columns]


def known(sample: Sample) -> list[list[int]]:
    """Of each mask the frames of the video in which it is known."""
    shown = np.array(frames_of(sample))
    rows = np.ones((len(sample.masks), len(shown)), bool) if sample.annotated is None else sample.annotated
    return [shown[row].tolist() for row in rows]


def test_frames_that_are_not_annotated_are_shown_and_not_learnt_from(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    video(tmp_path, {"0": {"00000": rle(0), "00004.jpg": None}})
    source = OwnVideos(tmp_path, frames=5, views=6)
    for sample in source:
        sample.validate()
        assert len(sample.frames) == 5 and known(sample) == [[0, 4]]
        assert sample.masks[0][0].any() and not sample.masks[0][1:].any()
    assert len({tuple(frames_of(sample)) for sample in source}) > 1
    assert "annotated in some of their frames only" in caplog.text and "v (2 of 8)" in caplog.text


def test_where_enough_frames_are_annotated_no_others_are_shown(tmp_path: Path):
    video(tmp_path, {"0": {f"{frame:05d}": rle(frame) for frame in range(0, 8, 2)}})
    for sample in OwnVideos(tmp_path, frames=3, views=4):
        assert sample.annotated is None and set(frames_of(sample)) < {0, 2, 4, 6} and len(sample.frames) == 3


def test_index_pictures_may_be_there_for_some_frames(tmp_path: Path):
    video(tmp_path, {})
    indexed(tmp_path, 0)
    indexed(tmp_path, 3, value=0)  # hidden
    (sample,) = OwnVideos(tmp_path, frames=4)
    assert known(sample) == [[0, 3]] and sample.masks[0][0].any()
    report = check_set(tmp_path, "video-json", most=None)
    assert report.good and report.doubts[0].examples == "v (2 of 8)"


def test_every_object_is_known_in_one_of_the_frames_that_are_shown(tmp_path: Path):
    both = [{"exp": "the red box", "anno_id": [0]}, {"exp": "the blue box", "anno_id": [1]}]
    video(tmp_path, {"0": {"00000": rle(0)}, "1": {"00005": rle(5, 1), "00006": rle(6, 1)}}, both)
    for sample in OwnVideos(tmp_path, frames=2, views=4):
        assert sample.validate().annotated is not None and sorted(map(len, known(sample))) == [1, 1]
    for sample in OwnVideos(tmp_path, frames=1, views=4):  # one of the two is left for another view
        assert len(sample.turns) == len(sample.masks) == 1 and sample.annotated is None


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"0": {"00009": None}}, r"names frames \['00009'\] that video 'v' has not"),
        ({"0": [None]}, r"'0' with 1 frames .* 8 frames; .*they are to be named: \{.00000.: "),
        ({"0": {}}, "an expression is annotated in no frame, 1 times: video v, expression 0"),
        ({"0": "all"}, "expected a list of masks, one per frame, or masks by frame"),
    ],
)
def test_masks_that_belong_to_no_frame_are_refused(tmp_path: Path, masks: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        OwnVideos(video(tmp_path, masks))


def test_a_mask_that_is_missing_or_broken_does_not_pass_the_check(tmp_path: Path):
    write_own_videos(tmp_path, index_pictures=True)
    (tmp_path / "Annotations/first/00001.png").write_bytes(b"no picture")
    (tmp_path / "Annotations/second/00002.png").unlink()
    report = check_set(tmp_path, "video-json", most=None)
    assert not report.good and report.broken_count == 1 and "00001.png" in report.broken[0][1]
    assert report.doubts[0].examples == f"second ({FRAMES - 1} of {FRAMES})"
    for file in (tmp_path / "Annotations/second").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"an expression is annotated in no frame.*video second"):
        OwnVideos(tmp_path)


def test_objects_that_no_frame_shows_do_not_pass_the_check(tmp_path: Path):
    video(tmp_path, {"0": [rle(0), *[None] * 7]}, [{"exp": "a", "anno_id": [0]}, {"exp": "none", "anno_id": []}])
    report = check_set(tmp_path, "video-json", most=None)
    assert report.good and "null means hidden" in report.doubts[0].what  # in the first frame alone
    mini.write_json({"0": [None] * 8}, tmp_path / "mask_dict.json")
    (broken,) = check_set(tmp_path, "video-json", most=None).broken
    assert "expressions ['0'] mean is in no annotated frame" in broken[1]


def test_black_and_white_index_pictures(tmp_path: Path):
    video(tmp_path, {})
    for frame in range(8):
        indexed(tmp_path, frame, value=255)
    (sample,) = OwnVideos(tmp_path, frames=2)
    assert all(mask.any() for mask in sample.masks[0])
    mini.write_json(
        json.loads((tmp_path / "meta_expressions.json").read_text().replace('"obj_id": [1]', '"obj_id": [1, 2]')),
        tmp_path / "meta_expressions.json",
    )
    with pytest.raises(ValueError, match=r"\.png is black and white, .* \[1, 2\]"):
        OwnVideos(tmp_path)[0]


def test_equal_expressions_of_a_video_are_united(tmp_path: Path):
    same = [{"exp": "the box", "anno_id": [0]}, {"exp": "The box.", "anno_id": [1]}]
    video(tmp_path, {"0": [rle(f) for f in range(8)], "1": [rle(f, 1) for f in range(8)]}, same)
    (sample,) = OwnVideos(tmp_path, frames=2)
    assert len(sample.turns) == 1
    expected = [mini.area(box(frame), box(frame, 1), size=SIZE) for frame in frames_of(sample)]
    assert np.array_equal(sample.masks[0], expected)


@pytest.mark.parametrize("folder", ["D:\\\\films\\\\v\\\\", "/films/v/"])
def test_turned_frames_and_names_of_another_machine(tmp_path: Path, folder: str):
    video(tmp_path, {"0": [rle(frame) for frame in range(8)]}, exif=6)  # drawn on the stored frames
    path = tmp_path / "meta_expressions.json"
    path.write_text(path.read_text().replace('"0000', f'"{folder}0000'), encoding="utf-16")
    (sample,) = OwnVideos(tmp_path, frames=3)
    assert sample.validate().size == SIZE[::-1]
    for picture, mask in zip(sample.pictures(), sample.masks[0], strict=True):
        assert np.array_equal(picture[..., 0].astype(int) - picture[..., 2] > 100, mask)


# -- to the loss -------------------------------------------------------------------------------------------------------


@pytest.fixture
def sparse(tmp_path: Path) -> Sample:
    both = [{"exp": "the red box", "anno_id": [0]}, {"exp": "the blue box", "anno_id": [1]}]
    masks = {"0": {"00000": rle(0), "00003": rle(3)}, "1": {"00003": rle(3, 1)}}
    (sample,) = OwnVideos(video(tmp_path / "data", masks, both), frames=4)
    return sample.validate()


def test_only_annotated_frames_are_drawn_and_only_known_masks_count(sparse: Sample, sa2va: Sa2VA, tmp_path: Path):
    encoded = encode_sample(sparse, sa2va.processor, EncodeOptions(key_frames=4))
    assert encoded.pixel_values is not None and len(encoded.pixel_values) == 4  # the language model sees all
    assert encoded.masks is not None and encoded.grounding is not None and len(encoded.grounding) == 2
    assert encoded.annotated is not None and sorted(encoded.annotated.tolist()) == [[False, True], [True, True]]
    batch = Collator.of(sa2va.processor)([encoded, encode_sample(sparse, sa2va.processor)])
    assert batch.annotated is not None and batch.masks is not None and batch.frames_per_sample == (2, 2)
    assert counts_of(batch).frames == 4
    output = sa2va.model(batch)
    assert output.masks is not None
    shares = torch.tensor(frame_shares(output.objects_per_sample, batch.frames_per_sample, batch.annotated))
    assert sorted(shares[:4].tolist()) == [0.0, 0.5, 0.5, 1.0]
    side = output.masks.candidates.shape[-1]
    targets = low_resolution_targets(batch.masks, side)
    unknown = shares == 0
    changed = torch.where(unknown[:, None, None], 1 - targets, targets)
    options = LossOptions(points=None)
    ours, others = (mask_losses(output.masks, one, shares, options) for one in (targets, changed))
    assert all(torch.equal(ours[name].mean(), others[name].mean()) for name in ours) and ours
    assert preview([sparse, as_trained(sparse, sa2va.processor)], tmp_path / "sheet.png").is_file()


def test_clicks_are_on_frames_in_which_all_is_known(sparse: Sample, sa2va: Sa2VA, tmp_path: Path):
    encoded = encode_clicks(sparse, sa2va.processor, np.random.default_rng(0))
    assert encoded.masks is not None and encoded.masks.shape[:2] == (2, 1)
    both = [{"exp": "the red box", "anno_id": [0]}, {"exp": "the blue box", "anno_id": [1]}]
    (apart,) = OwnVideos(video(tmp_path / "x", {"0": {"00000": rle(0)}, "1": {"00003": rle(3, 1)}}, both), frames=4)
    with pytest.raises(SampleRejected):
        encode_clicks(apart, sa2va.processor, np.random.default_rng(0))


def test_sparse_clips_are_written_and_read_again(sparse: Sample, tmp_path: Path):
    path = write_chat([sparse], tmp_path / "out/chat.jsonl")
    record = json.loads(path.read_text())
    assert [len(mask) for mask in record["masks"]] == [len(frames) for frames in known(sparse)]
    (again,) = Chat(path)
    assert sparse.annotated is not None and again.annotated is not None
    assert np.array_equal(again.annotated, sparse.annotated)
    assert np.array_equal(np.stack(again.masks), np.stack(sparse.masks))
    record["masks"][0] = {"lost.jpg": None}
    mini.write_json(record, path)
    with pytest.raises(ValueError, match="a mask names no frame of its clip"):
        Chat(path)


def test_a_step_is_trained_on_the_first_frame_alone(tmp_path: Path, checkpoint: Callable[[str], Path]):
    root = video(tmp_path / "data", {"0": {"00000": rle(0)}})
    config = TrainConfig(
        model=str(checkpoint("iv25_qwen2")),
        output=str(tmp_path / "run"),
        data=(SourceOptions("video-json", {"root": str(root), "frames": 3}),),
        steps=1,
        batch_size=1,
        accumulation=1,
        precision="fp32",
        workers=0,
    )
    run = prepare(config)
    before = {name: value.clone() for name, value in run.model.named_parameters() if value.requires_grad}
    train(run, dry_run=True, progress=False)
    assert any(not torch.equal(before[name], value) for name, value in run.model.named_parameters() if name in before)


def test_a_mask_that_is_known_nowhere_is_refused(sparse: Sample):
    with pytest.raises(ValueError, match=r"masks \[0, 1\] are not known in any frame"):
        replace(sparse, annotated=np.zeros((2, 4), bool)).validate()
