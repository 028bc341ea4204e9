"""Objects through video: frame by frame equals all at once, every frame is encoded once, and memory stays bounded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sa2va.model.memory as memory_module
from sa2va import Sa2VA, Sa2VAModel, VideoTracker
from sa2va.inference.options import MaskPostprocessing
from sa2va.inference.point_prompts import Clicks
from sa2va.inference.propagation import key_frame_indices, propagate_video
from sa2va.masks.mask_ops import Cleanup
from sa2va.media.frames import DecodedFrame
from sa2va.media.open import FrameList, open_media
from sa2va.model.mask_decoder import decode_masks, language_tokens
from sa2va.model.memory import FrameMemory, MemoryBank, encode_memory, remember, track_frame
from sa2va.model.memory_attention import read_memory
from sa2va.results.answer import Frame
from synthetic_checkpoint import noise, picture

SIZE = (48, 75)


def blocks(seed: int) -> np.ndarray:
    """A frame of coloured blocks: half of it changes with the seed."""
    low = 0.8 * noise("blocks", 192) + 0.6 * noise(f"blocks {seed}", 192)
    large = low.reshape(8, 8, 3).repeat(6, axis=0).repeat(10, axis=1)[: SIZE[0], : SIZE[1]]
    return np.clip(128 + 60 * large, 0, 255).astype(np.uint8)


CLIP = [blocks(seed) for seed in range(9)]


@pytest.fixture(scope="module")
def model(load: Callable[[str], Sa2VAModel]) -> Sa2VAModel:
    return load("iv25_qwen2")


@pytest.fixture(scope="module")
def two_decoder_model(two_decoders: Path) -> Sa2VAModel:
    return Sa2VAModel.from_pretrained(two_decoders).eval()


def prompts(*seeds: int) -> Tensor:
    """Mask prompts (K, C), one per seed."""
    return torch.from_numpy(np.stack([noise(f"prompt {seed}", 128) for seed in seeds]).astype(np.float32))


def tracker_of(model: Sa2VAModel, *seeds: int, frames: int = 1, **options) -> VideoTracker:
    tracker = VideoTracker(model, **{"output": MaskPostprocessing(probabilities=True), **options})
    tracker.add_prompts(prompts(*seeds), [f"object {seed}" for seed in seeds], frames=frames)
    return tracker


def seen_of(frames: Sequence[Frame], number: int) -> np.ndarray:
    """An object's probabilities (T, H, W), frame after frame."""
    segments = [segment for frame in frames for segment in frame.segments if segment.id == number]
    assert len(segments) == len(frames)
    return np.concatenate([segment.probabilities for segment in segments])


def assert_agree(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-3) -> None:
    """Equal but for what the rounding of memory to bfloat16 makes of a last digit."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Of the object or of what is not the object, whichever agrees less."""
    return min((a & b).sum() / max((a | b).sum(), 1) for a, b in ((first, second), (~first, ~second)))


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[int]]:
    seen: list[int] = []
    hook = module.register_forward_hook(lambda *_: seen.append(1))
    try:
        yield seen
    finally:
        hook.remove()


def encoded(model: Sa2VAModel):
    return inputs_of(model.sam2.vision_encoder.backbone)


def frames_of(seen: Sequence[Tensor]) -> int:
    """How many frames were encoded; each must have been encoded once."""
    every = torch.cat(list(seen))
    assert len({frame.numpy().tobytes() for frame in every}) == len(every)
    return len(every)


# -- streaming and offline ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["released", "consistent"])
@pytest.mark.parametrize("count", [1, 3])
def test_frame_by_frame_is_the_whole_clip(two_decoder_model: Sa2VAModel, mode, count: int):
    streaming = tracker_of(two_decoder_model, 1, 2, frames=count, mode=mode)
    stepped = [streaming.step(frame) for frame in CLIP]
    offline = tracker_of(two_decoder_model, 1, 2, mode=mode)
    keys = key_frame_indices("first", count, len(CLIP))
    followed = [frame for frame, _ in propagate_video(offline, open_media(CLIP), keys)]
    assert [frame.index for frame in stepped] == [frame.index for frame in followed] == list(range(9))
    for number in (1, 2):
        assert_agree(seen_of(stepped, number), seen_of(followed, number))
    assert np.abs(seen_of(stepped, 1) - seen_of(stepped, 2)).max() > 0.1
    assert seen_of(stepped, 1).std() > 0.1


def test_the_drop_in_is_a_released_track_from_the_first_frames(sa2va: Sa2VA):
    """``predict_forward`` and ``segment`` with the released settings give the same masks."""
    images = [Image.fromarray(frame) for frame in CLIP]
    raw = sa2va.predict_forward(video=images, text="<image>\nPlease segment dog.", max_new_tokens=24)
    answer = sa2va.segment(CLIP, "dog", key_frames="first", mode="released", max_new_tokens=24)
    assert answer.raw_text == raw["prediction"]
    assert len(raw["prediction_masks"]) > 0
    shown = {segment.id: segment.masks for segment in answer.segments}
    for number, expected in enumerate(raw["prediction_masks"], start=1):
        assert number in shown or not expected.any()
        if number in shown:
            for mask, other in zip(shown[number], expected, strict=True):
                assert (mask.array != other).mean() < 1e-3


def test_the_drop_in_takes_the_size_of_the_first_frame(sa2va: Sa2VA):
    """As the released code does, for frames that differ in size."""
    images = [Image.fromarray(picture(75, 48)), Image.fromarray(picture(80, 40, 1))]
    result = sa2va.predict_forward(video=images, text="<image>\nPlease segment dog.", max_new_tokens=24)
    assert {mask.shape for mask in result["prediction_masks"]} == {(2, 48, 75)}


def test_frames_carry_their_index_time_and_size(model: Sa2VAModel):
    tracker = tracker_of(model, 1)
    frames = [tracker.step(Image.fromarray(CLIP[0]), time=0.5), tracker.step(CLIP[1])]
    assert [(frame.index, frame.time, frame.size) for frame in frames] == [(0, 0.5, SIZE), (1, None, SIZE)]
    (segment,) = frames[0].segments
    assert (segment.id, segment.phrase) == (1, "object 1")
    assert 0 <= segment.score <= 1


# -- every frame once --------------------------------------------------------------------------------------------------

KEY_FRAMES = [("first", 5), ("uniform", 5), ("uniform", 2), ([1], 1), ([4], 1), ([3, 5], 2), ([8], 1), ([0, 8], 2)]


@pytest.mark.parametrize(("policy", "number"), KEY_FRAMES)
def test_every_frame_is_encoded_once_and_covered(model: Sa2VAModel, policy, number: int):
    tracker = tracker_of(model, 1, 2)
    keys = key_frame_indices(policy, number, len(CLIP))
    with encoded(model) as seen:
        frames = [frame for frame, _ in propagate_video(tracker, open_media(CLIP), keys)]
    assert frames_of(seen) == len(CLIP)
    assert [frame.index for frame in frames] == list(range(len(CLIP)))
    assert all([segment.id for segment in frame.segments] == [1, 2] for frame in frames)


@pytest.mark.parametrize(("keys", "shown"), [([2, 8], [2, 6]), ([6, 8], [6])])
def test_the_last_good_frame_stands_in_for_lost_key_frames(model: Sa2VAModel, keys: list[int], shown: list[int]):
    """Of a file whose end is lost, which shows when it is decoded; a key frame is prompted once all the same."""

    class CutShort(FrameList):
        def pick(self, indices: Iterable[int]) -> Iterator[DecodedFrame]:
            return super().pick(takewhile(lambda index: index < 7, indices))

    with encoded(model) as seen:
        found = [frame for frame, _ in propagate_video(tracker_of(model, 1), CutShort(CLIP), keys)]
    assert frames_of(seen) == len(found) == 7
    expected = [frame for frame, _ in propagate_video(tracker_of(model, 1), open_media(CLIP[:7]), shown)]
    np.testing.assert_array_equal(seen_of(found, 1), seen_of(expected, 1))


def test_frames_are_squashed_once_and_beside_what_is_computed(model: Sa2VAModel):
    tracker = tracker_of(model, 1)
    squash, seen = tracker.squash, []

    def noted(frames: Sequence[np.ndarray]) -> Tensor:
        seen.extend((threading.current_thread() is threading.main_thread(), frame.tobytes()) for frame in frames)
        return squash(frames)

    tracker.squash = noted
    for _ in propagate_video(tracker, open_media(CLIP), [2, 6]):
        pass
    assert len({pixels for _, pixels in seen}) == len(seen) == len(CLIP)
    here = [pixels for is_here, pixels in seen if is_here]
    assert here == [CLIP[index].tobytes() for index in (2, 6, 1, 0)]  # nothing else could be computed meanwhile


def test_stopping_early_leaves_no_thread(model: Sa2VAModel):
    before = set(threading.enumerate())
    frames = propagate_video(tracker_of(model, 1), open_media(CLIP), [0])
    next(frames)
    assert set(threading.enumerate()) > before
    frames.close()
    assert set(threading.enumerate()) == before


def test_several_groups_share_the_frames(model: Sa2VAModel):
    tracker = tracker_of(model, 1, 2)
    tracker.add_prompts(prompts(3), ["another"])
    with encoded(model) as seen:
        frames = [frame for frame, _ in propagate_video(tracker, open_media(CLIP), [2, 6])]
    assert frames_of(seen) == len(CLIP)
    assert all([segment.id for segment in frame.segments] == [1, 2, 3] for frame in frames)


def test_frames_come_lazily_and_a_few_at_a_time(sa2va: Sa2VA):
    with encoded(sa2va.model) as seen:
        track = sa2va.track(CLIP, "dog", key_frames="first", num_key_frames=1, max_new_tokens=24)
        assert seen == []
        assert next(track).index == 0
        assert frames_of(seen) <= 5
        track.close()
    assert max(map(len, seen)) <= 4


@pytest.mark.parametrize("key", [1, 5])
def test_before_the_first_key_frame_time_runs_backwards(model: Sa2VAModel, key: int):
    """From a key frame back to the start is from the start of the reversed clip on."""
    forth = [frame for frame, _ in propagate_video(tracker_of(model, 1, 2), open_media(CLIP), [key])]
    back = [frame for frame, _ in propagate_video(tracker_of(model, 1, 2), open_media(CLIP[key::-1]), [0])]
    after = [frame for frame, _ in propagate_video(tracker_of(model, 1, 2), open_media(CLIP[key:]), [0])]
    for number in (1, 2):
        assert_agree(seen_of(forth[: key + 1], number)[::-1], seen_of(back, number))
        assert_agree(seen_of(forth[key:], number), seen_of(after, number))


@pytest.mark.parametrize("order", [[0, 4, 7], [7, 0, 4], [4, 7, 0]])
def test_key_frames_may_be_looked_at_in_any_order(model: Sa2VAModel, order: list[int]):
    expected = [frame for frame, _ in propagate_video(tracker_of(model, 1), open_media(CLIP), [0, 4, 7])]
    tracker = tracker_of(model, 1)
    for index in order:
        tracker.prompt_frame(tracker.encode([CLIP[index]]), SIZE, index)
    found = [
        tracker.pop_result(SIZE) if tracker.is_ready(index) else tracker.step_encoded(tracker.encode([frame]), SIZE)
        for index, frame in enumerate(CLIP)
    ]
    assert_agree(seen_of(found, 1), seen_of(expected, 1))


# -- objects -----------------------------------------------------------------------------------------------------------


def test_objects_in_a_batch_are_objects_alone(model: Sa2VAModel):
    together = tracker_of(model, 1, 2, 3)
    frames = [together.step(frame) for frame in CLIP]
    for number in (1, 2, 3):
        alone = tracker_of(model, number)
        assert_agree(seen_of(frames, number), seen_of([alone.step(frame) for frame in CLIP], 1))


def test_an_object_may_join_in_the_middle(model: Sa2VAModel):
    tracker = tracker_of(model, 1)
    frames = [tracker.step(frame) for frame in CLIP[:4]]
    assert tracker.add_prompts(prompts(2), ["late"]) == [2]
    frames += [tracker.step(frame) for frame in CLIP[4:]]
    assert [len(frame.segments) for frame in frames] == [1] * 4 + [2] * 5

    first, late = tracker_of(model, 1), tracker_of(model, 2)
    assert_agree(seen_of(frames, 1), seen_of([first.step(frame) for frame in CLIP], 1))
    assert_agree(seen_of(frames[4:], 2), seen_of([late.step(frame) for frame in CLIP[4:]], 1))


def test_removing_an_object_leaves_the_others_alone(model: Sa2VAModel):
    tracker = tracker_of(model, 1, 2, 3)
    frames = [tracker.step(frame) for frame in CLIP[:4]]
    tracker.remove(2)
    assert tracker.ids == [1, 3]
    frames += [tracker.step(frame) for frame in CLIP[4:]]
    assert [segment.id for segment in frames[-1].segments] == [1, 3]
    whole = tracker_of(model, 1, 2, 3)
    expected = [whole.step(frame) for frame in CLIP]
    for number in (1, 3):
        assert_agree(seen_of(frames, number), seen_of(expected, number))

    tracker.remove(1)
    tracker.remove(3)
    assert tracker.ids == []
    assert tracker.step(CLIP[0]).segments == ()
    assert tracker.add_prompts(prompts(4), ["new"]) == [4]


def test_only_what_is_followed_can_be_removed(sa2va: Sa2VA):
    tracker = tracker_of(sa2va.model, 1, 2)
    with pytest.raises(ValueError, match=r"no object has the id 7; there are \[1, 2\]"):
        tracker.remove(7)
    with pytest.raises(ValueError, match="object 1 has not been seen yet"):
        tracker.remove(1)


def test_a_phrase_that_was_not_asked_yet_can_be_taken_back(sa2va: Sa2VA):
    tracker = sa2va.stream("dog", "cat", max_new_tokens=24)
    with pytest.raises(ValueError, match="no object has the id 7"):
        tracker.remove(7)
    tracker.remove(1)
    assert {segment.phrase for segment in tracker.step(CLIP[0]).segments} <= {"cat"}


# -- memory ------------------------------------------------------------------------------------------------------------


def size_of(bank: MemoryBank) -> int:
    tensors = [tensor for memory in (*bank.prompted, *bank.tracked) for tensor in (memory.features, memory.pointer)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


@torch.no_grad()
def test_memory_does_not_grow_with_the_video(model: Sa2VAModel):
    sam2 = model.sam2
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(256, (1, 128, 128, 3), dtype=torch.uint8, generator=generator)
    features = model.encode_frames(frame)
    prediction = decode_masks(sam2, sam2.mask_decoder, features, language_tokens(sam2, prompts(1, 2)))
    bank = MemoryBank().add_prompted(encode_memory(sam2, features, prediction, 0))
    sizes = []
    for index in range(1, 41):
        bank = remember(sam2, bank, features, track_frame(sam2, sam2.mask_decoder, bank, features, index), index)
        sizes.append(size_of(bank))
    assert sizes[5] > sizes[0]
    assert set(sizes[15:]) == {sizes[15]}
    assert len(bank.prompted) == 1
    assert [memory.index for memory in bank.tracked] == list(range(26, 41))
    assert [memory.index for memory in bank.tracked if memory.features is not None] == list(range(35, 41))
    assert all(memory.features.dtype == torch.bfloat16 for memory in bank.tracked[-6:])


class Largest(TorchDispatchMode):
    """The most numbers in a softmax: the attention weights that exist at a time."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if "softmax" in str(func):
            self.numbers = max(self.numbers, output.numel())
        return output


@torch.no_grad()
def test_a_large_memory_is_read_in_slices(model: Sa2VAModel):
    """The average over a memory is that over the memory many times; its weights are never there all at once."""
    attention, cells, repeats = model.sam2.memory_attention, 64, 2200
    generator = torch.Generator().manual_seed(0)
    picture, memory = torch.randn(1, cells, 128, generator=generator), torch.randn(1, cells, 64, generator=generator)
    frame, position, code = torch.zeros(1, dtype=torch.long), torch.zeros(cells, 128), torch.zeros(1, 64)
    expected = read_memory(attention, picture, position, memory, code, 0, frame)
    with Largest() as largest:
        found = read_memory(attention, picture, position, memory.repeat(1, repeats, 1), code, 0, frame)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert largest.numbers <= 2**23 < cells * cells * repeats


def test_a_bank_is_never_changed():
    def memory(index: int) -> FrameMemory:
        return FrameMemory(index, torch.full((2, 4, 3), float(index)), torch.full((2, 8), float(index)))

    empty = MemoryBank()
    prompted = empty.add_prompted(memory(0))
    tracked = prompted.add_tracked(memory(1), slots=1, pointers=2).add_tracked(memory(2), slots=1, pointers=2)
    assert (len(empty.prompted), len(prompted.tracked)) == (0, 0)
    assert [memory.features is None for memory in tracked.tracked] == [True, False]
    assert [m.index for m in tracked.add_tracked(memory(3), slots=1, pointers=2).tracked] == [2, 3]
    assert tracked.without_tracked() == MemoryBank(tracked.prompted)
    chosen = tracked.select(torch.tensor([1]))
    assert chosen.prompted[0].features.shape == (1, 4, 3)
    assert chosen.tracked[0].features is None


def test_nothing_is_tracked_before_a_prompt(model: Sa2VAModel):
    features = model.encode_frames(torch.zeros(1, 128, 128, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no frame of this clip has been prompted"):
        track_frame(model.sam2, model.sam2.mask_decoder, MemoryBank(), features, 0)


# -- modes -------------------------------------------------------------------------------------------------------------


def test_the_checkpoint_chooses_the_mode(model: Sa2VAModel, two_decoder_model: Sa2VAModel):
    assert VideoTracker(model).mode == "released"
    assert VideoTracker(two_decoder_model).mode == "consistent"
    assert VideoTracker(two_decoder_model, mode="released").mode == "released"
    with pytest.raises(ValueError, match="mode must be 'released' or 'consistent'; got 'other'"):
        VideoTracker(model, mode="other")


def test_without_an_original_decoder_consistent_is_refused(model: Sa2VAModel, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="sa2va"):
        VideoTracker(model)
        assert caplog.records == []
    with pytest.raises(ValueError, match="this checkpoint lacks; load it with sam2='facebook/sam2-hiera-large'"):
        VideoTracker(model, mode="consistent")


def test_in_consistent_mode_each_decoder_does_what_it_was_trained_for(two_decoder_model: Sa2VAModel):
    tuned, original = two_decoder_model.sam2.mask_decoder, two_decoder_model.original_mask_decoder
    assert original is not None
    tracker = tracker_of(two_decoder_model, 1, mode="consistent", frames=2)
    with calls_of(tuned) as of_tuned, calls_of(original) as of_original:
        counts = []
        for frame in CLIP[:4]:
            tracker.step(frame)
            counts.append((len(of_tuned), len(of_original)))
    # A key frame is decoded by the tuned one, and its mask is read by the original one; the rest is the original's.
    assert counts == [(1, 1), (2, 2), (2, 3), (2, 4)]

    released = tracker_of(two_decoder_model, 1, mode="released", frames=2)
    with calls_of(original) as of_original:
        for frame in CLIP[:4]:
            released.step(frame)
    assert of_original == []


def test_in_consistent_mode_key_frames_keep_the_masks_of_the_tuned_decoder(two_decoder_model: Sa2VAModel):
    consistent, released = (tracker_of(two_decoder_model, 1, 2, mode=mode) for mode in ("consistent", "released"))
    first, expected = consistent.step(CLIP[0]), released.step(CLIP[0])
    for one, other in zip(first.segments, expected.segments, strict=True):
        # SAM 2 keeps a given mask at a quarter of its side, 32 cells here.
        assert iou(one.mask.array, other.mask.array) > 0.7
        np.testing.assert_allclose((one.score, one.presence), (other.score, other.presence), atol=1e-5)
    second, other = consistent.step(CLIP[1]), released.step(CLIP[1])
    assert np.abs(seen_of([second], 1) - seen_of([other], 1)).max() > 0.1


# -- prompts by hand ---------------------------------------------------------------------------------------------------

BOX = [20.0, 10.0, 60.0, 40.0]


def drawn_mask() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[10:40, 20:60] = True
    return mask


@pytest.mark.parametrize("mode", ["released", "consistent"])
def test_a_drawn_mask_is_followed(two_decoder_model: Sa2VAModel, mode):
    tracker = VideoTracker(two_decoder_model, mode=mode)
    assert tracker.add("thing", mask=drawn_mask()) == 1
    first, second = tracker.step(CLIP[0]), tracker.step(CLIP[1][:40])  # the mask is of the first frame only
    assert iou(first.segments[0].mask.array, drawn_mask()) > 0.9
    assert first.segments[0].presence > 0.99
    assert second.segments[0].phrase == "thing"


def test_a_pixel_that_is_half_inside_a_drawn_mask_is_inside(model: Sa2VAModel):
    """As in SAM 2. The frame has twice the side of the grounding image."""
    frame = np.asarray(Image.fromarray(CLIP[0]).resize((256, 256)))
    found = []
    for left in (64, 65, 66):
        tracker = VideoTracker(model, output=MaskPostprocessing(probabilities=True))
        tracker.add(mask=np.broadcast_to(np.arange(256) >= left, (256, 256)))
        found.append(seen_of([tracker.step(frame)], 1))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[1] != found[2]).any()


def test_an_empty_mask_is_an_absent_object(model: Sa2VAModel):
    tracker = VideoTracker(model)
    tracker.add(mask=np.zeros(SIZE, bool))
    (segment,) = tracker.step(CLIP[0]).segments
    assert segment.mask.area == 0
    assert segment.presence < 0.01


@pytest.mark.parametrize(
    "given", [{"box": BOX}, {"points": [[40, 25]]}, {"points": [[40, 25], [70, 5]], "labels": [1, 0]}]
)
def test_boxes_and_points_prompt_the_next_frame(model: Sa2VAModel, given: dict):
    tracker = tracker_of(model, 1)
    tracker.step(CLIP[0])
    assert tracker.add("by hand", **given) == 2
    with calls_of(model.sam2.mask_decoder) as calls:
        frames = [tracker.step(frame) for frame in CLIP[1:4]]
    assert len(calls) == 6
    assert all([segment.phrase for segment in frame.segments] == ["object 1", "by hand"] for frame in frames)
    other = VideoTracker(model, output=MaskPostprocessing(probabilities=True))
    other.add("by hand", **given)
    assert_agree(seen_of(frames, 2), seen_of([other.step(frame) for frame in CLIP[1:4]], 1))


def test_points_are_pixels_of_the_frame(model: Sa2VAModel):
    """A frame twice as wide, and points twice as far to the right: the same place."""
    small = Image.fromarray(CLIP[0]).resize((128, 128))
    large = small.resize((256, 128), Image.Resampling.NEAREST)

    def score(frame: Image.Image, point: list[float]) -> float:
        tracker = VideoTracker(model)
        tracker.add(points=[point])
        return tracker.step(frame).segments[0].score

    here, there = score(small, [30, 20]), score(small, [100, 100])
    assert abs(here - there) > 1e-3
    assert abs(score(large, [60, 20]) - here) < abs(here - there) / 4


def test_a_mask_may_be_a_pictures_own_memory(model: Sa2VAModel):
    """As of ``np.asarray(image)``, which cannot be written to."""
    VideoTracker(model).add(mask=np.asarray(Image.new("1", (8, 8), 1)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "an object is named by a phrase, or by a mask, or by a box or points; got nothing"),
        ({"box": BOX, "mask": np.zeros(SIZE, bool)}, r"a mask, or by a box or points; got \['mask', 'box'\]"),
        ({"phrase": "dog"}, "this tracker cannot read phrases"),
        ({"mask": np.zeros(SIZE)}, r"a mask is a bool array \(H, W\); got float64"),
        ({"mask": np.zeros((2, *SIZE), bool)}, r"a mask is a bool array \(H, W\); got bool \(2, 48, 75\)"),
        ({"points": [[1, 2], [3, 4]], "labels": [1]}, "2 points need as many labels; got 1"),
        ({"points": []}, "points"),
        ({"points": [[1, 2, 3], [4, 5, 6]]}, "points"),
        ({"points": [[1, 2]], "labels": [5]}, "labels"),
        ({"points": [[float("nan"), 2]]}, "points"),
        ({"box": [1, 2, 3]}, "box"),
        ({"box": [30, 20, 10, 5]}, "box"),
    ],
)
def test_prompts_are_checked(model: Sa2VAModel, given: dict, message: str):
    tracker = VideoTracker(model)
    with pytest.raises(ValueError, match=message):
        tracker.add(**given)
    assert tracker.ids == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": np.ones((10, 10), bool)}, r"the mask is \(10, 10\) but the frame is \(48, 75\)"),
        ({"box": [80, 10, 90, 20]}, "lies outside the picture of 48 x 75 pixels"),
        ({"box": [-9, -9, 0, 0]}, "lies outside the picture"),
        ({"box": [0.1, 0.2, 0.5, 1.0]}, "looks like shares of the picture.*multiply x by 75 and y by 48"),
        ({"points": [[75, 10]]}, r"points \[\(75.0, 10.0\)\] are not all inside the frame of 48 x 75"),
        ({"points": [[3, 4], [-1, 10]]}, "not all inside the frame"),
        ({"points": [[0.25, 0.75]]}, "look like shares of the frame.*multiply x by 75 and y by 48"),
    ],
)
def test_a_prompt_that_does_not_fit_its_frame_changes_nothing(model: Sa2VAModel, given: dict, message: str):
    tracker, undisturbed = tracker_of(model, 1), tracker_of(model, 1)
    tracker.step(CLIP[0]), undisturbed.step(CLIP[0])
    wrong = tracker.add(**given)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            tracker.step(CLIP[5])
    tracker.remove(wrong)
    frame, expected = tracker.step(CLIP[1]), undisturbed.step(CLIP[1])
    assert frame.index == expected.index == 1
    np.testing.assert_array_equal(seen_of([frame], 1), seen_of([expected], 1))


def test_marks_in_pixels_of_the_grounding_image():
    def marked(**given: Any) -> tuple[list, list]:
        points, labels = Clicks.of(**given).tensors((48, 75), 256)
        return points[0].tolist(), labels[0].tolist()

    assert marked(points=[[37.5, 12], [0, 0]], labels=[0, 1]) == ([[128, 64], [0, 0]], [0, 1])
    assert marked(box=[-30, 12, 37.5, 99], points=[[37.5, 24]]) == ([[0, 64], [128, 256], [128, 128]], [2, 3, 1])
    assert marked() == ([[0, 0]], [-1])


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        *(({"points": [point]}, True) for point in ([0, 0], [1, 1], [0.5, 1.5], [74.5, 47.5])),
        *(({"points": [point]}, False) for point in ([75, 0], [0, 48], [-0.5, 3], [3, -0.5], [0.5, 1], [1, 0.5])),
        *(({"box": box}, True) for box in ([74, 47, 90, 90], [-9, -9, 1, 1], [0, 0, 1, 1.5], [-0.5, 0, 1, 1])),
        *(
            ({"box": box}, False)
            for box in ([75, 0, 80, 9], [0, 48, 9, 50], [-9, 0, 0, 5], [0, -9, 5, 0], [0, 0, 1, 1])
        ),
    ],
)
def test_marks_at_the_edge_of_a_frame(given: dict, fits: bool):
    with nullcontext() if fits else pytest.raises(ValueError, match=r"inside the frame|outside the pict|like shares"):
        Clicks.of(**given).tensors((48, 75), 256)


def test_a_box_that_reaches_over_the_edge_is_cut(model: Sa2VAModel):
    def score(box: Sequence[float]) -> float:
        tracker = VideoTracker(model)
        tracker.add(box=box)
        return tracker.step(CLIP[0]).segments[0].score

    assert score([-40, 10, 60, 900]) == score([0, 10, 60, 48])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"phrase": "  "}, "a phrase is a non-empty text; got '  '"),
        ({"phrase": 3}, "a phrase is a non-empty text; got 3"),
        ({"box": [1, 2, float("inf"), 3]}, "a box is x0, y0, x1, y1"),
        ({"box": [1, 2, 3, 10**400]}, "a box is four numbers"),
        ({"box": 7}, "a box is four numbers"),
        ({"box": [1, None, 3, 4]}, "a box is four numbers"),
        ({"points": [[1, 10**400]]}, "points are one or more pairs"),
        ({"points": [[1, 2], [3]]}, "points are one or more pairs"),
        ({"points": [[1, 2]], "labels": [0.5]}, "labels are 1"),
    ],
)
def test_a_wrong_prompt_is_refused_at_once(model: Sa2VAModel, given: dict, message: str):
    tracker = VideoTracker(model, ask=Told())
    with pytest.raises(ValueError, match=message):
        tracker.add(**given)
    assert tracker.step(CLIP[0]).segments == ()


def test_a_frame_is_any_picture(model: Sa2VAModel):
    grey = CLIP[0][..., 0]
    alike = [
        grey,
        np.stack([grey] * 3, axis=-1),
        Image.fromarray(grey),
        np.stack([grey] * 3 + [255 + 0 * grey], axis=-1),
    ]
    found = [seen_of([tracker_of(model, 1).step(frame)], 1) for frame in alike]
    assert all(np.array_equal(each, found[0]) for each in found)
    with pytest.raises(ValueError, match="uint8"):
        tracker_of(model, 1).step(CLIP[0].astype(np.float32))


# -- phrases -----------------------------------------------------------------------------------------------------------


class Told:
    """Stands in for the language model: says which prompts a phrase has, and remembers what it was asked."""

    def __init__(self, **found: Tensor):
        self.found, self.asked = found, list[tuple[str, ...]]()

    def __call__(self, phrases: Sequence[str], pixels: np.ndarray) -> list[Tensor]:
        self.asked.append(tuple(phrases))
        return [self.found.get(phrase, prompts(1)[:0]) for phrase in phrases]


def test_phrases_are_looked_for_in_the_next_frame(model: Sa2VAModel):
    told = Told(dog=prompts(1, 2), cat=prompts(3))
    tracker = VideoTracker(model, ask=told)
    assert [tracker.add("dog"), tracker.add("unicorn"), tracker.add("cat")] == [1, 2, 3]
    first = tracker.step(CLIP[0])
    assert told.asked == [("dog", "unicorn", "cat")]
    named = [(segment.id, segment.phrase) for segment in first.segments]
    assert named == [(1, "dog"), (4, "dog"), (3, "cat")]
    assert tracker.add("cat") == 5
    second = tracker.step(CLIP[1])
    assert told.asked[1:] == [("cat",)]
    assert [segment.id for segment in second.segments] == [1, 4, 3, 5]
    tracker.step(CLIP[2])
    assert len(told.asked) == 2


def test_a_stream_finds_what_a_picture_has(sa2va: Sa2VA):
    tracker = sa2va.stream("the dog", max_new_tokens=24)
    frame = tracker.step(CLIP[0])
    answer = sa2va.segment(CLIP[0], "the dog", max_new_tokens=24)
    found = {segment.mask for segment in frame.segments if segment.mask.area}
    assert found == {segment.mask for segment in answer.segments}
    assert found


def test_a_failed_step_loses_no_phrase(model: Sa2VAModel):
    told = Told(dog=prompts(1, 2), cat=prompts(3))

    def fails_once(phrases: Sequence[str], pixels: np.ndarray) -> list[Tensor]:
        found = told(phrases, pixels)
        if len(told.asked) == 1:
            raise RuntimeError("out of memory")
        return found

    tracker = VideoTracker(model, ask=fails_once, output=MaskPostprocessing(probabilities=True))
    undisturbed = VideoTracker(model, ask=Told(**told.found), output=MaskPostprocessing(probabilities=True))
    for each in (tracker, undisturbed):
        each.add("dog"), each.add("cat")
    with pytest.raises(RuntimeError, match="out of memory"):
        tracker.step(CLIP[0])
    assert tracker.ids == []
    frames, expected = ([each.step(frame) for frame in CLIP[:2]] for each in (tracker, undisturbed))
    assert [segment.id for segment in frames[1].segments] == [1, 3, 2]
    assert [frame.index for frame in frames] == [0, 1]
    for number in (1, 2, 3):
        np.testing.assert_array_equal(seen_of(frames, number), seen_of(expected, number))


def test_a_phrase_that_cannot_be_asked_is_named_and_can_be_taken_back(model: Sa2VAModel):
    told = Told(dog=prompts(1))

    def refuses(phrases: Sequence[str], pixels: np.ndarray) -> list[Tensor]:
        if "<image>" in phrases:
            raise ValueError("leave <image> out of the text")
        return told(phrases, pixels)

    tracker = VideoTracker(model, ask=refuses)
    tracker.add("dog")
    wrong = tracker.add("<image>")
    with pytest.raises(
        ValueError, match=r"leave <image> out of the text; .*takes one back: 1 \('dog'\), 2 \('<image>'\)"
    ):
        tracker.step(CLIP[0])
    tracker.remove(wrong)
    assert [segment.id for segment in tracker.step(CLIP[0]).segments] == [1]


def test_a_step_that_fails_late_changes_no_memory(model: Sa2VAModel, monkeypatch: pytest.MonkeyPatch):
    """Of two groups the first has gone on when the second fails."""
    tracker, undisturbed = tracker_of(model, 1), tracker_of(model, 1)
    for each in (tracker, undisturbed):
        each.add_prompts(prompts(2), ["object 2"])
        each.step(CLIP[0])
    with monkeypatch.context() as broken:
        calls = iter([remember])
        broken.setattr("sa2va.inference.memory_policies.remember", lambda *given: next(calls)(*given))
        with pytest.raises(StopIteration):
            tracker.step(CLIP[7])
    frames, expected = ([each.step(frame) for frame in CLIP[1:3]] for each in (tracker, undisturbed))
    for number in (1, 2):
        np.testing.assert_array_equal(seen_of(frames, number), seen_of(expected, number))


def test_a_stream_takes_a_list_of_phrases(sa2va: Sa2VA):
    one = sa2va.stream(["the dog", "the cat"], max_new_tokens=24)
    other = sa2va.stream("the dog", "the cat", max_new_tokens=24)
    assert one.step(CLIP[0]).to_json() == other.step(CLIP[0]).to_json()
    for wrong in ("  ", ["the dog", ""], [], None, 3, ["the dog", None]):
        with pytest.raises(ValueError, match="phrases must be a non-empty text or a list of them"):
            sa2va.stream(wrong)
    with pytest.raises(ValueError, match="phrases must be"):
        sa2va.stream("the dog", " ")


@pytest.mark.parametrize(
    "given", [np.array([6, 2]), (2, 6), [6, 2, 2], [np.int64(2), 6], range(2, 7, 4), torch.tensor([2, 6])]
)
def test_key_frames_come_in_many_forms(given):
    assert key_frame_indices(given, 5, 9) == [2, 6]


def test_one_key_frame_may_be_a_number(sa2va: Sa2VA):
    tracks = [sa2va.track(CLIP, "the dog", key_frames=given, max_new_tokens=24) for given in (4, [4], np.array([4, 4]))]
    first, *others = [[frame.to_json() for frame in track] for track in tracks]
    assert others == [first, first]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (9, r"key_frames \[9\] are not all frames of a video of 9, whose last is 8"),
        (np.array([-1, 3]), r"key_frames \[-1, 3\] are not all frames"),
        ([0.5], "a list of frame indices"),
        (np.zeros(9, bool), "a list of frame indices"),
        ([0, True], "a list of frame indices"),
        (np.array([]), "a list of frame indices"),
        ([[0, 1]], "a list of frame indices"),
        (None, "a list of frame indices"),
        ("middle", "a list of frame indices"),
    ],
)
def test_other_key_frames_are_refused(given, message: str):
    with pytest.raises(ValueError, match=message):
        key_frame_indices(given, 5, 9)


@pytest.mark.parametrize("number", [0, 2.5, True])
@pytest.mark.parametrize("policy", ["first", "uniform"])
def test_the_number_of_key_frames_is_whole(policy, number):
    with pytest.raises(ValueError, match="choosing frames needs"):
        key_frame_indices(policy, number, 9)


def test_more_key_frames_than_frames_are_all_frames():
    assert key_frame_indices("uniform", 10**12, 9) == key_frame_indices("first", 10**12, 9) == list(range(9))


def test_a_track_says_what_it_did_not_find(sa2va: Sa2VA):
    with encoded(sa2va.model) as seen:
        track = sa2va.track(CLIP, "nothing", max_new_tokens=1)
        frames = track.results()
    assert seen == []
    assert list(track.reasons) == ["nothing"]
    assert [(frame.index, frame.segments) for frame in frames] == [(index, ()) for index in range(9)]


def test_settings_reach_every_mask(model: Sa2VAModel):
    plain = tracker_of(model, 1, output=MaskPostprocessing(probabilities=True))
    strict = tracker_of(model, 1, output=MaskPostprocessing(threshold=0.8, cleanup=Cleanup(largest_component=True)))
    for frame in CLIP[:3]:
        (one,), (other,) = plain.step(frame).segments, strict.step(frame).segments
        expected = Cleanup(largest_component=True).apply(one.probabilities[0] > 0.8)
        np.testing.assert_array_equal(other.mask.array, expected)
        assert other.probabilities is None


# -- what is read of the memory ----------------------------------------------------------------------------------------


def test_near_memory_reads_less_and_keeps_all(model: Sa2VAModel, monkeypatch: pytest.MonkeyPatch):
    """The two nearest prompted and the two last tracked frames; every pointer; the bank itself stays whole."""
    read: dict[str, list[int]] = {"recent": [], "near": []}
    banks = {}
    for memory, lengths in read.items():
        tracker = tracker_of(model, 1, 2, frames=3, memory=memory)
        monkeypatch.setattr(
            memory_module,
            "read_memory",
            lambda *args, lengths=lengths: lengths.append(args[3].shape[1]) or read_memory(*args),
        )
        for frame in CLIP:
            tracker.step(frame)
        banks[memory] = [tracker.ids, len(lengths)]
    assert banks["recent"] == banks["near"]
    cells = (model.sam2.image_size // 16) ** 2
    spatial = {memory: [length // cells for length in lengths] for memory, lengths in read.items()}
    assert spatial["recent"] == [3, 4, 5, 6, 7, 8]
    assert spatial["near"] == [2, 3, 4, 4, 4, 4]


def test_near_memory_is_all_of_it_while_there_is_no_more(model: Sa2VAModel):
    everything, near = (tracker_of(model, 1, frames=2, memory=memory) for memory in ("recent", "near"))
    for frame in CLIP[:5]:
        one, other = everything.step(frame), near.step(frame)
        assert [segment.masks for segment in one] == [segment.masks for segment in other]
    with pytest.raises(ValueError, match=r"memory must be one of 'recent', 'near', .*; got 'some'"):
        VideoTracker(model, memory="some")  # pyright: ignore[reportArgumentType]
