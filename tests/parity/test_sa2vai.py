"""A Sa2VA-i checkpoint against its own code: what a clip's masks are where the original decoder carries them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sa2va import Sa2VA
from synthetic_checkpoint import GOLDEN

RECORDED = GOLDEN / "sa2vai"
#: Probabilities nearer to 0.5 than this differ by the order of the sums behind them.
ROUNDING = 1e-5
REQUEST = "<image>Please segment the person on the left in this image."


@pytest.fixture(scope="module")
def sa2va_i(tmp_path_factory: pytest.TempPathFactory) -> Sa2VA:
    folder = tmp_path_factory.mktemp("sa2vai")
    recipe, generator = json.loads((RECORDED / "weights.json").read_text()), torch.Generator().manual_seed(1)
    tensors = {}
    for name, shape, offset, scale in recipe["tensors"]:
        tensors[name] = offset + scale * torch.randn(shape, generator=generator)
    for name, rows in recipe["row_scale"].items():
        for row, factor in rows.items():
            tensors[name][int(row)] *= factor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(RECORDED / name, folder)
    shutil.copy(GOLDEN / "mllm_tiny_tokenizer.json", folder / "tokenizer.json")
    return Sa2VA.from_pretrained(folder, device="cpu", dtype=torch.float32)


def frame(number: int, width: int = 160, height: int = 120) -> Image.Image:
    """Frame ``number`` of the recorded clips: waves, noise, and a disc that moves to the right."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [127 + 90 * np.sin(x / (9 + number) + k) + 30 * np.cos(y / (7 + 2 * k) + number) for k in range(3)]
    pixels = np.stack(waves, -1)
    pixels += np.random.default_rng(number).normal(0, 12, pixels.shape)
    middle, radius = width * (0.3 + 0.04 * number), min(width, height) * 0.25
    pixels[(x - middle) ** 2 + (y - height * 0.5) ** 2 < radius * radius] = (200, 40 + 10 * number, 60)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("count", [5, 8])
def test_text_and_masks_of_a_clip(sa2va_i: Sa2VA, count: int, record_property):
    expected = json.loads((RECORDED / "sa2vai.json").read_text())[f"video{count}"]
    packed = np.load(RECORDED / "sa2vai_masks.npz")
    clip = [frame(number) for number in range(count)]
    answer = sa2va_i.chat(clip, REQUEST, max_new_tokens=6, probabilities=True)
    assert answer.raw_text == expected["text"]
    assert len(answer.segments) == sum(name.startswith(f"video{count}_") for name in packed)
    differing = 0
    for row, segment in enumerate(answer.segments):
        bits = np.unpackbits(packed[f"video{count}_{row}"]).reshape(count, 120, 160).astype(bool)
        assert 0 < bits.mean() < 1 and segment.probabilities is not None
        wrong = np.stack([mask.array for mask in segment.masks]) != bits
        # What lies on the border to seven digits falls to one side here and to the other there.
        assert wrong.sum() <= 1 and (np.abs(segment.probabilities[wrong] - 0.5) < ROUNDING).all()
        differing += int(wrong.sum())
    record_property("pixels that differ", differing)
