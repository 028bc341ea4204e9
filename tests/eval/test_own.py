"""Own labelled data as a benchmark: every form, what is held out, and two runs side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sa2va import Mask
from sa2va.cli import main
from sa2va.data.datasets.mask_folders import MaskFolder
from sa2va.data.holdout import HoldOut, is_held_out
from sa2va.eval.benchmark import Prediction
from sa2va.eval.compare import compare
from sa2va.eval.registry import known_row, select
from synthetic_checkpoint import picture

COUNT, SIZE = 10, (48, 64)


def square(number: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[4 + number : 20 + number, 8:30] = True
    return mask


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures with a square each; two have a second object."""
    root = tmp_path / "mine"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    phrases: dict[str, dict[str, str]] = {}
    for number in range(COUNT):
        Image.fromarray(picture(64, 48, number)).save(root / "images" / f"{number}.png")
        numbers = square(number).astype(np.uint8)
        phrases[str(number)] = {"1": "the square"}
        if number < 2:
            numbers[40:44, 50:60] = 2
            phrases[str(number)]["2"] = f"stripe {number}"
        Image.fromarray(numbers).save(root / "masks" / f"{number}.png")
    (root / "phrases.json").write_text(json.dumps(phrases))
    return root


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two clips of three frames with an object each."""
    root, videos = tmp_path / "clips", {}
    for name in ("a", "b"):
        for folder in ("JPEGImages", "Annotations"):
            (root / folder / name).mkdir(parents=True)
        for frame in range(3):
            Image.fromarray(picture(64, 48, frame)).save(root / "JPEGImages" / name / f"{frame}.png")
            Image.fromarray(square(frame).astype(np.uint8)).save(root / "Annotations" / name / f"{frame}.png")
        videos[name] = {"frames": ["0", "1", "2"], "expressions": {"0": {"exp": "the square", "obj_id": 1}}}
    (root / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    return root


def answered(name: str, *frames: np.ndarray) -> Prediction:
    masks = (tuple(Mask.from_array(frame) for frame in frames),) if frames else ()
    return Prediction(name, "", "", masks, ("",) * len(masks), 0.0)


def test_the_right_masks_score_one_and_phrases_are_groups(pictures: Path):
    benchmark = known_row("own").open(pictures)
    queries = {query.id: (item, query) for item in benchmark.items() for query in item.queries}
    assert len(queries) == COUNT + 2
    assert all(query.text.startswith("Please segment") for _, query in queries.values())
    item, query = queries["own/masks/3/0"]
    assert item.size == SIZE and "the square" in query.text
    assert np.array_equal(item.media(), picture(64, 48, 3))

    right = {one: benchmark.expected(one).masks for one in queries}
    perfect = {one: Prediction(one, "", "", masks, ("",), 0.0) for one, masks in right.items()}
    scores = benchmark.score(perfect)
    assert scores.headline == "ciou" and scores.values["ciou"] == scores.values["giou"] == scores.values["pr@0.9"] == 1
    assert set(scores.groups) == {"the square"} and scores.groups["the square"]["count"] == COUNT

    # One square is not found, another is found half.
    half = square(4).copy()
    half[12:] = False
    worse = {**perfect, "own/masks/3/0": answered("own/masks/3/0"), "own/masks/4/0": answered("own/masks/4/0", half)}
    scores = benchmark.score(worse)
    assert scores.samples["own/masks/3/0"] == 0
    assert scores.samples["own/masks/4/0"] == half.sum() / square(4).sum()
    assert scores.groups["the square"]["giou"] == pytest.approx((COUNT - 2 + half.sum() / square(4).sum()) / COUNT)
    assert benchmark.limited(2).items()[:] and len(benchmark.limited(2).items()) == 2


def test_clips_are_counted_as_davis_does(clips: Path):
    benchmark = known_row("own").open(clips)
    ids = [query.id for item in benchmark.items() for query in item.queries]
    right = {one: Prediction(one, "", "", benchmark.expected(one).masks, ("",), 0.0) for one in ids}
    assert benchmark.score(right).values == {"j&f": 1.0, "j": 1.0, "f": 1.0}
    missed = {**right, ids[1]: answered(ids[1])}
    assert benchmark.score(missed).values["j"] == 0.5
    assert [path.name for path in benchmark.items()[0].media] == ["0.png", "1.png", "2.png"]


def test_frames_that_are_not_annotated_do_not_count(clips: Path):
    (clips / "Annotations/a/1.png").unlink()
    benchmark = known_row("own").open(clips)
    first, second = [query.id for item in benchmark.items() for query in item.queries]
    right = {one: Prediction(one, "", "", benchmark.expected(one).masks, ("",), 0.0) for one in (first, second)}
    ((start, _, end),) = right[first].masks
    elsewhere = replace(right[first], masks=((start, Mask.from_array(np.ones(SIZE, bool)), end),))
    assert benchmark.score({**right, first: elsewhere}).values == {"j&f": 1.0, "j": 1.0, "f": 1.0}


def test_what_is_held_out_is_the_same_in_training_and_evaluation(pictures: Path):
    source = MaskFolder(pictures, views=3)
    kept, held = (HoldOut(source, 0.4, held_out=side) for side in (False, True))
    seen, unseen = ({part.key(index) for index in range(len(part))} for part in (kept, held))
    assert seen | unseen == {f"{number}.png" for number in range(COUNT)} and not seen & unseen
    assert len(kept) + len(held) == len(source)
    asked = known_row("own/holdout-0.4").open(pictures).items()
    assert {item.id.rpartition("/")[2] for item in asked} == {Path(name).stem for name in unseen}
    # The name alone decides, so data added later move nothing, and a larger share holds the smaller one.
    assert all(is_held_out(name, 0.4) for name in unseen) and all(is_held_out(name, 0.6) for name in unseen)


@pytest.mark.parametrize(
    ("share", "message"), [(1.5, "above 0 and below 1"), (1e-9, "none is held out"), (1 - 1e-12, "none is left")]
)
def test_a_share_that_leaves_nothing_is_refused(pictures: Path, share: float, message: str):
    with pytest.raises(ValueError, match=message):
        HoldOut(MaskFolder(pictures), share, held_out=share < 0.5 or share > 1)


def test_own_data_are_named_and_never_part_of_all(pictures: Path, tmp_path: Path):
    assert [row.name for row in select(["own"], pictures).rows] == ["own"]
    assert not any(row.name.startswith("own") for row in select(["all"], pictures).rows)
    with pytest.raises(ValueError, match="no data of one's own"):
        (tmp_path / "empty").mkdir()
        known_row("own").open(tmp_path / "empty")


def test_the_commands_score_report_and_compare(
    pictures: Path, tmp_path: Path, checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
):
    model, data = str(checkpoint("iv25_qwen2")), ["--data", str(pictures)]
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    for out, tokens in ((one, "2"), (other, "6")):
        asked = ["eval", model, "own", *data, "--holdout", "0.4", "-o", out, "--max-new-tokens", tokens, "-q"]
        assert main(asked) == 0
    assert "ciou" in capsys.readouterr().out
    assert main(["eval", "report", one, "--samples", "1"]) == 0
    assert "own/holdout-0.4" in (Path(one) / "report.md").read_text()

    assert main(["eval", "compare", one, other, "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out.splitlines()[-1])["benchmarks"]
    assert record["benchmark"] == "own/holdout-0.4" and "ciou" in record["values"]
    (compared,) = compare(Path(one), Path(other))
    assert sum(compared.counts) == len(compared.queries)
    assert main(["eval", model, "synthetic", "--holdout", "0.2", "-o", one]) == 2


def test_a_comparison_lists_what_changed_most(tmp_path: Path):
    for name, samples in {"old": {"a": 0.2, "b": 0.9, "c": 0.5}, "new": {"a": 0.8, "b": 0.1, "c": 0.5}}.items():
        folder = tmp_path / name / "own"
        folder.mkdir(parents=True)
        (folder / "benchmark.json").write_text(json.dumps({"name": "own", "data": "x", "limit": None}))
        scores = {"values": {"ciou": 0.5}, "groups": {}, "samples": samples, "headline": "ciou", "notices": []}
        (folder / "scores.json").write_text(json.dumps({**scores, "protocol": "as ever"}))
    (one,) = compare(tmp_path / "old", tmp_path / "new")
    assert one.counts == (1, 1, 1) and one.notices == ()
    assert one.largest(5) == [("b", (0.9, 0.1)), ("a", (0.2, 0.8))]
    assert one.largest(1) == [("b", (0.9, 0.1))]
