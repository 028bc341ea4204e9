"""The checkpoint in the package: it loads, it is small, it answers, and it still scores what its report card says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sa2va import Sa2VA, zoo
from sa2va.cli import main
from sa2va.eval.predict import Settings, evaluate
from sa2va.tiny.synthetic_benchmarks import synthetic_benchmark

REPORT = Path(__file__).parents[2] / "docs" / "report-tiny.md"


def test_it_is_small_and_has_a_card(tiny: Sa2VA):
    assert sum(path.stat().st_size for path in zoo.TINY.iterdir()) < 40e6
    assert (zoo.TINY / "model.safetensors").is_file() and "Limits" in (zoo.TINY / "README.md").read_text()
    assert json.loads((zoo.TINY / "config.json").read_text())["model_type"] == "sa2va"
    assert sum(parameter.numel() for parameter in tiny.model.parameters()) < 10e6


def red_circle() -> Image.Image:
    picture = Image.new("RGB", (128, 128), (190, 195, 200))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((20, 24, 64, 68), fill=(215, 35, 40))
    pen.rectangle((80, 70, 112, 102), fill=(40, 75, 215))
    return picture


def iou_of_the_red_circle(tiny: Sa2VA, phrase: str) -> float:
    picture = red_circle()
    yy, xx = np.mgrid[:128, :128]
    expected = ((xx - 42) ** 2 + (yy - 46) ** 2) <= 22**2
    segments = tiny.segment(picture, phrase).segments
    mask = segments[0].mask.array if segments else np.zeros_like(expected)
    return float((mask & expected).sum() / (mask | expected).sum())


def test_the_red_circle_where_it_is(tiny: Sa2VA):
    assert iou_of_the_red_circle(tiny, "the red circle on the left") > 0.8


def test_the_red_circle_by_its_name(tiny: Sa2VA):
    assert iou_of_the_red_circle(tiny, "the red circle") > 0.8


def test_it_says_what_it_is_for_where_it_is_not_sure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "a.png"
    red_circle().save(path)
    for phrase, told in {"the red circle": False, "the green star": True}.items():
        assert main(["segment", str(path), phrase, "--model", "tiny"]) == 0
        assert ("drawn world" in capsys.readouterr().err) == told, phrase


def test_it_answers_in_words(tiny: Sa2VA):
    picture = np.full((128, 128, 3), 200, np.uint8)
    picture[40:90, 40:90] = (40, 75, 215)
    answer = tiny.chat(picture, "What color is the square? Answer with one word or a short phrase.")
    assert answer.text and not answer.segments


def test_a_clip_is_followed_frame_by_frame(tiny: Sa2VA):
    clip = [np.full((64, 96, 3), 90, np.uint8) for _ in range(6)]
    frames = list(tiny.track(clip, "the square"))
    assert [frame.index for frame in frames] == list(range(6)) and frames[0].size == (64, 96)


def rolling_circle() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Frames in which a red circle rolls past a blue square, and where the circle is."""
    frames, truth = [], []
    yy, xx = np.mgrid[:128, :128]
    for left in range(16, 52, 6):
        picture = Image.new("RGB", (128, 128), (190, 195, 200))
        pen = ImageDraw.Draw(picture)
        pen.ellipse((left, 20, left + 36, 56), fill=(215, 35, 40))
        pen.rectangle((70, 78, 110, 118), fill=(40, 75, 215))
        frames.append(np.asarray(picture))
        truth.append((xx - left - 18) ** 2 + (yy - 38) ** 2 <= 18**2)
    return frames, truth


@pytest.mark.parametrize("named", ["by its mask", "by a phrase"])
def test_what_moves_is_followed_from_its_first_frame_on(tiny: Sa2VA, named: str):
    frames, truth = rolling_circle()
    tracker = tiny.stream()
    if named == "by its mask":
        tracker.add(mask=truth[0])
    else:
        tracker.add("the red circle")
    for frame, expected in zip(frames, truth, strict=True):
        (segment,) = tracker.step(frame).segments
        mask = segment.mask.array
        assert (mask & expected).sum() / (mask | expected).sum() > 0.8


SLICES = (
    dict(re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|$", REPORT.read_text(), re.MULTILINE)) if REPORT.is_file() else {}
)


@pytest.mark.parametrize("task", ["refer", "question", "clips"])
def test_the_report_card_has_not_drifted(tiny: Sa2VA, task: str):
    """On the first 12 pictures or 3 clips, to what another processor's rounding may change."""
    scores = evaluate(
        tiny, synthetic_benchmark(task, "test"), Settings(max_new_tokens=64), limit=3 if task == "clips" else 12
    )
    assert scores.values[scores.headline] == pytest.approx(float(SLICES[task]), abs=0.05)
