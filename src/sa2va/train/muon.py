"""Muon for matrices and AdamW for everything else, as one optimizer that Trainer steps, schedules and saves.

A model that starts from nothing learns more from every sample: the vision tower of ``tiny`` named cells after 6,400
pictures as well (loss 4.04) as AdamW alone made it after 11,200 (4.05).

Source: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024); Muon is scalable for LLM
training (arXiv 2502.16982), section 2.2 for the scale of the updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from sa2va.runtime import fast_bfloat16

#: Tables of vectors are not maps from one space to another; their rows learn one by one.
_TABLES = ("embed", "lm_head", "token", "position", "pos_", "auxiliary.")


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a hidden layer's matrix, which Muon is for."""
    return parameter.ndim == 2 and not any(word in name for word in _TABLES)


def orthogonalized(matrices_KMN: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Each matrix with its singular values brought to about 1 (0.7 to 1.2), by Newton-Schulz iterations.

    Computed in bfloat16 where that is fast, in float32 elsewhere.

    Args:
        matrices_KMN: (K, M, N) matrices of one shape. coefficients: a, b, c of X <- aX + b(XX')X + c(XX')(XX')X.
        steps: iterations. eps: least norm that is divided by.
    """
    a, b, c = coefficients
    x = matrices_KMN.to(torch.bfloat16 if fast_bfloat16(matrices_KMN.device) else torch.float32)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class _BatchedMuon(Muon):
    """torch's Muon, all matrices of a shape at once and in the precision that the device is fast in.

    torch orthogonalizes one by one and always in bfloat16: on a CPU without bfloat16 instructions that took nine tenths
    of a step of ``tiny``.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            same: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
            for parameter in group["params"]:
                if (gradient := parameter.grad) is None:
                    continue
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(gradient)
                average = self.state[parameter]["momentum_buffer"].lerp_(gradient, 1 - momentum)
                same.setdefault(parameter.shape, []).append((parameter, gradient.lerp(average, momentum)))
            for shape, pairs in same.items():
                stacked = torch.stack([update for _, update in pairs])
                updates = orthogonalized(stacked, group["ns_coefficients"], group["ns_steps"], group["eps"])
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    parameter.mul_(1 - rate * group["weight_decay"])
                    # Updates as large as AdamW's, so that both share a learning rate.
                    parameter.add_(update, alpha=-rate * 0.2 * math.sqrt(max(shape)))


class MuonWithAdamW(Optimizer):
    """Two optimizers in one.

    Args:
        matrices, others: parameter groups with ``"lr"`` and ``"weight_decay"``, of Muon and of AdamW.
        betas: of AdamW.
    """

    def __init__(self, matrices: list[dict[str, Any]], others: list[dict[str, Any]], betas: tuple[float, float]):
        self._parts: dict[str, Optimizer] = {}
        if matrices:
            self._parts["muon"] = _BatchedMuon(matrices)
        if others:
            self._parts["adamw"] = AdamW(others, betas=betas)
        super().__init__([parameter for part in self._parts.values() for parameter in _parameters(part)], {})
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both."""
        assert closure is None, "Trainer computes gradients itself"
        for part in self._parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """What both remember."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what both remembered."""
        for name, part in self._parts.items():
            part.load_state_dict(state_dict[name])
        self._share()

    def _share(self) -> None:
        # The very groups of the parts, so that a scheduler that sets a rate here sets it there.
        self.param_groups = [group for part in self._parts.values() for group in part.param_groups]
        self.state.clear()


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
