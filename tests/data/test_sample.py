"""The sample type says what is wrong with a sample, loads lazily, and can be looked at."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sa2va.data.preview import preview
from sa2va.data.sample import LazyFrame, Sample
from sa2va.results.history import Turn
from sa2va.tiny.synthetic import (
    SyntheticWorld,
)

GREY = np.full((4, 6, 3), 128, dtype=np.uint8)
MASK = np.zeros((1, 4, 6), dtype=bool)
GOOD = Sample("one", (GREY,), (Turn("Please segment it.", "Sure, [SEG]."),), (MASK,), source="test")


def test_a_good_sample_validates_to_itself() -> None:
    assert GOOD.validate() is GOOD
    assert GOOD.size == (4, 6) and GOOD.seg_count == 1
    assert Sample("text", (), (Turn("Hello?", "Hello."),)).validate().size is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": ()}, r"1 \[SEG\] in the answers but 0 masks"),
        ({"masks": (MASK, MASK)}, r"1 \[SEG\] in the answers but 2 masks"),
        ({"masks": (MASK.astype(np.uint8),)}, "must be bool, got uint8"),
        ({"masks": (MASK[0],)}, r"mask 0 has shape \(4, 6\), expected \(1, 4, 6\)"),
        ({"masks": (MASK[:, :3],)}, r"expected \(1, 4, 6\)"),
        ({"frames": (GREY, GREY)}, "video=True"),
        ({"frames": (), "video": True}, "without frames"),
        ({"frames": (GREY.astype(np.float32),)}, "must be uint8 RGB"),
        ({"frames": (GREY, GREY[:2]), "video": True}, "sizes must agree"),
        ({"turns": ()}, "no turns"),
        ({"turns": (Turn("What?", " "),)}, "empty question or answer"),
        ({"turns": (Turn("[SEG]?", "[SEG]."),)}, "only answers may carry it"),
        ({"turns": (Turn("What?", "<p> a cat [SEG]."),)}, "opens and closes <p>"),
        ({"tags": ("a", "b")}, "2 tags for 1 turns"),
        ({"regions": (MASK[0] | True,)}, "no question that speaks of a region"),
        ({"regions": (MASK[0],), "turns": (Turn("What is region1?", "[SEG]"),)}, "region 1 is empty"),
        ({"regions": (MASK[0] | True,), "turns": (Turn("What is region2?", "[SEG]"),)}, "region2 but there are 1"),
        ({"regions": (MASK | True,), "turns": (Turn("What is region1?", "[SEG]"),)}, "region 1 has shape"),
        ({"video": True, "regions": (MASK[0] | True,)}, "not a clip"),
        ({"id": ""}, "empty id"),
    ],
)
def test_validate_names_the_sample_and_the_trouble(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        replace(GOOD, **change).validate()
    assert "'one'" in str(caught.value) or change.get("id") == ""


def grey(side: int) -> np.ndarray:
    return np.zeros((side, side, 3), dtype=np.uint8)


def test_lazy_frames_are_loaded_only_when_asked_for() -> None:
    loads: list[int] = []

    def load() -> np.ndarray:
        loads.append(1)
        return GREY

    sample = replace(GOOD, frames=(LazyFrame(load, (4, 6)),)).validate()
    assert sample.size == (4, 6) and not loads
    assert np.array_equal(sample.pictures()[0], GREY) and loads == [1]
    pickled = pickle.loads(pickle.dumps(replace(GOOD, frames=(LazyFrame(partial(grey, 4), (4, 4)),), masks=())))
    assert pickled.picture(0).shape == (4, 4, 3)
    with pytest.raises(ValueError, match=r"'one'.*size \(5, 5\), expected \(4, 4\)"):
        replace(GOOD, frames=(LazyFrame(partial(grey, 5), (4, 4)),)).pictures()


def test_preview_draws_pictures_clips_regions_and_text(tmp_path: Path) -> None:
    worlds = [SyntheticWorld("train", frames=8, size=64), SyntheticWorld("train", tasks={"region": 1.0})]
    samples = [*(world[0] for world in worlds), SyntheticWorld("train", tasks={"text": 1.0})[0], GOOD]
    path = preview(samples, tmp_path / "sheet.png", columns=2, width=300)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.width == 2 * 308 + 8
        assert len(sheet.convert("RGB").getcolors(1 << 24) or ()) > 500
    masked = replace(GOOD, masks=(MASK | True,))
    plain, tinted = (preview([sample], tmp_path / f"{k}.png") for k, sample in enumerate((GOOD, masked)))
    assert plain.read_bytes() != tinted.read_bytes()
    with pytest.raises(ValueError, match="at least one sample"):
        preview([], tmp_path / "none.png")
