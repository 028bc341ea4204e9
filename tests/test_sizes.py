"""What `sa2va models --memory` says: shapes against the released tensors, bytes against what `tiny` really takes."""

from __future__ import annotations

import json
import math
import re
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

from sa2va import Sa2VA
from sa2va.cli.commands import app
from sa2va.sizes import ARCHITECTURES, Architecture
from sa2va.zoo import RELEASED

GOLDEN = Path(__file__).parent / "golden"
_LINEAR = re.compile(r"language_model.*layers\.\d+\..*weight")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_are_those_of_the_released_tensors(name: str):
    tensors = json.loads((GOLDEN / f"manifest_{name}.json").read_text())["tensors"]
    architecture = ARCHITECTURES[name]
    assert architecture.parameters == sum(math.prod(shape) for shape in tensors.values())
    quantised = [shape for key, shape in tensors.items() if len(shape) == 2 and _LINEAR.search(key)]
    ours = architecture.layers * sum(math.prod(shape) for shape in architecture.linear_layers)
    assert ours == sum(math.prod(shape) for shape in quantised)
    assert architecture.layers * sum(out for out, _ in architecture.linear_layers) == sum(out for out, _ in quantised)


def shapes_of(sa2va: Sa2VA) -> Architecture:
    config = sa2va.model.config
    text, vision, sam2 = config.get_text_config(), config.vlm_config.vision_config, config.sam2_config
    patches = (vision.image_size[0] // vision.patch_size[0]) ** 2
    tokens = (patches + 1, patches // 4)
    return Architecture(
        sum(tensor.numel() for tensor in sa2va.model.state_dict().values()),
        text.num_hidden_layers,
        text.hidden_size,
        text.intermediate_size,
        text.num_attention_heads,
        text.num_key_value_heads,
        text.hidden_size // text.num_attention_heads,
        vision.hidden_size,
        vision.intermediate_size,
        picture=tokens,
        frame=tokens,
        side=sam2.image_size,
        channels=sam2.vision_config.backbone_config.embed_dim_per_stage[0],
        width=sam2.mask_decoder_config.hidden_size,
    )


def stored_bytes(model: nn.Module) -> int:
    """What the weights really take, with the scales and tables that four and eight bits need."""
    total = 0
    persistent = set(model.state_dict())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name not in persistent:
            continue
        state, scales = getattr(tensor, "quant_state", None), getattr(tensor, "SCB", None)
        total += tensor.nbytes + (0 if scales is None else scales.nbytes)
        if state is not None:
            total += sum(part.nbytes for part in (state.absmax, state.code, state.offset))
            total += state.state2.absmax.nbytes + state.state2.code.nbytes
    return total


def test_weights_are_counted_to_the_byte(tiny: Sa2VA):
    shapes = shapes_of(tiny)
    assert stored_bytes(tiny.model) == shapes.weights("float32")
    half = Sa2VA.from_pretrained("tiny", device="cpu", dtype=torch.bfloat16)
    assert stored_bytes(half.model) == shapes.weights("bfloat16")
    for numbers in ("int8", "nf4"):
        model = Sa2VA.from_pretrained("tiny", device="cpu", dtype=torch.bfloat16, quantization=numbers).model
        assert stored_bytes(model) == shapes.weights(numbers)


class Peak(TorchDispatchMode):
    """The most bytes that tensors beside the weights of a model held at once."""

    def __init__(self, model: nn.Module):
        super().__init__()
        weights = [*model.parameters(), *model.buffers()]
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in weights}
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata)
        return output

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


def pictures(count: int) -> list[np.ndarray]:
    frames = []
    for place in range(count):
        frame = np.full((128, 128, 3), (190, 195, 200), np.uint8)
        frame[30:70, 20 + 2 * place : 60 + 2 * place] = (215, 35, 40)
        frames.append(frame)
    return frames


def test_the_working_set_is_counted_to_a_fifth(tiny: Sa2VA):
    """Measured on the CPU in float32; the prompt alone is longer than what it is asked about here."""
    shapes = shapes_of(tiny)
    with Peak(tiny.model) as looking:
        tiny.chat(pictures(1)[0], "What color is the square?")
    assert 4 * shapes.looking(shapes.picture[0]) == pytest.approx(looking.most, rel=0.2)
    with Peak(tiny.model) as reading:
        tiny.chat(None, "one two three four five six " * 40, max_new_tokens=1)
    words = len(tiny.processor.tokenizer("one two three four five six " * 40).input_ids)
    assert 4 * shapes.reading(words - 256) == pytest.approx(reading.most, rel=0.2)
    with Peak(tiny.model) as picture:
        tiny.segment(pictures(1)[0], "the red square")
    assert shapes.picture_work(4) == pytest.approx(picture.most, rel=0.2)
    with Peak(tiny.model) as video:
        tiny.segment(pictures(12), "the red square", key_frames="first")
    assert shapes.video_work(4) == pytest.approx(video.most, rel=0.2)


def test_the_command_tells_what_every_released_model_needs():
    result = CliRunner().invoke(app, ["models", "--memory", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["memory"]
    assert [row["name"] for row in rows] == [model.name for model in RELEASED]
    for row in rows:
        weights = [row[name] for name in ("bfloat16", "int8", "nf4")]
        assert weights == sorted(weights, reverse=True) and min(row["picture"], row["video"]) > 0
    assert CliRunner().invoke(app, ["models", "--memory"]).exit_code == 0


def test_an_open_picture_keeps_what_is_said():
    sa2va = Sa2VA.from_pretrained("tiny", device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    question = "Please segment the star in this image."
    with sa2va.open(pixels) as scene:
        scene.segment(points=[(64, 64)])
        answer = scene.chat(question)
        vision = sa2va.processor.vision([Image.fromarray(pixels)])
        prompt = sa2va.processor.prompt_ids(question, vision=vision)
        written = len(sa2va.processor.tokenizer.encode(answer.raw_text, add_special_tokens=False))
        architecture = replace(shapes_of(sa2va), picture=(0, sum(vision.tokens_per_image)))
        words = len(prompt) + written - 1 - sum(vision.tokens_per_image)
        assert scene.nbytes == architecture.open_picture(4, words)
