"""A mask computed only where there is one: the pixels are those of the whole, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sa2va.inference import postprocess as module
from sa2va.inference.postprocess import foreground
from sa2va.model.mask_decoder import upsample_logits

RNG = np.random.default_rng(0)


def blob(cells: int, slope: float = 1.0) -> Tensor:
    """A round mask with a rough edge: logits (cells, cells)."""
    rows, columns = np.mgrid[:cells, :cells]
    y, x = RNG.uniform(0, cells, 2)
    radius = RNG.uniform(0.05, 0.4) * cells
    logits = slope * (radius - np.hypot(rows - y, columns - x)) + RNG.normal(0, 0.3, (cells, cells))
    return torch.from_numpy(logits.astype(np.float32))


def check(logits: Tensor, side: int | None, size: tuple[int, int], cut: float = 0.0) -> tuple[int, int]:
    part, (x, y) = foreground(logits, side, size, cut)
    found = np.zeros(size, bool)
    found[y : y + len(part), x : x + part.shape[1]] = part
    np.testing.assert_array_equal(found, (upsample_logits(logits[None], side, size)[0] > cut).numpy())
    return part.shape


@pytest.mark.parametrize("steps", ["through the grounding side", "in one step"])
@pytest.mark.parametrize("cut", [0.0, 0.85, -2.0])
def test_it_equals_the_whole_at_any_size(steps: str, cut: float):
    for _ in range(30):
        cells = int(RNG.choice([32, 64]))
        logits = blob(cells, RNG.choice([0.2, 1.0, 5.0])) if RNG.random() < 0.8 else torch.randn(cells, cells)
        size = (int(RNG.integers(1, 400)), int(RNG.integers(1, 400)))
        check(logits, None if steps == "in one step" else 4 * cells, size, cut)


def test_it_equals_the_whole_at_full_size_and_is_only_the_box():
    logits = torch.full((256, 256), -7.0)
    logits[100:140, 30:50] = 5.0
    height, width = check(logits, 1024, (1080, 1920))
    assert height < 45 * 1080 / 256 and width < 25 * 1920 / 256
    assert check(blob(256).to(torch.bfloat16), 1024, (720, 1280))


def test_where_rounding_could_decide_torch_does(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(module, "upsample_logits", lambda *args: calls.append(args) or upsample_logits(*args))
    flat = torch.full((64, 64), 0.7)  # every pixel is the threshold, or beside it by rounding
    check(flat, 256, (300, 500), float(np.float32(0.7)))
    assert len(calls) == 1
    edge = torch.linspace(-1, 1, 64).expand(64, 64).contiguous()
    check(edge, 256, (256, 512))  # a pixel column at exactly 0, up to rounding, or none
    calls.clear()
    check(torch.where(torch.arange(64) < 10, 5.0, -3.0).expand(64, 64), None, (256, 256))  # 0.375 x 5 - 0.625 x 3
    assert len(calls) == 1
    calls.clear()
    for shift in RNG.uniform(0.1, 0.4, 40):  # close ones that can be told apart are
        check(edge * 20 + float(shift), 256, (301, 517))
    assert len(calls) < 5


@pytest.mark.parametrize("place", [(0, 0), (3, 17), (31, 31)])
def test_one_high_cell_reaches_as_far_as_it_does(place: tuple[int, int]):
    logits = torch.full((32, 32), -0.01)
    logits[place] = 90.0
    for size in ((150, 97), (333, 500)):
        check(logits, 128, size)


@pytest.mark.parametrize("logits", [torch.full((32, 32), -1.0), torch.full((32, 32), 3.0)])
def test_nothing_and_everything(logits: Tensor):
    check(logits, 128, (90, 160))
    check(logits, 128, (5, 7))
