"""A video or stream that the language model is asked about again: who is who, and what is computed for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from sa2va import Sa2VA, VideoTracker
from sa2va.inference.identity import Sighting, same_objects
from sa2va.inference.memory_policies import RecentMemory
from sa2va.inference.options import InferenceOptions
from sa2va.inference.vlm import EncodedMedia, VLMOutput, is_denial
from sa2va.media.cuts import is_cut, scene_look, scene_starts
from sa2va.results.answer import Frame
from sa2va.tiny.synthetic.paint import COLORS, PaintStyle, draw, lay

GRAY, GREEN = (128, 128, 128), (60, 120, 70)
STAR, SQUARE = "the red star", "the blue square"
SHORT = {"max_new_tokens": 12}


def drawn(*objects: tuple[str, str, int, int], paper: tuple[int, int, int] = GRAY) -> np.ndarray:
    """A picture of objects, each a kind, a colour and a centre x, y."""
    picture = np.full((128, 128, 3), paper, np.uint8)
    for kind, color, x, y in objects:
        style = PaintStyle(kind, color, "plain", COLORS[color], 0.0, False, 0.0, (0.0, 0.0))
        lay(picture, draw(style, 18, 128, (0.5, 0.5)), (y, x))
    return picture


def clip(stars: Sequence[int | None]) -> list[np.ndarray]:
    """A square that stays, and a star at these places x, or nowhere (None)."""
    square = ("square", "blue", 28, 96)
    return [drawn(square, *([] if x is None else [("star", "red", x, 34)])) for x in stars]


LATE = clip([None] * 3 + [80, 82, 84])
RETURNS = clip([30, 32, 34, *[None] * 3, 96, 94, 92])


def where(frames: Sequence[Frame], phrase: str) -> list[dict[int, int]]:
    """For each frame the middle x of each object of a phrase that is seen, by id."""
    return [
        {s.id: int(s.mask.array.nonzero()[1].mean()) for s in frame if s.phrase == phrase and s.mask.area > 20}
        for frame in frames
    ]


def on(found: Sequence[dict[int, int]], number: int, places: Sequence[int | None]) -> bool:
    """Whether in each frame this object and no other is at a place."""
    return all(
        not seen if x is None else seen.keys() == {number} and abs(seen[number] - x) < 8
        for seen, x in zip(found, places, strict=True)
    )


@contextmanager
def passes(model: Sa2VA) -> Iterator[dict[str, int]]:
    """Pictures through both encoders, and tokens of prompts that are read."""
    vlm = model.model.vlm.model
    counts = {"vision tower": 0, "image encoder": 0, "read": 0}

    def count(name: str, value):
        def hook(_module, args, kwargs):
            counts[name] += value(args, kwargs)

        return hook

    def length(_, kwargs) -> int:
        return kwargs["inputs_embeds"].shape[1] if kwargs["inputs_embeds"].shape[1] > 1 else 0

    hooks = [
        vlm.vision_tower.register_forward_pre_hook(
            count("vision tower", lambda args, kw: len([*args, *kw.values()][0])), with_kwargs=True
        ),
        model.model.sam2.vision_encoder.backbone.register_forward_pre_hook(
            count("image encoder", lambda args, _: len(args[0])), with_kwargs=True
        ),
        vlm.language_model.register_forward_pre_hook(count("read", length), with_kwargs=True),
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


# -- videos ------------------------------------------------------------------------------------------------------------


def test_what_comes_late_is_found_and_each_frame_is_encoded_once(tiny):
    options = {"num_key_frames": 2, **SHORT}
    with passes(tiny) as counts, tiny.track(LATE, [STAR, SQUARE], ask_every=3, **options) as track:
        assert track.reasons == {}  # those of the frames read so far
        next(track)
        assert "without pointing" in track.reasons[STAR]
        frames = track.results()
        assert track.reasons == {}
    assert on(where(frames, STAR), 2, [None] * 3 + [80, 82, 84])
    assert on(where(frames, SQUARE), 1, [28] * 6)
    assert counts["image encoder"] == len(LATE)
    assert counts["vision tower"] == 2 * 2  # two key frames of two windows


def test_what_leaves_and_comes_back_keeps_its_id(tiny):
    with tiny.track(RETURNS, STAR, ask_every=3, num_key_frames=2, **SHORT) as track:
        found = where(track.results(), STAR)
    assert on(found[:3], 1, [30, 32, 34])
    assert on(found[6:], 1, [96, 94, 92])


def test_one_window_is_the_whole_video(tiny):
    options = {"num_key_frames": 2, **SHORT}
    asked = [tiny.track(RETURNS[:3], STAR, ask_every=every, **options).results() for every in (None, 3)]
    for once, window in zip(*asked, strict=True):
        (before,), (now,) = once.segments, window.segments
        assert now.id == before.id and now.score == pytest.approx(before.score, abs=1e-3)
        assert (before.mask.array ^ now.mask.array).sum() <= 4


def test_memory_does_not_grow_with_the_number_of_windows(tiny, monkeypatch):
    sizes = []
    track = RecentMemory.track

    def noted(self, *arguments, **options):
        sizes.append(len(self.bank.prompted))
        return track(self, *arguments, **options)

    monkeypatch.setattr(RecentMemory, "track", noted)
    tiny.track(clip(range(30, 42, 2)), STAR, ask_every=2, num_key_frames=2, **SHORT).results()
    assert max(sizes) == 3  # the first ever, and those of the present window


def test_a_prompt_is_not_trusted_on_frames_where_the_object_is_not_yet(tiny):
    """It is asked about the whole window, and the star is in its last frames only."""
    with tiny.track(LATE[1:], STAR, ask_every=5, num_key_frames=5, **SHORT) as track:
        assert on(where(track.results(), STAR), 1, [None, None, 80, 82, 84])


def test_at_a_cut_the_scene_is_asked_about_anew(tiny):
    other = [drawn(("star", "red", x, 90), paper=GREEN) for x in (90, 88, 86, 84, 82)]
    empty = [drawn(("square", "blue", 90, 40), paper=(40, 40, 90))]
    video = clip([30, 32, 34, 36, 38]) + other + empty
    with tiny.track(video, STAR, ask_every="scene", num_key_frames=2, **SHORT) as track:
        found = where(track.results(), STAR)
    assert on(found, 1, [30, 32, 34, 36, 38, 90, 88, 86, 84, 82, None])


def test_a_scene_is_followed_as_a_video_of_its_own(tiny):
    """Key frames on which nothing is seen tell as much as the others."""
    options = {"num_key_frames": 3, **SHORT}
    asked = [tiny.track(LATE, STAR, ask_every=every, **options).results() for every in (None, "scene")]
    for once, scene in zip(*asked, strict=True):
        (before,), (now,) = once.segments, scene.segments
        assert now.mask == before.mask and now.presence == pytest.approx(before.presence, abs=1e-4)


def test_a_cut_is_a_change_of_most_of_the_picture():
    moving = clip([20, 60, 100, None, 100, 60])
    assert list(scene_starts(moving)) == [0]
    assert list(scene_starts([*moving, *[drawn(paper=GREEN)] * 7])) == [0, 6]
    flicker = [np.clip(frame.astype(int) + step, 0, 255).astype(np.uint8) for step, frame in enumerate(moving)]
    assert list(scene_starts(flicker)) == [0]
    assert list(scene_starts([drawn(paper=paper) for paper in (GRAY, GREEN, GRAY, GREEN)])) == [0]  # too short


@pytest.mark.parametrize(("before", "after", "starts"), [(5, 5, [0, 5]), (4, 8, [0]), (6, 1, [0, 6])])
def test_a_scene_has_five_frames_at_least(before: int, after: int, starts: list[int]):
    assert list(scene_starts([drawn(paper=GRAY)] * before + [drawn(paper=GREEN)] * after)) == starts


def test_a_look_is_a_histogram_of_each_block():
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    red, green, blue = np.moveaxis(pixels.reshape(4, 32, 4, 32, 3).swapaxes(1, 2).reshape(16, -1, 3) // 64, 2, 0)
    look = scene_look(pixels)
    for block in range(16):
        for bin in range(64):
            inside = (red[block] == bin // 16) & (green[block] == bin // 4 % 4) & (blue[block] == bin % 4)
            assert look[block, bin] == inside.sum() / 1024
    np.testing.assert_array_equal(scene_look(np.repeat(np.repeat(pixels, 3, 0), 2, 1)), look)


def test_a_cut_changes_half_of_the_median_block():
    plain, half = np.zeros((2, 16, 64), np.float32)
    plain[:, 0], half[:, :2] = 1, 0.5
    assert is_cut(plain, half) and is_cut(half, plain)
    half[:, :2] = 0.501, 0.499
    assert not is_cut(plain, half)
    half[:8, :2] = 0, 1
    assert is_cut(plain, half)  # the mean of the two in the middle
    half[7, :2] = 1, 0
    assert not is_cut(plain, half)


# -- streams -----------------------------------------------------------------------------------------------------------


def test_what_was_marked_by_hand_is_followed_over_a_cut(tiny):
    """Only phrases are asked for anew."""
    tracker = tiny.stream(STAR, ask_every="scene", **SHORT)
    tracker.step(clip([30])[0])
    box = tracker.add(box=(80, 10, 120, 60))
    for frame in [*clip([30] * 6), *[drawn(paper=GREEN)] * 2]:
        ids = [one.id for one in tracker.step(frame)]
    assert box in ids and box in tracker.ids


def test_a_stream_finds_what_comes_late_under_the_id_it_was_promised(tiny):
    tracker = tiny.stream(STAR, SQUARE, ask_every=3, num_key_frames=2, **SHORT)
    frames = [tracker.step(frame) for frame in LATE]
    assert on(where(frames[:4], STAR), 1, [None] * 3 + [80])  # asked at frames 0 and 3
    assert sorted(tracker.ids) == [1, 2]


def test_what_is_pointed_at_elsewhere_is_another_object(tiny):
    """While the first is in sight."""
    frames = clip([84] * 5)
    with tiny.open(frames[0]) as scene:
        prompts = scene.mask_prompts([STAR, SQUARE], InferenceOptions.of(**SHORT))
    answers = iter([[prompts[0]], [prompts[1]], [prompts[0]]])
    tracker = VideoTracker(tiny.model, ask=lambda *_: next(answers), ask_every=2)
    tracker.add("it")
    found = where([tracker.step(frame) for frame in frames], "it")
    assert [sorted(seen) for seen in found] == [[1], [1], [1, 2], [1, 2], [1, 2]]


@pytest.mark.parametrize(("options", "shown"), [({}, [[0], [6]]), ({"num_key_frames": 3}, [[0], [2, 4, 6]])])
def test_a_stream_shows_frames_since_it_asked_last(tiny, options, shown):
    """By default the present one alone."""
    asked: list[list[int]] = []

    def ask(phrases: Sequence[str], frames: Sequence[np.ndarray]) -> list[torch.Tensor]:
        asked.append([int(frame[0, 0, 0]) for frame in frames])
        return [torch.zeros(0, 256) for _ in phrases]

    tracker = VideoTracker(tiny.model, ask=ask, ask_every=6, **options)
    tracker.add(STAR)
    for index in range(7):
        tracker.step(np.full((32, 32, 3), index, np.uint8))
    assert asked == shown


def test_a_stream_asks_at_cuts(tiny):
    video = clip([30] * 5) + [drawn(("star", "red", x, 90), paper=GREEN) for x in (90, 88, 86)]
    tracker = tiny.stream(STAR, ask_every="scene", **SHORT)
    with passes(tiny) as counts:
        found = where([tracker.step(frame) for frame in video], STAR)
    assert on(found, 1, [30, 30, 30, 30, 30, 90, 88, 86])
    assert counts["vision tower"] == 2
    assert counts["image encoder"] == len(video)


def test_what_is_removed_is_not_asked_for_again(tiny):
    tracker = tiny.stream(STAR, ask_every=2, **SHORT)
    number = tracker.add("the blue square")
    tracker.step(RETURNS[0])
    tracker.remove(number)
    assert [tracker.step(frame).segments[0].id for frame in RETURNS[1:4]] == [1, 1, 1]
    assert tracker.add("the blue square") == 3
    with pytest.raises(ValueError, match="asked for already"):
        tracker.add(STAR)


def test_a_stream_that_fails_while_asking_again_goes_on_with_the_same_frame(tiny):
    tracker = tiny.stream(STAR, ask_every=2, **SHORT)
    expected = tiny.stream(STAR, ask_every=2, **SHORT)
    for frame in RETURNS[:2]:
        tracker.step(frame), expected.step(frame)
    real, tracker._ask = tracker._ask, lambda *_: (_ for _ in ()).throw(MemoryError())
    with pytest.raises(MemoryError):
        tracker.step(RETURNS[2])
    tracker._ask = real
    for frame in RETURNS[2:3]:
        assert [(s.id, s.mask) for s in tracker.step(frame)] == [(s.id, s.mask) for s in expected.step(frame)]


# -- who is who --------------------------------------------------------------------------------------------------------


def sighting(*objects: Sequence[slice | None], phrases: Sequence[str] | None = None, looks=None) -> Sighting:
    """Objects by the columns they cover on each frame."""
    masks = torch.zeros(len(objects), len(objects[0]), 4, 20, dtype=torch.bool)
    for row, places in enumerate(objects):
        for frame, place in enumerate(places):
            if place is not None:
                masks[row, frame, :, place] = True
    pointers = torch.eye(8)[list(looks) if looks is not None else range(len(objects))]
    return Sighting(phrases or ["x"] * len(objects), masks, pointers)


LEFT, RIGHT, MIDDLE = slice(0, 6), slice(12, 18), slice(4, 12)


def test_objects_join_by_the_largest_sum_of_overlaps():
    assert same_objects(sighting([RIGHT], [LEFT]), sighting([LEFT], [RIGHT])) == {0: 1, 1: 0}
    wide = sighting([slice(0, 10)], [slice(0, 6)])
    assert same_objects(wide, sighting([slice(0, 6)], [slice(0, 16)])) == {0: 1, 1: 0}  # not the best pair first


def test_one_that_was_out_of_sight_for_most_of_it_has_moved():
    assert same_objects(sighting([RIGHT, RIGHT, RIGHT]), sighting([LEFT, None, None])) == {0: 0}
    assert same_objects(sighting([RIGHT, RIGHT, RIGHT]), sighting([LEFT, LEFT, None])) == {}

    assert same_objects(sighting([RIGHT, RIGHT]), sighting([LEFT, None])) == {}  # half of it is not most


def test_masks_of_one_object_share_three_tenths():
    assert same_objects(sighting([slice(0, 3)]), sighting([slice(0, 10)])) == {0: 0}
    assert same_objects(sighting([slice(0, 2)]), sighting([slice(0, 7)])) == {}


def test_a_tenth_of_an_object_is_a_speck():
    assert same_objects(sighting([None, RIGHT]), sighting([slice(0, 10), slice(0, 1)])) == {0: 0}
    assert same_objects(sighting([None, RIGHT]), sighting([slice(0, 10), slice(0, 2)])) == {}


def test_one_that_is_elsewhere_is_another():
    assert same_objects(sighting([RIGHT, RIGHT]), sighting([LEFT, LEFT])) == {}
    assert same_objects(sighting([LEFT], phrases=["y"]), sighting([LEFT])) == {}


def test_one_that_was_out_of_sight_has_come_back_as_the_one_that_looks_alike():
    gone = sighting([None, LEFT], [None, None], [None, None], looks=[0, 1, 2])
    assert same_objects(sighting([RIGHT, RIGHT], looks=[2]), gone) == {0: 2}
    assert same_objects(sighting([RIGHT, None], looks=[0]), gone) == {0: 0}
    assert same_objects(sighting([RIGHT, LEFT], looks=[2]), gone) == {0: 0}  # an overlap says more


# -- the presence check ------------------------------------------------------------------------------------------------

PICTURE = drawn(("square", "blue", 40, 40), ("circle", "green", 90, 90))


@contextmanager
def believing(model: Sa2VA, monkeypatch, reply: str) -> Iterator[list[str]]:
    """The model writes this to questions for yes or no; yields those."""
    asked: list[str] = []
    ask = EncodedMedia.ask

    async def told(media, engine, questions, options, **more):
        outputs = await ask(media, engine, questions, options, **more)
        if more.get("kind") == "presence":
            asked.extend(questions)
            return [type(one)(one.question, reply, one.prompts_KC) for one in outputs]
        return outputs

    with monkeypatch.context() as patch:
        patch.setattr(EncodedMedia, "ask", told)
        yield asked


@pytest.mark.parametrize(
    ("reply", "denies"),
    [("No", True), ("no, there is none<|im_end|>", True), (" No.", True), ("Yes", False), ("yes.", False)]
    + [(other, False) for other in ("north", "nothing else", "None", "")],
)
def test_only_a_no_denies(reply: str, denies: bool):
    assert is_denial(VLMOutput("Do you see it?", reply, torch.zeros(0, 1))) == denies


def test_a_no_leaves_a_phrase_without_masks(tiny, monkeypatch):
    with believing(tiny, monkeypatch, "No") as asked:
        answer = tiny.segment(PICTURE, SQUARE, check_presence=True, **SHORT)
        track = tiny.track([PICTURE] * 2, SQUARE, check_presence=True, **SHORT)
        stream = tiny.stream(SQUARE, check_presence=True, **SHORT)
        assert stream.step(PICTURE).segments == ()
    assert answer.segments == () and "said no" in answer.reason
    assert "said no" in track.reasons[SQUARE]
    assert [frame.segments for frame in track] == [(), ()]
    assert asked == ["Do you see the blue square?\nAnswer the question using a single word or phrase."] * 3


def test_a_yes_changes_nothing(tiny, monkeypatch):
    with believing(tiny, monkeypatch, "Yes"):
        checked = tiny.segment(PICTURE, SQUARE, check_presence=True, **SHORT)
    plain = tiny.segment(PICTURE, SQUARE, **SHORT)
    assert checked.segments and [s.mask for s in checked] == [s.mask for s in plain]
    assert (checked.raw_text, checked.history) == (plain.raw_text, plain.history)


def test_only_what_was_pointed_at_is_checked_and_questions_are_not(tiny, monkeypatch):
    with believing(tiny, monkeypatch, "no") as asked:
        absent, question, there = tiny.segment(
            PICTURE, ["the pink car", "Which thing is green?", SQUARE], check_presence=True, **SHORT
        )
    assert asked == ["Do you see the blue square?\nAnswer the question using a single word or phrase."]
    assert "without pointing" in absent.reason
    assert question.segments and not there.segments


def test_the_check_reads_its_own_words_and_looks_at_nothing(tiny):
    with tiny.open(PICTURE) as scene:
        scene.segment(SQUARE, **SHORT)
        with passes(tiny) as plain:
            scene.segment("the green circle", **SHORT)
        with passes(tiny) as checked:
            scene.segment("the green circle", check_presence=True, **SHORT)
    words = len(tiny.processor.tokenizer.encode("Do you see the green circle? Answer the question using a single word"))
    assert checked["vision tower"] == checked["image encoder"] == 0
    assert checked["read"] - plain["read"] <= words + 20


def test_the_check_goes_with_asking_again(tiny, monkeypatch):
    with believing(tiny, monkeypatch, "no") as asked:
        frames = tiny.track(LATE, STAR, ask_every=3, num_key_frames=2, check_presence=True, **SHORT).results()
    assert len(asked) == 1  # it was pointed at in the second window only
    assert not any(frame.segments for frame in frames)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 0, -3, True, 2.5, "cut", "", [4]])
def test_ask_every_is_checked(sa2va, value):
    for make in (InferenceOptions.of, sa2va.stream, lambda **options: VideoTracker(sa2va.model, **options)):
        with pytest.raises(
            ValueError, match=r"ask_every is a number of frames of at least 2, 'scene' for cuts, or None"
        ):
            make(ask_every=value)


@pytest.mark.parametrize("frames", [[0, 3], 0, np.array([1]), "compressed"])
def test_own_key_frames_exclude_asking_again(frames):
    with pytest.raises(ValueError, match="needs key_frames='uniform' or 'first'"):
        InferenceOptions(key_frames=frames, ask_every=5)


def test_other_choices_that_exclude_each_other(sa2va):
    with pytest.raises(ValueError, match="leave one of the two out"):
        InferenceOptions(key_frames="compressed", check_presence=True)
    with pytest.raises(ValueError, match="check_presence is True or False"):
        InferenceOptions(check_presence="yes")
    for method in (sa2va.segment, sa2va.chat):
        with pytest.raises(ValueError, match=r"is for track\(\) and stream\(\)"):
            method(LATE, "dog", ask_every=4)
