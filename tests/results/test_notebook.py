"""What notebooks show: results over their pictures, which nothing keeps."""

from __future__ import annotations

import base64
import copy
import gc
import io
import pickle
import re
import shutil
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from sa2va import Answer, Frame, Mask, Segment, Track
from sa2va.media.open import load_image, open_media
from sa2va.writers import VideoEncoder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
GREY = 225


@pytest.fixture
def drawing(tmp_path) -> Path:
    return Path(shutil.copy(EXAMPLES / "shapes.png", tmp_path))


def html(result: Answer | Frame | Track) -> str:
    shown = result._repr_html_()
    assert shown is not None
    return shown


def embedded(shown: str) -> bytes:
    found = re.search(r'src="data:[^,]+,([^"]+)"', shown)
    assert found is not None, shown[:200]
    return base64.b64decode(found[1])


def pixels(shown: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(embedded(shown))))


def is_grey(shown: str) -> bool:
    """Whether most of the picture is what stands for one that is gone."""
    return bool((np.abs(pixels(shown).astype(int) - GREY).max(axis=2) < 6).mean() > 0.5)


def segment(id: int = 1, **values) -> Segment:
    array = np.zeros((16, 24), bool)
    array[4:12, 4:16] = True
    fields = {"phrase": "the dog", "masks": (Mask.from_array(array),), "score": 0.9, "presence": 1.0}
    return Segment(id, **(fields | values))


def test_a_picture_from_a_file_is_shown_with_its_masks(tiny, drawing, monkeypatch):
    monkeypatch.chdir(drawing.parent)
    answer = tiny.segment("shapes.png", "the yellow cloud")
    monkeypatch.chdir("/")  # the file is found from anywhere
    shown = pixels(html(answer)).astype(int)
    expected = np.asarray(answer.draw(drawing)).astype(int)
    assert np.abs(shown - expected).mean() < 4  # but for JPEG
    assert "the yellow cloud" in html(answer) and f"{answer.segments[0].score:.2f}" in html(answer)


def test_a_picture_of_the_caller_is_shown_and_not_kept(tiny, drawing):
    image = load_image(drawing)
    answer = tiny.segment(image, "the yellow cloud")
    assert not is_grey(html(answer))
    held = weakref.ref(image)
    del image
    gc.collect()
    assert held() is None
    assert is_grey(html(answer))
    array = np.asarray(load_image(drawing))
    assert not is_grey(html(tiny.segment(array, "the yellow cloud")))


def test_what_is_gone_or_another_one_is_grey(tiny, drawing):
    answer = tiny.segment(drawing, "the yellow cloud")
    assert not is_grey(html(answer))
    Image.new("RGB", (32, 32)).save(drawing)  # another picture now
    assert is_grey(html(answer))
    drawing.write_bytes(b"no picture")
    assert is_grey(html(answer))
    drawing.unlink()
    assert is_grey(html(answer))
    assert is_grey(html(Answer.from_json(answer.to_json())))


def test_results_are_what_they_were(tiny, drawing):
    answer = tiny.segment(drawing, "the yellow cloud")
    bare = replace(answer, origin=None)
    assert answer == bare and hash(answer) == hash(bare) and repr(answer) == repr(bare)
    assert answer.to_json() == bare.to_json() and "origin" not in answer.record
    assert len(pickle.dumps(answer)) < len(pickle.dumps(bare)) + 1000
    for again in (pickle.loads(pickle.dumps(answer)), copy.deepcopy(answer)):
        assert again == answer and not is_grey(html(again))
    image = load_image(drawing)
    assert is_grey(html(pickle.loads(pickle.dumps(tiny.segment(image, "the yellow cloud")))))


def test_every_way_to_an_answer_knows_its_picture(tiny, drawing):
    with tiny.open(drawing) as scene:
        answers = [scene.chat("What color is the car?"), scene.segment(box=(20, 20, 120, 120)), scene.caption()]
    for answer in answers:
        assert not is_grey(html(answer))
    assert "<img" not in html(tiny.chat(None, "Hello", max_new_tokens=4))


def test_phrases_have_the_colours_of_their_masks():
    text = "A dog & a <b>cat</b>."
    dog = segment(1, phrase="dog", span=(2, 5), color=(10, 20, 30))
    cat = segment(2, phrase="<b>cat</b>", span=(10, 20), color=(40, 50, 60))
    shown = html(Answer(text, text, (cat, dog), size=(16, 24)))
    assert re.search(r"A <span[^>]*rgb\(10,20,30\)[^>]*>dog</span> &amp; a <span[^>]*rgb\(40,50,60\)", shown)
    assert "&lt;b&gt;cat&lt;/b&gt;</span>." in shown and "<b>" not in shown


def test_phrases_without_a_place_of_their_own_come_after_the_text():
    same = [segment(1, span=(0, 7), color=(1, 2, 3)), segment(2, span=(0, 7), color=(4, 5, 6), score=0.1)]
    shown = html(Answer("the dog", "the dog", (*same, segment(3, phrase="")), size=(16, 24)))
    first, second = re.findall(r"<div>(.*?)</div>", shown)
    assert "rgb(1,2,3)" in first and "rgb(4,5,6)" not in first
    assert "rgb(4,5,6)" in second and "0.10?" in second and "#3" in second


def test_nothing_found_says_why():
    shown = html(Answer("No.", "No.", (), "it <said> so", (16, 24)))
    assert "it &lt;said&gt; so" in shown and "<img" not in shown


def test_an_answer_about_a_clip_is_a_sheet_of_its_frames(tiny, tmp_path):
    clip = tmp_path / "clip.mp4"
    video = VideoEncoder(clip, size=(256, 256))
    for frame in open_media(EXAMPLES / "shapes.mp4", max_frames=3):
        video.write(frame.pixels)
    video.close()
    answer = tiny.segment(clip, "the orange hat")
    sheet = pixels(html(answer))
    assert sheet.shape[1] == 640 and sheet.shape[0] < 400  # three in a row
    assert not is_grey(html(answer))
    clip.unlink()
    assert is_grey(html(answer))


def test_a_track_plays_and_is_computed_once(tiny):
    track = tiny.track(EXAMPLES / "shapes.mp4", "the orange hat", sampling={"start": 4, "max_frames": 4})
    for _ in range(2):
        with av.open(io.BytesIO(embedded(html(track)))) as video:
            frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in video.decode(video=0)]
        assert len(frames) == 4
    with open_media(EXAMPLES / "shapes.mp4", start=4) as source:
        (first,) = source.read([0])
    frame = next(iter(track))
    assert np.abs(np.asarray(frame.draw(first)).astype(int) - frames[0]).mean() < 8
    assert "the orange hat" in html(track) and "read 4/4" in html(track)


def test_a_long_track_is_computed_only_as_far_as_it_is_shown():
    computed = []

    def frames():
        for index in range(400):
            computed.append(index)
            yield Frame(index, None, (16, 25), (segment(masks=(Mask.from_array(np.ones((16, 25), bool)),)),)), None

    track = Track(frames(), size=(16, 25), total=400)
    with av.open(io.BytesIO(embedded(html(track)))) as video:
        assert len(list(video.decode(video=0))) == len(computed) == 150
        assert (video.streams.video[0].height, video.streams.video[0].width) == (16, 24)
    track.close()
    assert track._repr_html_() is None
    assert Track(iter(()), size=(16, 25))._repr_html_() is None


def test_the_narrowest_track_has_a_clip_of_even_sides():
    track = Track([(Frame(0, None, (1, 900), ()), None)], size=(1, 900))
    with av.open(io.BytesIO(embedded(html(track)))) as video:
        assert video.streams.video[0].height == 2 and video.streams.video[0].width % 2 == 0


def test_a_frame_is_shown_from_its_place_in_the_clip(tiny):
    track = tiny.track(EXAMPLES / "shapes.mp4", "the orange hat", sampling={"stride": 8})
    for _ in range(2):  # computed, and read again
        frame = list(track)[2]
        shown = pixels(html(frame)).astype(int)
        with open_media(EXAMPLES / "shapes.mp4") as source:
            away = [np.abs(np.asarray(frame.draw(one)) - shown).mean() for one in source.read([0, 8, 16, 23])]
        assert np.argmin(away) == 2 and away[2] < 6
        assert "frame 2, 2.00 s" in html(frame)
        assert frame == Frame.from_json(frame.to_json())
    assert is_grey(html(Frame.from_json(frame.to_json())))


@pytest.mark.parametrize("notebook", [True, False])
def test_a_bar_is_shown_in_notebooks_only(notebook, monkeypatch, capsys, tmp_path):
    kernel = SimpleNamespace(config={"IPKernelApp": {}} if notebook else {})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    frames = [(Frame(index, None, (16, 24), (segment(),)), None) for index in range(2)]
    Track(iter(frames), size=(16, 24), total=2).save(tmp_path / "masks")
    assert ("0/2" in capsys.readouterr().err) is notebook  # later states only where there is time to see them
