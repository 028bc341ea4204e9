"""Question benchmarks on miniature files: what is asked of which picture, and every score by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_qa_files import encoded, pixels, row, write_tsv

from sa2va import Sa2VA
from sa2va.data.annotations.layout import MissingData
from sa2va.eval.benchmark import Benchmark, Prediction, Scores
from sa2va.eval.predict import Settings, evaluate
from sa2va.eval.qa import QA_ROWS
from sa2va.zoo import ZOO

TWO = {"A": "cat", "B": "dog"}
FILES = {
    **{"mmbench-dev-en": "MMBench_DEV_EN", "mmbench-dev-cn": "MMBench_DEV_CN", "mme": "MME", "pope": "POPE"},
    **{"seedbench-img": "SEEDBench_IMG", "mmstar": "MMStar", "ai2d": "AI2D_TEST", "mmmu": "MMMU_DEV_VAL"},
    "scienceqa": "ScienceQA_TEST",
}


def benchmark(root: Path, name: str, *rows: Mapping[str, object]) -> Benchmark:
    write_tsv(root / "LMUData" / f"{FILES[name]}.tsv", rows)
    return QA_ROWS[name].open(root)


def scores(of: Benchmark, answers: Mapping[Any, str]) -> Scores:
    return of.score({id_: said(id_, text) for id_, text in ((f"{of.name}/{key}", answers[key]) for key in answers)})


def said(id_: str, text: str) -> Prediction:
    return Prediction(id_, text, text + "<|im_end|>")


# -- rows --------------------------------------------------------------------------------------------------------------


def test_every_row_has_its_file():
    assert set(QA_ROWS) == set(FILES)
    for name, one in QA_ROWS.items():
        (path,) = one.files(Path("data"))
        assert (one.name, path.name) == (name, f"{FILES[name]}.tsv")


def test_a_missing_file_says_where_it_comes_from(tmp_path: Path):
    with pytest.raises(MissingData, match=r"LMUData.MME\.tsv \(from https://.*MME\.tsv\)"):
        QA_ROWS["mme"].open(tmp_path)


@pytest.mark.parametrize("folder", ["LMUData", "vlmevalkit", "."])
def test_files_are_found_where_users_have_them(tmp_path: Path, folder: str):
    write_tsv(tmp_path / folder / "MMStar.tsv", [row(1, **TWO)])
    assert len(QA_ROWS["mmstar"].open(tmp_path).items()) == 1


def test_published_numbers_are_of_known_checkpoints():
    known = {model.name for model in ZOO}
    for one in QA_ROWS.values():
        assert {name for name in one.published if "(paper" not in name} <= known
    assert QA_ROWS["mme"].published["Sa2VA-4B"] == 1691
    assert QA_ROWS["ai2d"].published["Sa2VA-Qwen3-VL-4B"] == 85.4
    assert QA_ROWS["mmmu"].published.keys().isdisjoint(known)


# -- items -------------------------------------------------------------------------------------------------------------


def test_questions_about_one_picture_share_an_item(tmp_path: Path):
    other = encoded(pixels(9, 10, 4))
    of = benchmark(
        tmp_path,
        "mmstar",
        row(1, question="One?", category="x", **TWO),
        row(2, question="Two?", image=other, **TWO),
        row(3, question="Three?", image="1", **TWO),
    )
    first, second = of.items()
    assert [query.id for query in first.queries] == ["mmstar/1", "mmstar/3"]
    assert first.queries[0].text.startswith("One?\nA. cat\nB. dog\n")
    assert [query.tag for query in first.queries] == ["x", ""]
    assert (first.video, first.size, second.size) == (False, (6, 8), (10, 4))
    assert callable(first.media)
    np.testing.assert_array_equal(first.media(), pixels())
    assert (of.kind, of.submission) == ("question", False)


def test_items_are_a_sequence(tmp_path: Path):
    items = benchmark(tmp_path, "mmstar", *(row(i, image=encoded(pixels(i)), **TWO) for i in range(5))).items()
    assert len(items) == 5
    assert [item.id for item in items[1:3]] == ["mmstar/1", "mmstar/2"]
    assert items[-1].id == "mmstar/4"


def test_several_pictures_are_a_clip(tmp_path: Path):
    image = str([encoded(pixels(1, 4, 10)), encoded(pixels(2, 12, 6))])
    (item,) = benchmark(tmp_path, "mmmu", row(1, image=image, split="validation", **TWO)).items()
    assert (item.video, item.size) == (True, (12, 10))
    assert callable(item.media)
    assert [frame.shape for frame in item.media()] == [(12, 10, 3)] * 2


def test_a_damaged_picture_stops_only_its_own_item(tmp_path: Path):
    items = benchmark(tmp_path, "mmstar", row(1, **TWO), row(2, image="?" * 90, **TWO)).items()
    assert items[0].size == (6, 8)
    with pytest.raises(ValueError, match=r"MMStar\.tsv, row 2 \(index 2\): its picture cannot be read"):
        items[1]


def test_limited_keeps_whole_pictures(tmp_path: Path):
    of = benchmark(
        tmp_path,
        "mmbench-dev-en",
        row(3, image=encoded(pixels(3)), split="dev", **TWO),
        row(4, image=encoded(pixels(4)), split="dev", **TWO),
        row(1000003, image="3", answer="B", split="dev", **TWO),
    ).limited(1)
    assert [query.id for item in of.items() for query in item.queries] == [
        "mmbench-dev-en/3",
        "mmbench-dev-en/1000003",
    ]
    assert scores(of, {3: "A", 1000003: "B"}).values["accuracy"] == 1


def test_predictions_must_be_complete(tmp_path: Path):
    of = benchmark(tmp_path, "mmstar", row(1, **TWO), row(2, **TWO))
    with pytest.raises(ValueError, match=r"1 of 2 predictions are missing \(mmstar/2\)"):
        scores(of, {1: "A"})


def test_there_is_nothing_to_pack(tmp_path: Path):
    with pytest.raises(ValueError, match="scored here"):
        benchmark(tmp_path, "mmstar", row(1, **TWO)).pack({}, tmp_path / "out.zip")


def test_the_truth_can_be_shown(tmp_path: Path):
    of = benchmark(tmp_path, "mmmu", row(1, answer="B", **TWO), row(2, answer="42"))
    assert [of.expected(f"mmmu/{index}").text for index in (1, 2)] == ["B. dog", "42"]
    with pytest.raises(ValueError, match="no query 'mmmu/9'"):
        of.expected("mmmu/9")


# -- what the file is --------------------------------------------------------------------------------------------------


def test_the_file_is_named_with_its_md5(tmp_path: Path):
    of = benchmark(tmp_path, "mmstar", row(1, **TWO), row(2, image="", **TWO))
    assert "MMStar.tsv, 1 rows, md5 " in of.protocol
    assert "none of the published files" in of.protocol
    notices = scores(of, {1: "A"}).notices
    assert "the published file e1ecd2140806c1b1bbf54b43372efb9e" in notices[0]
    assert notices[1] == "1 rows without a picture were left out"


def test_answers_on_a_server_cannot_be_scored(tmp_path: Path):
    with pytest.raises(ValueError, match=r"MMBench_DEV_EN\.tsv: 1 rows have no answer \(first: index 2\)"):
        benchmark(tmp_path, "mmbench-dev-en", row(1, **TWO), row(2, answer="", **TWO))


def test_an_answer_that_is_no_option_is_reported(tmp_path: Path):
    result = scores(benchmark(tmp_path, "mmstar", row(1, answer="D", **TWO), row(2, **TWO)), {1: "D", 2: "A"})
    assert result.values["accuracy"] == 0.5
    assert any(notice.startswith("1 rows have an answer that is none of their options") for notice in result.notices)


# -- multiple choice ---------------------------------------------------------------------------------------------------


def test_accuracy_over_all_and_by_category(tmp_path: Path):
    rows = [
        row(1, answer="A", category="x", l2_category="p", **TWO),
        row(2, answer="B", category="x", l2_category="q", **TWO),
        row(3, answer="B", category="y", l2_category="q", **TWO),
        row(4, answer="A", category="y", l2_category="q", **TWO),
    ]
    result = scores(benchmark(tmp_path, "mmstar", *rows), {1: "A", 2: "It is a dog.", 3: "A", 4: "no idea"})
    assert result.values == {"accuracy": 0.5, "unclear": 0.25}
    assert result.groups == {
        "x": {"count": 2, "accuracy": 1, "unclear": 0},
        "y": {"count": 2, "accuracy": 0, "unclear": 0.5},
        "l2/p": {"count": 1, "accuracy": 1, "unclear": 0},
        "l2/q": {"count": 3, "accuracy": 1 / 3, "unclear": 1 / 3},
    }
    assert result.samples == {"mmstar/1": 1, "mmstar/2": 1, "mmstar/3": 0, "mmstar/4": 0}
    assert result.headline == "accuracy"


def test_the_headline_is_of_its_split(tmp_path: Path):
    rows = [
        row(1, split="dev", category="x", **TWO),
        row(2, split="validation", category="x", **TWO),
        row(3, split="validation", category="x", **TWO),
    ]
    result = scores(benchmark(tmp_path, "mmmu", *rows), {1: "A", 2: "A", 3: "B"})
    assert result.values == {"accuracy": 0.5, "unclear": 0, "accuracy/dev": 1, "accuracy/validation": 0.5}
    assert result.groups["x"] == {"count": 2, "accuracy": 0.5, "unclear": 0}
    assert set(result.samples) == {"mmmu/1", "mmmu/2", "mmmu/3"}


def test_a_split_that_is_not_there_is_reported(tmp_path: Path):
    result = scores(benchmark(tmp_path, "mmmu", row(1, split="dev", **TWO)), {1: "A"})
    assert result.values["accuracy"] == 1
    assert "no row is of the split 'validation'" in result.notices[0]


def test_open_questions_have_their_answer_against_all_others(tmp_path: Path):
    rows = [row(index, answer="24 cm", split="validation") for index in range(4)]
    answers = {0: "24 cm", 1: "It is about 24 CM long", 2: "24", 3: "Other answers"}
    result = scores(benchmark(tmp_path, "mmmu", *rows), answers)
    assert list(result.samples.values()) == [1, 1, 0, 0]
    assert result.values["unclear"] == 0.25


# -- circular evaluation -----------------------------------------------------------------------------------------------


def rotated(index: int, turns: int, category: str = "x") -> list[dict[str, object]]:
    """A question with three options and its rotations; the right text is always "cat"."""
    found = []
    for turn in range(turns):
        options = [("cat", "dog", "cow")[(place + turn) % 3] for place in range(3)]
        answer = "ABC"[options.index("cat")]
        cells = dict(zip("ABC", options, strict=True))
        image = str(index) if turn else encoded(pixels(index))
        found.append(row(index + turn * 1_000_000, image=image, answer=answer, category=category, split="dev", **cells))
    return found


def test_a_question_counts_when_every_rotation_is_right(tmp_path: Path):
    of = benchmark(tmp_path, "mmbench-dev-en", *rotated(1, 3), *rotated(2, 3), *rotated(3, 3, "y"), *rotated(4, 1, "y"))
    assert len(of.items()) == 4
    right = {0: "A", 1_000_000: "C", 2_000_000: "B"}
    answers = {
        **{1 + turn: letter for turn, letter in right.items()},
        **{2 + turn: "A" for turn in right},  # always the first letter: right before rotation only
        **{3 + turn: "cat" for turn in right},  # by text
        4: "B",
    }
    result = scores(of, answers)
    assert result.values == {"accuracy": 0.5, "first_only": 0.75, "unclear": 0}
    assert result.groups == {
        "x": {"count": 6, "accuracy": 0.5, "first_only": 1, "unclear": 0},
        "y": {"count": 4, "accuracy": 0.5, "first_only": 0.5, "unclear": 0},
    }


def test_one_unclear_rotation_spoils_the_question(tmp_path: Path):
    of = benchmark(tmp_path, "mmbench-dev-en", *rotated(1, 3))
    result = scores(of, {1: "A", 1_000_001: "C", 2_000_001: "A or B"})
    assert result.values == {"accuracy": 0, "first_only": 1, "unclear": 1 / 3}


def test_rotations_may_be_named_by_a_column(tmp_path: Path):
    rows = [row(i, g_index=10, answer=answer, split="dev", **TWO) for i, answer in ((10, "A"), (11, "B"))]
    of = benchmark(tmp_path, "mmbench-dev-cn", *rows)
    assert scores(of, {10: "A", 11: "A"}).values["accuracy"] == 0
    assert scores(of, {10: "A", 11: "B"}).values["accuracy"] == 1


def test_rotations_need_numbers(tmp_path: Path):
    with pytest.raises(ValueError, match="expected a whole number as the index of row 1, got 'one'"):
        benchmark(tmp_path, "mmbench-dev-en", row("one", **TWO))


# -- yes or no ---------------------------------------------------------------------------------------------------------


def mme_rows(task: str, picture: int, truths: str) -> list[dict[str, object]]:
    """The questions about one picture, ``"yn"`` for one with each answer."""
    return [
        row(
            f"{task}{picture}{place}",
            image=encoded(pixels(picture)),
            image_path=f"{task}/{picture}.jpg",
            answer={"y": "Yes", "n": "No"}[truth],
            category=task,
        )
        for place, truth in enumerate(truths)
    ]


def test_mme_adds_accuracy_of_questions_and_of_pictures(tmp_path: Path):
    of = benchmark(
        tmp_path,
        "mme",
        *mme_rows("existence", 1, "yn"),
        *mme_rows("existence", 2, "yn"),
        *mme_rows("OCR", 3, "yn"),
        *mme_rows("code_reasoning", 3, "yn"),
    )
    answers = {
        **{"existence10": "Yes", "existence11": "No."},  # both right
        **{"existence20": "Yes, it is", "existence21": "Yes"},  # one right
        **{"OCR30": "No", "OCR31": "yes and no"},  # none right, one unclear
        **{"code_reasoning30": "yes", "code_reasoning31": "no"},
    }
    result = scores(of, answers)
    assert result.groups == {
        "existence": {"count": 4, "accuracy": 0.75, "accuracy_plus": 0.5, "score": 1.25},
        "OCR": {"count": 2, "accuracy": 0, "accuracy_plus": 0, "score": 0},
        "code_reasoning": {"count": 2, "accuracy": 1, "accuracy_plus": 1, "score": 2},
    }
    assert result.values == {"perception": 1.25, "cognition": 2, "tasks_present": 3 / 14, "unclear": 1 / 8}
    assert result.headline == "perception"


def test_mme_is_2000_and_800_when_all_is_right(tmp_path: Path):
    perception = "existence count position color posters celebrity scene landmark artwork OCR"
    cognition = "commonsense_reasoning numerical_calculation text_translation code_reasoning"
    rows = [one for task in f"{perception} {cognition}".split() for one in mme_rows(task, 1, "yn")]
    of = benchmark(tmp_path, "mme", *rows)
    result = scores(of, {str(one["index"]): str(one["answer"]) for one in rows})
    assert 100 * result.values["perception"] == 2000
    assert 100 * result.values["cognition"] == 800


def test_mme_pairs_without_paths_are_told_by_their_picture(tmp_path: Path):
    rows = [{k: v for k, v in one.items() if k != "image_path"} for one in mme_rows("count", 1, "yn")]
    assert scores(benchmark(tmp_path, "mme", *rows), {"count10": "Yes", "count11": "Yes"}).groups["count"] == {
        **{"count": 2, "accuracy": 0.5, "accuracy_plus": 0, "score": 0.5}
    }


def test_pope_counts_yes(tmp_path: Path):
    truths = ["Yes", "Yes", "Yes", "No", "No", "No"]
    kinds = ["random", "random", "popular", "popular", "adversarial", "adversarial"]
    rows = [row(i, answer=t, category=k) for i, (t, k) in enumerate(zip(truths, kinds, strict=True))]
    said_ = ["Yes", "No", "yes.", "Yes", "No", "unsure"]
    result = scores(benchmark(tmp_path, "pope", *rows), dict(enumerate(said_)))
    # 2 true positives, 1 false positive, 1 missed.
    assert result.values == pytest.approx(
        {"f1": 2 / 3, "precision": 2 / 3, "recall": 2 / 3, "accuracy": 0.5, "yes": 0.5, "unclear": 1 / 6}
    )
    assert result.groups["random"] == pytest.approx(
        {"count": 2, "f1": 2 / 3, "precision": 1, "recall": 0.5, "accuracy": 0.5, "yes": 0.5, "unclear": 0}
    )
    assert result.groups["adversarial"]["f1"] == 0
    assert result.headline == "f1"


def test_pope_questions_of_several_kinds_count_in_each(tmp_path: Path):
    rows = [row(1, answer="Yes", category="random,popular"), row(2, answer="No", category="popular")]
    result = scores(benchmark(tmp_path, "pope", *rows), {1: "yes", 2: "yes"})
    assert result.values["precision"] == pytest.approx(2 / 3)
    assert result.groups["random"]["precision"] == 1
    assert result.groups["popular"]["precision"] == 0.5


def test_pope_without_any_yes_is_zero(tmp_path: Path):
    result = scores(benchmark(tmp_path, "pope", row(1, answer="No"), row(2, answer="No")), {1: "no", 2: "no"})
    assert (result.values["f1"], result.values["precision"], result.values["recall"]) == (0, 0, 0)
    assert result.values["accuracy"] == 1


# -- a model -----------------------------------------------------------------------------------------------------------


def test_a_model_is_asked_and_scored(tmp_path: Path, sa2va: Sa2VA):
    several = str([encoded(pixels(1, 30, 40)), encoded(pixels(2, 40, 20))])
    of = benchmark(
        tmp_path,
        "mmmu",
        row(1, image=encoded(pixels(1, 30, 40)), split="validation", **TWO),
        row(2, image="1", answer="B", split="validation", **TWO),
        row(3, image=several, split="validation", **TWO),
    )
    result = evaluate(sa2va, of, Settings(max_new_tokens=4))
    assert set(result.samples) == {"mmmu/1", "mmmu/2", "mmmu/3"}
    assert 0 <= result.values["accuracy"] <= 1
