"""Which frames of a clip are remembered: by recency, by what an object is told from, or along several hypotheses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from sa2va import Sa2VA, Sa2VAModel
from sa2va.cli.arguments import MemoryKind, VideoOptions
from sa2va.eval.predict import Settings
from sa2va.inference import memory_policies
from sa2va.inference.local_memory import LocalMemory
from sa2va.inference.memory_policies import (
    DistractorAwareMemory,
    MemoryPolicy,
    RecentMemory,
    TreeMemory,
    WatchedObject,
    best_branches,
    memory_of,
)
from sa2va.inference.options import InferenceOptions, MaskPostprocessing
from sa2va.inference.propagation import propagate_video
from sa2va.inference.tracker import VideoTracker
from sa2va.media.open import open_media
from sa2va.model.mask_decoder import MaskPrediction
from sa2va.model.memory import FrameMemory, MemoryBank, attend
from sa2va.results.answer import Frame
from synthetic_checkpoint import noise

POLICIES: list[MemoryPolicy] = ["recent", "near", "local", "distractor-aware", "tree"]
PICKING: list[MemoryPolicy] = ["local", "distractor-aware", "tree"]
SIZE = (48, 80)
CLIP = [np.clip(128 + 60 * noise(f"policy {seed}", (*SIZE, 3)), 0, 255).astype(np.uint8) for seed in range(6)]
POINTERS = 15


@pytest.fixture(scope="module")
def model(load: Callable[[str], Sa2VAModel]) -> Sa2VAModel:
    return load("iv25_qwen2")


def tracker_of(model: Sa2VAModel, memory: MemoryPolicy, *seeds: int, frames: int = 1) -> VideoTracker:
    tracker = VideoTracker(model, memory=memory, output=MaskPostprocessing(probabilities=True))
    prompts = np.stack([noise(f"prompt {seed}", 128) for seed in seeds]).astype(np.float32)
    tracker.add_prompts(torch.from_numpy(prompts), [str(seed) for seed in seeds], frames=frames)
    return tracker


def seen_of(frames: Sequence[Frame], number: int) -> np.ndarray:
    """An object's probabilities (T, H, W)."""
    found = [one.probabilities for frame in frames for one in frame.segments if one.id == number]
    return np.concatenate([one for one in found if one is not None])


def remembered(index: int) -> FrameMemory:
    """The memory of one object of a frame, told from others by its values."""
    return FrameMemory(index, torch.full((1, 2, 3), float(index)), torch.full((1, 4), float(index)))


def with_features(bank: MemoryBank) -> list[int]:
    return [memory.index for memory in bank.tracked if memory.features is not None]


# -- the bank ----------------------------------------------------------------------------------------------------------


def test_a_bank_keeps_the_frames_that_were_picked():
    bank = MemoryBank(ranked=True)
    for index in range(6):
        bank = bank.add_picked(remembered(index), {1, 4}, pointers=2)
    assert with_features(bank) == [1, 4]
    assert [memory.index for memory in bank.tracked] == [1, 4, 5]  # pointers of the last two, and of picked frames


def test_picked_frames_are_read_as_if_they_were_the_last_ones(model: Sa2VAModel):
    sam2 = model.sam2
    cells, width = (sam2.image_size // 16) ** 2, sam2.mem_dim

    def memory(index: int, name: str) -> FrameMemory:
        features = torch.from_numpy(noise(name, (1, cells, width)).astype(np.float32))
        pointer = torch.from_numpy(noise(f"pointer {name}", (1, sam2.hidden_dim)).astype(np.float32))
        return FrameMemory(index, features, pointer)

    side = sam2.image_size // 16
    top = torch.from_numpy(noise("top", (1, sam2.hidden_dim, side, side)).astype(np.float32))
    start = memory(0, "start")
    names = ("a", "b", "c")

    def looked(indices: Sequence[int], ranked: bool, *others: FrameMemory) -> Tensor:
        frames = *others, *(memory(index, name) for index, name in zip(indices, names, strict=True))
        with torch.inference_mode():
            return attend(sam2, MemoryBank((start,), frames, ranked=ranked), top, 12)

    last = looked([9, 10, 11], ranked=False)
    assert torch.equal(looked([9, 10, 11], ranked=True), last)
    assert torch.equal(looked([2, 7, 11], ranked=True), last)
    pointer_alone = FrameMemory(5, None, start.pointer)
    assert torch.equal(looked([9, 10, 11], True, pointer_alone), looked([9, 10, 11], False, pointer_alone))
    assert not torch.equal(looked([6, 7, 11], ranked=False), last)


# -- every policy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", PICKING)
def test_objects_do_not_change_each_other(model: Sa2VAModel, memory: MemoryPolicy):
    """Neither while they are followed together nor when one is removed."""
    together, alone = tracker_of(model, memory, 1, 2, frames=2), tracker_of(model, memory, 2, frames=2)
    both = [together.step(frame) for frame in CLIP[:4]]
    together.remove(1)
    both += [together.step(frame) for frame in CLIP[4:]]
    np.testing.assert_allclose(seen_of(both, 2), seen_of([alone.step(frame) for frame in CLIP], 1), atol=2e-3)


@pytest.mark.parametrize("memory", PICKING)
def test_a_clip_is_followed_in_both_directions(model: Sa2VAModel, memory: MemoryPolicy):
    """From a key frame in the middle: backwards first, then forwards as if nothing had gone before."""
    tracker = tracker_of(model, memory, 1, 2)
    frames = [frame for frame, _ in propagate_video(tracker, open_media(CLIP), [3])]
    assert [len(frame.segments) for frame in frames] == [2] * len(CLIP)
    later = tracker_of(model, memory, 1, 2)
    forward = [later.step(frame) for frame in CLIP[3:]]
    np.testing.assert_allclose(seen_of(frames, 1)[3:], seen_of(forward, 1), atol=2e-3)


@pytest.mark.parametrize("memory", PICKING)
def test_a_memory_is_a_value(model: Sa2VAModel, memory: MemoryPolicy):
    """A step that fails may be tried again: the memory before it has not changed."""
    sam2 = model.sam2
    tracker = tracker_of(model, memory, 1)
    tracker.step(CLIP[0])
    features = tracker.encode(CLIP[1:2]).carried
    group = tracker._groups[0].memory
    with torch.inference_mode():
        first, after = group.track(sam2, sam2.mask_decoder, features, 1)
        second, _ = group.track(sam2, sam2.mask_decoder, features, 1)
    assert torch.equal(first.logits, second.logits)
    assert after is not group


@pytest.mark.parametrize(("policy", "kind"), [("near", RecentMemory), ("local", LocalMemory), ("tree", TreeMemory)])
def test_policies_by_name(policy, kind):
    assert isinstance(memory_of(policy), kind)
    assert isinstance(memory_of("distractor-aware"), DistractorAwareMemory)


def test_the_policies_can_be_chosen_everywhere():
    assert [kind.value for kind in MemoryKind] == list(get_args(MemoryPolicy)) == POLICIES
    assert VideoOptions(memory=MemoryKind.TREE).tracking["memory"] == "tree"
    assert Settings(memory="near").options["memory"] == "near"
    assert InferenceOptions.of(memory="tree").memory == "tree"
    assert InferenceOptions().memory == Settings().memory == VideoOptions().tracking["memory"] == "recent"


def test_compressed_key_frames_have_a_memory_of_their_own(sa2va: Sa2VA):
    with pytest.raises(ValueError, match=r"memory='tree' is for key frames .*: leave memory out, or take key_frames="):
        sa2va.track(CLIP, "the hat", key_frames="compressed", memory="tree")


# -- distractor-aware --------------------------------------------------------------------------------------------------


def block(x: int, width: int = 4) -> Tensor:
    """Mask logits (16, 16): a block of 4 rows at a column, inside 5, outside -5."""
    logits = torch.full((16, 16), -5.0)
    logits[4:8, x : x + width] = 5.0
    return logits


def found(*candidates: Tensor, iou: float = 0.9, presence: float = 3.0) -> MaskPrediction:
    """One object; the first candidate is the one believed in."""
    ious = torch.full((1, len(candidates)), 0.1)
    ious[0, 0] = iou
    zero = torch.zeros(1, dtype=torch.long)
    return MaskPrediction(torch.stack(candidates)[None], ious, zero, torch.tensor([presence]), torch.zeros(1, 4))


def watch(predictions: Sequence[MaskPrediction], start: int = 1) -> WatchedObject:
    watched = WatchedObject()
    for index, prediction in enumerate(predictions, start):
        watched = watched.admit(remembered(index), prediction, pointers=POINTERS)
    return watched


ALONE = found(block(0), block(0), block(0, 3))
BESIDE_ANOTHER = found(block(0), block(0), block(10))


def test_the_last_frame_and_two_spaced_ones_are_kept():
    assert with_features(watch([ALONE] * 13).bank) == [5, 10, 13]
    assert with_features(watch([ALONE] * 15).bank) == [5, 10, 15]
    assert with_features(watch([ALONE] * 3).bank) == [3]


@pytest.mark.parametrize(
    "lost", [found(block(0), block(0), presence=-1.0), found(torch.full((16, 16), -5.0), block(0))]
)
def test_frames_without_the_object_are_not_remembered(lost: MaskPrediction):
    before = watch([ALONE] * 12)
    after = watch([*[ALONE] * 12, *[lost] * 30])
    assert with_features(after.bank) == with_features(before.bank) == [5, 10, 12]
    assert after.areas == before.areas
    assert len(after.bank.tracked) <= POINTERS + 3


def test_a_frame_is_an_anchor_where_another_candidate_points_elsewhere():
    assert [one.index for one in watch([ALONE, BESIDE_ANOTHER, ALONE]).anchors] == [2]
    assert watch([ALONE] * 3).anchors == ()
    # Around both is a box of 14 x 4, of which the mask's own fills 0.29; of one of 5 x 4 it fills 0.8.
    assert watch([found(block(0), block(0), block(1))]).anchors == ()


@pytest.mark.parametrize(("height", "anchors"), [(5, 0), (4, 1)])
def test_an_anchor_is_told_from_another_by_seven_tenths_of_their_box(height: int, anchors: int):
    """Five rows fill 0.71 of seven, four 0.67 of six; so do columns."""
    mask, below = torch.full((2, 16, 16), -5.0)
    mask[2 : 2 + height] = below[2 + height : 4 + height] = 5.0
    for one, other in ((mask, below), (mask.T, below.T)):
        assert len(watch([found(one, one, other)]).anchors) == anchors


def test_what_an_anchor_needs():
    unsure = found(block(0), block(0), block(10), iou=0.7)
    unusual = found(block(0, 8), block(0), block(12))
    assert watch([ALONE, unsure]).anchors == ()
    assert watch([*[ALONE] * 3, unusual]).anchors == ()
    larger = found(block(0, 6), block(0), block(12))  # by a fifth
    assert len(watch([*[found(block(0, 5), block(0), block(0))] * 3, larger]).anchors) == 1
    assert [one.index for one in watch([BESIDE_ANOTHER] * 12).anchors] == [1, 6, 11]
    assert [one.index for one in watch([BESIDE_ANOTHER] * 22).anchors] == [11, 16, 21]  # the last three


def test_anchors_are_read_like_prompted_frames():
    watched = watch([ALONE, BESIDE_ANOTHER, ALONE])
    assert [one.index for one in watched.read.prompted] == [2]
    assert with_features(watched.read) == [3]


# -- tree --------------------------------------------------------------------------------------------------------------


def test_the_best_hypotheses_go_on():
    ious = np.array([[0.9, 0.5, 0.2], [0.8, 0.3, 0.1]])
    found = best_branches([0.0, log(0.5)], ious, np.array([4.0, 3.0]))
    assert [branch[:2] for branch in found] == [(0, 0), (0, 1), (1, 0)]
    assert [score for *_, score in found] == pytest.approx([log(0.9), log(0.5), log(0.4)], abs=1e-4)


def test_hypotheses_differ_where_nobody_is_sure():
    ious = np.array([[0.9, 0.902, 0.2], [0.9, 0.3, 0.1]])
    sure = best_branches([0.0, 0.0], ious, np.array([-2.5, 0.1]))
    unsure = best_branches([0.0, 0.0], ious, np.array([-1.9, 0.1]))
    assert {branch[:2] for branch in sure} == {(0, 1), (0, 0), (1, 0)}
    assert [branch[:2] for branch in unsure] == [(0, 1), (1, 1), (0, 2)]


def test_a_sure_one_suffices_and_an_iou_of_nothing_is_the_worst():
    ious = np.array([[0.9, 0.9, 0.0], [0.4, -0.1, 0.1]])
    (first, second, _) = best_branches([0.0, 0.0], ious, np.array([-2.0, 0.1]))
    assert {first[:2], second[:2]} == {(0, 0), (0, 1)}
    ranked = best_branches([0.0], np.array([[0.0, 0.9, -0.1]]), np.array([4.0]))
    assert [candidate for _, candidate, _ in ranked] == [1, 0, 2]


@pytest.mark.parametrize(
    ("iou", "presence", "kept"), [(0.31, 0.1, True), (0.29, 0.1, False), (0.9, 0.0, False), (0.9, -3.0, False)]
)
def test_a_hypothesis_remembers_six_frames_in_which_the_object_is_seen_well(
    model: Sa2VAModel, monkeypatch: pytest.MonkeyPatch, iou: float, presence: float, kept: bool
):
    sam2, tracker = model.sam2, tracker_of(model, "tree", 1)
    tracker.step(CLIP[0])
    features, memory = tracker.encode(CLIP[1:2]).carried, tracker._groups[0].memory
    side = features.fine.shape[-1]

    def decoded(sam2, decoder, banks, features, index, *, backward) -> tuple[MaskPrediction, Tensor]:
        count = len(banks)
        prediction = MaskPrediction(
            torch.full((count, 3, side, side), -5.0),
            torch.tensor([[iou, 0.2, 0.1]]).expand(count, -1),
            torch.zeros(count, dtype=torch.long),
            torch.full((count,), presence),
            torch.zeros(count, sam2.hidden_dim),
        )
        return prediction, torch.zeros(count, 3, sam2.hidden_dim)

    monkeypatch.setattr(memory_policies, "_decode", decoded)
    with torch.inference_mode():
        for index in range(1, 21):
            _, memory = memory.track(sam2, sam2.mask_decoder, features, index)
    assert isinstance(memory, TreeMemory)
    bank = memory.objects[0][0].bank
    assert with_features(bank) == ([15, 16, 17, 18, 19, 20] if kept else [])
    assert [one.index for one in bank.tracked] == [*range(21 - POINTERS, 21)]


def test_a_tree_has_three_hypotheses_of_each_object_at_most(model: Sa2VAModel):
    tracker = tracker_of(model, "tree", 1, 2)
    counts = []
    for frame in CLIP[:4]:
        tracker.step(frame)
        memory = tracker._groups[0].memory
        assert isinstance(memory, TreeMemory)
        counts.append([len(paths) for paths in memory.objects])
        assert [len(paths) for paths in memory.without_tracked().objects] == [1, 1]
        assert all(paths[0].score == 0 == max(path.score for path in paths) for paths in memory.objects)
    assert counts == [[1, 1], [3, 3], [3, 3], [3, 3]]
