"""The user's handle: pictures, short videos and words in; text, masks and reasons out; nothing is computed twice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sa2va import Answer, Sa2VA, Segment
from sa2va.masks.mask_ops import Cleanup
from sa2va.results.history import Turn
from synthetic_checkpoint import picture

PHRASES = ["the dog", "the cat on the left", "what barks?"]
PICTURE = picture(150, 97)
CLIP = [picture(75, 48, seed) for seed in range(7)]
TOKENS = {"max_new_tokens": 24}


@contextmanager
def writing(sa2va: Sa2VA, text: str) -> Iterator[None]:
    """Make the model write this text, whatever it is asked."""
    ids = iter(sa2va.processor.tokenizer.encode(text, add_special_tokens=False))

    def choose(_module, _args, logits):
        return torch.zeros_like(logits).index_fill(-1, torch.tensor([next(ids)]), 1.0)

    hook = sa2va.model.vlm.lm_head.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def counting(sa2va: Sa2VA) -> Iterator[dict[str, list[int]]]:
    """Batch sizes of every call of the encoders."""
    vlm = sa2va.model.vlm.model
    tower = vlm.visual if hasattr(vlm, "visual") else vlm.vision_tower
    calls: dict[str, list[int]] = {"vision tower": [], "image encoder": []}

    def note(name: str) -> Callable:
        return lambda _, args, kwargs: calls[name].append(len([*args, *kwargs.values()][0]))

    hooks = [
        tower.register_forward_pre_hook(note("vision tower"), with_kwargs=True),
        sa2va.model.sam2.vision_encoder.backbone.register_forward_pre_hook(note("image encoder"), with_kwargs=True),
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def assert_same_segments(found: tuple[Segment, ...], expected: tuple[Segment, ...]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.phrase, one.span, one.masks) == (other.phrase, other.span, other.masks)
        np.testing.assert_allclose((one.score, one.presence), (other.score, other.presence), atol=1e-4)


# -- several phrases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "written"), [("iv25_qwen2", None), ("q3", "It is [SEG].<|im_end|>")])
def test_several_phrases_share_their_picture(open_sa2va: Callable[[str], Sa2VA], case: str, written: str | None):
    sa2va = open_sa2va(case)

    def answering():
        return writing(sa2va, written) if written else nullcontext()

    with answering(), counting(sa2va) as calls:
        together = sa2va.segment(PICTURE, PHRASES, **TOKENS)
    assert {name: len(sizes) for name, sizes in calls.items()} == {"vision tower": 1, "image encoder": 1}
    assert calls["image encoder"] == [1]
    assert len(together) == len(PHRASES)
    for phrase, answer in zip(PHRASES, together, strict=True):
        with answering():
            alone = sa2va.segment(PICTURE, phrase, **TOKENS)
        assert (answer.raw_text, answer.text, answer.reason) == (alone.raw_text, alone.text, alone.reason)
        assert answer.history == alone.history
        assert_same_segments(answer.segments, alone.segments)
    assert sum(len(answer.segments) for answer in together) > 0


def test_ids_are_unique_over_all_answers(sa2va: Sa2VA):
    with writing(sa2va, "Sure, [SEG] and [SEG].<|end|>"):
        answers = sa2va.segment(PICTURE, PHRASES, **TOKENS)
    ids = [segment.id for answer in answers for segment in answer.segments]
    assert len(ids) == 6
    assert len(set(ids)) == 6


def test_several_phrases_share_the_frames_of_a_video(sa2va: Sa2VA):
    with writing(sa2va, "[SEG].<|end|>"), counting(sa2va) as calls:
        together = sa2va.segment(CLIP, PHRASES, **TOKENS)
    assert calls["vision tower"] == [5]
    assert sum(calls["image encoder"]) == len(CLIP)
    for phrase, answer in zip(PHRASES, together, strict=True):
        with writing(sa2va, "[SEG].<|end|>"):
            alone = sa2va.segment(CLIP, phrase, **TOKENS)
        assert_same_segments(answer.segments, alone.segments)


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_an_answer_and_its_segments(sa2va: Sa2VA):
    with writing(sa2va, "Sure, it is [SEG].<|end|>"):
        answer = sa2va.segment(PICTURE, "the dog", probabilities=True, **TOKENS)
    assert isinstance(answer, Answer)
    assert answer.text == "Sure, it is."
    assert answer.raw_text == "Sure, it is [SEG].<|end|>"
    assert answer.size == (97, 150)
    assert answer.reason is None
    assert answer.history == (Turn("Please segment the dog in this image.", answer.raw_text),)
    (segment,) = answer.segments
    assert segment.phrase == "the dog"
    assert segment.mask.array.shape == (97, 150)
    assert segment.mask.array.dtype == bool
    assert 0 <= segment.score <= 1
    assert 0 < segment.presence < 1
    probabilities = segment.probabilities
    assert probabilities is not None
    assert (probabilities.shape, probabilities.dtype) == ((1, 97, 150), np.float32)
    assert 0 <= probabilities.min() <= probabilities.max() <= 1
    np.testing.assert_array_equal(probabilities[0] > 0.5, segment.mask.array)


@pytest.mark.parametrize("frames", [7, 1])
def test_a_video_has_a_mask_per_frame(sa2va: Sa2VA, frames: int):
    with writing(sa2va, "[SEG] and [SEG].<|end|>"):
        answer = sa2va.segment(CLIP[:frames], "the dog", probabilities=True, **TOKENS)
    assert answer.size == (48, 75)
    assert answer.history[0].question == "Please segment the dog."
    assert [len(segment.masks) for segment in answer.segments] == [frames, frames]
    for segment in answer.segments:
        assert segment.probabilities.shape == (frames, 48, 75)
        np.testing.assert_array_equal(segment.probabilities > 0.5, [mask.array for mask in segment.masks])


def test_a_question_is_asked_as_a_question(sa2va: Sa2VA):
    answer = sa2va.segment(PICTURE, "what is red?", **TOKENS)
    assert answer.history[0].question == "what is red? Please respond with a segmentation mask."


@pytest.mark.parametrize("threshold", [0.1, 0.9])
def test_the_threshold_cuts_the_probabilities(sa2va: Sa2VA, threshold: float):
    with writing(sa2va, "[SEG]<|end|>"):
        (segment,) = sa2va.segment(PICTURE, "dog", threshold=threshold, probabilities=True, **TOKENS).segments
    np.testing.assert_array_equal(segment.probabilities[0] > threshold, segment.mask.array)
    assert segment.mask.area > 0


def test_masks_are_tidied_on_request(sa2va: Sa2VA):
    with writing(sa2va, "[SEG]<|end|>"):
        (plain,) = sa2va.segment(PICTURE, "dog", **TOKENS).segments
    with writing(sa2va, "[SEG]<|end|>"):
        (tidy,) = sa2va.segment(PICTURE, "dog", cleanup=Cleanup(erode=2), **TOKENS).segments
    assert tidy.mask.area < plain.mask.area
    np.testing.assert_array_equal(tidy.mask.array, Cleanup(erode=2).apply(plain.mask.array))


# -- what is not there -------------------------------------------------------------------------------------------------


def test_words_without_a_mask_have_a_reason(sa2va: Sa2VA):
    with writing(sa2va, "There is none.<|end|>"):
        answer = sa2va.segment(PICTURE, "the dog", **TOKENS)
    assert answer.segments == ()
    assert answer.reason == "the model answered without pointing at anything: 'There is none.'"


def test_an_answer_cut_at_its_seg_token_says_so(sa2va: Sa2VA):
    with writing(sa2va, "[SEG]<|end|>"):
        answer = sa2va.segment(PICTURE, "the dog", max_new_tokens=1)
    assert answer.segments == ()
    assert answer.reason == "the answer ended right at its [SEG]; allow more max_new_tokens"


@pytest.mark.parametrize("media", [PICTURE, CLIP], ids=["picture", "video"])
def test_an_empty_mask_is_no_segment(sa2va: Sa2VA, media):
    with writing(sa2va, "[SEG]<|end|>"):
        answer = sa2va.segment(media, "the dog", threshold=1 - 1e-9, **TOKENS)
    assert answer.segments == ()
    assert answer.reason == "the model pointed at something, but its mask is empty"


def test_the_drop_in_returns_empty_masks_all_the_same(sa2va: Sa2VA, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "sa2va.inference.postprocess.foreground", lambda logits, side, size, cut: (np.zeros((0, 0), bool), (0, 0))
    )
    with writing(sa2va, "[SEG]<|end|>"):
        result = sa2va.predict_forward(image=Image.fromarray(PICTURE), text="<image>dog", **TOKENS)
    (mask,) = result["prediction_masks"]
    assert mask.shape == (1, 97, 150)
    assert not mask.any()


def test_the_drop_in_warns_of_a_picture_that_did_not_come(sa2va: Sa2VA, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="sa2va"):
        for media in ({"image": Image.fromarray(PICTURE)}, {"video": [Image.fromarray(PICTURE)]}):
            sa2va.predict_forward(**media, text="<image>dog", max_new_tokens=1)
        sa2va.predict_forward(text="dog", max_new_tokens=1)
        assert caplog.records == []
        sa2va.predict_forward(text="<image>dog", max_new_tokens=1)
    assert "no picture came with it" in caplog.text


def test_free_talk_gives_no_reason(sa2va: Sa2VA):
    with writing(sa2va, "A street.<|end|>"):
        answer = sa2va.chat(PICTURE, "What is this?", **TOKENS)
    assert (answer.text, answer.segments, answer.reason) == ("A street.", (), None)


# -- conversation ------------------------------------------------------------------------------------------------------


def test_a_conversation_goes_on(sa2va: Sa2VA):
    with writing(sa2va, "A dog [SEG].<|end|>"):
        first = sa2va.chat(PICTURE, "What is this?", **TOKENS)
    asked: list[torch.Tensor] = []
    hook = sa2va.model.vlm.get_input_embeddings().register_forward_pre_hook(lambda _, args: asked.append(args[0]))
    with writing(sa2va, "It sleeps.<|end|>"):
        second = sa2va.chat(PICTURE, "And what does it do?", history=first.history, **TOKENS)
    hook.remove()
    text = sa2va.processor.tokenizer.decode(asked[0][0])
    assert text.index("What is this?") < text.index("A dog [SEG].<|end|>") < text.index("And what does it do?")
    assert [turn.question for turn in second.history] == ["What is this?", "And what does it do?"]
    assert second.history[0] == first.history[0]
    assert second.segments == ()


def test_words_alone_need_no_picture(sa2va: Sa2VA):
    with counting(sa2va) as calls, writing(sa2va, "[SEG] Hello.<|end|>"):
        answer = sa2va.chat(None, "Who are you?", **TOKENS)
    assert calls == {"vision tower": [], "image encoder": []}
    assert (answer.text, answer.segments, answer.size) == ("Hello.", (), None)


def test_a_caption_names_what_it_points_at(sa2va: Sa2VA):
    with writing(sa2va, "<p> A dog </p> [SEG] and <p> the red car </p> [SEG] meet.<|end|>"):
        answer = sa2va.caption(PICTURE, max_new_tokens=48)
    assert answer.text == "A dog and the red car meet."
    assert [segment.phrase for segment in answer.segments] == ["A dog", "the red car"]
    for segment in answer.segments:
        start, end = segment.span
        assert answer.text[start:end] == segment.phrase


# -- regions -----------------------------------------------------------------------------------------------------------


def test_regions_are_described_one_by_one(sa2va: Sa2VA):
    with counting(sa2va) as calls:
        texts = sa2va.describe(PICTURE, [[0, 0, 70, 50], [60, 40, 150, 97]], max_new_tokens=8)
    assert len(calls["vision tower"]) == 1
    assert calls["image encoder"] == []
    assert len(texts) == 2
    assert all(isinstance(text, str) and "[SEG]" not in text for text in texts)


def test_a_box_and_its_mask_are_one_region(sa2va: Sa2VA):
    mask = np.zeros((97, 150), bool)
    mask[40:97, 60:150] = True
    boxed, masked = (sa2va.describe(PICTURE, [region], max_new_tokens=8) for region in ([60, 40, 150, 97], mask))
    assert boxed == masked
    # One region may come bare, and several as one array.
    assert sa2va.describe(PICTURE, (60, 40, 150, 97), max_new_tokens=8) == boxed
    assert sa2va.describe(PICTURE, np.array([60, 40, 150, 97]), max_new_tokens=8) == boxed
    assert sa2va.describe(PICTURE, mask, max_new_tokens=8) == boxed
    two = sa2va.describe(PICTURE, np.array([[0, 0, 70, 50], [60, 40, 150, 97]]), max_new_tokens=8)
    assert two == sa2va.describe(PICTURE, [(0, 0, 70, 50), (60, 40, 150, 97)], max_new_tokens=8)


def test_the_model_sees_the_features_of_the_region(sa2va: Sa2VA):
    """One of four cells of the small model's thumbnail: its features stand once more, after all tiles."""
    fused: list[torch.Tensor] = []
    hook = sa2va.model.vlm.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: fused.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    sa2va.describe(PICTURE, [[80, 0, 150, 40]], max_new_tokens=1)
    hook.remove()
    vision = sa2va.processor.vision([Image.fromarray(PICTURE)])
    tiles = sa2va.model.encode_images(vision.pixel_values).embeddings
    found = [row for row in fused[0][0] if (row == tiles[-3]).all()]
    assert len(found) == 2


@pytest.mark.parametrize("case", ["q25", "q3"])
def test_families_without_regions_say_so(open_sa2va: Callable[[str], Sa2VA], case: str):
    with pytest.raises(ValueError, match="cannot describe regions; use an InternVL-based one"):
        open_sa2va(case).describe(PICTURE, [[0, 0, 10, 10]])


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([], "at least one region"),
        ([[200, 0, 300, 50]], "outside the picture"),
        ([[0.1, 0.1, 0.9, 0.9]], "looks like shares of the picture.*multiply x by 150 and y by 97"),
        ([[0, 0, 1, 1]], "looks like shares of the picture"),
        ([[10, 10, float("nan"), 20]], "a box is x0, y0, x1, y1"),
        ([[10, 10, 10, 20]], "with x0 < x1"),
        ([np.zeros((97, 150), bool)], "region is empty"),
        ([np.ones((10, 10), bool)], "the picture 97 x 150"),
    ],
)
def test_regions_are_checked(sa2va: Sa2VA, regions: list, message: str):
    with pytest.raises(ValueError, match=message):
        sa2va.describe(PICTURE, regions)


def test_questions_about_regions_see_their_own_only(sa2va: Sa2VA):
    regions = [[0, 0, 70, 50], [60, 40, 150, 97]]
    with counting(sa2va) as calls:
        answers = sa2va.ask(PICTURE, ["What is region1?"] * 2, regions=regions, max_new_tokens=8)
    assert len(calls["vision tower"]) == 1
    for region, answer in zip(regions, answers, strict=True):
        assert [answer.text] == sa2va.describe(PICTURE, [region], requests=["What is region1?"], max_new_tokens=8)
    with pytest.raises(ValueError, match="one region per question; got 1 for 2"):
        sa2va.ask(PICTURE, ["What?", "Where?"], regions=regions[:1])
    with pytest.raises(ValueError, match="one history per question; got 1 for 2"):
        sa2va.ask(PICTURE, ["What?", "Where?"], histories=[()])
    for media in (None, [PICTURE, PICTURE]):
        with pytest.raises(ValueError, match="regions are parts of one picture"):
            sa2va.ask(media, ["What?"], regions=regions[:1])


# -- inputs and errors -------------------------------------------------------------------------------------------------


def test_a_picture_may_come_in_many_forms(sa2va: Sa2VA, tmp_path: Path):
    path = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(path)
    forms = [PICTURE, Image.fromarray(PICTURE), path, str(path), Image.fromarray(PICTURE).convert("RGBA")]
    answers = [sa2va.segment(form, "dog", **TOKENS) for form in forms]
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phrases": ""}, "phrases must be a non-empty text"),
        ({"phrases": "  "}, "phrases must be a non-empty text"),
        ({"phrases": []}, "phrases must be a non-empty text"),
        ({"phrases": ["dog", ""]}, "phrases must be a non-empty text"),
        ({"phrases": [3]}, "phrases must be a non-empty text"),
        ({"threshold": 0.0}, "threshold is a probability above 0 and below 1; got 0.0"),
        ({"threshold": 1.0}, "threshold is a probability"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"media": None}, "picture or a video"),
        ({"media": CLIP, "key_frames": "last"}, "key_frames is 'first', 'uniform' or a list"),
        ({"media": CLIP, "key_frames": [7]}, r"key_frames \[7\] are not all frames of a video of 7"),
        ({"media": CLIP, "key_frames": [-1]}, r"key_frames \[-1\] are not all frames"),
        ({"media": CLIP, "key_frames": []}, "key_frames is 'first', 'uniform' or a list"),
        ({"media": CLIP, "num_key_frames": 0}, "at least one"),
    ],
)
def test_wrong_requests_say_what_is_wrong(sa2va: Sa2VA, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        sa2va.segment(**{"media": PICTURE, "phrases": "dog", "max_new_tokens": 2, **options})


@pytest.mark.parametrize("question", ["", "  ", None, 3])
def test_a_question_is_a_text(sa2va: Sa2VA, question):
    for ask in (lambda: sa2va.chat(PICTURE, question), lambda: sa2va.ask(None, ["What?", question])):
        with pytest.raises(ValueError, match="a question is a non-empty text"):
            ask()


def test_an_unknown_mode_is_refused(sa2va: Sa2VA):
    with pytest.raises(ValueError, match="mode must be 'released' or 'consistent'; got 'both'"):
        sa2va.track(CLIP, "dog", mode="both")


def test_an_unknown_option_is_named(sa2va: Sa2VA):
    with pytest.raises(TypeError, match="beams"):
        sa2va.segment(PICTURE, "dog", beams=3)


def test_one_device_or_a_map_of_them(checkpoint: Callable[[str], Path]):
    with pytest.raises(ValueError, match="not both"):
        Sa2VA.from_pretrained(checkpoint("iv25_qwen2"), device="cpu", device_map="auto")


def test_the_model_is_loaded_in_the_best_precision_of_its_device(checkpoint: Callable[[str], Path]):
    sa2va = Sa2VA.from_pretrained(checkpoint("iv25_qwen2"), device="cpu")
    assert sa2va.model.dtype == torch.float32
    assert not sa2va.model.training
