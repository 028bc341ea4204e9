"""The real Label Studio, as a process: project, task, prediction by our server, accepted, exported, read back.

Run it with ``SA2VA_LABEL_STUDIO`` naming the ``label-studio`` program, which may live in an environment of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sa2va import Mask, Sa2VA
from sa2va.cli import main
from sa2va.data.annotations.label_studio import export_file, read_label_studio
from sa2va.data.annotations.layout import Problems
from sa2va.writers import LabelStudioVideoWriter, write_track

ROOT = Path(__file__).parents[2]
PROGRAM = os.environ.get("SA2VA_LABEL_STUDIO", "")
TOKEN, KEY = "0123456789abcdef0123456789abcdef01234567", "correct horse battery staple"
CLOUD = "the yellow cloud"
CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Cloud" predicted_values="the yellow cloud"/></BrushLabels>
  <KeyPointLabels name="click" toName="image" smart="true"><Label value="Cloud"/></KeyPointLabels>
</View>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(PROGRAM), reason="set SA2VA_LABEL_STUDIO to the program label-studio"),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        with suppress(httpx2.HTTPError):
            if httpx2.get(url, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200:
                return
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(scope="module")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("label-studio"), free_port()
    settings = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_USERNAME": "a@example.com",
        "LABEL_STUDIO_PASSWORD": "not-a-secret",
        "LABEL_STUDIO_USER_TOKEN": TOKEN,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LATEST_VERSION_CHECK": "false",
        "COLLECT_ANALYTICS": "false",
        # The backend is on this machine, and so is its webhook.
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
    }
    log = folder / "log.txt"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings
    with log.open("w") as out:
        process = subprocess.Popen(
            [PROGRAM, "start", "--no-browser", "--port", str(port), "--internal-host", "127.0.0.1"],
            env=environment,
            stdout=out,
            stderr=out,
            cwd=folder,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def backend(label_studio: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("backend"), free_port()
    log = folder / "log.txt"
    command = [sys.executable, "-m", "sa2va.cli", "serve", "-m", "tiny", "--port", str(port), "--device", "cpu"]
    command += ["--folder", str(folder / "served"), "--label-studio", label_studio]
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            env=os.environ | {"SA2VA_API_KEY": KEY, "LABEL_STUDIO_API_KEY": TOKEN},
            stdout=out,
            stderr=out,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/ready", process, log)
            yield f"http://127.0.0.1:{port}/label-studio"
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def client(label_studio: str) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Token {TOKEN}"}
    with httpx2.Client(base_url=label_studio, headers=headers, timeout=120) as one:
        yield one


def test_from_a_picture_to_an_export(client: httpx2.Client, backend: str, tmp_path: Path) -> None:

    def ask(method: str, path: str, **sent: Any) -> Any:
        reply = client.request(method, path, **sent)
        assert reply.status_code < 300, f"{path}: {reply.status_code} {reply.text[:2000]}"
        return reply.json()

    project = ask("POST", "/api/projects", json={"title": "Shapes", "label_config": CONFIG})["id"]
    picture = (ROOT / "examples/shapes.png").read_bytes()
    ask("POST", f"/api/projects/{project}/import", files={"file": ("shapes.png", picture, "image/png")})
    (task,) = ask("GET", f"/api/tasks?project={project}")["tasks"]

    model = ask(
        "POST",
        "/api/ml",
        json={
            "url": backend,
            "project": project,
            "title": "Sa2VA",
            "is_interactive": True,
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": "anybody",
            "basic_auth_pass": KEY,
        },
    )
    assert model["state"] == "CO"  # it took up the project

    # A click of a person, as the editor sends it.
    click = {
        "type": "keypointlabels",
        "from_name": "click",
        "to_name": "image",
        "original_width": 256,
        "original_height": 256,
        "is_positive": True,
        "value": {"x": 25.0, "y": 50.0, "width": 0.3, "keypointlabels": ["Cloud"]},
    }
    asked = {"task": task["id"], "context": {"result": [click]}}
    clicked = ask("POST", f"/api/ml/{model['id']}/interactive-annotating", json=asked)
    assert clicked["data"]["result"][0]["type"] == "brushlabels", clicked

    # "Retrieve predictions" of all tasks.
    action = {"selectedItems": {"all": True, "excluded": []}, "project": str(project), "filters": None, "ordering": []}
    ask("POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", json=action)
    for _ in range(60):
        predictions = ask("GET", f"/api/predictions?task={task['id']}")
        if predictions:
            break
        time.sleep(1)
    (prediction,) = predictions
    assert prediction["model_version"].startswith("tiny")

    # Somebody accepts it, and exports the project.
    ask("POST", f"/api/tasks/{task['id']}/annotations", json={"result": prediction["result"]})
    exported = client.get(f"/api/projects/{project}/export?exportType=JSON")
    found = tmp_path / "found"
    (found / "images").mkdir(parents=True)
    (found / "images/shapes.png").write_bytes(picture)
    (found / "export.json").write_bytes(exported.content)

    expected = Sa2VA.from_pretrained("tiny", device="cpu").segment(picture, CLOUD).segments[0].mask
    path = export_file(found)
    assert path is not None
    (read,) = read_label_studio(path, Problems("label studio"))
    ((label, drawing),) = read.shapes
    assert label == "Cloud" and drawing((256, 256)) == expected
    assert isinstance(expected, Mask)
    assert main(["data", "check", str(found)]) == 0


def test_a_track_to_an_export(client: httpx2.Client, tmp_path: Path) -> None:
    model = Sa2VA.from_pretrained("tiny", device="cpu")
    with model.track(ROOT / "examples/shapes.mp4", "the orange hat", sampling={"max_frames": 3}) as track:
        about = {"size": track.size, "fps": track.fps, "source": track.source}
        write_track(track, [LabelStudioVideoWriter(tmp_path / "clip", **about)])
    config, tasks = ((tmp_path / "clip" / name).read_text() for name in ("config.xml", "tasks.json"))

    def ask(method: str, path: str, **sent: Any) -> Any:
        reply = client.request(method, path, **sent)
        assert reply.status_code < 300, f"{path}: {reply.status_code} {reply.text[:2000]}"
        return reply.json()

    project = ask("POST", "/api/projects", json={"title": "Clip", "label_config": config})["id"]
    ask("POST", f"/api/projects/{project}/import", json=json.loads(tasks))
    (task,) = ask("GET", f"/api/tasks?project={project}")["tasks"]
    (prediction,) = ask("GET", f"/api/predictions?task={task['id']}")
    ask("POST", f"/api/tasks/{task['id']}/annotations", json={"result": prediction["result"]})
    (exported,) = ask("GET", f"/api/projects/{project}/export?exportType=JSON")
    (result,), (written,) = exported["annotations"][0]["result"], json.loads(tasks)[0]["predictions"][0]["result"]
    assert (result["type"], result["value"]) == ("videorectangle", written["value"])
    assert [one["frame"] for one in result["value"]["sequence"]] == [1, 2, 3]
