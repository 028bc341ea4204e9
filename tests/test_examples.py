"""The examples run as their first lines say, and the demo leaves files that can be opened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_demo(tmp_path: Path) -> None:
    out = run("demo.py", tmp_path)
    assert out.count("weights of this demo are synthetic") == 2 and "This took" in out
    assert "$ sa2va segment" in out and "$ sa2va track" in out
    answers = json.loads((tmp_path / "picture" / "result.json").read_text())["answers"]
    assert [answer["request"] for answer in answers] == ["the red car", "the dog"]
    assert all(answer["segments"] for answer in answers)
    assert pixels_of(tmp_path / "picture" / "overlay.png").shape == (320, 480, 3)
    assert pixels_of(tmp_path / "picture" / "masks.png").any()
    with av.open(str(tmp_path / "clip" / "overlay.mp4")) as video:
        assert len(list(video.decode(video=0))) == 12
    assert len(list((tmp_path / "clip" / "masks").glob("*.png"))) == 12
    assert json.loads((tmp_path / "clip" / "annotations.json").read_text())["annotations"]


def test_drawings_are_the_ones_in_the_folder(tmp_path: Path) -> None:
    names = [Path(line).relative_to(tmp_path) for line in run("draw_street.py", tmp_path).splitlines()]
    assert len(names) == 13
    for name in names:
        drawn, kept = (pixels_of(folder / name).astype(np.int16) for folder in (tmp_path, EXAMPLES))
        assert drawn.shape == kept.shape == (320, 480, 3)
        assert np.abs(drawn - kept).mean() < 2  # another Pillow may shade an edge or pack a JPEG otherwise


@pytest.mark.parametrize("case", ["iv25_qwen2", "q25"])
def test_synthetic_checkpoint(tmp_path: Path, case: str) -> None:
    folder = Path(run("synthetic_checkpoint.py", tmp_path / "out", "--case", case).strip())
    assert json.loads((folder / "config.json").read_text())["model_type"] == "sa2va_chat"
    assert (folder / "model.safetensors").stat().st_size > 1e6 and (folder / "tokenizer.json").exists()
