"""The language model's half of an answer: text, and a mask prompt for each ``[SEG]`` in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sa2va.model.families import SEG_TOKEN
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.processing.requests import (
    PRESENCE_REQUEST,
    QUESTION_REQUEST,
    REFERRING_REQUEST,
    VIDEO_REFERRING_REQUEST,
)


@dataclass(frozen=True)
class VLMOutput:
    """What the model wrote to one question.

    Attributes:
        question: as it was put. raw: the answer, special tokens kept.
        prompts_KC: (K, C) mask prompts of its ``[SEG]`` tokens.
        denied: asked whether there is such a thing, it said no; there are no prompts then.
    """

    question: str
    raw: str
    prompts_KC: Tensor
    denied: bool = False

    def as_denied(self) -> VLMOutput:
        """The same without prompts."""
        return replace(self, prompts_KC=self.prompts_KC[:0], denied=True)


def segmentation_request(phrase: str, *, video: bool) -> str:
    """The request for one phrase; a question is asked as it is."""
    if "?" in phrase:
        return QUESTION_REQUEST.format(phrase=phrase)
    return (VIDEO_REFERRING_REQUEST if video else REFERRING_REQUEST).format(phrase=phrase)


def presence_question(phrase: str) -> str | None:
    """What asks for yes or no whether there is such a thing; None for phrases that are questions."""
    return None if "?" in phrase else PRESENCE_REQUEST.format(phrase=phrase)


def is_denial(output: VLMOutput) -> bool:
    """Whether an answer to [`presence_question`] says no; whatever is not that, is not."""
    return re.match(r"\W*no\b", output.raw, re.IGNORECASE) is not None


def why_nothing(output: VLMOutput, text: str, empty: int = 0) -> str:
    """Why an answer to a segmentation request gave no mask.

    Args:
        text: the answer without special tokens. empty: how many masks it gave that are empty.
    """
    if output.denied:
        return "asked whether there is such a thing, the model said no (check_presence)"
    if empty:
        return "the model pointed at something, but its mask is empty"
    if SEG_TOKEN in output.raw:
        return f"the answer ended right at its {SEG_TOKEN}; allow more max_new_tokens"
    return f"the model answered without pointing at anything: {text!r}"


def unfound(processor: Sa2VAProcessor, phrases: Sequence[str], outputs: Sequence[VLMOutput]) -> dict[str, str]:
    """For each phrase that gave no mask prompt, why."""
    return {
        phrase: why_nothing(output, processor.clean(output.raw)[0])
        for phrase, output in zip(phrases, outputs, strict=True)
        if not len(output.prompts_KC)
    }
