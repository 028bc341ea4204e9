"""Hard clips: each kind is what it says, drawn the same again; and its rows count what becomes of the objects."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from sa2va import Mask
from sa2va.eval.benchmark import Prediction
from sa2va.eval.benchmarks import BENCHMARKS
from sa2va.eval.registry import select
from sa2va.tiny.hard_benchmarks import HARD_ROWS, HardBenchmark, hard_benchmark
from sa2va.tiny.synthetic.drawn_scene import DrawnScene
from sa2va.tiny.synthetic.hard_clip import HardClip, hard_clip

KINDS = [name.partition("/")[2] for name in HARD_ROWS]
SEED = 5  # not the benchmark's


@cache
def drawn(kind, index: int = 0, frames: int = 40) -> HardClip:
    return hard_clip(kind, index, frames, seed=SEED)


def absences(seen: np.ndarray) -> list[int]:
    """Lengths of the runs without the object that lie between frames with it."""
    runs = [(here, len(list(own))) for here, own in groupby(seen.tolist())]
    return [length for here, length in runs[1:-1] if not here]


def target_of(clip: HardClip) -> int:
    target = clip.requests[0][1]
    assert target is not None
    return target


def seen(scene: DrawnScene, target: int) -> np.ndarray:
    return scene.areas[target] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_drawn_the_same_again(kind):
    first, again = drawn(kind), hard_clip(kind, 0, 40, seed=SEED)
    assert first.requests == again.requests
    assert np.array_equal(first.scene.frames, again.scene.frames)
    assert np.array_equal(first.scene.masks, again.scene.masks)


def test_other_clips_are_other_clips():
    first = drawn("return").scene.frames
    assert not np.array_equal(first, drawn("return", 1).scene.frames)
    assert not np.array_equal(first, hard_clip("return", 0, 40, seed=SEED + 1).scene.frames)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_where_the_objects_are(kind):
    """Of objects that overlap one is nearer, and what is seen of an object is a part of it."""
    scene = drawn(kind).scene
    assert scene.frames.shape == (40, 128, 128, 3)
    assert scene.masks.shape == (len(scene.things), 40, 128, 128)
    assert (scene.masks.sum(axis=0) <= 1).all()
    assert not (scene.masks & ~scene.outlines).any()


@pytest.mark.parametrize("index", range(3))
def test_what_returns_was_wholly_outside(index):
    clip = drawn("return", index)
    target = target_of(clip)
    (gone,) = absences(seen(clip.scene, target))
    assert gone >= 6
    assert not clip.scene.outlines[target][~seen(clip.scene, target)].any()


def test_long_clips_lose_their_object_several_times():
    for kind in ("return", "occlusion"):
        clip = drawn(kind, frames=240)
        assert len(absences(seen(clip.scene, target_of(clip)))) == 3


@pytest.mark.parametrize("index", range(3))
def test_what_is_occluded_is_in_the_picture_and_not_to_be_seen(index):
    clip = drawn("occlusion", index)
    target = target_of(clip)
    (gone,) = absences(seen(clip.scene, target))
    assert gone >= 6
    assert clip.scene.outlines[target][~seen(clip.scene, target)].any(axis=(1, 2)).all()


def test_look_alikes_cross_and_differ_in_their_direction_or_texture_alone():
    ways = set()
    for index in range(4):
        clip = drawn("look-alikes", index)
        (right, first), (left, second) = clip.requests
        assert first is not None
        assert second is not None
        one, other = clip.scene.things[first], clip.scene.things[second]
        assert (one.look[:2], one.size, one.radius) == (other.look[:2], other.size, other.radius)
        assert right != left
        if one.look == other.look:
            assert right.replace("right", "left") == left
        assert clip.scene.paths[first, -1, 0] > clip.scene.paths[first, 0, 0] + 40
        assert clip.scene.paths[second, -1, 0] < clip.scene.paths[second, 0, 0] - 40
        assert (clip.scene.outlines[first] & clip.scene.outlines[second]).any()
        ways.add(one.look == other.look)
    assert ways == {True, False}


@pytest.mark.parametrize("index", range(3))
def test_what_is_late_comes_in_the_second_half(index):
    clip = drawn("late", index)
    here = seen(clip.scene, target_of(clip))
    assert not here[:20].any()
    assert here[-10:].all()


def test_what_is_absent_is_not_there():
    clip = drawn("absent")
    (_, target), (_, nothing) = clip.requests
    assert target is not None
    assert nothing is None


@pytest.mark.parametrize("index", range(3))
def test_what_is_fast_moves_by_more_than_its_radius(index):
    clip = drawn("fast", index)
    target = target_of(clip)
    steps = np.linalg.norm(np.diff(clip.scene.paths[target], axis=0), axis=1)
    assert np.median(steps) > clip.scene.things[target].radius
    # Where it was a frame ago there is less than half of it left.
    masks = clip.scene.masks[target]
    shared = (masks[1:] & masks[:-1]).sum() / masks.sum()
    assert shared < 0.5


def test_a_moving_camera_moves_everything():
    """What stands still in the world moves in the picture, all of it alike."""
    scene = drawn("camera").scene
    steps = np.diff(scene.paths[:-1], axis=1)  # all but the target, which is on top
    assert np.abs(steps).max() > 2
    assert np.abs(steps - steps.mean(axis=0)).max() < 1.5  # but for their own swaying
    assert np.abs(np.ptp(scene.paths[0], axis=0)).max() > 40


@pytest.mark.parametrize(("kind", "count"), [("four", 4), ("sixteen", 16)])
def test_many_objects_are_all_asked_for(kind, count):
    clip = drawn(kind)
    assert sorted(target for _, target in clip.requests) == list(range(count)) == list(range(len(clip.scene.things)))
    assert len({phrase for phrase, _ in clip.requests}) == count
    assert (clip.scene.areas[:, 0] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_clips_show_looks_that_were_never_trained(kind):
    assert any(thing.held for thing in drawn(kind).scene.things)


# -- the rows ----------------------------------------------------------------------------------------------------------


@cache
def small(kind) -> HardBenchmark:
    return replace(hard_benchmark(kind), lengths=(40,))


def answers(row: HardBenchmark, masks) -> dict[str, Prediction]:
    """``masks`` makes bool (F, H, W), or None for no answer, from a clip and the object that is meant."""
    found = {}
    for index, item in enumerate(row.items()):
        clip = row.clip(index)
        for query, (_, target) in zip(item.queries, clip.requests, strict=True):
            own = masks(clip, target)
            rle = () if own is None else (tuple(Mask.from_array(np.ascontiguousarray(one)) for one in own),)
            found[query.id] = Prediction(query.id, "", "", rle, ("",) * len(rle))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_right_answers_are_right(kind):
    row = small(kind)
    scores = row.score(answers(row, lambda clip, target: None if target is None else clip.scene.masks[target]))
    perfect = dict.fromkeys(scores.values, 1.0) | {"swaps": 0.0}
    if "false_positives" in scores.values:
        perfect["false_positives"] = 0.0
    assert scores.values == perfect
    assert set(scores.samples.values()) == {1.0}
    assert scores.headline in scores.values
    values = set(scores.values)
    assert {"j&f", "j", "f", "swaps"} <= values
    assert ("n_acc" in values) == (kind == "absent")
    if kind in ("return", "occlusion"):
        assert {"j&f_reappeared", "false_positives"} <= values
    if kind == "late":
        assert "false_positives" in values
        assert "j&f_reappeared" not in values


def test_masks_for_what_is_gone_are_false():
    row = small("return")

    def stubborn(clip: HardClip, target: int) -> np.ndarray:
        """Never says that the object is gone: it stays where it was last seen."""
        masks = clip.scene.masks[target].copy()
        for index in range(1, len(masks)):
            if not masks[index].any():
                masks[index] = masks[index - 1]
        return masks

    values = row.score(answers(row, stubborn)).values
    assert values["false_positives"] == 1
    assert values["j&f_reappeared"] == 1
    assert values["swaps"] == 0


def test_a_swap_of_look_alikes_is_counted():
    row = small("look-alikes")

    def swapped(clip: HardClip, target: int) -> np.ndarray:
        (_, first), (_, second) = clip.requests
        assert first is not None
        assert second is not None
        other = second if target == first else first
        return np.concatenate([clip.scene.masks[target][:10], clip.scene.masks[other][10:]])

    values = row.score(answers(row, swapped)).values
    assert values["swaps"] == 1
    assert 0.2 < values["j&f"] < 0.4


def test_a_mask_for_what_is_never_there_is_wrong():
    row = small("absent")
    values = row.score(answers(row, lambda clip, _: clip.scene.masks[0])).values
    assert values["n_acc"] == 0
    assert row.score(answers(row, lambda clip, _: np.zeros_like(clip.scene.masks[0]))).values["n_acc"] == 1


def test_rows_are_in_the_table():
    assert HARD_ROWS.items() <= BENCHMARKS.items()
    for name, row in HARD_ROWS.items():
        assert row.name == name == row.open(Path("nowhere")).name
        assert row.title
        assert not row.files(Path("nowhere"))
    assert {row.name for row in select(["synthetic-hard"], Path("nowhere")).rows} == set(HARD_ROWS)
    assert not {row.name for row in select(["synthetic"], Path("nowhere")).rows} & set(HARD_ROWS)


def test_lengths_reach_from_60_to_300_frames():
    rows = [hard_benchmark(kind) for kind in KINDS]
    lengths = [length for row in rows for length in row.lengths]
    assert (min(lengths), max(lengths)) == (60, 300)
    assert all(row.limited(2).lengths == (60, 60) for row in rows)
    assert "60 to 300 frames" in hard_benchmark("return").protocol


def test_frames_are_drawn_when_they_are_asked_for():
    row = small("late")
    (item,) = row.items()
    assert callable(item.media)
    frames = item.media()
    assert np.array_equal(frames, row.clip(0).scene.frames)
    assert item.size == frames[0].shape[:2]


def test_the_truth_of_a_query():
    row = small("absent")
    (item,) = row.items()
    ((masks,), nothing) = (row.expected(query.id).masks for query in item.queries)
    target = target_of(row.clip(0))
    assert np.array_equal([mask.array for mask in masks], row.clip(0).scene.masks[target])
    assert nothing == ()
    with pytest.raises(ValueError, match="has no query 'other'"):
        row.expected("other")


def test_masks_of_another_size_or_number_are_refused():
    row = small("late")
    few = answers(row, lambda clip, target: clip.scene.masks[target][:3])
    with pytest.raises(ValueError, match=r"expected masks of 40 frames of \(128, 128\) \(h, w\), got 3"):
        row.score(few)
    cut = answers(row, lambda clip, target: clip.scene.masks[target][:, :5])
    with pytest.raises(ValueError, match=r"of \[\(5, 128\)\]"):
        row.score(cut)


def test_a_kind_there_is_not():
    with pytest.raises(ValueError, match="expected a kind of clip of"):
        hard_benchmark("easy")
    with pytest.raises(ValueError, match="is scored here"):
        hard_benchmark("late").pack({}, Path("x.zip"))
