"""Masks as outlines and as brush strokes: what our own readers find in them is what was written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sa2va import Answer, Mask, Segment
from sa2va.cli import main
from sa2va.data.annotations.label_studio import decode_brush
from sa2va.data.annotations.layout import Problems
from sa2va.data.annotations.yolo import read_yolo
from sa2va.writers import LabelStudioWriter, YoloWriter
from sa2va.writers.label_studio_tasks import encode_brush

SIZE = (60, 90)
Y, X = np.mgrid[: SIZE[0], : SIZE[1]]
DISC = np.hypot(Y - 30, X - 20) < 15
TWO = DISC | ((X > 60) & (Y > 40)) | ((X > 70) & (Y < 10))
NOTHING = np.zeros(SIZE, bool)


def answer(*masks: np.ndarray) -> Answer:
    names = ["the dog", "a cat"]
    return Answer(
        "", "", tuple(Segment(n, names[n - 1], (Mask.from_array(m),), 0.5, 1) for n, m in enumerate(masks, 1))
    )


@pytest.fixture
def pictures(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / name)
    return tmp_path


def test_outlines_are_read_back(pictures):
    with YoloWriter(pictures / "found") as writer:
        writer.add(pictures / "a.png", answer(TWO, DISC))
        writer.add(pictures / "b.png", answer(NOTHING))
    (found,) = read_yolo(pictures / "found", "train", Problems("yolo"))
    for (label, draw), (name, mask) in zip(found.shapes, (("the dog", TWO), ("a cat", DISC)), strict=True):
        assert label == name
        assert draw(SIZE).iou(Mask.from_array(mask)) > 0.97
    assert (pictures / "found/labels/b.txt").read_text() == ""
    assert main(["data", "check", str(pictures / "found")]) == 0


def test_images_that_would_share_labels_are_refused(pictures):
    Image.new("RGB", SIZE[::-1]).save(pictures / "a.jpg")
    with pytest.raises(ValueError, match="has the label file"), YoloWriter(pictures / "found") as writer:
        writer.add(pictures / "a.png", answer(DISC))
        writer.add(pictures / "a.jpg", answer(DISC))
    assert not list((pictures / "found").rglob("a.*"))  # nothing stays of it


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_brush_strokes_are_read_back(height, width, chance):
    mask = np.array([[chance.random() < 0.5 for _ in range(width)] for _ in range(height)])
    read = decode_brush(encode_brush(mask), 4 * mask.size).reshape(height, width, 4)
    assert (read == mask[..., None] * np.uint8(255)).all()


def test_runs_longer_than_the_format_has(pictures):
    mask = np.zeros((200, 400), bool)
    mask[1:, 1:] = True
    whole = np.ones((300, 300), bool)
    for one in (mask, whole, ~whole):
        assert (
            decode_brush(encode_brush(one), 4 * one.size).reshape(*one.shape, 4)[..., 3] > 0
        ).tolist() == one.tolist()


def test_tasks_hold_masks_as_predictions(pictures):
    with LabelStudioWriter(pictures / "found") as writer:
        writer.add(pictures / "a.png", answer(DISC, NOTHING))
        writer.add(pictures / "b.png", answer(NOTHING))
    first, second = json.loads((pictures / "found/tasks.json").read_text())
    assert first["data"]["image"] == "/data/local-files/?d=found/images/a.png"
    (result,) = first["predictions"][0]["result"]
    assert result["value"]["brushlabels"] == ["the dog"] and result["type"] == "brushlabels"
    read = decode_brush(bytes(result["value"]["rle"]), 4 * DISC.size).reshape(*SIZE, 4)
    assert (read[..., 3] > 0).tolist() == DISC.tolist()
    assert second["predictions"][0]["result"] == []
    assert (pictures / "found/config.xml").read_text().count("<Label ") == 1
