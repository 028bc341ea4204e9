"""SaSaSa2VA's view: which frames are shown, which clip decodes which frame, and what becomes of the masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sa2va.inference import sasasa2va
from sa2va.inference.options import MaskPostprocessing
from sa2va.media.open import open_media
from sa2va.model.mask_decoder import decode_masks, language_tokens, upsample_logits
from synthetic_checkpoint import picture

COUNTS = (1, 7, 99, 100, 101, 250)


def test_uniform_spreads_over_the_video_and_wrap_around_takes_its_beginning():
    assert sasasa2va.select_frames("uniform", 250)[:4] == [0, 2, 5, 7]
    assert sasasa2va.select_frames("uniform", 50)[:4] == [0, 0, 1, 1]
    assert sasasa2va.select_frames("wrap_around", 250) == list(range(100))
    assert sasasa2va.select_frames("wrap_around", 40).count(0) == 3  # frames 0, 40, 80
    assert sasasa2va.select_frames("wrap_around", 40).count(39) == 2
    assert sasasa2va.select_frames("wrap_around_plus", 250) == sasasa2va.select_frames("uniform", 250)


@pytest.mark.parametrize("selection", sasasa2va.SELECTIONS)
@pytest.mark.parametrize("count", COUNTS)
def test_a_hundred_sorted_frames_are_shown_and_every_frame_has_its_clips(selection, count):
    if selection == "q_frame" and count < 100:
        chosen = sorted(index % count for index in range(100))
    else:
        chosen = list(range(count))[:100] if selection == "q_frame" else None
    shown = sasasa2va.select_frames(selection, count, chosen)
    assert len(shown) == 100
    assert shown == sorted(shown)
    assert set(shown) <= set(range(count))
    clips = sasasa2va.clips_of_frames(selection, count, shown)
    assert len(clips) == count
    carried = [index for index, own in enumerate(clips) if not own]
    assert carried == (list(range(100, count)) if selection == "wrap_around" else [])
    assert all(0 <= clip < 10 for own in clips for clip in own)


def test_clips_follow_the_published_table():
    def clips(selection, count):
        return sasasa2va.clips_of_frames(selection, count, sasasa2va.select_frames(selection, count))

    assert clips("uniform", 250)[:26] == [(0,)] * 25 + [(1,)]
    assert clips("uniform", 100) == [(index // 10,) for index in range(100)]
    assert clips("uniform_plus", 5)[0] == (0,) * 10 + (1,) * 10  # shown twenty times, ten in each of two clips
    assert clips("wrap_around", 5) == [(0,), (2,), (4,), (6,), (8,)]  # the first clip that shows it
    assert clips("wrap_around", 120)[99:101] == [(9,), ()]
    assert clips("wrap_around_plus", 120) == clips("uniform", 120)
    shown = {
        selection: sasasa2va.select_frames(selection, 40)
        for selection in ("uniform", "wrap_around", "wrap_around_plus")
    }
    assert shown["uniform"][:6] == [0, 0, 0, 1, 1, 2]  # each as often as its neighbours
    assert shown["wrap_around"] == shown["wrap_around_plus"] == sorted([*range(40), *range(40), *range(20)])


def test_frames_not_chosen_follow_the_nearest_chosen_one():
    chosen = [*range(50), *range(150, 200)]
    clips = sasasa2va.clips_of_frames("q_frame", 200, chosen)
    assert clips[0] == (0,)
    assert clips[60] == (4,)  # nearest is 49
    assert clips[140] == (5,)  # nearest is 150


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match="q_frame needs 100"):
        sasasa2va.select_frames("q_frame", 200, [1, 2, 3])
    with pytest.raises(ValueError, match="selection must be one of"):
        sasasa2va.select_frames("random", 200)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="100 frames of one size"):
        sasasa2va.clip_pictures([np.zeros((4, 4, 3), np.uint8)] * 99)


def test_a_clip_is_its_first_frame_and_a_grid_of_the_others():
    frames = [np.full((4, 6, 3), index, np.uint8) for index in range(100)]
    pictures = sasasa2va.clip_pictures(frames)
    assert len(pictures) == 20
    assert pictures[2].size == (6, 4)
    assert np.asarray(pictures[2])[0, 0, 0] == 10
    grid = np.asarray(pictures[3])
    assert grid.shape == (12, 18, 3)
    assert grid[::4, ::6, 0].tolist() == [[11, 12, 13], [14, 15, 16], [17, 18, 19]]


@pytest.mark.parametrize(("given", "expected"), [(3, [0, 1, 2, 2, 2, 2, 2, 2, 2, 2]), (12, list(range(10)))])
def test_ten_prompts_are_cut_or_the_last_repeated(given, expected):
    prompts = torch.arange(given, dtype=torch.float32)[:, None]
    assert sasasa2va.ten_prompts(prompts)[:, 0].tolist() == expected


@torch.inference_mode()
def test_a_frame_is_decoded_by_its_clip_alone(sa2va):
    model = sa2va.model
    frames = [picture(75, 48, seed) for seed in range(3)]
    prompts = torch.randn(2, 10, 128, generator=torch.Generator().manual_seed(0))
    output = MaskPostprocessing(probabilities=True)
    steps = sasasa2va.follow_clips(
        model, open_media(frames), ["a", "b"], [prompts], [[(0,), (4,), (9,)]], output=output
    )
    for (frame, pixels), clip in zip(steps, (0, 4, 9), strict=True):
        features = _features(model, pixels)
        alone = decode_masks(
            model.sam2, model.sam2.mask_decoder, features, language_tokens(model.sam2, prompts[:, clip])
        )
        expected = upsample_logits(alone.logits, 128, (48, 75)).sigmoid().numpy()
        expected[(alone.presence <= 0).numpy()] = 0  # an absent object is blanked in these checkpoints
        for row, segment in enumerate(frame.segments):
            np.testing.assert_allclose(segment.probabilities[0], expected[row], atol=1e-4)


@torch.inference_mode()
def test_a_frame_of_several_clips_has_their_mean(sa2va):
    prompts = torch.randn(2, 10, 128, generator=torch.Generator().manual_seed(3))
    output = MaskPostprocessing(probabilities=True)

    def shown(*clips: int):
        steps = sasasa2va.follow_clips(
            sa2va.model, open_media([picture(75, 48, 0)]), ["a", "b"], [prompts], [[clips]], output=output
        )
        return next(steps)[0].segments

    logit = lambda value: np.log(value / (1 - value))  # noqa: E731
    assert [(one.id, one.phrase) for one in shown(2, 7)] == [(1, "a"), (2, "b")]
    for both, one, other in zip(shown(2, 7), shown(2), shown(7), strict=True):
        assert logit(both.presence) == pytest.approx((logit(one.presence) + logit(other.presence)) / 2, abs=1e-3)
        assert both.score == pytest.approx((one.score + other.score) / 2, abs=1e-5)
        assert np.array_equal(both.mask.array, both.probabilities[0] > 0.5)


@torch.inference_mode()
def test_modes_are_averaged(sa2va):
    frames = [picture(75, 48, seed) for seed in range(2)]
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(1, 10, 128, generator=generator) for _ in range(2)]
    plan = [(0,), (1,)]
    output = MaskPostprocessing(probabilities=True)

    def run(prompts):
        steps = sasasa2va.follow_clips(
            sa2va.model, open_media(frames), ["a"], prompts, [plan] * len(prompts), output=output
        )
        return [frame.segments[0].probabilities for frame, _ in steps]

    both, first, second = run(views), run(views[:1]), run(views[1:])
    for mean, one, other in zip(both, first, second, strict=True):
        np.testing.assert_allclose(mean, (one + other) / 2, atol=1e-5)


@torch.inference_mode()
def test_frames_without_a_clip_are_carried_by_memory(sa2va):
    frames = [picture(75, 48, seed) for seed in range(4)]
    prompts = torch.randn(1, 10, 128, generator=torch.Generator().manual_seed(2))
    steps = list(
        sasasa2va.follow_clips(
            sa2va.model, open_media(frames), ["a"], [prompts], [[(0,), (1,), (), ()]], output=MaskPostprocessing()
        )
    )
    assert [frame.index for frame, _ in steps] == [0, 1, 2, 3]
    assert all(len(frame.segments) == 1 for frame, _ in steps)


def test_what_is_not_found_has_a_reason_and_the_rest_is_followed(tiny):
    clip = np.full((2, 128, 128, 3), 128, np.uint8)
    clip[:, 40:90, 30:80] = (215, 35, 40)
    phrases = ["the blue heart", "the red square"]
    with tiny.track(list(clip), phrases, key_frames="compressed", max_new_tokens=12) as track:
        frames = track.results()
        assert list(track.reasons) == phrases[:1]
    assert [[one.phrase for one in frame.segments] for frame in frames] == [phrases[1:]] * 2


def _features(model, pixels):
    from PIL import Image

    from sa2va.processing.processor import squashed_frames

    return model.encode_frames(squashed_frames([Image.fromarray(pixels)], model.sam2.image_size))
