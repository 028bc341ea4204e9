"""``POST /v1/segment``, ``/v1/caption`` and ``/v1/describe``: masks and texts without a conversation."""

from __future__ import annotations

from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from sa2va.masks.mask import Mask
from sa2va.results.answer import Answer
from sa2va.serve.bodies import body_document, read_body
from sa2va.serve.context import ServerContext
from sa2va.serve.mask_formats import MaskForm, segment_payloads
from sa2va.serve.schemas import (
    ERRORS,
    CaptionReply,
    CaptionRequest,
    DescribeReply,
    DescribeRequest,
    RleMask,
    SegmentReply,
    SegmentRequest,
)


def vision_router(context: ServerContext) -> APIRouter:
    """The routes for masks and texts about one picture."""
    router = APIRouter(prefix="/v1", tags=["Vision"], responses=ERRORS)

    @router.post("/segment", response_model=SegmentReply, openapi_extra=body_document(SegmentRequest, "image"))
    async def segment(request: Request) -> Any:
        """Find what phrases or questions describe, as masks. What is not found is said, with the reason."""
        body, files = await read_body(request, SegmentRequest)
        context.check_amount(len(body.phrases), sum(map(len, body.phrases)))

        def call() -> dict[str, Any]:
            medium = context.intake.chosen(files, image=body.image, video=body.video)
            options = {
                "threshold": body.threshold,
                "check_presence": body.check_presence,
                "zoom": body.zoom,
                "instances": body.instances,
                "max_new_tokens": context.longest(body.max_tokens),
            }
            with context.scenes.borrow(medium) as (_, scene), context.monitoring.part("answering"):
                answers = cast("list[Answer]", scene.segment(body.phrases, **options))
            found = [
                {"phrase": phrase, **_found(context, answer, body.return_)}
                for phrase, answer in zip(body.phrases, answers, strict=True)
            ]
            return {"model": context.name, "size": answers[0].size, "answers": found}

        return JSONResponse(await context.dispatcher.run(request, call))

    @router.post("/caption", response_model=CaptionReply, openapi_extra=body_document(CaptionRequest, "image"))
    async def caption(request: Request) -> Any:
        """Describe a picture in a sentence or two whose phrases have masks."""
        body, files = await read_body(request, CaptionRequest)

        def call() -> dict[str, Any]:
            medium = context.intake.chosen(files, image=body.image, video=body.video)
            options = {"threshold": body.threshold, "max_new_tokens": context.longest(body.max_tokens)}
            with context.scenes.borrow(medium) as (_, scene), context.monitoring.part("answering"):
                answer = scene.caption(**options)
            found = _found(context, answer, body.return_)
            return {"model": context.name, "size": answer.size, "text": answer.text, "segments": found["segments"]}

        return JSONResponse(await context.dispatcher.run(request, call))

    @router.post("/describe", response_model=DescribeReply, openapi_extra=body_document(DescribeRequest, "image"))
    async def describe(request: Request) -> Any:
        """Say what is in regions of a picture, which are boxes or masks; InternVL-based models only."""
        body, files = await read_body(request, DescribeRequest)
        context.check_amount(len(body.regions), sum(map(len, body.requests or [])))

        def call() -> dict[str, Any]:
            medium = context.intake.chosen(files, image=body.image)
            with context.scenes.borrow(medium) as (_, scene), context.monitoring.part("answering"):
                regions = [_region(region, scene.size) for region in body.regions]
                texts = scene.describe(regions, requests=body.requests, max_new_tokens=context.longest(body.max_tokens))
            return {"model": context.name, "descriptions": texts}

        return JSONResponse(await context.dispatcher.run(request, call))

    return router


def _found(context: ServerContext, answer: Answer, form: MaskForm) -> dict[str, Any]:
    context.count_tokens(answer)
    return {"text": answer.text, "reason": answer.reason, "segments": segment_payloads(answer.segments, form)}


def _region(region: list[float] | RleMask, size: tuple[int, int] | None) -> Any:
    """A box, or the pixels of a mask, whose size is compared before a few bytes become as many pixels as they claim."""
    if isinstance(region, list):
        return tuple(region)
    if size is None or region.size != list(size):
        raise ValueError(f"a region's mask has the size [height, width] of the picture, {size}; got {region.size}")
    return Mask.from_rle(region.model_dump()).array
