"""The node pack in the real ComfyUI, without a browser: every example workflow is queued over its API.

Run it with ``SA2VA_COMFYUI`` naming a folder of ComfyUI, and ``SA2VA_COMFYUI_PYTHON`` the Python that runs it, which
may be one of an environment of its own: this package's code is put on its path.
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
import numpy as np
import pytest
from PIL import Image

from sa2va import Sa2VA
from sa2va.media.open import open_media

ROOT = Path(__file__).parents[2]
PACK = ROOT / "integrations/comfyui"
COMFYUI = Path(os.environ.get("SA2VA_COMFYUI", "/nowhere"))
PYTHON = os.environ.get("SA2VA_COMFYUI_PYTHON", sys.executable)
PICTURE = np.asarray(Image.open(ROOT / "examples/shapes.png").convert("RGB"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (COMFYUI / "main.py").is_file(), reason="set SA2VA_COMFYUI to a folder of ComfyUI"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comfyui")
    shutil.copytree(PACK, folder / "custom_nodes/sa2va")
    (folder / "input").mkdir()
    for name in ("shapes.png", "shapes.mp4"):
        shutil.copy(ROOT / "examples" / name, folder / "input")
    return folder


@pytest.fixture(scope="module")
def client(base: Path) -> Iterator[httpx2.Client]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    log = base / "log.txt"
    command = [PYTHON, "main.py", "--cpu", "--port", str(port), "--base-directory", str(base), "--disable-auto-launch"]
    paths = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    with log.open("w") as out:
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stdout=out, stderr=out, cwd=COMFYUI)
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as one:
                for _ in range(240):
                    with suppress(httpx2.HTTPError):
                        if one.get("/system_stats").status_code == 200:
                            break
                    assert process.poll() is None, log.read_text()[-3000:]
                    time.sleep(0.5)
                yield one
        finally:
            process.terminate()
            process.wait(30)


def queued(client: httpx2.Client, prompt: dict[str, Any]) -> str:
    reply = client.post("/prompt", json={"prompt": prompt})
    assert reply.status_code == 200, reply.text
    return reply.json()["prompt_id"]


def finished(client: httpx2.Client, number: str) -> dict[str, Any]:
    for _ in range(600):
        if done := client.get(f"/history/{number}").json():
            return done[number]
        time.sleep(0.2)
    raise AssertionError("the workflow did not end")


def run(client: httpx2.Client, base: Path, name: str) -> dict[str, Any]:
    """What output nodes show: files or texts."""
    prompt = json.loads((PACK / f"example_workflows/api/{name}.json").read_text())
    done = finished(client, queued(client, prompt))
    assert done["status"]["status_str"] == "success", done["status"]["messages"]
    return {
        number: [base / "output" / one["subfolder"] / one["filename"] for one in shown.get("images", ())]
        or shown["text"]
        for number, shown in done["outputs"].items()
    }


@pytest.fixture(scope="module")
def tiny() -> Sa2VA:
    return Sa2VA.from_pretrained("tiny", device="cpu")


def test_the_pack_is_loaded_with_its_templates(client: httpx2.Client) -> None:
    nodes = [name for name in client.get("/object_info").json() if name.startswith("Sa2VA")]
    assert len(nodes) == 10
    templates = client.get("/api/workflow_templates").json()["sa2va"]
    assert sorted(templates) == sorted(path.stem for path in PACK.glob("example_workflows/*.json"))


def test_a_picture(client: httpx2.Client, base: Path, tiny: Sa2VA) -> None:
    shown = run(client, base, "segment_picture")
    cutout = np.asarray(Image.open(shown["9"][0]))
    cloud = tiny.segment(PICTURE, "the yellow cloud").segments[0].mask.array
    assert ((cutout[..., 3] > 127) == cloud).mean() > 0.99
    assert (np.asarray(Image.open(shown["5"][0])) != PICTURE).any()


def test_a_video(client: httpx2.Client, base: Path, tiny: Sa2VA) -> None:
    shown = run(client, base, "segment_video")
    assert open_media(shown["7"][0]).frame_count == 24
    with tiny.track(ROOT / "examples/shapes.mp4", "the orange hat", ask_every=12) as track:
        for path, frame in zip(shown["10"], track, strict=True):
            # ComfyUI decodes with a rounding of its own.
            mask, expected = np.asarray(Image.open(path))[..., 0] == 255, frame.segments[0].mask.array
            assert (mask & expected).sum() / (mask | expected).sum() > 0.95


def test_words(client: httpx2.Client, base: Path, tiny: Sa2VA) -> None:
    shown = run(client, base, "chat_and_caption")
    assert shown["4"] == ["blue"] and shown["9"] == [tiny.caption(PICTURE).text]
    assert run(client, base, "click_and_describe")["9"] == ["A large yellow cloud."]
    assert run(client, base, "segment_picture")["9"][0].is_file()  # after the model was unloaded


def test_a_run_is_cancelled(client: httpx2.Client) -> None:
    prompt = json.loads((PACK / "example_workflows/api/segment_video.json").read_text())
    prompt["4"]["inputs"]["phrases"] = "the orange hat\nthe hat"  # not what ComfyUI remembers
    number = queued(client, prompt)
    while not any(one[1] == number for one in client.get("/queue").json()["queue_running"]):
        time.sleep(0.05)
    time.sleep(1)
    client.post("/interrupt")
    done = finished(client, number)
    assert "execution_interrupted" in [kind for kind, _ in done["status"]["messages"]], done["status"]
