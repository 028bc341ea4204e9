"""NaN and infinity are errors wherever they arise, and never an object that was not found."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from sa2va import Sa2VA
from sa2va.inference.options import MaskPostprocessing
from sa2va.inference.sasasa2va import follow_clips
from sa2va.media.open import open_media
from sa2va.model import language
from sa2va.model.generation import GenerationOptions
from synthetic_checkpoint import noise, picture

PICTURE = picture(75, 48)
CLIP = [picture(75, 48, seed) for seed in range(3)]
SHORT = {"max_new_tokens": 24}
USES: dict[str, Callable[[Sa2VA], object]] = {
    "segment": lambda model: model.segment(PICTURE, ["the dog", "the cat"], **SHORT),
    "segment a clip": lambda model: model.segment(CLIP, "the dog", **SHORT),
    "chat": lambda model: model.chat(PICTURE, "What is this?", **SHORT),
    "chat with sampling": lambda model: model.chat(PICTURE, "What is this?", temperature=1.0, top_p=0.9, **SHORT),
    "describe": lambda model: model.describe(PICTURE, [[5, 5, 60, 40]], **SHORT),
    "track": lambda model: model.track(CLIP, "the dog", **SHORT).results(),
    "stream": lambda model: model.stream("the dog", **SHORT).step(PICTURE),
    "predict_forward": lambda model: model.predict_forward(
        image=PICTURE, text="<image>\nPlease segment the dog.", **SHORT
    ),
}
MASK_USES = ["segment", "segment a clip", "track", "stream", "predict_forward"]


@contextmanager
def spoilt(module: nn.Module, part: str, value: float) -> Iterator[None]:
    """One number of one weight replaced."""
    weight = module.get_parameter(part).data.view(-1)
    before = weight[0].item()
    weight[0] = value
    try:
        yield
    finally:
        weight[0] = before


@pytest.mark.parametrize("use", USES)
def test_damaged_weights_of_the_language_model_are_named(sa2va: Sa2VA, use: str):
    part = "model.language_model.norm.weight"
    with spoilt(sa2va.model.vlm, part, float("nan")), pytest.raises(FloatingPointError) as raised:
        USES[use](sa2va)
    assert "the vision-language model computed NaN or infinity in float32" in str(raised.value)
    assert f"the weights {part} hold them" in str(raised.value)


def test_damaged_weights_of_the_vision_tower_are_named(sa2va: Sa2VA):
    part = next(name for name, _ in sa2va.model.vlm.named_parameters() if "vision_tower" in name)
    with spoilt(sa2va.model.vlm, part, float("inf")), pytest.raises(FloatingPointError, match=part):
        sa2va.chat(PICTURE, "What is this?", **SHORT)


@pytest.mark.parametrize("use", MASK_USES)
@pytest.mark.parametrize(
    "part", ["mask_decoder.pred_obj_score_head.proj_out.bias", "mask_decoder.upscale_conv2.bias", "no_memory_embedding"]
)
def test_damaged_weights_of_sam_2_are_no_empty_masks(sa2va: Sa2VA, use: str, part: str):
    with (
        spoilt(sa2va.model.sam2, part, float("nan")),
        pytest.raises(FloatingPointError, match="SAM 2 computed NaN or infinity in float32: the weights are damaged"),
    ):
        USES[use](sa2va)


def test_an_overflowing_memory_is_told(sa2va: Sa2VA):
    """The first frame is sound; what it left in memory is not."""
    tracker = sa2va.stream()
    tracker.add(box=[5, 5, 60, 40])
    with spoilt(sa2va.model.sam2, "memory_encoder.projection.bias", float("inf")):
        tracker.step(CLIP[0])
    with pytest.raises(FloatingPointError, match="SAM 2"):
        tracker.step(CLIP[1])


def test_compressed_views_are_checked_too(sa2va: Sa2VA):
    prompts = torch.from_numpy(noise("prompts", 1280).astype(np.float32)).reshape(1, 10, 128)
    frames = follow_clips(
        sa2va.model, open_media(CLIP), ["the dog"], [prompts], [[(0,), (4,), (9,)]], output=MaskPostprocessing()
    )
    assert next(frames)[0].segments
    with (
        spoilt(sa2va.model.sam2, "mask_decoder.pred_obj_score_head.proj_out.bias", float("nan")),
        pytest.raises(FloatingPointError, match="SAM 2"),
    ):
        next(frames)


def test_what_float16_cannot_hold_has_a_cure(sa2va: Sa2VA):
    """Logits beyond 65,504 from weights that are sound."""
    head = sa2va.model.vlm.lm_head
    before = head.weight.data
    try:
        head.weight.data = (before * 1e6).clamp(-6e4, 6e4).half()
        with (
            overflowing(head),
            pytest.raises(FloatingPointError, match=r"in float16: float16 overflows early; load .*dtype='bfloat16'"),
        ):
            sa2va.chat(PICTURE, "What is this?", **SHORT)
    finally:
        head.weight.data = before


@contextmanager
def overflowing(head: nn.Module) -> Iterator[None]:
    """The head computes in float16 under a float32 model."""
    hook = head.register_forward_pre_hook(lambda _, args: (args[0].half(),))
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("case", ["iv25_qwen2", "q3"])
def test_threads_do_not_take_each_others_states(open_sa2va: Callable[[str], Sa2VA], case: str):
    """What feeds the mask prompt is caught in passing; another thread passes by in the middle."""
    sa2va = open_sa2va(case)
    vlm, family = sa2va.model.vlm, sa2va.model.config.family
    ids = [torch.tensor([[5, 6, 7]]), torch.tensor([[9, 8, 7]])]

    @torch.inference_mode()
    def states(row: int) -> torch.Tensor:
        embedded = language.embed_tokens(vlm, ids[row], None)
        mask = torch.ones_like(ids[row], dtype=torch.bool)
        positions = language.positions(vlm, ids[row], mask, None)
        return language.run_language_model(vlm, family, embedded, positions, mask).seg

    expected = [states(0), states(1)]
    halfway, done, here = threading.Event(), threading.Event(), threading.get_ident()

    def wait(*_: object) -> None:
        if threading.get_ident() == here:
            halfway.set()
            assert done.wait(60)

    hook = vlm.model.language_model.norm.register_forward_hook(wait)
    with ThreadPoolExecutor(1) as pool:

        def other() -> torch.Tensor:
            try:
                assert halfway.wait(60)
                return states(1)
            finally:
                done.set()

        second = pool.submit(other)
        try:
            first = states(0)
        finally:
            hook.remove()
        torch.testing.assert_close([first, second.result()], expected, rtol=0, atol=0)


def test_threads_take_turns_where_the_model_remembers_the_length(open_sa2va: Callable[[str], Sa2VA]):
    """Dynamic RoPE keeps the frequencies of the longest text in the model; a longer one comes in the middle."""
    model = open_sa2va("iv25_internlm2_dyn").model
    options = GenerationOptions(max_new_tokens=6)
    window = model.config.vlm_config.get_text_config().max_position_embeddings
    short, long = ([[3 + index % 50 for index in range(length)]] for length in (window + 2, 2 * window))
    expected = model.generate(short, options=options, is_finished=lambda _: False)[0].token_ids
    halfway, done = threading.Event(), threading.Event()

    def other() -> None:
        assert halfway.wait(60)
        model.generate(long, options=options, is_finished=lambda _: False)
        done.set()

    def is_finished(_: list[int]) -> bool:
        halfway.set()
        done.wait(0.2)
        return False

    states = model.generate(short, options=options, is_finished=lambda _: False)[0]
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(other)
        found = model.generate(short, options=options, is_finished=is_finished)[0]
        second.result()
    assert found.token_ids == expected == states.token_ids
