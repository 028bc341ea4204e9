"""Label Studio's protocol, spoken as Label Studio speaks it; its files come from a stand-in for its web server."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from live_server import PICTURE, Running, clip

from sa2va import Mask, Sa2VA
from sa2va.data.annotations.label_studio import decode_brush
from sa2va.data.annotations.labelled_images import polygon
from sa2va.serve.label_studio_backend import TaskMedia

CLOUD, HAT = "the yellow cloud", "the orange hat"
FILES = {"/data/upload/1/shapes.png": PICTURE, "/data/upload/1/hat.gif": clip(4)}
KEY, PAT = "correct horse battery staple", "head.body.signature"

PICTURES = """<View>
  <Image name="image" value="$image"/>
  <TextArea name="prompt" toName="image"/>
  <BrushLabels name="brush" toName="image"><Label value="Cloud" predicted_values="the yellow cloud"/></BrushLabels>
  <KeyPointLabels name="click" toName="image" smart="true"><Label value="Cloud"/></KeyPointLabels>
</View>"""
VIDEOS = """<View>
  <Labels name="what" toName="video"><Label value="Hat" predicted_values="the orange hat"/></Labels>
  <Video name="video" value="$video" frameRate="8"/>
  <VideoRectangle name="box" toName="video"/>
</View>"""


class _Files(http.server.BaseHTTPRequestHandler):
    """Files for those who show the key, and short tokens for the long one."""

    seen: list[str]

    def do_GET(self) -> None:
        shown = self.headers.get("Authorization", "")
        path = self.path
        if path.startswith("/tasks/5/resolve/?fileuri="):
            path = base64.urlsafe_b64decode(path.partition("=")[2]).decode().replace("s3://", "/data/upload/1/")
        self.seen.append(self.path)
        if path == "/data/moved.png":  # to a bucket, for the key's owner
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/bucket/shapes.png")
            self.end_headers()
        elif path.startswith("/bucket/"):
            self._reply(PICTURE if not shown else None)
        else:
            self._reply(FILES.get(path, b"") if shown in (f"Token {KEY}", "Bearer short") else None)

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.path == "/api/token/refresh/" and sent == {"refresh": PAT}
        self._reply(b'{"access": "short"}' if known else None)

    def _reply(self, content: bytes | None) -> None:
        self.send_response(200 if content else 404 if content == b"" else 401)
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def label_studio() -> Iterator[str]:
    _Files.seen = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def backend(start: Callable[..., Any], label_studio: str) -> Iterator[Running]:
    with start(label_studio=label_studio, label_studio_key=KEY, api_key="ours") as here:
        yield here


def ask(backend: Running, config: str, *tasks: dict[str, Any], context: Any = None) -> httpx2.Response:
    body = {
        "tasks": [{"id": 5 + number, "data": data} for number, data in enumerate(tasks)],
        "model_version": None,
        "project": "1.1700000000",
        "label_config": config,
        "params": {"login": None, "password": None, "context": context},
    }
    with httpx2.Client(base_url=backend.url, timeout=60, auth=("anybody", "ours")) as client:
        return client.post("/label-studio/predict", json=body)


def results(reply: httpx2.Response) -> list[dict[str, Any]]:
    assert reply.status_code == 200, reply.text
    (one,) = reply.json()["results"]
    return one["result"]


def drawn(result: dict[str, Any]) -> Mask:
    """The mask of a brush or polygon, as our reader of exports draws it."""
    size = result["original_height"], result["original_width"]
    if result["type"] == "brushlabels":
        values = decode_brush(bytes(result["value"]["rle"]), 4 * size[0] * size[1])
        return Mask.from_array(values.reshape(*size, 4)[..., 3] > 0)
    points = np.array(result["value"]["points"]) * [size[1] / 100, size[0] / 100]
    return polygon(points)(size)


@pytest.fixture(scope="module")
def cloud(tiny: Sa2VA) -> Mask:
    return tiny.segment(PICTURE, CLOUD).segments[0].mask


SHAPES = {"image": "/data/upload/1/shapes.png"}


def test_labels_become_strokes(backend: Running, cloud: Mask) -> None:
    reply = ask(backend, PICTURES, SHAPES, {"image": "/data/upload/1/shapes.png?v=2"}, SHAPES)
    assert reply.status_code == 400 and "404" in reply.json()["error"]["message"]
    reply = ask(backend, PICTURES, SHAPES, SHAPES)
    one, two = reply.json()["results"]
    assert one["model_version"].startswith("tiny") and two["score"] == one["score"] > 0
    (result,) = one["result"]
    assert (result["from_name"], result["to_name"], result["type"]) == ("brush", "image", "brushlabels")
    assert result["value"]["brushlabels"] == ["Cloud"]
    assert drawn(result) == cloud


def test_words_that_a_person_types(backend: Running, cloud: Mask) -> None:
    typed = {"result": [{"type": "textarea", "from_name": "prompt", "value": {"text": ["the letter Z"]}}]}
    (letter,) = results(ask(backend, PICTURES, SHAPES, context=typed))
    assert drawn(letter).iou(cloud) == 0
    assert letter["value"]["brushlabels"] == ["Cloud"]  # there is no other


def test_clicks_and_boxes(backend: Running, tiny: Sa2VA) -> None:
    click = {"x": 25, "y": 50, "width": 0.3, "keypointlabels": ["Cloud"]}
    outside = {"x": 100, "y": 100, "width": 0.3, "keypointlabels": ["Cloud"]}
    box = {"x": 12.5, "y": 25, "width": 50, "height": 25, "rectanglelabels": ["Cloud"]}
    clicks = [
        {"type": "keypointlabels", "is_positive": 1, "value": click},
        {"type": "keypointlabels", "is_positive": 0, "value": outside},
    ]
    (result,) = results(ask(backend, PICTURES, SHAPES, context={"result": clicks}))
    marked = tiny.segment(PICTURE, points=[(64, 128), (255, 255)], labels=[1, 0])
    assert drawn(result) == marked.segments[0].mask
    (result,) = results(ask(backend, PICTURES, SHAPES, context={"result": [{"type": "rectanglelabels", "value": box}]}))
    assert drawn(result) == tiny.segment(PICTURE, box=(32, 64, 160, 128)).segments[0].mask


def test_polygons_and_boxes(backend: Running, cloud: Mask) -> None:
    (outline,) = results(ask(backend, PICTURES.replace("BrushLabels", "PolygonLabels"), SHAPES))
    assert outline["type"] == "polygonlabels" and len(outline["value"]["points"]) < 60
    assert drawn(outline).iou(cloud) > 0.95
    (box,) = results(ask(backend, PICTURES.replace("BrushLabels", "RectangleLabels"), SHAPES))
    x0, y0, x1, y1 = cloud.box or ()
    value = box["value"]
    corners = [value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"]]
    assert np.allclose(np.array(corners) * 2.56, (x0, y0, x1, y1))


def test_a_phrase_through_a_video(backend: Running, tiny: Sa2VA, tmp_path: Path) -> None:
    (result,) = results(ask(backend, VIDEOS, {"video": "s3://hat.gif"}))
    assert (result["type"], result["from_name"], result["to_name"]) == ("videorectangle", "box", "video")
    value = result["value"]
    assert value["labels"] == ["Hat"] and value["framesCount"] == 4
    assert [key["frame"] for key in value["sequence"]] == [1, 2, 3, 4]
    path = tmp_path / "hat.gif"
    path.write_bytes(FILES["/data/upload/1/hat.gif"])
    with tiny.track(path, HAT) as track:
        for frame, key in zip(track, value["sequence"], strict=True):
            x0, y0, x1, y1 = frame.segments[0].mask.box or ()
            shown = (key["x"], key["y"], key["x"] + key["width"], key["y"] + key["height"])
            assert np.allclose(np.array(shown) * 2.56, (x0, y0, x1, y1))


def test_tokens_of_the_new_kind(start: Callable[..., Any], label_studio: str) -> None:
    with start(label_studio=label_studio, label_studio_key=PAT, api_key="ours") as here:
        assert results(ask(here, PICTURES, SHAPES))
    with start(label_studio=label_studio, label_studio_key="a.b.c", api_key="ours") as here:
        reply = ask(here, PICTURES, SHAPES)
        assert reply.status_code == 400 and "LABEL_STUDIO_API_KEY" in reply.json()["error"]["message"]


def test_its_key_is_for_its_own_files(backend: Running) -> None:
    for url in ("http://127.0.0.1:9/x.png", "//127.0.0.1:9/x.png", "/../x.png"):
        reply = ask(backend, PICTURES, {"image": url})
        assert reply.status_code == 400
    assert not any(".." in path for path in _Files.seen)
    assert results(ask(backend, PICTURES, {"image": "/data/moved.png"}))  # the bucket would refuse the key
    with pytest.raises(ValueError, match="such as http://localhost:8080"):
        TaskMedia("localhost:8080", KEY, backend, 1)


def test_the_rest_of_the_protocol(backend: Running, start: Callable[..., Any]) -> None:
    with httpx2.Client(base_url=backend.url, auth=("anybody", "ours")) as client:
        assert client.get("/label-studio/health").json() == {"status": "UP", "model_class": "Sa2VA"}
        reply = client.post("/label-studio/setup", json={"project": "1.17", "schema": PICTURES, "hostname": ""})
        assert reply.json()["model_version"].startswith("tiny")
        assert client.post("/label-studio/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 201
        assert client.post("/label-studio/webhook", json={"action": "TASKS_CREATED"}).status_code == 200
        for auth in (("anybody", "wrong"), ("ours", "")):
            assert client.get("/label-studio/health", auth=auth).status_code == 401


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("<View>", "cannot be read"),
        ("<View><Text name='t' value='$t'/></View>", "Image or a Video"),
        ("<View><Image name='image' value='$image'/></View>", "BrushLabels"),
        (VIDEOS.replace("<VideoRectangle", "<Header"), "VideoRectangle"),
        (PICTURES.replace("$image", "$photo"), "has no 'photo'"),
    ],
)
def test_projects_that_cannot_be_answered(backend: Running, config: str, said: str) -> None:
    reply = ask(backend, config, SHAPES)
    assert reply.status_code == 400 and said in reply.json()["error"]["message"]


def test_a_context_that_cannot_be_read(backend: Running) -> None:
    reply = ask(backend, PICTURES, SHAPES, context={"result": [{"type": "rectanglelabels", "value": {"x": 1}}]})
    assert reply.status_code == 400 and "context" in reply.json()["error"]["message"]
