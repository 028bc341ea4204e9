"""``sa2va serve --label-studio URL``: Label Studio's protocol of machine-learning backends, under ``/label-studio``.

Labels of a project are phrases. Words that a person types, clicks and boxes are answered while they label. Pictures get
brush strokes, polygons or boxes, whatever the project has tags for; videos get tracks of boxes.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeElementTree
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from sa2va import __version__
from sa2va.inference.scene import Scene
from sa2va.media.download import download
from sa2va.results.answer import Answer
from sa2va.serve.bodies import read_body
from sa2va.serve.context import ServerContext
from sa2va.serve.intake import Intake, Kind, SentMedium
from sa2va.serve.schemas import ERRORS
from sa2va.serve.url_rules import UrlRule
from sa2va.untrusted import STUMBLES, parse_json, stumbled
from sa2va.writers.label_studio_tasks import Control, VideoBoxes, regions

#: Tags that regions of pictures are made with, the most exact first.
_DRAWN = ("brushlabels", "polygonlabels", "rectanglelabels")
_OBJECTS: dict[str, Kind] = {"image": "image", "video": "video"}
#: Frames a second that the editor counts, unless its tag says otherwise.
_FRAME_RATE = 24.0
_EVENTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", "START_TRAINING")
#: Label Studio's own access tokens hold for five minutes.
_TOKEN_SECONDS = 240.0
_SECONDS_TO_ANSWER = 10.0


class PredictRequest(BaseModel):
    """What Label Studio sends to have tasks labelled."""

    tasks: list[dict[str, Any]] = Field(min_length=1)
    label_config: str
    params: dict[str, Any] | None = None


def label_studio_router(context: ServerContext, url: str, key: str | None) -> APIRouter:
    """The routes for Label Studio.

    Args:
        url: where it is. key: of a user of it, to read the media of tasks.
    """
    media = TaskMedia(url, key, context.intake, context.settings.max_body)
    version = f"{context.name} (sa2va {__version__})"
    router = APIRouter(prefix="/label-studio", tags=["Label Studio"], responses=ERRORS)

    @router.get("/")
    @router.get("/health")
    async def health() -> dict[str, str]:
        """Whether the backend lives."""
        return {"status": "UP", "model_class": "Sa2VA"}

    @router.post("/setup")
    async def setup() -> dict[str, str]:
        """Take up a project: nothing is kept, since each request brings its configuration along."""
        return {"model_version": version}

    @router.post("/webhook")
    async def webhook(request: Request) -> JSONResponse:
        """Hear of an annotation. The model does not learn from single ones; see `sa2va train`."""
        event = parse_json(await request.body())
        known = isinstance(event, dict) and event.get("action") in _EVENTS
        return JSONResponse({"status": "ok" if known else "Unknown event", "result": {}}, 201 if known else 200)

    @router.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        """Label tasks by the project's labels, or answer what a person typed, clicked or drew."""
        body, _ = await read_body(request, PredictRequest)
        project = Project.parse(body.label_config)
        drawn = ((body.params or {}).get("context") or {}).get("result") or []

        def call() -> list[dict[str, Any]]:
            return [_predict(context, media, project, task, drawn) for task in body.tasks]

        results = await context.dispatcher.run(request, call)
        return JSONResponse({"results": [{"model_version": version, **one} for one in results]})

    return router


@dataclass(frozen=True)
class Project:
    """What a project's labelling configuration asks for.

    Attributes:
        kind: of its medium. key: the name of its medium in the data of a task. frame_rate: of the editor, for videos.
        controls: tags that make regions, and the labels of each, the most exact first.
        phrases: what each label stands for: ``predicted_values`` of its tag, divided by commas, or itself.
    """

    kind: Kind
    key: str
    frame_rate: float
    controls: tuple[tuple[Control, tuple[str, ...]], ...]
    phrases: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, text: str) -> Project:
        """Read a configuration.

        Raises:
            ValueError: it is no XML, or has no picture or video with labels to mark it with.
        """
        try:
            root = cast("Element", SafeElementTree.fromstring(text))
        except (ParseError, DefusedXmlException, ValueError) as error:
            raise ValueError(f"the labelling configuration cannot be read: {error}") from error
        tags = list(root.iter())
        medium = next((tag for tag in tags if str(tag.tag).lower() in _OBJECTS and tag.get("value")), None)
        if medium is None:
            raise ValueError('the project needs an Image or a Video, such as <Image name="image" value="$image"/>')
        kind = _OBJECTS[str(medium.tag).lower()]
        name = medium.get("name") or ""
        if kind == "image":
            drawn = [tag for tag in tags if str(tag.tag).lower() in _DRAWN and tag.get("toName") == name]
            drawn.sort(key=lambda tag: _DRAWN.index(str(tag.tag).lower()))
            labelled = [(tag, tag) for tag in drawn]
        else:
            boxes = [tag for tag in tags if str(tag.tag).lower() == "videorectangle" and tag.get("toName") == name]
            words = [tag for tag in tags if str(tag.tag).lower() == "labels" and tag.get("toName") == name]
            labelled = [(box, word) for box in boxes for word in words]
        controls, phrases = [], {}
        for tag, holder in labelled:
            found = {label: tuple(_phrases(one)) for one in holder.iter("Label") if (label := one.get("value"))}
            phrases = {**found, **phrases}
            if found:
                controls.append((Control(str(tag.tag).lower(), tag.get("name") or "", name), tuple(found)))
        if not controls:
            wanted = "BrushLabels, PolygonLabels or RectangleLabels" if kind == "image" else "VideoRectangle and Labels"
            raise ValueError(f'the project needs {wanted} with toName="{name}" and a Label')
        return cls(kind, (medium.get("value") or "").lstrip("$"), _rate(medium), tuple(controls), phrases)

    def control(self, label: str) -> Control:
        """The tag that regions with a label are made with."""
        return next((control for control, labels in self.controls if label in labels), self.controls[0][0])

    def label(self, phrase: str) -> str:
        """The label for what somebody asked for: one that stands for these very words, or else the first."""
        wanted = phrase.strip().casefold()
        labels = (
            label
            for label, phrases in self.phrases.items()
            if wanted in (label.casefold(), *(one.casefold() for one in phrases))
        )
        return next(labels, next(iter(self.phrases)))


def _phrases(label: Element) -> Iterator[str]:
    given = label.get("predicted_values") or ""
    yield from (
        (one.strip() for one in given.split(",") if one.strip()) if given.strip(" ,") else [label.get("value", "")]
    )


def _rate(medium: Element) -> float:
    """``frameRate`` of a video's tag; the editor's own where it is not said, or only in each task."""
    given = next((value for name, value in medium.items() if name.lower() == "framerate"), "")
    try:
        rate = float(given)
    except ValueError:
        return _FRAME_RATE
    return rate if 0 < rate < 1000 else _FRAME_RATE


class TaskMedia:
    """Reads media of tasks: files of Label Studio with its key, others as those of any client.

    Args:
        url: where Label Studio is. key: an access token, of the old kind or the new.

    Raises:
        ValueError: the URL is none.
    """

    def __init__(self, url: str, key: str | None, intake: Intake, max_bytes: int):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the URL of Label Studio is such as http://localhost:8080; got {url!r}")
        self._url, self._rule = url.rstrip("/"), UrlRule.parse(f"{url.rstrip('/')}/*")
        self._key, self._intake, self._max_bytes = key, intake, max_bytes
        self._lock = threading.Lock()
        self._token, self._renewed = "", float("-inf")

    def read(self, kind: Kind, source: str, task: Any) -> SentMedium:
        """A medium.

        Args:
            source: as it stands in the task: a path of Label Studio's, a URL, or that of a cloud storage.
            task: its id.

        Raises:
            ValueError: it cannot be read.
        """
        scheme = urlsplit(source).scheme.lower()
        if source.startswith("/"):
            source = self._url + source
        elif scheme not in ("", "http", "https", "data"):  # s3, gs, azure-blob: Label Studio has the keys
            storage = base64.urlsafe_b64encode(source.encode()).decode()
            source = f"{self._url}/tasks/{int(task)}/resolve/?fileuri={storage}"
        if not self._rule.allows(source):
            return self._intake.read(kind, source)
        return SentMedium(kind, download(source, max_bytes=self._max_bytes, authorization=self._authorization()))

    def _authorization(self) -> str | None:
        if self._key is None or self._key.count(".") != 2:
            return None if self._key is None else f"Token {self._key}"
        with self._lock:  # the new kind is exchanged for one that holds for minutes
            if time.monotonic() > self._renewed + _TOKEN_SECONDS:
                self._token, self._renewed = self._exchanged(self._key), time.monotonic()
            return f"Bearer {self._token}"

    def _exchanged(self, key: str) -> str:
        request = urllib.request.Request(
            f"{self._url}/api/token/refresh/",
            json.dumps({"refresh": key}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS_TO_ANSWER) as reply:
                return str(parse_json(reply.read(1 << 16))["access"])
        except (OSError, *STUMBLES) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            raise ValueError(
                f"Label Studio does not take the access token: {error}; set LABEL_STUDIO_API_KEY to one from the "
                "account's page there"
            ) from error


def _predict(
    context: ServerContext, media: TaskMedia, project: Project, task: dict[str, Any], drawn: list[Any]
) -> dict[str, Any]:
    """The prediction for one task.

    Args:
        drawn: what a person typed, clicked or drew; empty for the project's labels.
    """
    context.model.engine.check()
    source = (task.get("data") or {}).get(project.key)
    if not isinstance(source, str):
        raise ValueError(f"task {task.get('id')} has no {project.key!r} in its data")
    medium = media.read(project.kind, source, task.get("id"))
    try:
        asked = _Asked.of(drawn)
    except STUMBLES as error:
        raise ValueError(f"the context cannot be read: {stumbled(error)}") from error
    wanted = {phrase: project.label(phrase) for phrase in asked.texts} or {
        phrase: label for label, phrases in project.phrases.items() for phrase in phrases
    }
    context.check_amount(len(wanted) + len(asked.boxes) + len(asked.points), sum(map(len, wanted)))
    if project.kind == "video":
        found = _track(context, project, medium, wanted)
    else:
        with context.scenes.borrow(medium) as (_, scene), context.monitoring.part("answering"):
            if asked.is_marked:
                label = asked.label if asked.label in project.phrases else next(iter(project.phrases))
                labelled = [(label, answer) for answer in asked.answers(scene)]
            else:
                answers = cast("list[Answer]", scene.segment(list(wanted)))
                labelled = list(zip(wanted.values(), answers, strict=True))
        found = [
            result
            for name, answer in labelled
            for segment in answer.segments
            for result in regions(segment, name, project.control(name))
        ]
    scores = [one["score"] for one in found]
    return {"score": sum(scores) / len(scores) if scores else 0.0, "result": found}


@dataclass(frozen=True)
class _Asked:
    """What a person typed, clicked and drew in a picture, in percent of its sides; and the label that was chosen."""

    texts: tuple[str, ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    points: tuple[tuple[float, float, int], ...] = ()
    label: str = ""

    @classmethod
    def of(cls, drawn: list[Any]) -> _Asked:
        texts, boxes, points, label = [], [], [], ""
        for one in drawn:
            kind, value = str(one["type"]), one["value"]
            label = next(iter(value.get(kind) or ()), label) if kind != "textarea" else label
            if kind == "textarea":
                words = value["text"]
                texts += [str(word) for word in (words if isinstance(words, list) else [words]) if str(word).strip()]
            elif kind.startswith("rectangle"):
                x, y, width, height = (float(value[name]) for name in ("x", "y", "width", "height"))
                boxes.append((x, y, x + width, y + height))
            elif kind.startswith("keypoint"):
                points.append((float(value["x"]), float(value["y"]), int(bool(one.get("is_positive", 1)))))
        return cls(tuple(texts), tuple(boxes), tuple(points), label)

    @property
    def is_marked(self) -> bool:
        """Whether something was clicked or drawn."""
        return bool(self.boxes or self.points)

    def answers(self, scene: Scene) -> list[Answer]:
        """The object that all clicks mark, within the box if there is one; of several boxes, the object of each."""
        height, width = scene.size or (0, 0)
        scale = np.array([width, height, width, height]) / 100
        boxes = [(np.array(box) * scale).tolist() for box in self.boxes] or [None]
        clicks = [(_pixel(x, width), _pixel(y, height)) for x, y, _ in self.points] or None
        labels = [mark for _, _, mark in self.points] or None
        return [cast("Answer", scene.segment(box=box, points=clicks, labels=labels)) for box in boxes]


def _pixel(percent: float, length: int) -> int:
    return min(max(int(percent * length / 100), 0), length - 1)


def _track(
    context: ServerContext, project: Project, medium: SentMedium, wanted: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Boxes of what phrases mean through a video, which is not kept open: it is seldom asked about again."""
    source = context.intake.open(medium, limit=context.settings.max_frames)
    try:
        with context.monitoring.part("answering"), context.model.track(source, list(wanted)) as track:
            boxes = VideoBoxes(project.frame_rate)
            for frame in track:
                context.model.engine.check()
                boxes.add(frame)
            control, _ = project.controls[0]
            return boxes.results(wanted, control)
    finally:
        context.intake.discard(source)
