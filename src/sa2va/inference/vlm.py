"""The language model's half of an answer: text, and a mask prompt for each ``[SEG]`` in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sa2va.model.families import SEG_TOKEN
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.processing.requests import QUESTION_REQUEST, REFERRING_REQUEST, VIDEO_REFERRING_REQUEST


@dataclass(frozen=True)
class VLMOutput:
    """What the model wrote to one question.

    Attributes:
        question: as it was put. raw: the answer, special tokens kept.
        prompts_KC: (K, C) mask prompts of its ``[SEG]`` tokens.
    """

    question: str
    raw: str
    prompts_KC: Tensor


def segmentation_request(phrase: str, *, video: bool) -> str:
    """The request for one phrase; a question is asked as it is."""
    if "?" in phrase:
        return QUESTION_REQUEST.format(phrase=phrase)
    return (VIDEO_REFERRING_REQUEST if video else REFERRING_REQUEST).format(phrase=phrase)


def why_nothing(output: VLMOutput, text: str, empty: int = 0) -> str:
    """Why an answer to a segmentation request gave no mask.

    Args:
        text: the answer without special tokens. empty: how many masks it gave that are empty.
    """
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
