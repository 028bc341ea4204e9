"""``POST /v1/chat/completions`` and ``GET /v1/models``: OpenAI's protocol, with masks beside the text."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse

from sa2va.model.families import SEG_TOKEN
from sa2va.results.answer import Answer
from sa2va.runtime import logger
from sa2va.serve.clean_stream import CleanStream
from sa2va.serve.context import ServerContext
from sa2va.serve.guard import error_body, told
from sa2va.serve.intake import Kind
from sa2va.serve.mask_formats import segment_payloads
from sa2va.serve.schemas import (
    ERRORS,
    ChatCompletion,
    ChatMessage,
    CompletionRequest,
    ImagePart,
    ModelCard,
    ModelList,
    TextPart,
    Usage,
    VideoPart,
)

#: Of a request with ``stream``.
_STREAM = {"text/event-stream": {"schema": {"type": "string", "description": "`chat.completion.chunk` objects."}}}


@dataclass(frozen=True)
class ChatTurns:
    """A conversation as its client tells it.

    Attributes:
        kind, source: of its picture or video; None for words alone.
        texts: the turns so far, as pairs (question, answer).
        question: the last one, which is to be answered.
    """

    kind: Kind | None
    source: str | None
    texts: tuple[tuple[str, str], ...]
    question: str


@dataclass(frozen=True)
class ChatAnswer:
    """An answer with what the protocol tells about it."""

    text: str
    segments: list[dict[str, Any]]
    usage: Usage
    finish_reason: str


class _StopSequence(Exception):
    """Ends an answer at a stop sequence, before it has pointed at anything."""


def chat_router(context: ServerContext) -> APIRouter:
    """The routes that stock clients know."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=ERRORS)
    started = int(time.time())
    card = ModelCard(
        id=context.name,
        object="model",
        created=started,
        owned_by="sa2va",
        capabilities={
            "masks": True,
            "regions": context.model.processor.family.visual_prompts,
            "max_tokens": context.settings.max_tokens,
            "max_pixels": context.settings.max_pixels,
            "max_clip_frames": context.settings.max_clip_frames,
            "max_frames": context.settings.max_frames,
            "max_phrases": context.settings.max_phrases,
            "fetches_urls": bool(context.settings.allow_urls),
        },
    )

    @router.get("/models", response_model=ModelList)
    async def models() -> ModelList:
        """The model of this server."""
        return ModelList(object="list", data=[card])

    @router.get("/models/{model:path}", response_model=ModelCard)
    async def model(model: str) -> ModelCard:
        """The model of that name."""
        _check_model(context, model)
        return card

    @router.post(
        "/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": _STREAM}},
    )
    async def completions(request: Request, body: CompletionRequest) -> Any:
        """Answer the last message of a conversation about a picture, a short video, or nothing.

        Send the picture with each request, in any of its messages: the server knows it again by its content, so that
        a further question costs its words only. `message.segments` holds the objects that the answer points at; ask
        for them ("Answer with masks.").
        """
        _check_model(context, body.model)
        turns = read_turns(body.messages)
        said = sum(len(question) + len(answer) for question, answer in turns.texts)
        context.check_amount(1, said + len(turns.question))
        if body.stream:
            return await _streamed(context, request, body, turns)
        done = await context.dispatcher.run(request, lambda: _answer(context, body, turns, lambda _: None))
        message = {"role": "assistant", "content": done.text, "segments": done.segments}
        choice = {"index": 0, "message": message, "finish_reason": done.finish_reason}
        return JSONResponse(
            {**_head(context, "chat.completion"), "choices": [choice], "usage": done.usage.model_dump()}
        )

    return router


def _check_model(context: ServerContext, name: str) -> None:
    if name != context.name:
        text = f"there is no model {name!r:.100} here; this server has {context.name!r}"
        raise HTTPException(404, {"message": text, "param": "model", "code": "model_not_found"})


def read_turns(messages: Sequence[ChatMessage]) -> ChatTurns:
    """A conversation from its messages.

    Raises:
        ValueError: roles do not take turns, the last message is not the user's, or there are several media.
    """
    system: list[str] = []
    spoken: list[tuple[str, str]] = []
    media: dict[tuple[Kind, str], None] = {}
    for message in messages:
        parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        text = "\n".join(part.text for part in parts if isinstance(part, TextPart))
        for part in parts:
            if isinstance(part, ImagePart):
                media[("image", part.image_url.url)] = None
            elif isinstance(part, VideoPart):
                media[("video", part.video_url.url)] = None
        if message.role in ("system", "developer"):
            system.append(text)
        else:
            spoken.append((message.role, text))
    if [role for role, _ in spoken] != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        raise ValueError("messages: user and assistant take turns, and the last message is the user's")
    if len(media) > 1:
        raise ValueError(
            f"messages: a conversation is about one picture or video; got {len(media)}. Begin another for the next"
        )
    said = [text for _, text in spoken]
    said[0] = "\n".join(part for part in (*system, said[0]) if part)
    if not all(text.strip() for text in said[::2]):
        raise ValueError("messages: a question is empty; every message of the user needs text")
    (kind, source) = next(iter(media), (None, None))
    return ChatTurns(kind, source, tuple(zip(said[:-1:2], said[1::2], strict=True)), said[-1])


def _answer(
    context: ServerContext, body: CompletionRequest, turns: ChatTurns, tell: Callable[[str], None]
) -> ChatAnswer:
    """Answer a conversation, in a thread.

    Args:
        tell: gets the text piece by piece, as it is written.
    """
    medium = None if turns.kind is None or turns.source is None else context.intake.read(turns.kind, turns.source)
    processor = context.model.processor
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    stream = CleanStream(lambda raw: processor.clean(raw)[0], stops)

    def hear(piece: str) -> None:
        if text := stream.feed(piece):
            tell(text)
        if stream.end is not None and SEG_TOKEN not in stream.raw:
            raise _StopSequence

    asked = {
        "max_new_tokens": context.longest(body.max_completion_tokens or body.max_tokens),
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "repetition_penalty": body.repetition_penalty,
        "seed": body.seed,
        "threshold": body.threshold,
    }
    options: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    with context.scenes.borrow(medium) as (entry, scene), context.monitoring.part("answering"):
        history = entry.turns(turns.texts)
        try:
            answer = scene.chat(turns.question, history=history, on_text=hear, **options)
        except _StopSequence:
            answer = Answer(stream.text, stream.raw)
        else:
            if text := stream.finish(answer.text):
                tell(text)
            if stream.end is None:
                entry.remember((*turns.texts, (turns.question, answer.text)), answer.raw_text)
            else:
                pointed = stream.count_before_end(SEG_TOKEN)
                segments = tuple(segment for segment in answer.segments if segment.id <= pointed)
                answer = replace(answer, text=stream.text, segments=segments)
        read = scene.prompt_tokens(turns.question, history=history)
    written = context.count_tokens(answer)
    ended = stream.end is not None or answer.raw_text.endswith(
        (*processor.stop_words, str(processor.tokenizer.eos_token))
    )
    usage = Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
    return ChatAnswer(answer.text, segment_payloads(answer.segments), usage, "stop" if ended else "length")


def _head(context: ServerContext, kind: str) -> dict[str, Any]:
    """What replies and chunks begin with."""
    identity = f"chatcmpl-{secrets.token_hex(12)}"
    return {"id": identity, "object": kind, "created": int(time.time()), "model": context.name}


async def _streamed(
    context: ServerContext, request: Request, body: CompletionRequest, turns: ChatTurns
) -> StreamingResponse:
    """The answer as server-sent events. What is refused before the first word is an error like any other."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()

    def tell(text: str | None) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, text)

    answer = asyncio.ensure_future(context.dispatcher.run(request, lambda: _answer(context, body, turns, tell)))
    answer.add_done_callback(lambda _: tell(None))
    try:
        first = await pieces.get()
        if first is None:
            await answer  # raises what went wrong, if anything did
    except BaseException:
        answer.cancel()
        raise
    chunks = _chunks(context, body, pieces, first, answer)
    return StreamingResponse(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _chunks(
    context: ServerContext,
    body: CompletionRequest,
    pieces: asyncio.Queue[str | None],
    first: str | None,
    answer: asyncio.Future[ChatAnswer],
) -> AsyncIterator[str]:
    head = _head(context, "chat.completion.chunk")
    counted = body.stream_options is not None and body.stream_options.include_usage

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return _event({**head, "choices": [choice], **({"usage": None} if counted else {})})

    try:
        yield chunk({"role": "assistant", "content": ""})
        piece = first
        while piece is not None:
            yield chunk({"content": piece})
            piece = await pieces.get()
        done = await answer
        yield chunk({"segments": done.segments}, done.finish_reason)
        if counted:
            yield _event({**head, "choices": [], "usage": done.usage.model_dump()})
        yield "data: [DONE]\n\n"
    except Exception as error:
        if (reply := told(error)) is None:
            logger.exception("%s: an answer failed while it was streamed", head["id"])
            text = f"an internal error; the log has more under {head['id']}"
            yield _event({"error": error_body(500, text)})
        else:
            yield _event(json.loads(bytes(reply.body)))
    finally:
        answer.cancel()  # the client may have gone, or read enough


def _event(record: dict[str, Any]) -> str:
    return f"data: {json.dumps(record, allow_nan=False)}\n\n"
