"""Prompts of question benchmarks, exactly as the released models were measured (VLMEvalKit's InternVL adapter)."""

from __future__ import annotations

import re

from sa2va.eval.qa.tsv import TableQuestion
from sa2va.processing.requests import CHOICE_REQUEST, OPEN_QUESTION_REQUEST, SHORT_ANSWER_REQUEST, YES_NO_REQUEST

_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def choice_prompt(question: TableQuestion) -> str:
    """Hint, question and options a line each, then the request for a letter; in Chinese where any of it is Chinese."""
    lines = [question.hint] if question.hint else []
    lines += [question.question, *(f"{letter}. {text}" for letter, text in question.options.items())]
    english, chinese = CHOICE_REQUEST if question.options else OPEN_QUESTION_REQUEST
    text = "\n".join(lines)
    return f"{text}\n{chinese if _CHINESE.search(text) else english}"


def mme_prompt(question: TableQuestion) -> str:
    """MME's questions ask for yes or no themselves."""
    return f"{question.question} {SHORT_ANSWER_REQUEST}"


def pope_prompt(question: TableQuestion) -> str:
    """The released evaluation had no wording for POPE; this is that of its other yes-no sets, "yes or no" said once."""
    asks = "yes or no" in question.question.lower()
    return " ".join([question.question, *([] if asks else [YES_NO_REQUEST]), SHORT_ANSWER_REQUEST])
