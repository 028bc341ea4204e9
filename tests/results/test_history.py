"""Histories, texts and numbers as people hand them over: they work, or the error says what would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sa2va import Sa2VA
from sa2va.cli import main
from sa2va.model.generation import GenerationOptions
from sa2va.results.history import Turn, turns_of
from synthetic_checkpoint import picture

PICTURE = picture(64, 48)
TOKENS = {"max_new_tokens": 2}
TURNS = (Turn("Who?", "A dog."), Turn("Where?", "There."))
HALF = "the \ud83d cloud"


@pytest.mark.parametrize(
    "history",
    [
        TURNS,
        [("Who?", "A dog."), ["Where?", "There."]],
        [{"question": "Who?", "answer": "A dog."}, TURNS[1]],
        [
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "A dog."},
            {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
            {"role": "assistant", "content": "There."},
        ],
    ],
)
def test_every_form_of_a_history_is_the_same(history: Any):
    assert turns_of(history) == TURNS
    assert turns_of(iter(())) == ()


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("Who?", "got str"),
        (3, "got int"),
        ({"role": "user", "content": "Who?"}, "got dict"),
        (["Who?"], r"got 'Who\?'"),
        ([("Who?", None)], "None"),
        ([("Who?", "A dog.", "again")], "again"),
        ([{"role": "system", "content": "Be brief."}], "Leave system messages out"),
        ([{"role": "user", "content": "Who?"}], r"goes into question="),
        ([{"role": "user", "content": 3}, {"role": "assistant", "content": "A dog."}], "parts are texts"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "A dog."}],
            "pictures go into media=",
        ),
    ],
)
def test_what_is_no_history_says_what_is(sa2va: Sa2VA, history: Any, message: str):
    for ask in (
        lambda: sa2va.chat(PICTURE, "And?", history=history),
        lambda: sa2va.ask(None, ["?"], histories=[history]),
    ):
        with pytest.raises(ValueError, match=rf"pairs \(question, answer\).*{message}"):
            ask()


def test_a_conversation_goes_on_from_messages(sa2va: Sa2VA):
    first = sa2va.chat(PICTURE, "Who?", **TOKENS)
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": first.raw_text}]
    assert sa2va.chat(PICTURE, "And?", history=messages, **TOKENS) == sa2va.chat(
        PICTURE, "And?", history=first.history, **TOKENS
    )


REQUESTS: dict[str, Callable[[Sa2VA, Any], Any]] = {
    "segment": lambda sa2va, text: sa2va.segment(PICTURE, text),
    "several": lambda sa2va, text: sa2va.segment(PICTURE, ["dog", text]),
    "track": lambda sa2va, text: sa2va.track([PICTURE], text),
    "stream": lambda sa2va, text: sa2va.stream(text),
    "add": lambda sa2va, text: sa2va.stream("dog").add(text, box=(0, 0, 9, 9)),
    "chat": lambda sa2va, text: sa2va.chat(PICTURE, text),
    "ask": lambda sa2va, text: sa2va.ask(None, [text]),
    "history": lambda sa2va, text: sa2va.chat(None, "And?", history=[("Who?", text)]),
    "describe": lambda sa2va, text: sa2va.describe(PICTURE, [(0, 0, 9, 9)], requests=[text]),
    "predict_forward": lambda sa2va, text: sa2va.predict_forward(text=text),
}


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("text", [HALF, b"dog", None, 3])
def test_what_is_no_text_is_refused_everywhere(sa2va: Sa2VA, request_name: str, text: Any):
    with pytest.raises(ValueError, match=r"not Unicode at character 4|string|text"):
        REQUESTS[request_name](sa2va, text)


@pytest.mark.parametrize("command", ["segment", "chat", "track"])
def test_bytes_of_another_encoding_are_the_callers_mistake(
    capsys: pytest.CaptureFixture[str], command: str, tmp_path: Path
):
    typed = "黄色的云".encode("gbk").decode("utf-8", "surrogateescape")
    assert main([command, "none.png", typed, "-m", "tiny", "-o", str(tmp_path / "out")]) == 2
    assert "is not Unicode" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "repetition_penalty", "seed", "max_new_tokens"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf"), "1", True, 1e400, 10**30])
def test_numbers_of_generation_are_finite_numbers(name: str, value: Any):
    if value == 10**30 and name not in ("seed", "top_p"):
        return
    with pytest.raises(ValueError, match=f"{name} must be"):
        GenerationOptions(**{name: value})
    GenerationOptions(temperature=np.float32(0.5), top_k=np.int64(3), seed=-1)


@pytest.mark.parametrize("threshold", [float("nan"), "0.5", None, 1, float("inf")])
def test_a_threshold_is_a_number(sa2va: Sa2VA, threshold: Any):
    with pytest.raises(ValueError, match="threshold is a probability"):
        sa2va.segment(PICTURE, "dog", threshold=threshold)
