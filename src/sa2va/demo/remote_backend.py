"""The page's model in a running ``sa2va serve``."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from sa2va.demo.backend import About, AskOptions, OnText, TrackProgress
from sa2va.demo.marks import Mark
from sa2va.masks.mask import Mask, Segment
from sa2va.results.answer import Answer, Frame
from sa2va.results.history import History, Turn, turns_of
from sa2va.untrusted import STUMBLES, stumbled

#: Seconds to wait for an answer, and between two looks at a job.
_PATIENCE, _LOOK_EVERY = 600.0, 0.3
_LIMITS = (
    "A server segments by words only: what you mark is described, without a mask. It shows five frames of a clip to "
    "the language model, and a question about a clip is about all of it."
)
#: What a job writes, and what it is called here.
_RESULTS = {"overlay": "overlay.mp4", "masks": "masks.zip", "jsonl": "frames.jsonl"}


class RemoteBackend:
    """A server.

    Args:
        client: whose base URL is the server's.

    Raises:
        ValueError: nobody answers there, or it is no such server.
    """

    def __init__(self, client: httpx.Client):
        self._client = client
        self._url = str(client.base_url).rstrip("/")
        try:
            card = self.call("GET", "/v1/models")["data"][0]
            name, can = str(card["id"]), dict(card.get("capabilities") or {})
        except (LookupError, TypeError) as error:
            raise ValueError(f"{self._url} is no `sa2va serve`: it does not say which model it has") from error
        self.about = About(
            model=name,
            place=self._url,
            tiny=name == "tiny",
            describes=bool(can.get("regions", True)),
            clicks=False,
            note=_LIMITS,
        )

    @classmethod
    def at(cls, url: str) -> RemoteBackend:
        """The server at an address such as http://127.0.0.1:8000, with the key that SA2VA_API_KEY holds, if any."""
        key = os.environ.get("SA2VA_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return cls(httpx.Client(base_url=url, headers=headers, timeout=_PATIENCE, trust_env=False))

    def open_picture(self, image: Image.Image) -> RemoteMedium:
        """See [`sa2va.demo.backend.Backend`]."""
        file = io.BytesIO()
        image.save(file, "PNG")
        return RemoteMedium(
            self, "image", f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}", image.size
        )

    def open_clip(self, path: Path, start: float, end: float) -> RemoteMedium:
        """See [`sa2va.demo.backend.Backend`]."""
        url = f"data:video/{path.suffix.lstrip('.') or 'mp4'};base64,{base64.b64encode(path.read_bytes()).decode()}"
        return RemoteMedium(self, "video", url, None, start, end)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the server answers, as JSON.

        Raises:
            ValueError: it cannot be reached, or says what is wrong with the request.
        """
        try:
            reply = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ValueError(f"{self._url} does not answer: {error}") from error
        if reply.is_success:
            return reply.json() if reply.content else None
        raise _complaint(reply)

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The changes of a message while it is written. Raises ValueError as [`call`] does."""
        try:
            with self._client.stream("POST", path, json={**body, "stream": True}) as reply:
                if not reply.is_success:
                    reply.read()
                    raise _complaint(reply)
                for line in reply.iter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line.removeprefix("data: "))
                        if "error" in event:
                            raise ValueError(f"the server says: {event['error']['message']}")
                        yield event["choices"][0]["delta"]
        except httpx.HTTPError as error:
            raise ValueError(f"{self._url} does not answer: {error}") from error

    def fetch(self, path: str, target: Path) -> None:
        """Write a file of the server's. Raises ValueError where it does not give it."""
        try:
            with self._client.stream("GET", path) as reply, target.open("wb") as file:
                reply.raise_for_status()
                for chunk in reply.iter_bytes():
                    file.write(chunk)
        except httpx.HTTPError as error:
            raise ValueError(f"{self._url} does not give {path}: {error}") from error


class RemoteMedium:
    """A [`OpenMedium`][sa2va.demo.backend.OpenMedium] sent with every request; the server knows it again."""

    def __init__(
        self,
        backend: RemoteBackend,
        kind: str,
        url: str,
        size: tuple[int, int] | None,
        start: float = 0.0,
        end: float = 0.0,
    ):
        self._backend, self._kind, self._url, self._part = backend, kind, url, (start, end)
        self._size = None if size is None else (size[1], size[0])

    def segment(self, phrases: Sequence[str], options: AskOptions) -> list[Answer]:
        reply = self._ask("/v1/segment", phrases=list(phrases), threshold=options.threshold)
        return [self._answer(one) for one in reply["answers"]]

    def chat(self, question: str, history: History, options: AskOptions, on_text: OnText) -> Answer:
        turns = turns_of(history)
        first, *rest = [*(turn.question for turn in turns), question]
        medium = {"type": f"{self._kind}_url", f"{self._kind}_url": {"url": self._url}}
        messages: list[dict[str, Any]] = [{"role": "user", "content": [medium, {"type": "text", "text": first}]}]
        for turn, following in zip(turns, rest, strict=True):
            messages += [{"role": "assistant", "content": turn.answer}, {"role": "user", "content": following}]
        body = {
            "model": self._backend.about.model,
            "messages": messages,
            "max_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "threshold": options.threshold,
        }
        said: dict[str, Any] = {"text": "", "segments": []}
        for change in self._backend.stream("/v1/chat/completions", body):
            said["text"] += change.get("content") or ""
            said["segments"] += change.get("segments") or []
            on_text(said["text"])
        return self._answer(said, (*turns, Turn(question, said["text"])))

    def caption(self, options: AskOptions, on_text: OnText) -> Answer:
        return self._answer(self._ask("/v1/caption", threshold=options.threshold, max_tokens=options.max_new_tokens))

    def inspect(self, mark: Mark, options: AskOptions) -> Answer:
        region: Any = mark.box if mark.kind == "box" else Mask.from_array(mark.mask).rle
        reply = self._ask("/v1/describe", regions=[region], max_tokens=options.max_new_tokens)
        text = str(reply["descriptions"][0])
        return Answer(text, text, size=mark.size)

    def track(self, phrases: Sequence[str], folder: Path, options: AskOptions) -> Generator[TrackProgress, None, None]:
        start, end = self._part
        wanted = {"phrases": list(phrases), "threshold": options.threshold, "start": start, "end": end}
        job = self._ask("/v1/track", **wanted, **{"return": list(_RESULTS)})
        path = f"/v1/jobs/{job['id']}"
        try:
            while job["state"] in ("queued", "running"):
                yield TrackProgress(job["frames_done"], job["frames_total"])
                time.sleep(_LOOK_EVERY)
                job = self._backend.call("GET", path)
            if job["state"] != "done":
                raise ValueError(f"the server says: {job['error'] or job['state']}")
            for result in job["results"]:
                self._backend.fetch(result["url"], folder / _RESULTS[result["kind"]])
            segments = tuple(_best(folder / _RESULTS["jsonl"]))
            yield TrackProgress(job["frames_done"], job["frames_total"], segments, reasons=job["reasons"])
        finally:
            with suppress(ValueError):  # what went wrong before says more
                self._backend.call("DELETE", path)

    def close(self) -> None:
        pass  # the server forgets by itself

    def _ask(self, path: str, **body: Any) -> Any:
        return self._backend.call("POST", path, {self._kind: self._url, **body})

    def _answer(self, said: dict[str, Any], history: tuple[Turn, ...] = ()) -> Answer:
        try:
            segments = tuple(_segment(record) for record in said["segments"])
        except STUMBLES as error:
            raise ValueError(f"the server's answer cannot be read: {stumbled(error)}") from error
        text = said["text"]
        return Answer(text, text, segments, said.get("reason"), self._size, history)


def _complaint(reply: httpx.Response) -> ValueError:
    """What a server says is wrong."""
    try:
        message = str(reply.json()["error"]["message"])
    except STUMBLES:
        message = reply.reason_phrase
    return ValueError(f"the server says: {message} ({reply.status_code})")


def _best(lines: Path) -> Iterable[Segment]:
    """Every object of a track, in the frame where its mask is best."""
    best: dict[int, Segment] = {}
    with lines.open(encoding="utf-8") as file:
        for line in file:
            for segment in Frame.from_json(line).segments:
                if segment.id not in best or segment.score > best[segment.id].score:
                    best[segment.id] = segment
    return best.values()


def _segment(record: dict[str, Any]) -> Segment:
    masks = [record["mask"]] if record.get("mask") is not None else record["masks"]
    span = record["span"]
    return Segment(
        id=record["id"],
        phrase=record["phrase"],
        masks=tuple(Mask.from_rle(mask) for mask in masks),
        score=record["score"],
        presence=record["presence"],
        span=(span[0], span[1]) if span else None,
    )
