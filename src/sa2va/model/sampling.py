"""How the next token is chosen: transformers' logits processors, with random numbers of each row's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are written.

    Attributes:
        max_new_tokens: upper limit on the answer's tokens.
        temperature: 0 chooses the likeliest token (the released behaviour); above 0 samples.
        top_p, top_k: sample from the likeliest tokens only; 1.0 and 0 switch them off.
        repetition_penalty: above 1.0 makes tokens that already occurred less likely.
        seed: of the sampling; None takes torch's global generator.
    """

    max_new_tokens: int = 2048
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (_is_whole(self.max_new_tokens) and self.max_new_tokens >= 1, "an integer of at least 1"),
            "temperature": (_is_finite(self.temperature) and self.temperature >= 0, "a finite number of at least 0"),
            "top_p": (_is_finite(self.top_p) and 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            "top_k": (_is_whole(self.top_k) and self.top_k >= 0, "an integer of at least 0"),
            "repetition_penalty": (
                _is_finite(self.repetition_penalty) and self.repetition_penalty > 0,
                "a finite number above 0",
            ),
            "seed": (
                self.seed is None or (_is_whole(self.seed) and -(2**63) <= self.seed < 2**64),
                "None or an integer of 64 bits",
            ),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"{name} must be {expected}; got {getattr(self, name)!r}")

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is always taken, whatever was said before."""
        return self.temperature == 0 and self.repetition_penalty == 1.0

    def processors(self) -> LogitsProcessorList:
        """transformers' own logits processors for these settings."""
        chosen = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            chosen.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature > 0:
            chosen.append(TemperatureLogitsWarper(self.temperature))
            if self.top_k:
                chosen.append(TopKLogitsWarper(self.top_k))
            if self.top_p < 1.0:
                chosen.append(TopPLogitsWarper(self.top_p))
        return chosen


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


class Sampler:
    """Chooses the tokens of one row, so that they do not depend on what else is being written."""

    def __init__(self, options: GenerationOptions, device: torch.device):
        self._options = options
        self._processors: Any = options.processors()  # typed for LongTensor, a class that no tensor has
        self._random = None if options.seed is None else torch.Generator(device).manual_seed(options.seed)

    def choose(self, logits_V: Tensor, said: Sequence[int]) -> int:
        """The next token after those of the prompt and the answer so far."""
        ids = torch.tensor([list(said)], device=logits_V.device)
        logits_1V = self._processors(ids, logits_V[None])
        if self._options.temperature == 0:
            return int(logits_1V.argmax())
        return int(torch.multinomial(logits_1V.softmax(dim=-1), 1, generator=self._random))
