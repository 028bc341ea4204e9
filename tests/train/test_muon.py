"""Muon: orthogonal updates of matrices, AdamW for the rest, as one optimizer."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from sa2va.train.muon import MuonWithAdamW, is_matrix


def muon(layer: nn.Module, learning_rate: float = 0.1) -> MuonWithAdamW:
    matrices, others = (
        [
            {
                "params": [
                    parameter for name, parameter in layer.named_parameters() if is_matrix(name, parameter) == kind
                ],
                "lr": learning_rate,
                "weight_decay": 0,
            }
        ]
        for kind in (True, False)
    )
    return MuonWithAdamW(matrices, others, (0.9, 0.98))


def test_muon_steps_matrices_with_orthogonal_updates_and_adamw_the_rest():
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = muon(layer)
    layer(torch.randn(8, 16)).square().sum().backward()
    optimizer.step()
    singular = torch.linalg.svdvals(before["weight"] - layer.weight.detach())
    scale = 0.1 * 0.2 * 4  # rate x 0.2 x the square root of the longer side
    assert (singular[:8] / scale).sub(1).abs().max() < 0.35  # the gradient has rank 8; the iteration is inexact
    torch.testing.assert_close((before["bias"] - layer.bias.detach()).abs(), torch.full((16,), 0.1), rtol=1e-3, atol=0)


@pytest.mark.parametrize("fast", [False, True])
def test_muon_steps_as_torchs_own_in_the_precision_that_the_device_is_fast_in(fast, monkeypatch):
    monkeypatch.setattr("sa2va.train.muon.fast_bfloat16", lambda device: fast)
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(24, 40, bias=False), nn.Linear(40, 24, bias=False), nn.Linear(24, 40, bias=False))
    theirs, before = deepcopy(ours), deepcopy(ours)
    own = MuonWithAdamW([{"params": list(ours.parameters()), "lr": 0.01, "weight_decay": 0.1}], [], (0.9, 0.98))
    reference = torch.optim.Muon(theirs.parameters(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        inputs = torch.randn(64, 24)
        for layers, optimizer in ((ours, own), (theirs, reference)):
            optimizer.zero_grad()
            layers(inputs).square().sum().backward()
            optimizer.step()
    for one, other, start in zip(ours.parameters(), theirs.parameters(), before.parameters(), strict=True):
        difference = (one - other).norm() / (other - start).norm()
        assert difference < (0.02 if fast else 0.1)  # torch's iterations are in bfloat16, and so inexact


def test_muon_follows_a_schedule_and_resumes():
    def run(steps: int, optimizer: MuonWithAdamW, layer: nn.Module, start: int = 0) -> None:
        for step in range(start, start + steps):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + step)
            optimizer.zero_grad()
            layer(torch.full((2, 4), float(step + 1))).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    straight, resumed = nn.Linear(4, 4), nn.Linear(4, 4)
    resumed.load_state_dict(straight.state_dict())
    run(4, muon(straight), straight)
    first = muon(resumed)
    run(2, first, resumed)
    second = muon(resumed)
    second.load_state_dict(first.state_dict())
    run(2, second, resumed, start=2)
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
