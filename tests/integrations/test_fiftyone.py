"""The zoo source in the real FiftyOne: registered from an archive, downloaded, loaded; labels go into its samples.

Its database is not started: ``apply_model`` hands samples to the model as these tests do.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sa2va import Sa2VA, zoo

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "integrations/fiftyone"
CLOUD, HAT = "the yellow cloud", "the orange hat"
PICTURE = np.asarray(Image.open(ROOT / "examples/shapes.png").convert("RGB"))


def test_the_manifest_has_every_checkpoint() -> None:
    models = json.loads((SOURCE / "manifest.json").read_text())["models"]
    assert [one["base_name"] for one in models] == ["Sa2VA-tiny", *(one.name for one in zoo.ZOO if one.loads)]


@pytest.fixture(scope="module")
def fiftyone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """FiftyOne with our source in a zoo folder of its own, registered from an archive as from a repository's."""
    if "fiftyone" not in sys.modules:
        pytest.importorskip("fiftyone", reason="needs fiftyone: pip install fiftyone")
    import fiftyone.zoo

    import fiftyone

    folder = tmp_path_factory.mktemp("zoo")
    shutil.make_archive(str(folder / "served/sa2va"), "zip", SOURCE.parent, "fiftyone")
    handler = functools.partial(_Quiet, directory=folder / "served")
    before = fiftyone.config.model_zoo_dir
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        fiftyone.config.model_zoo_dir = str(folder / "models")
        fiftyone.zoo.register_zoo_model_source(f"http://127.0.0.1:{server.server_port}/sa2va.zip")
        yield fiftyone
        fiftyone.config.model_zoo_dir = before
        server.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def test_a_copied_folder_needs_no_registration(fiftyone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fiftyone.config, "model_zoo_dir", str(tmp_path))
    assert "Sa2VA-tiny" not in fiftyone.zoo.list_zoo_models()
    shutil.copytree(SOURCE, tmp_path / "sa2va-zoo")
    assert load(fiftyone, phrases=CLOUD).predict(PICTURE).detections


def load(fiftyone: Any, **options: Any) -> Any:
    return fiftyone.zoo.load_zoo_model("Sa2VA-tiny", device="cpu", cache=False, **options)


def test_pictures(fiftyone: Any, tiny: Sa2VA) -> None:
    model = load(fiftyone, phrases=[CLOUD, "the purple elephant"])
    assert isinstance(model, fiftyone.core.models.Model) and model.media_type == "image"
    with model:
        labels = model.predict(PICTURE)
    sample = fiftyone.Sample(filepath="shapes.png")
    sample.add_labels(labels, label_field="found", confidence_thresh=0.01)
    expected = tiny.segment(PICTURE, CLOUD).segments[0]
    found = next(one for one in sample.found.detections if one.label == CLOUD)
    assert found.confidence == pytest.approx(expected.score)
    left, top, width, height = (round(256 * one) for one in found.bounding_box)
    mask = np.zeros((256, 256), bool)
    mask[top : top + height, left : left + width] = found.mask
    assert (mask == expected.mask.array).all()
    assert found.to_polyline().points  # what its own conversions take


def test_words_of_each_sample(fiftyone: Any) -> None:
    model = load(fiftyone)
    with pytest.raises(ValueError, match="say what to look for"):
        model.predict(PICTURE)
    model.needs_fields = {"prompt_field": "ask"}
    sample = fiftyone.Sample(filepath="shapes.png", ask=CLOUD)
    assert {one.label for one in model.predict(PICTURE, sample=sample).detections} == {CLOUD}
    assert len(model.predict_all([PICTURE, PICTURE], samples=[sample, sample])) == 2


def test_videos(fiftyone: Any, tiny: Sa2VA) -> None:
    model = load(fiftyone, phrases=HAT, media_type="video")
    reader = SimpleNamespace(inpath=str(ROOT / "examples/shapes.mp4"), frames="3-5")
    sample = fiftyone.Sample(filepath=reader.inpath)
    sample.add_labels(model.predict(reader), label_field="hats")
    assert list(sample.frames) == [3, 4, 5]
    with tiny.track(reader.inpath, HAT, sampling={"start": 2, "end": 5}) as track:
        for number, frame in zip(sample.frames, track, strict=True):
            (found,) = sample.frames[number].hats.detections
            assert found.index == 1 and found.mask.sum() == frame.segments[0].mask.area
    with pytest.raises(ValueError, match="image or video"):
        load(fiftyone, media_type="sound")
