"""Columns in, columns out: ``Answerer`` as Ray Data and others call it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from stand_in import StandIn

from sa2va.bulk import Answerer

PIXELS = np.full((24, 32, 3), 200, np.uint8)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    model = StandIn()
    monkeypatch.setattr("sa2va.predictor.Sa2VA.from_pretrained", lambda source, **_: model)
    return model


def encoded() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


def objects(values: list) -> np.ndarray:
    column = np.empty(len(values), object)
    column[:] = values
    return column


@pytest.mark.parametrize("media", [np.stack([PIXELS] * 2), objects([encoded(), encoded()]), objects([PIXELS, PIXELS])])
def test_pixels_and_bytes_are_left_out_of_what_comes_back(media):
    table = Answerer("tiny", phrases=["the dog", "nothing"])({"image": media, "label": np.array([3, 5])})
    assert table.column_names == ["label", "asked", "size", "text", "reasons", "segments", "error"]
    assert table["error"].to_pylist() == [None, None] and table["label"].to_pylist() == [3, 5]
    assert [[one["phrase"] for one in row] for row in table["segments"].to_pylist()] == [["the dog"]] * 2
    assert table["reasons"].to_pylist() == [[None, "there is none"]] * 2


def test_rows_may_say_what_they_ask(stand_in, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    paths = np.array([str(tmp_path / "a.png"), str(tmp_path / "gone.png"), str(tmp_path / "a.png")])
    batch = {"path": paths, "question": objects(["Who?", "Where?", None])}
    table = Answerer("tiny", caption=True, media="path")(batch)
    assert table["asked"].to_pylist() == [["Who?"], ["Where?"], []]
    assert "gone.png" in table["error"].to_pylist()[1] and table["path"].to_pylist() == paths.tolist()
    assert stand_in.asked[-1].caption


def test_what_is_wrong_with_a_batch_is_told():
    answerer = Answerer("tiny")
    for batch, message in (
        ({"path": np.array(["a.png"])}, "media in a column 'image'"),
        ({"image": np.array(["a.png"])}, "nothing is asked of row 0"),
        ({"image": np.array(["a.png"]), "text": np.array(["x"])}, "columns text have names"),
    ):
        with pytest.raises(ValueError, match=message):
            answerer(batch)
    with pytest.raises(ValueError, match="exactly one"):
        Answerer("tiny", phrases=["x"], caption=True)
