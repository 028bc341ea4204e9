"""The parts of the demo without a browser: marks, HTML, visitors, both backends, the API and the command."""

from __future__ import annotations

import base64
import io
import json
import shutil
import tomllib
import zipfile
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from sa2va.cli import main
from sa2va.demo import examples, rendering, visitors
from sa2va.demo.backend import AskOptions, TrackProgress
from sa2va.demo.clip_tab import key_frames
from sa2va.demo.controls import Cancelled, Written, explained, split_phrases
from sa2va.demo.examples import example_file
from sa2va.demo.marks import Mark
from sa2va.demo.remote_backend import RemoteBackend
from sa2va.demo.rendering import Exchange
from sa2va.demo.visitors import Visitors
from sa2va.media.image import load_image
from sa2va.media.open import open_media
from sa2va.results.answer import Answer, Frame

ROOT = Path(__file__).resolve().parents[2]
SHAPES, CLIP = ROOT / "examples" / "shapes.png", ROOT / "examples" / "shapes.mp4"


@pytest.fixture
def known(backend, tmp_path) -> Visitors:
    return Visitors(backend, tmp_path / "visitors")


def ignore(_: str) -> None:
    """Text that nobody waits for."""


# -- marks -------------------------------------------------------------------------------------------------------------


def test_marks_are_shares_of_the_picture():
    box = Mark.from_page({"kind": "box", "points": [[0.75, 1.5], [0.25, 0.5]]}, (101, 201))
    assert box.box == (50, 50, 151, 101) and box.mask.sum() == 101 * 51
    point = Mark.from_page({"kind": "point", "points": [[0.5, 0.5]]}, (101, 201))
    assert np.argwhere(point.mask).tolist() == [[50, 100]] and point.clicks == [(100, 50)]
    stroke = Mark.from_page({"kind": "stroke", "radius": 0.05, "points": [[0.2, 0.5], [0.8, 0.5]]}, (101, 201))
    assert stroke.mask[50, 40:160].all() and not stroke.mask[:30].any() and len(stroke.clicks) == 2


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"kind": "point", "points": []},
        {"kind": "circle", "points": [[0, 0]]},
        {"kind": "point", "points": [[float("nan"), 0]]},
        {"kind": "point", "points": [[0]]},
        {"kind": "stroke", "points": [[0, 0]], "radius": "inf"},
    ],
)
def test_malformed_marks_are_refused(data):
    with pytest.raises(ValueError, match="a mark is"):
        Mark.from_page(data, (10, 10))


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_whatever_is_said_is_only_text():
    evil = "<img src=x onerror=alert(1)>"
    answer = Answer(evil, evil, reason=evil)
    exchanges = [
        Exchange(evil, (("", answer), (evil, answer))),
        Exchange("q", error=evil),
        Exchange("q", partial=evil),
        Exchange("q", report=rendering.track_report([evil], TrackProgress(1, 1, reasons={evil: evil}), {}, 1.0)),
    ]
    shown = rendering.conversation(exchanges, evil)
    assert "<img" not in shown and shown.count("&lt;img") >= 7


def test_phrases_are_split_but_questions_are_not():
    assert split_phrases(" the cloud, the car;\nthe letter Z,, ") == ["the cloud", "the car", "the letter Z"]
    assert split_phrases("what is left, and round?") == ["what is left, and round?"]


def test_large_masks_are_shrunk_and_small_ones_enlarged_for_the_page(known):
    image = load_image(SHAPES).resize((1600, 1200))
    desk = known.new_picture(image)
    desk.add("the yellow cloud", desk.segment(["the yellow cloud"], AskOptions()))
    assert desk.objects[1].mask.size == (1200, 1600) and desk.shown[1].mask.size == (960, 1280)
    assert desk.shown[1].mask.area == pytest.approx(desk.objects[1].mask.area * 0.64, rel=0.02)


def test_faults_of_ours_are_not_shown(caplog):
    assert explained(ValueError("too small")) == "too small"
    assert "secret" not in explained(RuntimeError("secret /path")) and "secret" in caplog.text


def test_a_call_whose_reader_has_left_is_cancelled():
    left, ended = Event(), Event()

    def write(on_text):
        try:
            on_text("a")
            left.wait(10)
            on_text("ab")
        finally:
            ended.set()

    written = Written(write)
    assert [next(written), next(written)] == ["", "a"]
    written.cancel()
    left.set()
    assert ended.wait(10)
    with pytest.raises(Cancelled):
        list(written)


# -- visitors ----------------------------------------------------------------------------------------------------------


def test_objects_keep_colours_of_their_own_through_a_conversation(known):
    desk = known.new_picture(load_image(SHAPES))
    for phrase in ("the yellow cloud", "the letter Z", "the yellow cloud"):
        desk.add(phrase, desk.segment([phrase], AskOptions()))
    assert list(desk.objects) == [1, 2, 3] and desk.hidden == {1, 2}
    assert len({segment.color for segment in desk.objects.values()}) == 3
    desk.add("the purple dog", desk.segment(["the purple dog"], AskOptions()))
    assert desk.hidden == {1, 2, 3}  # nothing was found, so nothing is shown


def test_a_conversation_has_a_history_until_it_is_cleared(known):
    desk = known.new_picture(load_image(SHAPES))

    def say(question: str) -> str:
        ((_, answer),) = desk.chat(question, AskOptions(), ignore)
        return answer.text

    assert say("What color is the car?") == "blue"
    with_history = say("And the letter?")
    desk.clear()
    assert with_history == "purple letter Z" != say("And the letter?")


def test_visitors_are_apart_and_forgotten(known, tmp_path, monkeypatch):
    one, other = known.of("one"), known.of("other")
    assert known.of("one") is one is not other
    one.clip = known.new_clip(one, CLIP, keep=True)
    path = one.clip.path
    assert path.is_file() and CLIP.is_file() and path.parent.parent != other.folder
    known.leave("one")
    assert not path.exists() and one.gone and one.clip is None and len(known) == 1
    assert known.of("one") is not one
    monkeypatch.setattr(visitors, "MOST_VISITORS", 2)
    known.of("third")
    assert other.gone and len(known) == 2
    known.close()
    assert len(known) == 0 and not any((tmp_path / "visitors").glob("*"))


def test_those_longest_away_free_their_memory_and_may_go_on(known, monkeypatch):
    monkeypatch.setattr(visitors, "MOST_ENCODED", 1)
    one = known.of("one")
    one.picture = desk = known.new_picture(load_image(SHAPES))
    ((_, before),) = desk.segment(["the letter Z"], AskOptions())
    scene = desk.medium._scene
    known.of("other")
    assert desk.medium._scene is None and scene.nbytes == 0
    ((_, after),) = desk.segment(["the letter Z"], AskOptions())
    assert after == before


def test_a_picture_is_no_clip(known, tmp_path):
    picture = Path(shutil.copy(SHAPES, tmp_path / "a.png"))
    with pytest.raises(ValueError, match="this is a picture"):
        known.new_clip(known.of("one"), picture, keep=True)


# -- the model here ----------------------------------------------------------------------------------------------------


def test_an_unfinished_track_leaves_no_file(known, tmp_path):
    visitor = known.of("one")
    desk = known.new_clip(visitor, CLIP, keep=True)
    folder = visitor.new_folder()
    steps = desk.medium(0.0, 1.0).track(["the orange hat"], folder, AskOptions())
    first = next(steps)
    assert (first.done, first.total) == (1, 8) and first.pixels.shape == (256, 256, 3)
    steps.close()
    assert not list(folder.glob("*.mp4"))


def test_key_frames_shown_are_those_of_the_part(known):
    desk = known.new_clip(known.of("one"), CLIP, keep=True)
    shown = key_frames(desk, 1.0, 2.0, AskOptions(key_frames=3))
    assert shown.count("<figure>") == 3 and ">1.0 s<" in shown
    assert "holds no frame" in key_frames(desk, 9.0, 9.5, AskOptions())


# -- a server ----------------------------------------------------------------------------------------------------------


class FakeServer:
    """Answers as ``sa2va serve`` does, with the packaged model's masks. Keeps what it was asked."""

    def __init__(self, backend):
        self.asked: list[tuple[str, dict]] = []
        self.polls = 0
        (answer,) = backend.open_picture(load_image(SHAPES)).segment(["the letter Z"], AskOptions())
        self.tracked = answer.segments
        record = answer.record["segments"][0]
        self.segments = [{**record, "mask": record["masks"][0], "masks": None}]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        path = request.url.path
        self.asked.append((f"{request.method} {path}", body))
        job = {"id": "j1", "frames_total": 8, "reasons": {"the dog": "not there"}, "error": None}
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "tiny", "capabilities": {"regions": True}}]})
        if path == "/v1/segment":
            found = {"phrase": "the letter Z", "text": "It is.", "reason": None, "segments": self.segments}
            none = {"phrase": "the dog", "text": "No.", "reason": "not there", "segments": []}
            return httpx.Response(200, json={"model": "tiny", "size": [256, 256], "answers": [found, none]})
        if path == "/v1/chat/completions":
            changes = [{"role": "assistant", "content": ""}, {"content": "bl"}, {"content": "ue"}]
            events = [{"choices": [{"delta": change}]} for change in [*changes, {"segments": self.segments}]]
            return httpx.Response(
                200, text="".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n"
            )
        if path == "/v1/describe":
            return httpx.Response(200, json={"descriptions": ["A car."]})
        if path == "/v1/track":
            return httpx.Response(202, json={**job, "state": "queued", "frames_done": 0, "results": []})
        if path == "/v1/jobs/j1" and request.method == "GET":
            self.polls += 1
            done = self.polls > 1
            results = (
                [{"kind": kind, "url": f"/files/{kind}"} for kind in ("overlay", "masks", "jsonl")] if done else []
            )
            state = {"state": "done" if done else "running", "frames_done": 8 if done else 3, "results": results}
            return httpx.Response(200, json={**job, **state})
        if path == "/files/jsonl":
            return httpx.Response(200, content=Frame(0, 0.0, (256, 256), self.tracked).to_json())
        if path.startswith("/files/"):
            return httpx.Response(200, content=path.encode())
        if path == "/v1/jobs/j1":
            return httpx.Response(204)
        return httpx.Response(400, json={"error": {"message": "max_tokens is too large"}})


@pytest.fixture
def server(backend, monkeypatch) -> tuple[FakeServer, RemoteBackend]:
    monkeypatch.setattr("sa2va.demo.remote_backend._LOOK_EVERY", 0)
    fake = FakeServer(backend)
    return fake, RemoteBackend(httpx.Client(base_url="http://there", transport=httpx.MockTransport(fake)))


def test_a_server_answers_about_pictures(server):
    fake, remote = server
    assert remote.about.model == "tiny" and remote.about.place == "http://there" and not remote.about.clicks
    image = load_image(SHAPES)
    medium = remote.open_picture(image)
    found, none = medium.segment(["the letter Z", "the dog"], AskOptions(threshold=0.4))
    assert found.segments[0].mask.size == (256, 256) and none.reason == "not there" and found.size == (256, 256)
    name, body = fake.asked[-1]
    assert (name, body["phrases"], body["threshold"]) == ("POST /v1/segment", ["the letter Z", "the dog"], 0.4)
    sent = Image.open(io.BytesIO(base64.b64decode(body["image"].split(",")[1])))
    assert np.array_equal(np.asarray(sent), np.asarray(image))
    written: list[str] = []
    first = medium.chat("What color?", (), AskOptions(), written.append)
    assert first.text == "blue" and written[1:3] == ["bl", "blue"] and len(first.segments) == 1
    medium.chat("And now?", first.history, AskOptions(), ignore)
    messages = fake.asked[-1][1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[0]["content"][0]["type"] == "image_url" and messages[1:] == [
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": "And now?"},
    ]
    mark = Mark.from_page({"kind": "box", "points": [[0, 0], [0.5, 0.5]]}, (256, 256))
    assert medium.inspect(mark, AskOptions()).text == "A car."
    assert fake.asked[-1][1]["regions"] == [[0, 0, 128.5, 128.5]]


def test_a_server_follows_through_clips(server, tmp_path):
    fake, remote = server
    steps = list(remote.open_clip(CLIP, 0.5, 1.5).track(["the hat", "the dog"], tmp_path, AskOptions()))
    assert [step.done for step in steps] == [0, 3, 8] and steps[-1].reasons == {"the dog": "not there"}
    assert steps[-1].segments == fake.tracked
    assert (tmp_path / "overlay.mp4").read_text() == "/files/overlay" and (tmp_path / "masks.zip").is_file()
    sent = next(body for name, body in fake.asked if name == "POST /v1/track")
    assert (sent["start"], sent["end"], sent["return"]) == (0.5, 1.5, ["overlay", "masks", "jsonl"])
    steps = remote.open_clip(CLIP, 0.5, 1.5).track(["the hat"], tmp_path, AskOptions())
    next(steps)
    steps.close()
    assert fake.asked[-1][0] == "DELETE /v1/jobs/j1"  # what nobody waits for is cancelled


def test_a_servers_complaint_is_told(server):
    _, remote = server
    with pytest.raises(ValueError, match="max_tokens is too large"):
        remote.open_picture(load_image(SHAPES)).caption(AskOptions(), ignore)


def test_no_server():
    def refuse(request):
        raise httpx.ConnectError("refused")

    with pytest.raises(ValueError, match="http://there does not answer: refused"):
        RemoteBackend(httpx.Client(base_url="http://there", transport=httpx.MockTransport(refuse)))
    empty = httpx.MockTransport(lambda request: httpx.Response(200, json={"data": []}))
    with pytest.raises(ValueError, match="is no `sa2va serve`"):
        RemoteBackend(httpx.Client(base_url="http://there", transport=empty))


# -- examples, command -------------------------------------------------------------------------------------------------


def test_a_wheel_carries_the_examples(tmp_path, monkeypatch):
    shown = {one.file for one in (*examples.PICTURE_EXAMPLES, *examples.CLIP_EXAMPLES)}
    carried = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {Path(name).name for name in carried["force-include"]} == shown
    for name, place in carried["force-include"].items():  # as an installation has it
        target = tmp_path / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    monkeypatch.setattr(examples, "_PLACES", (tmp_path / "sa2va" / "demo" / "examples",))
    assert all(example_file(name).is_file() for name in shown)
    monkeypatch.setattr(examples, "_PLACES", (tmp_path / "nowhere",))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        example_file("shapes.png")


def test_the_command_serves_what_it_was_told(monkeypatch, capsys):
    told = {}

    @contextmanager
    def fake(backend, folder, **options):
        told.update(options, about=backend.about)
        yield "http://127.0.0.1:1/"

    monkeypatch.setattr("sa2va.demo.page.serving", fake)
    monkeypatch.setattr("sa2va.cli.demo._wait_for_the_end", lambda: None)
    monkeypatch.delenv("SA2VA_MODEL", raising=False)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    assert main(["demo", "--device", "cpu", "--port", "0", "--mcp"]) == 0
    assert told["about"].tiny and told["about"].model == "tiny" and told["about"].place == "cpu, float32"
    assert (told["host"], told["port"], told["mcp"]) == ("127.0.0.1", None, True)
    said = capsys.readouterr()
    assert said.out == "" and "open http://127.0.0.1:1/" in said.err and "gradio_api/mcp/" in said.err


def test_the_command_refuses_a_server_and_a_model(capsys):
    assert main(["demo", "--server", "http://127.0.0.1:9", "--model", "tiny"]) == 2
    assert "either --server or --model" in capsys.readouterr().err


# -- the API, by the client that people use ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(address, tmp_path_factory):
    return Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("client")))


def test_api_its_names(client):
    assert sorted(client.view_api(return_format="dict")["named_endpoints"]) == ["/chat", "/segment", "/track"]


def test_api_segment(client):
    phrases = ["the letter Z", "the purple dog"]
    record, picture = client.predict(handle_file(str(SHAPES)), phrases, 0.5, api_name="/segment")
    found, none = record["answers"]
    assert found["segments"][0]["masks"][0]["size"] == [256, 256] and none["segments"] == [] and none["reason"]
    with Image.open(picture) as drawn:
        assert drawn.size == (256, 256)


def test_api_chat(client):
    first, _ = client.predict(handle_file(str(SHAPES)), "What color is the car?", None, 64, api_name="/chat")
    assert first["text"] == "blue"
    second, _ = client.predict(handle_file(str(SHAPES)), "And the letter?", first["history"], 64, api_name="/chat")
    assert second["text"] == "purple letter Z"


def test_api_track(client):
    film, masks, lines, reasons = client.predict(
        handle_file(str(CLIP)), ["the orange hat", "the purple dog"], 0, 0.5, 0.5, api_name="/track"
    )
    assert len(zipfile.ZipFile(masks).namelist()) == 5  # a list of the objects beside the pictures
    assert len(Path(lines).read_text().splitlines()) == 4 and list(reasons) == ["the purple dog"]
    with open_media(film["video"] if isinstance(film, dict) else film) as video:
        assert video.frame_count == 4


def test_mcp(address):
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    headers = {"Accept": "application/json, text/event-stream"}
    reply = httpx.post(f"{address}gradio_api/mcp/", json=body, headers=headers, timeout=30)
    tools = json.loads(next(line for line in reply.text.splitlines() if line.startswith("data:"))[5:])
    names = {tool["name"]: tool["description"] for tool in tools["result"]["tools"]}
    assert {name.rsplit("_", 1)[-1] for name in names} == {"segment", "chat", "track"}
    assert any("pixel-exact masks" in text for text in names.values())
