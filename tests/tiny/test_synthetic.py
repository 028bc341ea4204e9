"""The synthetic world: deterministic, exact in its masks, true in its phrases, and split by held-out looks."""

from __future__ import annotations

import pickle
import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va.data.sample import SEG, Sample
from sa2va.processing import requests
from sa2va.tiny.synthetic import (
    CAPTION_REQUEST,
    CLIP_MIX,
    IMAGE_REQUEST,
    NO_TARGET_ANSWERS,
    QUESTION_REQUEST,
    REGION_REQUEST,
    SEG_ANSWER,
    SEG_ANSWERS,
    TASKS,
    VIDEO_REQUEST,
    SyntheticWorld,
    clip,
    home_split,
    picture,
    vocabulary,
)
from sa2va.tiny.synthetic.lexicon import KIND_NOUNS, SIZE_WORDS
from sa2va.tiny.synthetic.paint import COLORS, TEXTURES, Sprite
from sa2va.tiny.synthetic.splits import LOOKS, SPLITS, Look, Split

SIZES = {word for words in SIZE_WORDS.values() for word in words}
KIND_OF = {noun.one: kind for kind, noun in KIND_NOUNS.items()}
MANY_OF = {noun.many: kind for kind, noun in KIND_NOUNS.items() if noun.many}
ANY = ("thing", "object")


def same(first: Sample, second: Sample) -> bool:
    fields = ("frames", "masks", "regions")
    arrays = all(
        len(getattr(first, name)) == len(getattr(second, name))
        and all(np.array_equal(a, b) for a, b in zip(getattr(first, name), getattr(second, name), strict=True))
        for name in fields
    )
    return arrays and (first.id, first.turns, first.tags) == (second.id, second.turns, second.tags)


# --- one sample, anywhere, any time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 6])
def test_a_sample_depends_only_on_split_seed_and_index(frames: int) -> None:
    world = SyntheticWorld("train", seed=3, frames=frames)
    forward = [world[index] for index in range(12)]
    revived = pickle.loads(pickle.dumps(world))
    for index in reversed(range(12)):
        assert same(forward[index], revived[index])
    assert not same(world[0], SyntheticWorld("train", seed=4, frames=frames)[0])
    assert not same(world[0], SyntheticWorld("val", seed=3, frames=frames)[0])


def test_samples_pickle() -> None:
    sample = SyntheticWorld("train")[5]
    assert same(sample, pickle.loads(pickle.dumps(sample)))


def test_length_bounds_the_index() -> None:
    world = SyntheticWorld("train", length=3)
    assert [world[index].id for index in range(len(world))] == ["train-0-0", "train-0-1", "train-0-2"]
    for index in (-1, 3):
        with pytest.raises(IndexError, match=r"0\.\.2"):
            world[index]


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "dev"},
        {"size": 8},
        {"frames": 0},
        {"phrases": 0},
        {"answers": "free"},
        {"tasks": {"sing": 1.0}},
        {"tasks": {"region": 1.0}, "frames": 8},
        {"tasks": {"refer": 0.0}},
        {"crowd": True, "frames": 8},
        {"distant": True, "frames": 8},
    ],
)
def test_wrong_arguments_are_named(wrong: dict) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        SyntheticWorld(**{"split": "train", **wrong})


# --- every sample is valid --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "split", ["val", pytest.param("train", marks=pytest.mark.slow), pytest.param("test", marks=pytest.mark.slow)]
)
def test_masks_pair_with_seg_over_many_pictures(split: Split) -> None:
    world = SyntheticWorld(split, size=64)
    seen = 0
    for index in range(150):
        sample = world[index].validate()
        seen += sample.seg_count
        assert all(mask.any() for mask in sample.masks)
    assert seen > 300


@pytest.mark.parametrize("task", TASKS)
def test_every_task_yields_its_kind_of_turn(task: str) -> None:
    world = SyntheticWorld("test", tasks={task: 1.0}, size=96)
    samples = [world[index].validate() for index in range(40)]
    for sample in samples:
        assert sample.source == f"synthetic/{task}"
        answers = [turn.answer for turn in sample.turns]
        if task in ("refer", "reason"):
            assert set(answers) == {SEG_ANSWER}
        elif task == "absent":
            assert set(answers) == {NO_TARGET_ANSWERS[0]}
        elif task == "question":
            assert all(len(answer.split()) <= 5 and SEG not in answer for answer in answers)
        elif task == "caption":
            phrases = re.findall(r"<p> (.+?) </p> \[SEG\]", answers[0])
            assert len(answers) == 1 and len(phrases) == len(sample.masks) == sample.seg_count
        elif task == "region":
            assert len(sample.regions) == len(answers)
        elif task == "chat":
            assert 2 <= len(answers) <= 3
        elif task == "text":
            assert sample.frames == ()
    assert any(len(sample.turns) > 1 for sample in samples) == (task not in ("caption", "text"))


@pytest.mark.parametrize("task", CLIP_MIX)
def test_every_clip_task_is_valid(task: str) -> None:
    world = SyntheticWorld("val", tasks={task: 1.0}, frames=8, size=64)
    for index in range(25):
        sample = world[index].validate()
        assert sample.video and len(sample.frames) == 8


@settings(max_examples=25)
@given(
    index=st.integers(0, 10**6 - 1),
    height=st.integers(32, 150),
    width=st.integers(32, 150),
    frames=st.integers(1, 12),
    phrases=st.integers(1, 8),
)
def test_any_size_and_length_is_valid(index: int, height: int, width: int, frames: int, phrases: int) -> None:
    world = SyntheticWorld("train", size=(height, width), frames=frames, phrases=phrases, answers="pool")
    sample = world[index].validate()
    assert sample.size in ((height, width), None)
    assert len(sample.turns) <= max(phrases, 3)


def test_answer_pools() -> None:
    world = SyntheticWorld("train", tasks={"segment": 1.0}, answers="pool", size=64)
    answers = {turn.answer for index in range(80) for turn in world[index].turns}
    assert answers == {*SEG_ANSWERS, *NO_TARGET_ANSWERS}


def test_half_of_all_requests_are_worded_as_inference_words_them() -> None:
    picture_word, video_word = requests.REFERRING_REQUEST, requests.VIDEO_REFERRING_REQUEST
    assert picture_word.format(phrase="{}") == IMAGE_REQUEST and video_word.format(phrase="{}") == VIDEO_REQUEST
    assert requests.QUESTION_REQUEST.format(phrase="{}") == QUESTION_REQUEST
    assert requests.GCG_REQUEST == CAPTION_REQUEST
    assert requests.REGION_REQUEST.format(number=1) == REGION_REQUEST.format("region1")
    for task, start in (("refer", "Please segment"), ("region", REGION_REQUEST[:30]), ("caption", CAPTION_REQUEST)):
        world = SyntheticWorld("train", tasks={task: 1.0}, size=64)
        questions = [turn.question for index in range(80) for turn in world[index].turns]
        assert sum(question.startswith(start) for question in questions) > 0.4 * len(questions)


def test_vocabulary_covers_every_word() -> None:
    known = set(vocabulary())
    for frames, count in ((1, 120), (8, 30)):
        for split in ("train", "test"):
            world = SyntheticWorld(split, frames=frames, size=64, answers="pool")
            for index in range(count):
                for turn in world[index].turns:
                    text = re.sub(r"\[SEG\]|</?p>", " ", f"{turn.question} {turn.answer}")
                    assert set(re.findall(r"\w+|[^\w\s]", text)) <= known
    assert vocabulary() == sorted(known) and len(known) < 600


# --- masks are what is painted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 6])
def test_masks_are_exactly_the_pixels_that_each_object_painted(monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    """Watch the painter: a pixel belongs to the last object that moved its colour at least half of the way."""
    module = picture if frames == 1 else clip
    painted: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    original = module.lay

    def watched(canvas: np.ndarray, sprite: Sprite, center: tuple[int, int]) -> None:
        before, goal = canvas.astype(int), canvas.copy()
        original(goal, replace(sprite, alpha=(sprite.alpha > 0).astype(np.float32)), center)
        original(canvas, sprite, center)
        way = goal - before
        length = (way**2).sum(axis=2)
        share = ((canvas - before) * way).sum(axis=2) / np.maximum(length, 1)
        clear = (length == 0) | ((abs(share - 0.5) > 0.05) & (length > 50**2))
        if (share > 0.5).any():
            clip_start = canvas.ctypes.data if canvas.base is None else canvas.base.ctypes.data
            frame = int(canvas.ctypes.data - clip_start) // canvas.nbytes
            painted.setdefault(frame, []).append((share > 0.5, clear))

    monkeypatch.setattr(module, "lay", watched)
    compared, size = 0, (128, 128)
    for index in range(25):
        painted.clear()
        rng, noise = random.Random(index), np.random.default_rng(index)
        if frames == 1:
            scene = picture.picture_scene(rng, noise, "train", size)
        else:
            scene = clip.clip_scene(rng, noise, "train", size, frames)
        for frame in range(frames):
            layers = painted.get(frame, [])
            things = [thing for thing in range(len(scene.things)) if scene.outlines[thing, frame].any()]
            assert len(things) == len(layers)
            clear = np.logical_and.reduce([np.ones(size, dtype=bool), *(clear for _, clear in layers)])
            for place, thing in enumerate(things):
                later = [moved for moved, _ in layers[place + 1 :]]
                expected = layers[place][0] & ~np.logical_or.reduce([np.zeros_like(clear), *later])
                assert np.array_equal(scene.masks[thing, frame] & clear, expected & clear)
                compared += int((expected & clear).sum())
    assert compared > 30_000


@pytest.mark.parametrize("crowd", [False, True])
def test_objects_do_not_share_pixels_and_stay_recognisable(crowd: bool) -> None:
    world = SyntheticWorld("train", seed=1, crowd=crowd)
    for index in range(60):
        scene = world.scene(index)
        assert scene.masks.sum(axis=0).max() <= 1
        assert (scene.masks <= scene.outlines).all()
        visible = scene.masks.sum(axis=(1, 2, 3))
        assert (visible >= 26).all() and (visible >= 0.5 * scene.outlines.sum(axis=(1, 2, 3)) - 1).all()


def test_a_crowd_holds_more_objects() -> None:
    alone, crowded = (SyntheticWorld("train", seed=1, crowd=crowd) for crowd in (False, True))
    counts = [[len(world.scene(index).things) for index in range(20)] for world in (alone, crowded)]
    assert max(counts[0]) <= 8 and np.mean(counts[1]) > 1.7 * np.mean(counts[0])


def test_a_distant_picture_holds_smaller_objects() -> None:
    near, far = (SyntheticWorld("train", seed=1, size=(96, 128), distant=distant) for distant in (False, True))
    radii = [[thing.radius for index in range(30) for thing in world.scene(index).things] for world in (near, far)]
    least = 0.075 * 96  # of what is small otherwise
    assert min(radii[0]) >= least and 0.04 * 96 <= min(radii[1]) < 0.6 * least
    assert np.mean(np.array(radii[1]) < least) > 0.3 and max(radii[1]) > 0.2 * 96


# --- splits -----------------------------------------------------------------------------------------------------------


def test_a_tenth_of_all_looks_is_held_out_for_each_split() -> None:
    looks = {split: {look for (_, home), own in LOOKS.items() if home == split for look in own} for split in SPLITS}
    total = sum(map(len, looks.values()))
    assert total > 1000 and len(set.union(*looks.values())) == total
    assert all(0.07 < len(looks[split]) / total < 0.13 for split in ("val", "test"))


@pytest.mark.parametrize(("split", "frames"), [("train", 1), ("val", 1), ("test", 1), ("train", 8), ("test", 8)])
def test_pictures_show_and_requests_want_only_what_the_split_may(split: Split, frames: int) -> None:
    world = SyntheticWorld(split, tasks={"segment": 0.7, "chat": 0.3}, frames=frames, size=96)
    for index in range(80 if frames == 1 else 20):
        sample, scene = world.pair(index)
        homes = [home_split(thing.look) for thing in scene.things]
        assert set(homes) <= {"train", split}
        own = scene.masks[[home == split for home in homes]].any(axis=0)
        assert all((mask & own).any() for mask in sample.masks)


@pytest.mark.parametrize("frames", [1, 6])
def test_the_words_of_questions_speak_of_what_they_fit(frames: int) -> None:
    world, seen = SyntheticWorld("train", seed=8, frames=frames), Counter()
    for index in range(40):
        sample, scene = world.pair(index)
        for turn, end, objects in sample.extras["mentions"]:
            *before, last = sample.turns[turn].question[:end].split()
            kind = MANY_OF.get(last) or KIND_OF.get(last)
            color = next((word for word in before[-1:] if word in COLORS), None)
            fitting = [
                k
                for k, thing in enumerate(scene.things)
                if kind in (None, thing.look.kind) and color in (None, thing.look.color)
            ]
            assert set(objects) <= set(fitting), sample.turns[turn].question[:end]
            if kind and not set(before[-2:]) & {*TEXTURES, *SIZES, color}:
                assert list(objects) == fitting
            seen["nothing" if not objects else "one" if len(objects) == 1 else "several"] += 1
    assert min(seen[name] for name in ("nothing", "one", "several")) > 5


def test_training_never_speaks_of_a_held_out_look() -> None:
    """Else the model would learn that what is held out is never there."""
    world = SyntheticWorld("train", tasks={"absent": 0.6, "question": 0.4}, size=64)
    full = re.compile(rf"({'|'.join(TEXTURES)}) ({'|'.join(COLORS)}) (letter \w|\w+)")
    seen = 0
    for index in range(200):
        for turn in world[index].turns:
            for texture, color, noun in full.findall(turn.question):
                kind = KIND_OF.get(noun) or MANY_OF.get(noun)
                if kind:
                    seen += 1
                    assert home_split(Look(kind, color, texture)) == "train", turn.question
    assert seen > 50


# --- clips ------------------------------------------------------------------------------------------------------------


def test_motions_look_like_their_names() -> None:
    world = SyntheticWorld("train", seed=1, frames=10, size=96, tasks={"refer": 1.0})
    seen: Counter[str] = Counter()
    for index in range(120):
        scene = world.scene(index)
        for thing, areas in enumerate(scene.outlines.sum(axis=(2, 3))):
            motion, path = scene.things[thing].motion, scene.paths[thing]
            seen[motion] += 1
            step = np.linalg.norm(np.diff(path, axis=0), axis=1)
            assert step.max() < 0.45 * scene.unit, motion  # nothing jumps
            if motion in ("leave", "vanish"):
                assert areas[0] and not areas[-1] and (np.diff((areas > 0).astype(int)) <= 0).all()
            elif motion in ("enter", "appear"):
                assert areas[-1] and not areas[0] and (np.diff((areas > 0).astype(int)) >= 0).all()
            elif motion in ("grow", "shrink"):
                ratio = areas[-1] / areas[0]
                assert (ratio if motion == "grow" else 1 / ratio) > 2.5
            elif motion == "still":
                assert step.max() == 0 and (scene.outlines[thing] == scene.outlines[thing, 0]).all()
            elif motion in ("return", "circle"):
                away = np.linalg.norm(path - path[0], axis=1)
                assert away[-1] < 0.01 * scene.unit and away.max() > 0.25 * scene.unit
            elif motion in ("drift", "hide"):
                assert np.linalg.norm(path[-1] - path[0]) > 0.2 * scene.unit
    assert len(seen) == 12 and min(seen.values()) >= 5, seen


def test_masks_move_without_jumps() -> None:
    world = SyntheticWorld("test", frames=12)
    for index in range(30):
        scene = world.scene(index)
        for thing, mask in enumerate(scene.masks):
            whole = mask.sum(axis=(1, 2)) == scene.outlines[thing].sum(axis=(1, 2))
            inside = whole & mask.any(axis=(1, 2)) & ~_touches_border(mask)
            for frame in np.flatnonzero(inside[:-1] & inside[1:]).tolist():
                centers = [np.argwhere(mask[k]).mean(axis=0) for k in (frame, frame + 1)]
                moved = scene.paths[thing][frame + 1] - scene.paths[thing][frame]
                assert np.abs(centers[1] - centers[0] - moved[::-1]).max() < 1.6


def _touches_border(mask: np.ndarray) -> np.ndarray:
    border = np.ones(mask.shape[1:], dtype=bool)
    border[1:-1, 1:-1] = False
    return np.array([bool((frame & border).any()) for frame in mask])


MOTIONS = {
    "that turns back": {"return"},
    "that leaves the picture": {"leave"},
    "that appears later": {"appear"},
    "that disappears": {"vanish"},
    "that moves in a circle": {"circle"},
    "that stands still": {"still"},
    "that grows": {"grow"},
    "that passes behind": {"hide", "drift", "leave", "enter", "return", "bounce", "circle"},
}


def test_motion_phrases_mean_one_object_that_moves_so() -> None:
    world, seen = SyntheticWorld("train", seed=1, frames=8, size=64, tasks={"refer": 1.0}), Counter[str]()
    for index in range(250):
        sample, scene = world.pair(index)
        for turn, own in zip(sample.turns, sample.masks, strict=True):
            for words in MOTIONS:
                if words in turn.question and "in the ground" not in turn.question:
                    (target,) = [k for k, mask in enumerate(scene.masks) if np.array_equal(mask, own)]
                    assert scene.things[target].motion in MOTIONS[words], turn.question
                    seen[words] += 1
    assert all(seen[words] >= 3 for words in MOTIONS), seen
