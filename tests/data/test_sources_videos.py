"""Videos as training samples: every source through the real encoding, compared with the truth of its miniature."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniatures.videos import (
    FRAMES,
    SAV_TEXTS,
    VideoSet,
    shows,
    write_mevis,
    write_own_videos,
    write_ref_davis17,
    write_ref_sav,
    write_ref_youtube_vos,
    write_revos,
    write_video_qa,
)
from sa2va import Sa2VA
from sa2va.data.annotations.layout import MissingData
from sa2va.data.datasets.frame_sampling import deal, draw_frames, draw_from_segments
from sa2va.data.datasets.ref_sav import RefSAV
from sa2va.data.datasets.rvos import MeViS, OwnVideos, RefDavis17, ReferredVideos, RefYouTubeVOS, ReVOS
from sa2va.data.datasets.video_qa import VideoQuestions
from sa2va.data.encode import EncodeOptions, encode_sample, resize_masks
from sa2va.data.sample import SEG, Sample
from sa2va.media.video_file import VideoFile
from sa2va.processing.processor import Sa2VAProcessor


@pytest.fixture(scope="module")
def processor(sa2va: Sa2VA) -> Sa2VAProcessor:
    return sa2va.processor


def _frames(sample: Sample, pictures: np.ndarray) -> list[int]:
    """Which frames of a film a sample shows, by the grey of its background."""
    found = [round((float(picture[-1, -1].mean()) - 80) / 4) for picture in sample.pictures()]
    assert all(shows(sample.picture(k), pictures[frame]) for k, frame in enumerate(found))
    return found


def _expression(question: str, texts: dict[str, str]) -> str:
    """The expression that a question asks for; the longest text in it."""
    fitting = [key for key, text in texts.items() if text.lower().rstrip(".") in question.lower()]
    return max(fitting, key=lambda key: len(texts[key]))


SETS = {
    "mevis": (write_mevis, MeViS),
    "revos": (write_revos, ReVOS),
    "ref-ytvos": (write_ref_youtube_vos, RefYouTubeVOS),
    "ref-davis17": (lambda root: write_ref_davis17(root, "train"), RefDavis17),
    "own": (write_own_videos, OwnVideos),
    "own-pictures": (lambda root: write_own_videos(root, index_pictures=True), OwnVideos),
    "ref-sav": (write_ref_sav, RefSAV),
}


@pytest.mark.parametrize("name", SETS)
def test_samples_hold_the_truth_and_encode(name: str, tmp_path: Path, processor: Sa2VAProcessor):
    write, source_type = SETS[name]
    written: VideoSet = write(tmp_path)
    source = source_type(tmp_path, frames=4, phrases=3, views=2)
    stride = 4 if name == "ref-sav" else 1
    assert len(source) == 4
    for index in range(4):
        sample = source[index].validate()
        video = sample.id.partition("/")[2].rpartition("#")[0]
        film, texts = written.films[video], written.expressions[video]
        frames = _frames(sample, film.pictures)
        assert len(frames) == 4 and frames == sorted(set(frames)) and all(frame % stride == 0 for frame in frames)
        keys = [_expression(turn.question, texts) for turn in sample.turns]
        assert len(set(keys)) == len(keys) == min(3, len(texts))
        annotated = [frame // stride for frame in frames]
        truth = np.stack([written.masks[video, key][annotated] for key in keys])
        assert np.array_equal(np.stack(sample.masks), truth)
        encoded = encode_sample(sample, processor, EncodeOptions(key_frames=3))
        assert encoded.ids.tolist().count(processor.seg_token_id) == len(keys)
        assert encoded.masks is not None and encoded.grounding is not None and encoded.pixel_values is not None
        expected = resize_masks(torch.from_numpy(truth), processor.grounding_side // 4)
        assert torch.equal(encoded.masks, expected)
        assert len(encoded.grounding) == 4 and len(encoded.pixel_values) == 3
        again = source[index]
        assert again.turns == sample.turns and _frames(again, film.pictures) == frames


def test_views_show_other_frames_and_all_expressions_equally_often(tmp_path: Path):
    written = write_mevis(tmp_path)
    source = MeViS(tmp_path, frames=3, phrases=3, views=8)
    for video, film in written.films.items():
        samples = [source[i] for i in range(len(source)) if f"/{video}#" in source[i].id]
        assert len(samples) == 8
        shown = Counter(_expression(turn.question, written.expressions[video]) for s in samples for turn in s.turns)
        assert set(shown.values()) == {8 * 3 // 4}
        assert len({tuple(_frames(sample, film.pictures)) for sample in samples}) > 4
    other = MeViS(tmp_path, frames=3, phrases=3, views=8, seed=1)
    assert any(source[i].turns != other[i].turns for i in range(len(source)))


def test_questions_are_asked_as_they_are_and_phrases_become_requests(tmp_path: Path):
    write_mevis(tmp_path)
    source = MeViS(tmp_path)
    questions = [turn.question for i in range(2) for turn in source[i].turns]
    assert sum(question.startswith("Which square is never there? ") for question in questions) == 2
    assert all("red square." not in question and "Red" not in question for question in questions)
    assert all(turn.answer.count(SEG) == 1 for i in range(2) for turn in source[i].turns)


def test_descriptions_of_ref_sav_stay_as_they_are(tmp_path: Path):
    write_ref_sav(tmp_path)
    questions = {turn.question for turn in RefSAV(tmp_path)[0].turns}
    assert questions == {f"Please segment {text.rstrip('.')}." for text in SAV_TEXTS}


def test_a_video_of_few_frames_shows_each_once(tmp_path: Path):
    write_mevis(tmp_path)
    sample = MeViS(tmp_path, frames=50)[0]
    assert len(sample.frames) == FRAMES


def test_frames_of_mp4_are_read_by_seeking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_ref_sav(tmp_path, annotated=40)  # 157 frames with a key frame every 8
    decoded = []
    frames = VideoFile._frames

    def counting(self: VideoFile, *arguments: object):
        for frame in frames(self, *arguments):  # type: ignore[arg-type]
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(VideoFile, "_frames", counting)
    sample = RefSAV(tmp_path, frames=3)[0]
    assert len(decoded) <= 1  # to learn the size
    sample.pictures()
    sample.pictures()
    assert len(decoded) <= 1 + 3 * (8 + 2)


def test_what_is_missing_is_listed(tmp_path: Path):
    for _, source_type in SETS.values():
        with pytest.raises(ValueError, match="missing"):
            source_type(tmp_path)
    with pytest.raises(ValueError, match=r"video_chat\.json"):
        VideoQuestions(tmp_path)


def test_numbers_below_one_are_refused(tmp_path: Path):
    write_mevis(tmp_path)
    for option in ("frames", "phrases", "views"):
        with pytest.raises(ValueError, match=f"{option} must be at least 1"):
            MeViS(tmp_path, **{option: 0})


def test_a_set_without_expressions_is_refused():
    with pytest.raises(ValueError, match="has no entries"):
        ReferredVideos([], "nothing")


def test_missing_pictures_and_videos_are_named_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_mevis(tmp_path)
    write_ref_sav(tmp_path)
    write_video_qa(tmp_path)
    lost = {
        MeViS: "mevis/train/JPEGImages/0a1b/00003.jpg",
        RefSAV: "sam_v_full/sav_train/sav_000/sav_000000_manual.json",
        VideoQuestions: "chat_univi/Activity_Videos/v_one.mp4",
    }
    for source_type, name in lost.items():
        (tmp_path / "video_datas" / name).unlink()
        with pytest.raises(MissingData, match=f"{Path(name).name}.*\n.*1 entries are good"):
            source_type(tmp_path)
        assert len(source_type(tmp_path, skip_broken=True)) == 1
        assert Path(name).name in caplog.text


# -- video QA ----------------------------------------------------------------------------------------------------------


def test_video_questions(tmp_path: Path, processor: Sa2VAProcessor):
    written = write_video_qa(tmp_path)
    source = VideoQuestions(tmp_path, frames=5)
    first, second = (source[i].validate() for i in range(2))
    assert [(turn.question, turn.answer) for turn in first.turns] == [
        ("What moves?", "A red square."),
        ("Which way?", "Right."),
    ]
    assert [(turn.question, turn.answer) for turn in second.turns] == [("Look. What is blue?", "A square.")]
    frames = _frames(first, written.films["v_one.mp4"].pictures)
    assert [frame // 8 for frame in frames] == [0, 1, 2, 3, 4]  # one of each fifth
    assert _frames(second, written.films["v_two.mkv"].pictures) == [0, 1, 2]
    encoded = encode_sample(first, processor)
    assert encoded.pixel_values is not None and len(encoded.pixel_values) == 5
    assert encoded.masks is None and encoded.grounding is None


def test_views_of_a_video_question_show_other_frames(tmp_path: Path):
    written = write_video_qa(tmp_path)
    source = VideoQuestions(tmp_path, frames=5, views=4)
    pictures = written.films["v_one.mp4"].pictures
    assert len({tuple(_frames(source[i], pictures)) for i in range(0, 8, 2)}) > 1


@pytest.mark.parametrize("frames", [1, 3])
def test_clips_of_one_frame_encode_for_qwen(tmp_path: Path, open_sa2va: Callable[[str], Sa2VA], frames: int):
    write_video_qa(tmp_path)
    encoded = encode_sample(VideoQuestions(tmp_path, frames=frames)[0], open_sa2va("q25").processor)
    assert encoded.image_grid_thw is not None and len(encoded.image_grid_thw) == frames


@pytest.mark.parametrize(
    "messages, said",
    [
        ([("human", "What?")], "an entry has no question with an answer, 1 times: entry 1"),
        ([("human", "<video>"), ("gpt", "A.")], "an entry has no question with an answer, 1 times: entry 1"),
        ([("user", "What?"), ("gpt", "A.")], "a message is not from .*: entry 1"),
    ],
)
def test_wrong_conversations_are_named(tmp_path: Path, messages: list[tuple[str, str]], said: str):
    write_video_qa(tmp_path)
    path = tmp_path / "video_datas/chat_univi/video_chat.json"
    entries = json.loads(path.read_text())
    entries[1]["conversations"] = [{"from": who, "value": text} for who, text in messages]
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=said):
        VideoQuestions(tmp_path)


def test_a_damaged_video_is_an_error_and_not_a_repeated_frame(tmp_path: Path):
    write_video_qa(tmp_path)
    path = tmp_path / "video_datas/chat_univi/Activity_Videos/v_one.mp4"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 4] = bytes(len(content) // 4)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"v_one\.mp4"):
        VideoQuestions(tmp_path, frames=40)[0].pictures()


# -- drawing -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 99))
def test_drawn_frames_are_different_and_in_order(count: int, wanted: int, seed: int):
    for draw in (draw_frames, draw_from_segments):
        drawn = draw(count, wanted, random.Random(seed))
        assert drawn == sorted(set(drawn)) and len(drawn) == min(count, wanted)
        assert drawn[0] >= 0 and drawn[-1] < count
    if count > wanted:
        edges = [0, *draw_from_segments(count, wanted, random.Random(seed)), count - 1]
        assert max(np.diff(edges)) < 2 * -(-count // wanted)


@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 20))
def test_dealing_is_fair(items: int, wanted: int, views: int):
    hands = [deal(range(items), wanted, view, random.Random("a video")) for view in range(views)]
    assert all(len(set(hand)) == len(hand) == min(items, wanted) for hand in hands)
    times = Counter(item for hand in hands for item in hand)
    assert max(times.values()) - min(times.get(item, 0) for item in range(items)) <= 1
