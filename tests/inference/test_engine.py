"""The engine: what is asked at once is computed together, and answered as if it were alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from sa2va import Answer, Reply, Request, Sa2VA
from sa2va.inference.engine import Engine, Pause
from synthetic_checkpoint import picture

FAMILIES = ["iv25_qwen2", "iv25_internlm2", "iv35_qwen3", "q25", "q3"]
PICTURES = [picture(150, 97), picture(64, 60, 1), picture(75, 120, 2), picture(97, 97, 3)]
CLIP = [picture(75, 48, seed) for seed in range(4)]
TOKENS = {"max_new_tokens": 12}


@contextmanager
def passes(sa2va: Sa2VA) -> Iterator[dict[str, list[int]]]:
    """Batch sizes of the passes of each part: rows that the language model writes, frames, prompts of masks."""
    vlm, sam2 = sa2va.model.vlm.model, sa2va.model.sam2
    tower = vlm.visual if hasattr(vlm, "visual") else vlm.vision_tower
    seen: dict[str, list[int]] = {"tower": [], "read": [], "written": [], "frames": [], "masks": []}

    def rows(_module, _args, kwargs) -> None:
        embedded = kwargs["inputs_embeds"]
        seen["written" if embedded.shape[1] == 1 else "read"].append(len(embedded))

    hooks = [
        tower.register_forward_pre_hook(lambda *_: seen["tower"].append(1)),
        vlm.language_model.register_forward_pre_hook(rows, with_kwargs=True),
        sam2.vision_encoder.backbone.register_forward_pre_hook(lambda _, args: seen["frames"].append(len(args[0]))),
        sam2.mask_decoder.register_forward_pre_hook(
            lambda _, args, kwargs: seen["masks"].append(len(kwargs["sparse_prompt_embeddings"])), with_kwargs=True
        ),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def same(found: Sequence[Answer], expected: Sequence[Answer]) -> None:
    assert [one.raw_text for one in found] == [one.raw_text for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert [(part.phrase, part.span) for part in one] == [(part.phrase, part.span) for part in other]
        for part, wanted in zip(one, other, strict=True):  # sums of floats depend on what is computed together
            assert all((a.array ^ b.array).mean() <= 1e-3 for a, b in zip(part.masks, wanted.masks, strict=True))
        assert [part.score for part in one] == pytest.approx([part.score for part in other], abs=1e-4)


@pytest.mark.parametrize("case", FAMILIES)
def test_requests_about_several_media_are_answered_as_if_alone(open_sa2va, case):
    """Pictures of several sizes, a clip, words alone; several questions, a conversation, other limits, seeds."""
    sa2va = open_sa2va(case)
    first = sa2va.chat(PICTURES[0], "What is this?", **TOKENS)
    sampled = {"temperature": 1.5, "seed": 3, "max_new_tokens": 7}
    requests = [
        Request(PICTURES[0], phrases=["the dog", "the cat on the left"], options=TOKENS),
        Request(PICTURES[1], question="What is this?", options=sampled, id="sampled"),
        Request(CLIP, phrases="the dog", options=TOKENS),
        Request(None, question="Hello?", options={"max_new_tokens": 5}),
        Request(PICTURES[0], question="And where?", history=first.history, options=TOKENS),
        Request(PICTURES[2], question=["Is it a dog?", "Where is it?"], history=[(), first.history], options=TOKENS),
        Request(PICTURES[3], caption=True, options=TOKENS),
    ]
    expected = [
        sa2va.segment(PICTURES[0], ["the dog", "the cat on the left"], **TOKENS),
        [sa2va.chat(PICTURES[1], "What is this?", **sampled)],
        [sa2va.segment(CLIP, "the dog", **TOKENS)],
        [sa2va.chat(None, "Hello?", max_new_tokens=5)],
        [sa2va.chat(PICTURES[0], "And where?", history=first.history, **TOKENS)],
        sa2va.ask(PICTURES[2], ["Is it a dog?", "Where is it?"], histories=[(), first.history], **TOKENS),
        [sa2va.caption(PICTURES[3], **TOKENS)],
    ]
    with passes(sa2va) as seen:
        replies = list(sa2va.answers(requests))
    assert [reply.request for reply in replies] == requests and not any(reply.error for reply in replies)
    for reply, alone in zip(replies, expected, strict=True):
        same(reply.answers, alone)
    assert max(seen["written"]) == 9  # all of them, while the shortest are not over


def test_encoders_and_masks_take_several_pictures_at_once(sa2va):
    requests = [Request(one, phrases="the dog", options=TOKENS) for one in PICTURES]
    with writing(sa2va, "Sure, [SEG]."), passes(sa2va) as seen:
        replies = list(sa2va.answers(requests))
    assert [len(reply.answers[0].segments) for reply in replies] == [1] * 4
    assert (len(seen["tower"]), seen["frames"], seen["masks"]) == (1, [4], [4])


@pytest.mark.parametrize("case", FAMILIES)
def test_short_prompts_about_different_media_are_read_in_one_pass(open_sa2va, case):
    sa2va = open_sa2va(case)
    requests = [Request(picture(64, 60, seed), question="What is this?", options=TOKENS) for seed in range(3)]
    requests.insert(2, Request(picture(64, 60, 9), question="Is [SEG] what it is?", options=TOKENS))
    expected = [sa2va.chat(one.media, str(one.question), **TOKENS) for one in requests]
    with passes(sa2va) as seen:
        found = [reply.answers[0] for reply in sa2va.answers(requests)]
    assert seen["read"] == [4]
    same(found, expected)


@pytest.mark.parametrize("case", FAMILIES)
def test_second_questions_are_read_in_one_pass(open_sa2va, case):
    """Each goes on from what was read of its own medium, however long that is, and one is tried with a draft."""
    sa2va = open_sa2va(case)
    with ExitStack() as stack:
        scenes = [stack.enter_context(sa2va.open(one)) for one in PICTURES[:3]]
        turns = [scene.chat("What is this?", **TOKENS) for scene in scenes]
        scenes[2].segment("the dog", **TOKENS)
        requests = [
            Request(scenes[0], question="And where?", history=turns[0].history, options=TOKENS),
            Request(scenes[1], question="Where?", options=TOKENS),
            Request(scenes[2], phrases=["the cat", "the dog"], options=TOKENS),
        ]
        with passes(sa2va) as seen:
            found = [answer for reply in sa2va.answers(requests) for answer in reply.answers]
    assert seen["read"] == [4]
    alone = [
        sa2va.chat(PICTURES[0], "And where?", history=turns[0].history, **TOKENS),
        sa2va.chat(PICTURES[1], "Where?", **TOKENS),
        *sa2va.segment(PICTURES[2], ["the cat", "the dog"], **TOKENS),
    ]
    same(found, alone)


@contextmanager
def writing(sa2va: Sa2VA, text: str) -> Iterator[None]:
    """Make the model write this text and end, in every row."""
    ids = sa2va.processor.tokenizer.encode(text, add_special_tokens=False)
    following = dict(zip(ids, [*ids[1:], min(sa2va.processor.eos_ids)], strict=True))
    read: list = []
    body = sa2va.model.vlm.model
    note = body.get_input_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0]))

    def choose(_module, _args, logits):
        chosen = [following.get(int(row[-1]), ids[0]) if read[-1].shape[1] == 1 else ids[0] for row in read[-1]]
        logits = logits * 0
        for row, token in enumerate(chosen):
            logits[row, ..., token] = 1.0
        return logits

    hook = sa2va.model.vlm.lm_head.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()
        note.remove()


def test_a_request_that_fails_breaks_no_other(sa2va, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG")
    requests = [
        Request(PICTURES[0], phrases="the dog", options=TOKENS),
        Request(broken, phrases="the dog"),
        Request(tmp_path / "none.png", question="What?"),
        Request(None, phrases="the dog"),
        Request(CLIP, regions=[(0, 0, 9, 9)]),
        Request(PICTURES[1], question=" "),
        Request(PICTURES[1], phrases="the dog", options={"treshold": 0.4}),
        Request(PICTURES[1], phrases="the dog", options={"max_new_tokens": 10**9}),
        Request(PICTURES[2], phrases="the dog", options=TOKENS),
    ]
    replies = list(sa2va.answers(requests))
    assert [bool(reply.answers) for reply in replies] == [True, *[False] * 7, True]
    messages = [str(reply.error) for reply in replies[1:-1]]
    for message, part in zip(
        messages,
        ["broken.png", "none.png", "segment needs a picture", "parts of one picture", "non-empty", "treshold"],
        strict=False,
    ):
        assert part in message
    assert "1000000000" in messages[-1] and "lower max_new_tokens" in messages[-1]
    same(replies[-1].answers, [sa2va.segment(PICTURES[2], "the dog", **TOKENS)])


def test_of_a_batch_that_fails_only_the_one_at_fault_fails(sa2va, monkeypatch):
    encode = sa2va.model.encode_frames

    def refuse_black(pixels: torch.Tensor):
        if not pixels.flatten(1).any(1).all():
            raise RuntimeError("a black picture")
        return encode(pixels)

    media = [PICTURES[0], np.zeros_like(PICTURES[1]), PICTURES[2]]
    monkeypatch.setattr(sa2va.model, "encode_frames", refuse_black)
    with writing(sa2va, "Sure, [SEG]."):
        replies = list(sa2va.answers(Request(one, phrases="the dog", options=TOKENS) for one in media))
        assert [str(reply.error or "") for reply in replies] == ["", "a black picture", ""]
        for number in (0, 2):
            same(replies[number].answers, [sa2va.segment(media[number], "the dog", **TOKENS)])


def test_a_prompt_that_cannot_be_read_is_an_error_and_the_next_one_is_read(sa2va):
    def refuse(*_) -> None:
        raise RuntimeError("no room for it")

    hook = sa2va.model.vlm.model.language_model.register_forward_pre_hook(refuse)
    try:
        with pytest.raises(RuntimeError, match="no room for it"):
            sa2va.chat(None, "Hello?", max_new_tokens=2)
    finally:
        hook.remove()
    assert sa2va.chat(None, "Hello?", max_new_tokens=2).raw_text


@pytest.mark.parametrize(
    "asked",
    [{}, {"phrases": "a", "question": "b"}, {"caption": True, "question": "b"}, {"phrases": "a", "regions": []}],
)
def test_a_request_asks_for_one_thing(asked):
    with pytest.raises(ValueError, match="a request has one of phrases=, question=, caption=True, or regions="):
        Request(None, **asked)


def test_any_iterable_is_read_only_so_far_ahead(sa2va):
    read: list[int] = []

    def requests() -> Iterator[Request]:
        for number in range(100):
            read.append(number)
            yield Request(None, question="Hello?", options={"max_new_tokens": 2}, id=number)

    replies = sa2va.answers(requests(), ahead=4)
    for number in range(20):
        assert next(replies).request.id == number
        assert len(read) <= number + 2 * 4 + 2
    replies.close()
    assert sa2va.chat(None, "Hello?", max_new_tokens=2).raw_text
    with pytest.raises(ValueError, match="ahead is a whole number of at least 1; got 0"):
        sa2va.answers([], ahead=0)


def test_rows_wait_where_the_cache_is_full(sa2va, monkeypatch):
    alike = [picture(64, 60, seed) for seed in range(4)]  # prompts of one length
    requests = [Request(one, question="What is this?", options=TOKENS) for one in alike]
    expected = [reply.answers for reply in sa2va.answers(requests)]
    vision = sa2va.processor.vision([Image.fromarray(alike[0])])
    longest = len(sa2va.processor.prompt_ids("What is this?", vision=vision)) + TOKENS["max_new_tokens"]
    for limit, most, together in (("cache_tokens", 2 * longest, 2), ("max_rows", 2, 2), ("max_rows", 1, 1)):
        with monkeypatch.context() as patch, passes(sa2va) as seen:
            patch.setattr(sa2va.engine, limit, most)
            found = [reply.answers for reply in sa2va.answers(requests)]
        assert max(seen["written"]) == together
        for one, other in zip(found, expected, strict=True):
            same(one, other)


def test_threads_are_answered_together(sa2va):
    expected = [sa2va.segment(one, "the dog", **TOKENS) for one in PICTURES]
    with ThreadPoolExecutor(4) as pool, passes(sa2va) as seen:
        for _ in range(5):
            found = list(pool.map(lambda one: sa2va.segment(one, "the dog", **TOKENS), PICTURES))
            same(found, expected)
    assert max(seen["written"]) > 1


def test_text_comes_as_it_is_written(sa2va):
    pieces: list[str] = []
    with writing(sa2va, "A grey dog, [SEG]."):
        answer = sa2va.chat(PICTURES[0], "What is this?", on_text=pieces.append)
    assert "".join(pieces).strip() == answer.raw_text and len(pieces) == 5


@pytest.mark.parametrize(("most", "expected"), [(7, ["A", " ", "\N{DOG}", "[SEG]"]), (4, ["A", " "])])
def test_no_piece_ends_within_a_character(sa2va, most, expected):
    """This one has four tokens."""
    pieces: list[str] = []
    with writing(sa2va, "A \N{DOG}[SEG]."):
        sa2va.chat(PICTURES[0], "What is this?", max_new_tokens=most, on_text=pieces.append)
    assert pieces == expected


def test_what_a_listener_raises_cancels_its_request_alone(sa2va):
    class Gone(Exception):
        pass

    def leave(piece: str) -> None:
        raise Gone(piece)

    expected = sa2va.chat(PICTURES[1], "What is this?", **TOKENS)
    with sa2va.open(PICTURES[0]) as scene, ThreadPoolExecutor(2) as pool:
        other = pool.submit(sa2va.chat, PICTURES[1], "What is this?", **TOKENS)
        with pytest.raises(Gone):
            scene.chat("What is this?", on_text=leave, **TOKENS)
        same([other.result()], [expected])
        same([scene.chat("What is this?", **TOKENS)], [sa2va.chat(PICTURES[0], "What is this?", **TOKENS)])


def test_a_listener_cannot_ask_the_same_model(sa2va):
    with pytest.raises(RuntimeError, match="cannot ask the same model"):
        sa2va.chat(None, "Hello?", on_text=lambda _: sa2va.chat(None, "And?"), **TOKENS)
    assert sa2va.chat(None, "Hello?", **TOKENS).raw_text


def test_an_interrupt_leaves_an_engine_that_answers(sa2va):
    """Ctrl-C while one thread computes for all: the others are told, and the next request is answered."""
    expected = sa2va.chat(PICTURES[0], "What is this?", **TOKENS)
    seen = threading.Event()

    def interrupt(_piece: str) -> None:
        seen.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sa2va.chat(PICTURES[0], "What is this?", on_text=interrupt, **TOKENS)
    assert seen.is_set()
    same([sa2va.chat(PICTURES[0], "What is this?", **TOKENS)], [expected])


def test_an_interrupt_is_told_to_those_who_wait(sa2va):
    engine, begun, told = Engine(sa2va.model, sa2va.processor), threading.Event(), []

    async def go_on() -> None:
        begun.set()
        while True:
            await Pause()

    def wait() -> None:
        try:
            engine.run(go_on())
        except RuntimeError as error:
            told.append(str(error))

    async def interrupt() -> None:
        other.start()
        while not begun.is_set():
            await Pause()
        raise KeyboardInterrupt

    other = threading.Thread(target=wait, daemon=True)
    with pytest.raises(KeyboardInterrupt):
        engine.run(interrupt())
    other.join(10)
    assert told == ["the thread that was computing was interrupted (KeyboardInterrupt()); ask again"]


def test_an_open_scene_may_be_asked_in_requests_and_stays_open(sa2va):
    with sa2va.open(PICTURES[0]) as scene:
        (reply,) = sa2va.answers([Request(scene, phrases="the dog", options=TOKENS)])
        assert isinstance(reply, Reply)
        same(reply.answers, [scene.segment("the dog", **TOKENS)])


def test_pixels_of_different_media_do_not_mix(sa2va):
    """The same request about each picture alone and among the others: its own masks."""
    with writing(sa2va, "Sure, [SEG]."):
        alone = [sa2va.segment(one, "the dog", **TOKENS) for one in PICTURES]
        replies = list(sa2va.answers(Request(one, phrases="the dog", options=TOKENS) for one in PICTURES))
    for reply, expected in zip(replies, alone, strict=True):
        assert isinstance(expected, Answer) and reply.answers[0].size == expected.size
        assert np.array_equal(reply.answers[0].masks, expected.masks)


def test_a_thread_may_ask_whether_it_is_to_stop(sa2va):
    def stop() -> None:
        raise TimeoutError("enough")

    sa2va.engine.check()
    with sa2va.engine.stoppable(stop), pytest.raises(TimeoutError, match="enough"):
        sa2va.engine.check()
    sa2va.engine.check()


def test_requests_end_when_the_check_of_their_thread_raises(sa2va):
    """Between two passes, whatever they wait for; others and later ones go on."""
    left = iter(range(4))

    def check() -> None:
        if next(left, None) is None:
            raise TimeoutError("enough")

    expected = sa2va.chat(PICTURES[0], "What is this?", **TOKENS)
    with sa2va.engine.stoppable(check), passes(sa2va) as seen, pytest.raises(TimeoutError, match="enough"):
        sa2va.chat(PICTURES[1], "What is this?", max_new_tokens=1000)
    assert 0 < len(seen["written"]) < 10
    same([sa2va.chat(PICTURES[0], "What is this?", **TOKENS)], [expected])


def test_a_request_that_ends_leaves_those_that_are_written_with_it(sa2va):
    expected = sa2va.chat(PICTURES[1], "What is this?", **TOKENS)
    errors = iter([TimeoutError("enough")])

    def check() -> None:
        if len(seen["written"]) == 3 and (error := next(errors, None)):
            raise error

    requests = [Request(one, question="What is this?", options=TOKENS) for one in (PICTURES[2], PICTURES[1])]
    with passes(sa2va) as seen, sa2va.engine.stoppable(check):
        ended, other = sa2va.answers(requests)
    assert isinstance(ended.error, TimeoutError)
    assert seen["written"] == [2] * 3 + [1] * 8
    same(other.answers, [expected])


def test_a_request_that_ends_leaves_those_that_wait_for_the_same_pass(sa2va):
    """Two about one open picture wait for its encoding when one of them is ended."""
    expected = sa2va.chat(PICTURES[0], "Where?", **TOKENS)
    outcomes = iter([None, TimeoutError("enough")])

    def check() -> None:
        if error := next(outcomes, None):
            raise error

    with sa2va.open(PICTURES[0]) as scene, sa2va.engine.stoppable(check):
        requests = [Request(scene, question=question, options=TOKENS) for question in ("Where?", "What is this?")]
        first, second = sa2va.answers(requests)
    same(first.answers, [expected])
    assert isinstance(second.error, TimeoutError)
