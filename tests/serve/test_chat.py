"""OpenAI's protocol, by their own client."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import PICTURE, Running, about_picture, clip, data_url
from pycocotools import mask as coco

from sa2va import Sa2VA
from sa2va.media.image import load_image
from sa2va.processing.conversation import clean_answer
from sa2va.processing.requests import GCG_REQUEST
from sa2va.serve.clean_stream import CleanStream

ASK = "Please segment the yellow cloud in this image."


def test_a_stock_client_gets_text_and_masks(server: Running, tiny: Sa2VA) -> None:
    reply = server.openai.chat.completions.create(model="tiny", messages=about_picture(ASK))
    expected = tiny.chat(load_image(PICTURE), ASK)
    choice = reply.choices[0]
    assert choice.message.content == expected.text
    assert choice.finish_reason == "stop"
    (found,), (segment,) = choice.message.segments, expected.segments
    assert found["mask"] == segment.mask.rle
    assert (found["box"], found["area"]) == (list(segment.mask.box or ()), segment.mask.area)
    assert found["score"] == pytest.approx(segment.score, abs=1e-5)
    assert coco.area(found["mask"]) == found["area"]
    assert reply.usage.prompt_tokens > 64  # the picture's
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_stream_says_the_same_and_ends_with_the_masks(server: Running) -> None:
    client = server.openai
    whole = client.chat.completions.create(model="tiny", messages=about_picture(GCG_REQUEST))
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=about_picture(GCG_REQUEST), stream=True, stream_options={"include_usage": True}
        )
    )
    *spoken, last, counted = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in spoken) == whole.choices[0].message.content
    assert last.choices[0].finish_reason == "stop"
    assert [one["mask"] for one in last.choices[0].delta.segments] == [
        one["mask"] for one in whole.choices[0].message.segments
    ]
    assert counted.choices == []
    assert counted.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_turns_go_on_as_the_model_wrote_them(server: Running, tiny: Sa2VA) -> None:
    """Clients send clean text back; the model reads its own words again, ``[SEG]`` included."""
    first = tiny.chat(load_image(PICTURE), ASK)
    second = tiny.chat(load_image(PICTURE), "What color is the car?", history=first.history)
    client = server.openai
    messages = about_picture(ASK)
    told = client.chat.completions.create(model="tiny", messages=messages)
    messages += [
        {"role": "assistant", "content": told.choices[0].message.content},
        {"role": "user", "content": "What color is the car?"},
    ]
    scenes = server.metric("sa2va_scenes")
    reply = client.chat.completions.create(model="tiny", messages=messages)
    assert reply.choices[0].message.content == second.text
    assert server.metric("sa2va_scenes") == scenes  # the picture is known by its content
    ids = tiny.processor.prompt_ids("What color is the car?", vision=None, history=first.history)
    bare = tiny.processor.prompt_ids("What color is the car?", vision=None)
    alone = client.chat.completions.create(model="tiny", messages=about_picture("What color is the car?"))
    assert reply.usage.prompt_tokens - alone.usage.prompt_tokens == len(ids) - len(bare)


def test_words_alone_and_a_system_message(server: Running) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    reply = server.openai.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
    assert reply.usage.completion_tokens <= 4
    assert reply.choices[0].message.segments == []


def test_a_clip_is_answered_for_all_of_its_frames(server: Running) -> None:
    parts = [
        {"type": "video_url", "video_url": {"url": data_url(clip(3), "video/gif")}},
        {"type": "text", "text": "Please segment the orange hat."},
    ]
    reply = server.openai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
    (found,) = reply.choices[0].message.segments
    assert found["mask"] is None
    assert len(found["masks"]) == 3


def test_length_stop_and_seed(server: Running) -> None:
    client = server.openai

    def said(**options: Any) -> tuple[str, str]:
        reply = client.chat.completions.create(model="tiny", messages=about_picture(GCG_REQUEST), **options)
        return reply.choices[0].message.content, reply.choices[0].finish_reason

    whole, _ = said()
    assert said(max_tokens=3)[1] == "length"
    word = whole.split()[2]
    assert said(stop=[word]) == (whole[: whole.index(word)], "stop")
    stream = client.chat.completions.create(model="tiny", messages=about_picture(GCG_REQUEST), stop=word, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole[: whole.index(word)]
    drawn = [said(temperature=2, seed=seed, max_tokens=24)[0] for seed in (7, 7, 8, 9)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_a_stop_sequence_keeps_the_masks_before_it(server: Running) -> None:
    messages = about_picture(GCG_REQUEST)
    whole = server.openai.chat.completions.create(model="tiny", messages=messages).choices[0].message
    assert len(whole.segments) > 1
    second = whole.segments[1]
    cut = server.openai.chat.completions.create(model="tiny", messages=messages, stop=second["phrase"])
    assert [one["phrase"] for one in cut.choices[0].message.segments] == [whole.segments[0]["phrase"]]
    assert cut.choices[0].message.content == whole.content[: whole.content.index(second["phrase"])]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "there is no model 'gpt-9'"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "assistant", "content": "Hello"}]}, openai.BadRequestError, "take turns"),
        ({"messages": about_picture(" ")}, openai.BadRequestError, "question is empty"),
        ({"messages": about_picture(ASK, b"no picture")}, openai.BadRequestError, "not a picture"),
        ({"messages": about_picture(ASK, b"")}, openai.BadRequestError, "empty"),
        ({"messages": about_picture(ASK) + about_picture(ASK, b"x")}, openai.BadRequestError, "take turns"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"n": 2}, openai.BadRequestError, "n: "),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
    ],
    ids=lambda value: None,
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_the_form_that_clients_know(
    server: Running, change: dict[str, Any], error: type[openai.APIStatusError], message: str, stream: bool
) -> None:
    request = {"model": "tiny", "messages": about_picture(ASK), "stream": stream, **change}
    with pytest.raises(error, match=message) as caught:
        server.openai.chat.completions.create(**request)
    assert caught.value.request_id.startswith("req_")
    assert caught.value.type
    assert caught.value.response.headers["content-type"] == "application/json"


def test_two_pictures_are_refused(server: Running) -> None:
    messages = [
        *about_picture(ASK),
        {"role": "assistant", "content": "Sure."},
        *about_picture(ASK, b"another"),
    ]
    with pytest.raises(openai.BadRequestError, match="about one picture or video; got 2"):
        server.openai.chat.completions.create(model="tiny", messages=messages)


def test_models(server: Running) -> None:
    (card,) = server.openai.models.list().data
    assert card == server.openai.models.retrieve("tiny")
    assert card.capabilities["regions"] is True
    with pytest.raises(openai.NotFoundError):
        server.openai.models.retrieve("other")


SPECIAL = ["[SEG]", "<p>", "</p>", "<|im_end|>"]
WORDS = st.sampled_from([*SPECIAL, " ", "Sure", ", ", ".", "(", ")", "\n", "a <b", " red", "[x", ";", "  "])


@given(st.lists(WORDS, max_size=12))
def test_streamed_pieces_are_the_clean_text(pieces: list[str]) -> None:
    def clean(raw: str) -> str:
        return clean_answer(raw, SPECIAL)[0]

    stream = CleanStream(clean)
    sent = [stream.feed(piece) for piece in pieces]
    whole = clean("".join(pieces))
    assert "".join([*sent, stream.finish(whole)]) == whole


@given(
    st.text("abc ", max_size=30), st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3), st.data()
)
def test_a_stream_ends_at_the_first_stop_sequence(text: str, stops: list[str], data: st.DataObject) -> None:
    text = text.strip()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    stream = CleanStream(str.strip, stops)
    sent = [stream.feed(text[begin:end]) for begin, end in pairwise(cuts)] if text else []
    sent.append(stream.finish(text))
    complete = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    assert "".join(sent) == text[: min(complete, default=(0, len(text)))[1]]


def test_a_stream_is_json_lines_that_end(server: Running) -> None:
    request = {"model": "tiny", "messages": about_picture(ASK), "stream": True}
    with server.http as client:
        body = client.post("/v1/chat/completions", json=request)
    assert body.headers["content-type"].startswith("text/event-stream")
    *events, last = [line.removeprefix("data: ") for line in body.text.splitlines() if line]
    assert last == "[DONE]"
    assert {json.loads(event)["object"] for event in events} == {"chat.completion.chunk"}
