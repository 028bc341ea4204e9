"""Benchmarks on pictures: requests byte for byte, perfect and silent models, and mixed answers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from miniatures.benchmarks import perfect, prediction, silent, write_region_captions
from miniatures.images import (
    CROWD,
    LEFT,
    LEFT_TOO,
    MIDDLE,
    RED,
    SIZE,
    area,
    painted,
    save,
    write_gcg_truth,
    write_json,
    write_reasonseg,
    write_refer,
)
from sa2va.data.annotations.layout import MissingData
from sa2va.eval.benchmark import Prediction
from sa2va.eval.benchmarks import BENCHMARKS
from sa2va.zoo import ZOO

FILE_ROWS = [row for row in BENCHMARKS.values() if not row.name.startswith("synthetic")]


def texts(benchmark) -> dict[str, str]:
    return {query.id: query.text for item in benchmark.items() for query in item.queries}


@pytest.fixture
def no_java(monkeypatch):
    """Java takes seconds to start; that it is used where it is there has a test of its own."""
    monkeypatch.setattr("shutil.which", lambda name: None)


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", FILE_ROWS, ids=lambda row: row.name)
def test_missing_files_are_one_message(row, tmp_path):
    with pytest.raises(MissingData) as raised:
        row.open(tmp_path)
    for path, origin in row.files(tmp_path).items():
        assert str(path) in str(raised.value)
        assert origin and origin in str(raised.value)


def test_rows_are_named_and_their_numbers_belong_to_models_of_the_zoo():
    zoo = {model.name for model in ZOO}
    for name, row in BENCHMARKS.items():
        assert row.name == name and row.title
        # Weights that were never released are told apart from those of the zoo by a note in brackets.
        assert all(checkpoint in zoo or checkpoint.endswith(")") for checkpoint in row.published)
        # MME's are points, of 2,800 in all; all others are percent.
        assert all(0 < number < (2800 if name == "mme" else 100) for number in row.published.values())
    assert BENCHMARKS["refcoco/val"].published["Sa2VA-8B"] == 82.6
    assert BENCHMARKS["ref-davis17/per-expression"].published["Sa2VA-i-26B"] == 81.2
    assert not BENCHMARKS["ref-davis17/official"].published
    assert BENCHMARKS["mevis/valid"].published["Sa2VA-8B"] != BENCHMARKS["mevis/valid_u"].published["Sa2VA-8B"]


# -- RefCOCO -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "split"), [("refcoco", "testA"), ("refcoco+", "testB"), ("refcocog", "test"), ("grefcoco", "val")]
)
def test_perfect_answers_score_one_on_every_set(dataset, split, tmp_path):
    write_refer(tmp_path, dataset)
    benchmark = BENCHMARKS[f"{dataset}/{split}"].open(tmp_path)
    scores = benchmark.score(perfect(benchmark))
    assert {name: value for name, value in scores.values.items() if value != 1} == {}
    assert set(scores.samples.values()) == {1.0}
    assert (benchmark.kind, benchmark.submission) == ("segment", False)


def test_refcoco_asks_each_expression_of_a_picture(tmp_path):
    write_refer(tmp_path)
    benchmark = BENCHMARKS["refcoco/val"].open(tmp_path)
    assert texts(benchmark.limited(1)) == {
        "refcoco/val/300": " Please segment the red one in this image.",
        "refcoco/val/301": " Please segment leftmost thing in this image.",
        "refcoco/val/310": " Please segment red thing at the left in this image.",
        "refcoco/val/320": " Please segment blue box in this image.",
        "refcoco/val/330": " Please segment the green ones in this image.",
    }
    first, second = benchmark.items()
    assert len(first.queries) == len(second.queries) == 5
    assert first.media().shape == (*SIZE, 3) and first.size == SIZE and not first.video


def test_refcoco_counts_the_union_of_all_masks_and_silence_as_empty(tmp_path):
    write_refer(tmp_path)
    benchmark = BENCHMARKS["refcoco/val"].open(tmp_path).limited(1)
    both, half, alone = area(LEFT), area((30, 8, 36, 24)), np.ones(SIZE, bool)
    given = {300: [both, area(LEFT_TOO)], 301: [both], 310: [], 320: [half], 330: [alone]}
    answers = {f"refcoco/val/{n}": prediction(f"refcoco/val/{n}", *masks) for n, masks in given.items()}
    scores = benchmark.score(answers)
    # Two boxes of 192 and 224 pixels that share 60; half of 192; 384 of all 3072.
    assert scores.values["ciou"] == pytest.approx((356 + 192 + 0 + 96 + 384) / (356 + 356 + 356 + 192 + 3072))
    assert scores.values["giou"] == pytest.approx((1 + 192 / 356 + 0 + 0.5 + 0.125) / 5)
    assert [scores.values[f"pr@{at}"] for at in (0.5, 0.6, 0.7, 0.8, 0.9)] == [0.6, 0.2, 0.2, 0.2, 0.2]
    assert scores.samples["refcoco/val/320"] == 0.5
    assert benchmark.score(silent(benchmark)).values["ciou"] == 0.0


def test_overlapping_parts_of_an_annotation_are_one_area(tmp_path):
    write_refer(tmp_path)
    ((mask,),) = BENCHMARKS["refcoco/val"].open(tmp_path).expected("refcoco/val/300").masks
    np.testing.assert_array_equal(mask.array, area(LEFT, LEFT_TOO))


def test_generalized_refcoco_counts_no_target(tmp_path):
    write_refer(tmp_path, "grefcoco")
    benchmark = BENCHMARKS["grefcoco/val"].open(tmp_path).limited(1)
    tags = [query.tag for query in benchmark.items()[0].queries]
    assert tags == [*["one target"] * 5, "several targets", "no target", "several targets"]
    quiet = benchmark.score(silent(benchmark))
    assert quiet.values["giou"] == 1 / 8
    assert (quiet.values["n_acc"], quiet.values["t_acc"], quiet.values["ciou"]) == (1.0, 0.0, 0.0)
    ghost = "grefcoco/val/350"
    eager = benchmark.score(perfect(benchmark) | {ghost: prediction(ghost, area((0, 0, 6, 6)))})
    assert eager.values["giou"] == 7 / 8
    assert (eager.values["n_acc"], eager.values["t_acc"]) == (0.0, 1.0)
    meant = 3 * 356 + 192 + 384 + (356 + 192) + 192  # beside a crowd, only the single object counts
    assert eager.values["ciou"] == pytest.approx(meant / (meant + 36))
    assert eager.values["pr@0.9"] == 1.0
    assert eager.values["n_acc<50px"] == 1.0  # 36 pixels
    assert eager.groups["no target"] == {"count": 1, "giou": 0.0, "ciou": 0.0}


def test_answers_must_be_of_these_queries_and_these_pictures(tmp_path):
    write_refer(tmp_path)
    benchmark = BENCHMARKS["refcoco/val"].open(tmp_path)
    answers = perfect(benchmark)
    with pytest.raises(ValueError, match="refcoco/val/320"):
        benchmark.score({name: one for name, one in answers.items() if not name.endswith("320")})
    with pytest.raises(ValueError, match="refcoco/val/99"):
        benchmark.score(answers | {"refcoco/val/99": prediction("refcoco/val/99")})
    wrong = prediction("refcoco/val/320", np.ones((5, 5), bool))
    with pytest.raises(ValueError, match="'refcoco/val/320' has 1 masks of sizes"):
        benchmark.score(answers | {"refcoco/val/320": wrong})
    with pytest.raises(ValueError, match="scored here"):
        benchmark.pack(answers, tmp_path / "out.zip")
    with pytest.raises(ValueError, match="no query"):
        benchmark.expected("refcoco/val/99")


def test_a_limited_benchmark_is_one_of_fewer_pictures(tmp_path):
    write_refer(tmp_path)
    benchmark = BENCHMARKS["refcoco/val"].open(tmp_path)
    fewer = benchmark.limited(1)
    assert len(fewer.items()) == 1 and len(benchmark.items()) == 2
    assert fewer.score(perfect(fewer)).values["ciou"] == 1.0
    assert [item.id for item in benchmark.items()[1:]] == [benchmark.items()[-1].id]


# -- ReasonSeg ---------------------------------------------------------------------------------------------------------


def write_reasonseg_with_nothing(root: Path, split: str) -> None:
    """One more picture, in which all that is drawn is to be ignored."""
    folder = write_reasonseg(root, split).folder
    save(painted(((4, 4, 20, 20), RED)), folder / "vain.jpg")
    shapes = [{"label": "ignore", "points": [[4, 4], [20, 4], [20, 20], [4, 20]]}]
    write_json({"text": ["Who is absent?"], "is_sentence": True, "shapes": shapes}, folder / "vain.json")


@pytest.mark.parametrize("split", ["val", "test"])
def test_reasonseg_asks_sentences_and_phrases(split, tmp_path):
    write_reasonseg_with_nothing(tmp_path, split)
    benchmark = BENCHMARKS[f"reasonseg/{split}"].open(tmp_path)
    assert texts(benchmark) == {
        f"reasonseg/{split}/phrase": "What is the hot thing in this image? Please output segmentation mask.",
        f"reasonseg/{split}/sentence": "What warms a caf\u00e9? Please output segmentation mask.",
        f"reasonseg/{split}/vain": "Who is absent? Please output segmentation mask.",
    }
    scores = benchmark.score(perfect(benchmark))
    assert scores.values == {"giou": 1.0, "ciou": 1.0}
    assert scores.groups == {
        "long": {"count": 2, "giou": 1.0, "ciou": 1.0},
        "short": {"count": 1, "giou": 1.0, "ciou": 1.0},
    }


def test_reasonseg_leaves_ignored_pixels_out_and_takes_the_first_mask(tmp_path):
    write_reasonseg_with_nothing(tmp_path, "val")
    benchmark = BENCHMARKS["reasonseg/val"].open(tmp_path)
    phrase, sentence, vain = (f"reasonseg/val/{name}" for name in ("phrase", "sentence", "vain"))
    answers = {
        phrase: prediction(phrase, area((4, 4, 41, 41))),  # the target of 37 x 37 and the ignored 11 x 11 in it
        sentence: prediction(sentence, area((20, 10, 41, 20)), area((20, 20, 41, 31))),  # first 10 of 21 rows of 21
        vain: prediction(vain, area((4, 4, 20, 20))),  # all of it ignored, and nothing is meant
    }
    scores = benchmark.score(answers)
    assert scores.samples == {phrase: 1.0, sentence: pytest.approx(10 / 21), vain: 1.0}
    assert scores.values["giou"] == pytest.approx((2 + 10 / 21) / 3)
    target = 37 * 37 - 11 * 11
    assert scores.values["ciou"] == pytest.approx((target + 210) / (target + 441))
    assert scores.groups["short"]["giou"] == 1.0
    quiet = benchmark.score(silent(benchmark))
    assert quiet.values["giou"] == pytest.approx(1 / 3)  # silence is right where nothing is meant
    assert quiet.values["ciou"] == 0.0


# -- grounded captions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "test"])
def test_gcg_asks_for_one_caption_per_picture(split, tmp_path, no_java):
    write_gcg_truth(tmp_path, split)
    benchmark = BENCHMARKS[f"gcg/{split}"].open(tmp_path)
    request = (
        "Could you please give me a brief description of the image? Please respond with interleaved"
        + 5 * " "
        + "segmentation masks for the corresponding parts of the answer."
    )
    assert texts(benchmark) == {f"gcg/{split}/sa_1": request, f"gcg/{split}/sa_2": request}
    assert (benchmark.kind, benchmark.items()[0].media().shape) == ("caption", (*SIZE, 3))


def gcg_answers() -> dict[str, Prediction]:
    one, two = "gcg/val/sa_1", "gcg/val/sa_2"
    said = "<p> A red box </p> [SEG] left of <p> a blue box </p> [SEG].<|im_end|>"
    return {
        one: prediction(one, area(LEFT), area(MIDDLE), text=said, phrases=("A red box", "a blue box")),
        two: prediction(two, area(CROWD), text="<p> A green box </p> [SEG].", phrases=("A green box",)),
    }


def test_perfect_captions_score_one_and_say_what_could_not_be_computed(tmp_path, no_java):
    write_gcg_truth(tmp_path)
    benchmark = BENCHMARKS["gcg/val"].open(tmp_path)
    scores = benchmark.score(gcg_answers())
    assert scores.values == pytest.approx({"ap50": 1, "ap": 1, "miou": 1, "recall_words": 1, "word_f1": 1})
    assert scores.headline == "ap50"
    assert any("bert-base-uncased" in notice and "recall_words" in notice for notice in scores.notices)
    assert any("METEOR" in notice for notice in scores.notices)


def test_mixed_captions(tmp_path, no_java):
    write_gcg_truth(tmp_path)
    benchmark = BENCHMARKS["gcg/val"].open(tmp_path)
    one, two = "gcg/val/sa_1", "gcg/val/sa_2"
    answers = gcg_answers()
    half = area((46, 20, 54, 44))
    answers[two] = prediction(two, half, text="<p> A tree </p> [SEG]", phrases=("A tree",))
    scores = benchmark.score(answers)
    assert scores.samples == {one: 1.0, two: 0.5}
    assert scores.values["miou"] == 0.75
    assert scores.values["recall_words"] == pytest.approx(2 / 3)  # "A tree" is not "a green box"
    assert scores.values["ap50"] == pytest.approx(1.0)  # IoU 0.5 reaches 0.5
    assert scores.values["ap"] < 0.8
    quiet = benchmark.score(silent(benchmark))
    assert quiet.values == pytest.approx({"ap50": 0, "ap": 0, "miou": 0, "recall_words": 0, "word_f1": 0})


def test_a_text_encoder_beside_the_data_gives_recall(tmp_path, no_java, monkeypatch):
    write_gcg_truth(tmp_path)
    (tmp_path / "bert-base-uncased").mkdir()
    (tmp_path / "bert-base-uncased/config.json").write_text("{}")

    class Equal:
        def __init__(self, folder):
            assert Path(folder) == tmp_path / "bert-base-uncased"

        def prepare(self, phrases):
            self.known = set(phrases)

        def __call__(self, one, other):
            assert {one, other} <= self.known
            return float(one.lower() == other.lower())

    monkeypatch.setattr("sa2va.eval.benchmarks.grandf.EncoderSimilarity", Equal)
    scores = BENCHMARKS["gcg/val"].open(tmp_path).score(gcg_answers())
    assert scores.values["recall"] == 1.0 and "recall_words" not in scores.values
    assert not any("recall" in notice for notice in scores.notices)


# -- region captions ---------------------------------------------------------------------------------------------------


def test_regions_are_asked_for_one_by_one(tmp_path):
    regions = write_region_captions(tmp_path)
    benchmark = BENCHMARKS["region-caption/refcocog"].open(tmp_path)
    assert benchmark.kind == "region"
    assert set(texts(benchmark).values()) == {
        "Please give me a short description of the region in the picture marked by region1."
    }
    for item, (number, region) in zip(benchmark.items(), regions.items(), strict=True):
        assert item.queries[0].id == f"region-caption/refcocog/{number}"
        np.testing.assert_array_equal(item.queries[0].region, region)
        assert item.media().shape == (*item.size, 3) == (*SIZE, 3)


def test_region_captions_are_scored_cleaned_and_raw(tmp_path, no_java):
    write_region_captions(tmp_path)
    benchmark = BENCHMARKS["region-caption/refcocog"].open(tmp_path)
    said = {"11": "region1 is the box on the left", "12": "It is a blue box.", "13": "a small box"}
    ids = {number: f"region-caption/refcocog/{number}" for number in said}
    scores = benchmark.score({ids[number]: prediction(ids[number], text=text) for number, text in said.items()})
    assert scores.values["word_f1"] == 1.0
    assert scores.values["word_f1_raw"] == pytest.approx((10 / 12 + 6 / 8 + 1) / 3)
    assert scores.headline == "word_f1" and len(scores.notices) == 1
    assert benchmark.score(perfect(benchmark)).values["word_f1"] == 1.0
    assert benchmark.score(silent(benchmark)).values["word_f1"] == 0.0


def test_regions_and_captions_must_belong_together(tmp_path):
    write_region_captions(tmp_path)
    path = tmp_path / "region_caption/mdetr_annotations/finetune_refcocog_val_captions.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][:-1]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"1 of 3 images .* \[13\]"):
        BENCHMARKS["region-caption/refcocog"].open(tmp_path)
