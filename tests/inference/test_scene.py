"""An open medium: looked at once, asked any number of times, with the answers of a medium opened anew."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sa2va import Answer, Sa2VA
from sa2va.inference.options import InferenceOptions, Options
from sa2va.media.open import Picture, open_media
from synthetic_checkpoint import picture

FAMILIES = ["iv25_qwen2", "iv25_internlm2", "iv35_qwen3", "q25", "q3"]
PICTURE = picture(150, 97)
CLIP = [picture(75, 48, seed) for seed in range(7)]
TOKENS = {"max_new_tokens": 24}
PHRASES = ["the dog", "the cat on the left", "what barks?"]


@contextmanager
def counting(sa2va: Sa2VA) -> Iterator[dict[str, int]]:
    """Passes of the encoders, and tokens of prompts that the language model reads (all passes of more than one)."""
    vlm = sa2va.model.vlm.model
    tower = vlm.visual if hasattr(vlm, "visual") else vlm.vision_tower
    counts = {"vision tower": 0, "image encoder": 0, "prompt tokens": 0}

    def note(name: str) -> Callable:
        def hook(_module, args, kwargs) -> None:
            length = kwargs["inputs_embeds"].shape[1] if name == "prompt tokens" else 1
            counts[name] += 0 if name == "prompt tokens" and length == 1 else length

        return hook

    modules = {
        "vision tower": tower,
        "image encoder": sa2va.model.sam2.vision_encoder.backbone,
        "prompt tokens": vlm.language_model,
    }
    hooks = [module.register_forward_pre_hook(note(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def same(found: Answer, expected: Answer) -> None:
    """Equal texts and objects; what comes from floats nearly so, as sums depend on what is computed together."""
    assert (found.raw_text, found.reason, found.history) == (expected.raw_text, expected.reason, expected.history)
    assert [(one.phrase, one.span) for one in found] == [(one.phrase, one.span) for one in expected]
    for one, other in zip(found, expected, strict=True):
        for mask, wanted in zip(one.masks, other.masks, strict=True):
            assert (mask.array ^ wanted.array).mean() <= 1e-3
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)


@pytest.mark.parametrize("case", FAMILIES)
def test_the_second_request_looks_at_nothing_and_reads_only_its_words(open_sa2va, case):
    sa2va = open_sa2va(case)
    alone = [sa2va.segment(PICTURE, phrase, **TOKENS) for phrase in PHRASES]
    with sa2va.open(PICTURE) as scene:
        same(scene.segment(PHRASES[0], **TOKENS), alone[0])
        for phrase, expected in zip(PHRASES[1:], alone[1:], strict=True):
            with counting(sa2va) as counts:
                same(scene.segment(phrase, **TOKENS), expected)
            words = len(sa2va.processor.tokenizer.encode(f"{phrase} in this image."))
            assert counts["vision tower"] == 0
            assert counts["image encoder"] <= (len(alone[0].segments) == 0)
            assert counts["prompt tokens"] <= words + 40  # the request around the words, none of the picture


@contextmanager
def writing(sa2va: Sa2VA, text: str) -> Iterator[int]:
    """Make the model write this text and end, whatever it is asked; yields the number of its tokens."""
    ids = sa2va.processor.tokenizer.encode(text, add_special_tokens=False)
    left = iter([*ids, min(sa2va.processor.eos_ids)])

    def choose(_module, _args, logits):
        return torch.zeros_like(logits).index_fill(-1, torch.tensor([next(left)]), 1.0)

    hook = sa2va.model.vlm.lm_head.register_forward_hook(choose)
    try:
        yield len(ids)
    finally:
        hook.remove()


@pytest.mark.parametrize("case", FAMILIES)
def test_a_turn_of_a_conversation_reads_only_what_is_new(open_sa2va, case):
    sa2va = open_sa2va(case)
    first, second = "What is this?", "And where is it?"
    with sa2va.open(PICTURE) as scene:
        with writing(sa2va, "A dog") as written, counting(sa2va) as counts:
            answer = scene.chat(first)
        read_first = counts["prompt tokens"]
        expected = sa2va.chat(PICTURE, second, history=answer.history, **TOKENS)
        with counting(sa2va) as counts:
            same(scene.chat(second, history=answer.history, **TOKENS), expected)
    vision = sa2va.processor.vision([Image.fromarray(PICTURE)])
    whole = len(sa2va.processor.prompt_ids(second, vision=vision, history=answer.history))
    assert read_first == len(sa2va.processor.prompt_ids(first, vision=vision))
    assert counts["prompt tokens"] == whole - read_first - written


def test_a_conversation_goes_on_after_a_question_in_between(sa2va):
    first = sa2va.chat(PICTURE, "What is this?", **TOKENS)
    expected = sa2va.chat(PICTURE, "And where?", history=first.history, **TOKENS)
    with sa2va.open(PICTURE) as scene:
        same(scene.chat("What is this?", **TOKENS), first)
        answers = scene.segment(PHRASES, **TOKENS)
        for answer, alone in zip(answers, sa2va.segment(PICTURE, PHRASES, **TOKENS), strict=True):
            same(answer, alone)
        with counting(sa2va) as counts:
            same(scene.chat("And where?", history=first.history, **TOKENS), expected)
        assert counts["prompt tokens"] < 60 and not counts["vision tower"]


def test_beyond_the_window_of_dynamic_rope_nothing_is_shared_but_the_pictures(open_sa2va):
    """There every token's numbers depend on the length of the pass, so a prompt is read whole."""
    sa2va = open_sa2va("iv3_qwen2_dyn")
    expected = [sa2va.chat(PICTURE, question, max_new_tokens=8) for question in ("What is this?", "And where?")]
    with sa2va.open(PICTURE) as scene:
        same(scene.chat("What is this?", max_new_tokens=8), expected[0])
        with counting(sa2va) as counts:
            same(scene.chat("And where?", max_new_tokens=8), expected[1])
    vision = sa2va.processor.vision([Image.fromarray(PICTURE)])
    assert counts["vision tower"] == 0
    assert counts["prompt tokens"] == len(sa2va.processor.prompt_ids("And where?", vision=vision))


@pytest.mark.parametrize("case", ["iv25_qwen2", "iv25_internlm2"])
def test_regions_of_an_open_picture_are_cut_from_what_was_seen(open_sa2va, case):
    sa2va = open_sa2va(case)
    boxes = [(5, 5, 60, 60), (80, 10, 149, 90)]
    expected = sa2va.describe(PICTURE, boxes, **TOKENS)
    with sa2va.open(PICTURE) as scene:
        scene.chat("What is this?", max_new_tokens=1)
        with counting(sa2va) as counts:
            assert scene.describe(boxes, **TOKENS) == expected
            scene.ask(["What is region1?"] * 2, regions=boxes, **TOKENS)
        assert counts["vision tower"] == 0


def test_a_video_is_looked_at_once_for_all_requests_about_the_same_frames(sa2va):
    options = {**TOKENS, "key_frames": "first", "num_key_frames": 3}
    expected = sa2va.segment(CLIP, PHRASES[0], **options)
    track = sa2va.track(CLIP, PHRASES[1], **options).results()
    with sa2va.open(CLIP) as scene:
        same(scene.segment(PHRASES[0], **options), expected)
        with counting(sa2va) as counts:
            frames = scene.track(PHRASES[1], **options)
        assert counts["vision tower"] == 0
        found = [[(one.phrase, one.masks) for one in frame] for frame in frames]
        assert found == [[(one.phrase, one.masks) for one in frame] for frame in track]
        with counting(sa2va) as counts:
            scene.chat("What is this?", key_frames=[6], max_new_tokens=1)
        assert counts["vision tower"] == 1


def test_words_alone_are_a_conversation_too(sa2va):
    expected = sa2va.chat(None, "Hello?", **TOKENS)
    with sa2va.open(None) as scene:
        same(scene.chat("Hello?", **TOKENS), expected)
        with pytest.raises(ValueError, match="segment needs a picture or a video"):
            scene.segment("the dog")
        with pytest.raises(ValueError, match="track needs a video"):
            scene.track("the dog")
        with pytest.raises(ValueError, match="regions are parts of one picture"):
            scene.describe((0, 0, 9, 9))


def test_memory_is_said_and_freed(sa2va):
    scene = sa2va.open(PICTURE)
    assert scene.nbytes == 0
    scene.segment("the dog", **TOKENS)
    config = sa2va.model.config.get_text_config()
    per_token = (
        2
        * config.num_hidden_layers
        * config.num_key_value_heads
        * 4
        * (config.hidden_size // config.num_attention_heads)
    )
    assert scene.nbytes > 100 * per_token  # the keys and values of the picture at least
    assert "picture 150x97" in repr(scene)
    scene.close()
    assert scene.nbytes == 0 and "closed" in repr(scene)
    with pytest.raises(ValueError, match="closed; open the medium again"):
        scene.chat("What is this?")


@pytest.mark.parametrize("part", ["encode_images", "encode_frames"])
def test_what_could_not_be_encoded_once_is_tried_again(sa2va, monkeypatch, part):
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    with sa2va.open(PICTURE) as scene:
        with monkeypatch.context() as patch:
            patch.setattr(sa2va.model, part, broken)
            with pytest.raises(RuntimeError, match="out of memory"):
                scene.chat("Where is it?") if part == "encode_images" else scene.segment(box=(10, 10, 40, 40))
            assert scene.nbytes == 0
        assert scene.segment(box=(10, 10, 40, 40)).size == sa2va.segment(PICTURE, box=(10, 10, 40, 40)).size
        assert scene.chat("What is this?", **TOKENS).text == sa2va.chat(PICTURE, "What is this?", **TOKENS).text


def test_several_threads_ask_one_scene(sa2va):
    expected = [sa2va.segment(PICTURE, phrase, **TOKENS) for phrase in PHRASES]
    with sa2va.open(PICTURE) as scene, ThreadPoolExecutor(3) as pool:
        for found, alone in zip(pool.map(lambda one: scene.segment(one, **TOKENS), PHRASES), expected, strict=True):
            same(found, alone)


def test_a_request_opens_a_picture_file_once(sa2va, tmp_path, monkeypatch):
    path = tmp_path / "one.png"
    Image.fromarray(PICTURE).save(path)
    opened: list[str] = []
    real = builtins.open

    def open_noting(file, *args, **kwargs):
        opened.append(str(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", open_noting)
    for request in (
        lambda: sa2va.segment(path, "the dog", **TOKENS),
        lambda: sa2va.chat(path, "What is this?", **TOKENS),
        lambda: sa2va.describe(path, (5, 5, 60, 60), **TOKENS),
        lambda: sa2va.track(path, "the dog", **TOKENS).results(),
    ):
        opened.clear()
        request()
        assert opened.count(str(path)) == 1


def test_a_picture_opened_before_is_not_opened_again(sa2va, tmp_path):
    path = tmp_path / "one.png"
    Image.fromarray(PICTURE).save(path)
    media = open_media(path)
    path.unlink()
    assert isinstance(media, Picture) and media.size == (97, 150) and media.path == path
    same(sa2va.segment(media, "the dog", **TOKENS), sa2va.segment(PICTURE, "the dog", **TOKENS))
    assert [frame.pixels.shape for frame in media] == [(97, 150, 3)] and list(media.pick([1])) == []


def test_options_are_one_set(sa2va):
    assert set(Options.__annotations__) == {
        *InferenceOptions.of().masks.__dataclass_fields__,
        *InferenceOptions.of().generation.__dataclass_fields__,
        *(InferenceOptions.of().__dataclass_fields__.keys() - {"masks", "generation"}),
    }
    with pytest.raises(TypeError, match="treshold"):
        sa2va.segment(PICTURE, "the dog", treshold=0.4)
    with pytest.raises(ValueError, match="threshold is a probability"):
        sa2va.stream("the dog", threshold=2.0)


def test_pixels_of_an_array_are_not_shared(sa2va):
    pixels = np.array(PICTURE)
    with sa2va.open(pixels) as scene:
        expected = scene.segment("the dog", **TOKENS)
        pixels[:] = 0
        same(scene.segment("the dog", **TOKENS), expected)


def test_a_file_that_is_gone_is_said_before_anything_is_asked(sa2va, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        sa2va.open(tmp_path / "none.png")


def test_an_answer_of_a_known_kind_takes_one_pass():
    """It reads the request, and the answer that was given before; "Sure, [SEG]." word by word would be six."""
    tiny = Sa2VA.from_pretrained("tiny")
    lengths: list[int] = []
    hook = tiny.model.vlm.model.language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    try:
        with tiny.open("examples/shapes.png" if Path("examples").is_dir() else PICTURE) as scene:
            first = scene.segment("the red star")
            alone = len(lengths)
            lengths.clear()
            second = scene.segment("the blue circle")
    finally:
        hook.remove()
    assert isinstance(first, Answer) and isinstance(second, Answer) and first.text == second.text
    assert alone > 3 and len(lengths) == 1


def test_an_animation_is_described_by_its_first_frame(sa2va, tmp_path):
    first, *others = (Image.fromarray(picture(75, 48, seed)) for seed in range(3))
    first.save(tmp_path / "moving.gif", save_all=True, append_images=others)
    with Image.open(tmp_path / "moving.gif") as still:
        expected = sa2va.describe(still.convert("RGB"), (5, 5, 40, 40), **TOKENS)
    assert sa2va.describe(tmp_path / "moving.gif", (5, 5, 40, 40), **TOKENS) == expected


def test_a_box_or_clicks_mark_an_object_without_words(sa2va):
    """As SAM 2's own prompts in the first frame of a stream; the picture is encoded once for all of them."""
    marks = [
        {"box": (20, 10, 90, 80)},
        {"points": [(40, 40)]},
        {"points": [(40, 40), (140, 90)], "labels": [1, 0]},
        {"box": (20, 10, 90, 80), "points": [(40, 40), (80, 20)], "labels": [1, 0]},
    ]
    with sa2va.open(PICTURE) as scene, counting(sa2va) as counts:
        found = [scene.segment(**mark) for mark in marks]
    assert counts == {"vision tower": 0, "image encoder": 1, "prompt tokens": 0}
    for answer, prompt in zip(found, marks, strict=True):
        tracker = sa2va.stream()
        tracker.add(**prompt)
        (expected,) = tracker.step(PICTURE).segments
        assert isinstance(answer, Answer) and not answer.text and answer.size == (97, 150)
        assert [one.masks for one in answer] == ([expected.masks] if expected.mask.area else [])
        assert bool(answer.reason) == (not expected.mask.area)


def test_marks_are_checked(sa2va):
    for wrong, message in (
        ({"box": (20, 10, 10, 80)}, "box"),
        ({"points": [(400, 40)]}, "points"),
        ({"points": [(40, 40)], "labels": [2]}, "labels are 1"),
        ({"box": (0, 0, 9, 9), "points": [(400, 4)]}, "points"),
        ({"phrases": "the dog", "box": (0, 0, 9, 9)}, "got both"),
    ):
        with pytest.raises(ValueError, match=message):
            sa2va.segment(PICTURE, **wrong)
    with pytest.raises(ValueError, match="mark an object of a picture"):
        sa2va.segment(CLIP, box=(0, 0, 9, 9))
    with pytest.raises(ValueError, match="phrases must be a non-empty text"):
        sa2va.segment(PICTURE)
