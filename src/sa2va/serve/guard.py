"""What stands before every route: request ids, who may ask, how large a request may be, and the form of errors."""

from __future__ import annotations

import asyncio
import base64
import hmac
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sa2va.runtime import logger
from sa2va.serve.dispatch import Busy, ClientGone, Closing, Stopped, TimeIsUp
from sa2va.serve.monitoring import Monitoring
from sa2va.serve.settings import ServerSettings, is_local

#: Paths that tell nothing of anybody: load balancers and readers ask for them without a key.
_OPEN_PATHS = ("/health", "/ready", "/docs", "/openapi.json")
_METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH")
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
#: Characters of a message, which may quote a request.
_MOST_CHARACTERS = 1000
#: Nobody reads this status, but logs do; it is nginx's.
_CLIENT_GONE = 499


class RequestTooLarge(HTTPException):
    """The body is longer than the server takes."""

    def __init__(self, limit: int):
        super().__init__(413, f"the request is larger than {limit / 2**20:.3g} MiB; send a smaller picture or video")


class Guard:
    """Middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, settings: ServerSettings, monitoring: Monitoring):
        self._app, self._settings, self._monitoring = app, settings, monitoring
        self._held = 0  # bytes of all bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        scope["request_id"] = f"req_{secrets.token_hex(12)}"
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", scope["request_id"].encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        request = Request(scope)
        length = request.headers.get("content-length", "")
        body = _Body(int(length) if re.fullmatch(r"[0-9]{1,18}", length) else 0)
        try:
            if refusal := self._refusal(request):
                await refusal(scope, receive, send_with_id)
            else:
                await self._app(scope, self._bounded(body, receive), send_with_id)
        except Exception:
            logger.exception("%s: %s %s failed", scope["request_id"], scope["method"], scope["path"])
            if not status:
                text = f"an internal error; the log has more under {scope['request_id']}"
                await failure(500, text)(scope, receive, send_with_id)
        finally:
            self._held -= body.taken
            # Not the path and method as they came: each would make a series of its own.
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._monitoring.requests.labels(route, method, str(status)).inc()
            self._monitoring.seconds.labels(route).observe(time.perf_counter() - started)

    def _refusal(self, request: Request) -> JSONResponse | None:
        """The answer to a request that may not be asked; None for others."""
        if self._settings.api_key is not None:
            return None if request.url.path in _OPEN_PATHS or self._shows_key(request) else _no_key()
        # Without a key, a page in this machine's browser must not be able to ask: neither across origins, nor under a
        # name of its own that it lets lead here (DNS rebinding).
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not is_local(_host_of(f"//{host}")) or (origin is not None and origin.partition("://")[2] != host):
            return failure(403, "this server answers local programs only; start it with an API key to change that")
        return None

    def _shows_key(self, request: Request) -> bool:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        expected = (self._settings.api_key or "").encode()
        match scheme.lower():
            case "bearer":
                return hmac.compare_digest(key.strip().encode(), expected)
            case "basic":  # Label Studio has no other; any name will do
                return hmac.compare_digest(_password(key), expected)
        return False

    def _bounded(self, body: _Body, receive: Receive) -> Receive:
        """The request's body, within the limits of its size, of its time, and of what all requests hold together."""
        settings = self._settings
        deadline = time.monotonic() + settings.seconds

        async def bounded() -> Message:
            if body.complete:
                return await receive()  # waits until the client goes
            if body.declared > settings.max_body:
                raise RequestTooLarge(settings.max_body)
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                raise HTTPException(408, f"the request did not arrive within {settings.seconds:g} s") from None
            body.complete = not message.get("more_body", False)
            body.taken += len(message.get("body", b""))
            self._held += len(message.get("body", b""))
            if body.taken > settings.max_body:
                raise RequestTooLarge(settings.max_body)
            if self._held > settings.max_held:
                raise HTTPException(
                    429, "the server is reading as much as it can hold; try again", {"Retry-After": "5"}
                )
            return message

        return bounded


@dataclass
class _Body:
    """How much of a request's body has come."""

    declared: int
    taken: int = 0
    complete: bool = False


def _password(credentials: str) -> bytes:
    """The password of basic authentication; nothing where it is malformed."""
    try:
        return base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def failure(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error in OpenAI's form."""
    return JSONResponse({"error": error_body(status, message, param=param, code=code)}, status, headers)


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """What stands under ``error``."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    # What a client sent may hold half characters, which no reply can.
    message = message[:_MOST_CHARACTERS].encode("utf-8", "replace").decode()
    return {"message": message, "type": kind, "param": param, "code": code}


def _no_key() -> JSONResponse:
    text = "show the server's API key: Authorization: Bearer KEY"
    return failure(401, text, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def told(error: Exception) -> JSONResponse | None:
    """The reply to an error that a client may be told about; None for one of ours."""
    match error:
        case RequestValidationError() | ValidationError():
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"] if part != "body")
            return failure(400, f"{place}: {first['msg']}" if place else first["msg"], param=place or None)
        case HTTPException():
            about = error.detail if isinstance(error.detail, dict) else {"message": str(error.detail)}
            return failure(error.status_code, **about, headers=error.headers)
        case Busy():
            headers = {"Retry-After": str(error.retry_after)}
            return failure(429, str(error), code="rate_limit_exceeded", headers=headers)
        case TimeIsUp():
            return failure(504, "the request took too long; ask for less, or a video as a job (POST /v1/track)")
        case Closing() | Stopped():
            return failure(503, "the server is shutting down; try again", headers={"Retry-After": "5"})
        case ClientGone():
            return failure(_CLIENT_GONE, "the client has gone")
        case ValueError():
            return failure(400, str(error))
    return None


def tell_errors(app: FastAPI) -> None:
    """Give errors of an application's routes the one form; what is no client's business goes on to [`Guard`]."""

    async def reply(_: Request, error: Exception) -> JSONResponse:
        if (response := told(error)) is None:
            raise error
        return response

    kinds = (RequestValidationError, HTTPException, Busy, TimeIsUp, ClientGone, Closing, Stopped, ValueError)
    for kind in kinds:
        app.add_exception_handler(kind, reply)
