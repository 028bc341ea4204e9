"""The examples run as their first lines say, and the demo leaves files that can be opened."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a script in this process, as if typed. Returns what it printed."""

    def typed(script: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return typed


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def test_demo(run: Callable[..., str], tmp_path: Path) -> None:
    out = run("demo.py", tmp_path)
    assert "$ sa2va segment" in out and "$ sa2va chat" in out and "$ sa2va track" in out and "This took" in out
    answers = json.loads((tmp_path / "picture" / "result.json").read_text())["answers"]
    assert [answer["request"] for answer in answers] == ["the yellow cloud", "something with wheels", "the letter Z"]
    assert pixels_of(tmp_path / "picture" / "overlay.png").shape == (256, 256, 3)
    with av.open(str(tmp_path / "clip" / "overlay.mp4")) as video:
        assert video.streams.video[0].codec_context.name == "h264"
        assert len(list(video.decode(video=0))) == 24
    assert len(list((tmp_path / "clip" / "masks").glob("*.png"))) == 24


def test_drawings_are_the_ones_in_the_folder(run: Callable[..., str], tmp_path: Path) -> None:
    names = [Path(line).name for line in run("draw_shapes.py", tmp_path).splitlines()]
    assert names == ["shapes.png", "shapes.mp4"]
    assert np.array_equal(pixels_of(tmp_path / "shapes.png"), pixels_of(EXAMPLES / "shapes.png"))
    drawn, kept = (frames_of(folder / "shapes.mp4") for folder in (tmp_path, EXAMPLES))
    assert drawn.shape == kept.shape == (24, 256, 256, 3)
    assert np.abs(drawn.astype(np.int16) - kept).mean() < 2  # another encoder may round otherwise


@pytest.mark.parametrize("case", ["iv25_qwen2", "q25"])
def test_synthetic_checkpoint(run: Callable[..., str], tmp_path: Path, case: str) -> None:
    folder = Path(run("synthetic_checkpoint.py", tmp_path / "out", "--case", case).strip())
    assert json.loads((folder / "config.json").read_text())["model_type"] == "sa2va_chat"
    assert (folder / "model.safetensors").stat().st_size > 1e6 and (folder / "tokenizer.json").exists()
