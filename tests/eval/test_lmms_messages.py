"""Messages of lmms-eval as requests to a model: what is asked, what is shown, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sa2va.eval.lmms_messages import MediaSampling, read_messages
from sa2va.results.history import Turn

PICTURE = Image.fromarray(np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3))


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(source: Any = PICTURE) -> dict[str, Any]:
    return {"type": "image", "url": source}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def frames(count: int, height: int = 6, width: int = 8) -> list[np.ndarray]:
    return [np.full((height, width, 3), number, np.uint8) for number in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A clip of nine frames, as a folder of pictures that count from 0."""
    for number, frame in enumerate(frames(9)):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    return str(tmp_path)


def shown(media: Any) -> list[int]:
    """Which frames: their pixels count."""
    return [int(frame[0, 0, 0]) for frame in media()]


def test_a_picture_and_a_question():
    request = read_messages([user(image(), text("What is it?\nA. cat"))])
    assert (request.question, request.history, request.source) == ("What is it?\nA. cat", (), "")
    assert request.media is not None
    np.testing.assert_array_equal(np.asarray(request.media()), np.asarray(PICTURE))


def test_words_alone():
    assert read_messages([{"role": "user", "content": "Hello"}]).media is None


def test_earlier_turns_are_history():
    messages = [user(image(), text("One?")), {"role": "assistant", "content": [text("Yes.")]}, user(text("Two?"))]
    request = read_messages(messages)
    assert request.history == (Turn("One?", "Yes."),)
    assert request.question == "Two?"
    assert request.media is not None


def test_a_system_prompt_is_dropped():
    request = read_messages([{"role": "system", "content": [text("Be brief.")]}, user(text("Hello"))])
    assert (request.question, request.system) == ("Hello", True)
    assert not read_messages([user(text("Hello"))]).system


def test_words_around_pictures_are_joined_and_marks_removed():
    request = read_messages([user(text("Look: <image>"), image(), text("<image>What is it?")), user(text("Answer."))])
    assert request.question == "Look:\nWhat is it?\nAnswer."


def test_several_pictures_are_frames_of_one_size():
    pictures = [frame[: 2 + number] for number, frame in enumerate(frames(3))]
    request = read_messages([user(*(image(Image.fromarray(one)) for one in pictures), text("Which?"))])
    assert request.media is not None
    assert [frame.shape for frame in request.media()] == [(4, 8, 3)] * 3
    assert shown(request.media) == [0, 1, 2]


def test_too_many_pictures_are_thinned_evenly():
    request = read_messages([user(*map(image, frames(9)), text("Which?"))], MediaSampling(num_pictures=3))
    assert shown(request.media) == [0, 4, 8]


@pytest.mark.parametrize(("key_frames", "expected"), [("uniform", [0, 4, 8]), ("first", [0, 1, 2])])
def test_a_clip_shows_its_key_frames(folder: str, key_frames: Any, expected: list[int]):
    messages = [user({"type": "video", "url": folder}, text("What happens?"))]
    request = read_messages(messages, MediaSampling(key_frames, num_frames=3))
    assert shown(request.media) == expected


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_clip_may_be_a_url_of_a_file(folder: str, prefix: str):
    request = read_messages(
        [user({"type": "video", "url": prefix + folder}, text("What?"))], MediaSampling(num_frames=2)
    )
    assert shown(request.media) == [0, 8]


def test_a_clip_may_be_frames():
    for clip in (frames(5), np.stack(frames(5)), [Image.fromarray(frame) for frame in frames(5)]):
        request = read_messages([user({"type": "video", "url": clip}, text("What?"))], MediaSampling(num_frames=2))
        assert shown(request.media) == [0, 4]


def test_a_part_of_a_clip(tmp_path: Path):
    first, *rest = [Image.fromarray(frame) for frame in frames(20)]
    first.save(tmp_path / "clip.gif", save_all=True, append_images=rest, duration=100)
    whole, part = (
        read_messages(
            [user({"type": "video", "url": str(tmp_path / "clip.gif"), **span}, text("?"))], MediaSampling("first")
        )
        for span in ({}, {"start_time": 1, "end_time": 1.3})
    )
    assert shown(whole.media) == [0, 1, 2, 3, 4]
    assert shown(part.media) == [10, 11, 12]
    assert whole.source != part.source


def test_requests_about_one_file_say_so(folder: str):
    first, second = (read_messages([user({"type": "video", "url": folder}, text(words))]) for words in ("A?", "B?"))
    assert first.source == second.source != ""


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user({"type": "audio", "url": "a.wav"}, text("Who speaks?"))], "takes text, pictures and clips; got 'audio'"),
        ([user(image(), {"type": "video", "url": "a.mp4"}, text("?"))], "got 1 clips and 1 pictures"),
        ([user(*[{"type": "video", "url": "a.mp4"}] * 2, text("?"))], "got 2 clips and 0 pictures"),
        ([user(text("?")), {"role": "assistant", "content": [text("!")]}], r"got \['user', 'assistant'\]"),
        ([], r"got \[\]"),
    ],
)
def test_what_the_model_cannot_take_is_refused(messages: list, message: str):
    with pytest.raises(ValueError, match=message):
        read_messages(messages)


def test_frames_have_no_times():
    clip = {"type": "video", "url": frames(3), "start_time": 1.0}
    request = read_messages([user(clip, text("What?"))])
    assert request.media is not None
    with pytest.raises(ValueError, match="need a clip in a file"):
        request.media()
