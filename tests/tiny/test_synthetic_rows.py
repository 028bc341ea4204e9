"""The synthetic world as benchmarks: right answers score 1, none score what the metric says, and errors are clear."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa2va import Mask
from sa2va.eval.benchmark import Prediction
from sa2va.eval.benchmarks import BENCHMARKS
from sa2va.eval.grounded import best_pairs
from sa2va.results.history import Turn
from sa2va.tiny.synthetic import SyntheticWorld
from sa2va.tiny.synthetic_benchmarks import SYNTHETIC_ROWS, SyntheticBenchmark
from sa2va.tiny.synthetic_benchmarks import synthetic_benchmark as benchmark
from sa2va.tiny.synthetic_measures import Case, attributes, plain_words

TASKS = [name.partition("/")[2] for name in SYNTHETIC_ROWS if name.startswith("synthetic/")]


def rle(masks: np.ndarray) -> tuple[Mask, ...]:
    return tuple(Mask.from_array(np.ascontiguousarray(mask)) for mask in masks)


def right(case: Case) -> Prediction:
    """The answer that a perfect model gives."""
    phrases = re.findall(r"<p> (.*?) </p>", case.answer) or [""] * len(case.masks)
    text = re.sub(r"<p> | </p>| \[SEG\]", "", case.answer)
    return Prediction(case.query.id, text, case.answer, tuple(map(rle, case.masks)), tuple(phrases))


def silent(case: Case) -> Prediction:
    return Prediction(case.query.id, "", "")


def answers(of: SyntheticBenchmark, answer=right) -> dict[str, Prediction]:
    return {case.query.id: answer(case) for case in of.cases}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["val", "test"])
def test_right_answers_are_right(task, split):
    row = benchmark(task, split, length=6)
    scores = row.score(answers(row))
    assert set(scores.values.values()) == {1.0}
    assert set(scores.samples.values()) == {1.0}
    assert set(scores.samples) == {case.query.id for case in row.cases}
    assert sum(group["count"] for group in scores.groups.values()) == len(row.cases)
    assert scores.headline in scores.values


@pytest.mark.parametrize("task", TASKS)
def test_saying_nothing(task):
    row = benchmark(task, length=6)
    scores = row.score(answers(row, silent))
    expected = {"n_acc": 1.0, "t_acc": 0.0, "ciou": 0.0} if "absent" in task else dict.fromkeys(scores.values, 0.0)
    if "chat" in task:  # turns about what is not there are right
        nothing = [case.query.tag == "nothing there" for case in row.cases]
        assert list(scores.samples.values()) == [float(one) for one in nothing]
        expected = {"accuracy": np.mean(nothing)}
    if "j&f" in scores.values:  # frames in which the object is hidden are right
        hidden = np.mean([~np.logical_or.reduce(case.masks).any(axis=(1, 2)) for case in row.cases])
        expected = dict.fromkeys(scores.values, hidden)
    assert {name: scores.values[name] for name in expected} == pytest.approx(expected)
    if "absent" in task:  # what is not there was answered rightly, and nothing else
        absent = [not case.masks for case in row.cases]
        assert list(scores.samples.values()) == [float(one) for one in absent]
        assert scores.values["giou"] == pytest.approx(np.mean(absent))


def test_a_mask_for_what_is_not_there_is_wrong():
    row = benchmark("absent", length=6)

    def eager(case: Case) -> Prediction:
        return replace(silent(case), masks=(rle(np.ones(case.shape, bool)),), phrases=("",))

    assert row.score(answers(row, eager)).values["n_acc"] == 0
    assert row.score(answers(row, eager)).values["t_acc"] == 1


def test_empty_masks_say_that_nothing_is_there():
    row = benchmark("absent", length=6)

    def empty(case: Case) -> Prediction:
        return replace(silent(case), masks=(rle(np.zeros(case.shape, bool)),), phrases=("",))

    assert row.score(answers(row, empty)).values == row.score(answers(row, silent)).values


def test_masks_of_one_answer_are_united():
    row = benchmark("refer", length=6)

    def halves(case: Case) -> Prediction:
        union = np.logical_or.reduce(case.masks)
        left = union.copy()
        left[..., left.shape[-1] // 2 :] = False
        return replace(right(case), masks=(rle(left), rle(union & ~left)), phrases=("", ""))

    assert row.score(answers(row, halves)).values["ciou"] == 1


def test_captions_lose_what_they_leave_out_and_what_they_make_up():
    row = benchmark("caption", length=8)

    def worse(case: Case) -> Prediction:
        """The first object is called something else, the last is left out, and a speck is made up."""
        full = right(case)
        speck = np.zeros(case.shape, bool)
        speck[:, :2, :2] = True
        return replace(full, masks=(*full.masks[:-1], rle(speck)), phrases=("a lie", *full.phrases[1:]))

    objects = sum(len(case.masks) for case in row.cases)
    kept = objects - len(row.cases)
    named = sum(max(len(case.masks) - 2, 0) for case in row.cases)
    values = row.score(answers(row, worse)).values
    assert values == pytest.approx(
        {
            "recall": kept / objects,
            "precision": kept / objects,
            "phrase_precision": named / objects,
            "phrase_recall": named / objects,
        }
    )


def test_the_attributes_of_a_region_count_one_by_one():
    row = benchmark("region", length=6)
    sizes = {"small": "large", "medium": "small", "large": "medium"}

    def wrong_size(case: Case) -> Prediction:
        return replace(right(case), text=re.sub("small|medium|large", lambda m: sizes[m[0]], case.answer))

    values = row.score(answers(row, wrong_size)).values
    assert values == {"exact": 0.0, "size": 0.0, "texture": 1.0, "color": 1.0, "kind": 1.0}


@pytest.mark.parametrize("task", ["chat", "clip-chat"])
def test_the_turns_of_a_conversation(task):
    """Each is asked after the right answers to those before it, and counted as what it asks for."""
    row = benchmark(task, length=40)
    for item in row.items():
        before: tuple[Turn, ...] = ()
        for query in item.queries:
            (case,) = [case for case in row.cases if case.query is query]
            assert query.history == before
            before = (*before, Turn(query.text, case.answer))
            about_it = re.search(r"\bit\b", query.text.replace("where it is", "")) is not None
            assert query.tag.endswith(" it") == about_it, query.text
            assert ("mask" in query.tag) == bool(case.masks), query.tag
            assert (query.tag == "nothing there") == (case.answer == "There is no such object."), query.tag
        assert len(before) <= 3
    assert {case.query.tag for case in row.cases} == KINDS_OF_TURN


KINDS_OF_TURN = {"mask", "mask of it", "nothing there", "words", "words about it"}


def test_a_turn_is_right_from_half_of_its_mask_and_in_its_very_words():
    row = benchmark("chat", length=30)

    def score(answer) -> dict[str, float]:
        groups = row.score(answers(row, answer)).groups
        assert set(groups) == KINDS_OF_TURN
        return {name: group["accuracy"] for name, group in groups.items()}

    def share(case: Case, part: float) -> Prediction:
        """So much of every target, and the right words."""
        kept = [mask & (np.cumsum(mask).reshape(mask.shape) <= part * mask.sum()) for mask in case.masks]
        return replace(right(case), masks=tuple(map(rle, kept)))

    def sure(case: Case) -> Prediction:
        everywhere = (rle(np.ones(case.shape, bool)),)
        return replace(silent(case), text="Sure.", masks=everywhere, phrases=("",))

    assert set(score(lambda case: share(case, 0.52)).values()) == {1.0}
    low = score(lambda case: share(case, 0.48))
    assert {kind for kind, value in low.items() if value == 1} == {"nothing there", "words", "words about it"}
    assert low["mask"] == low["mask of it"] == 0
    assert set(score(sure).values()) == {0.0}
    wrong = score(lambda case: replace(right(case), text=f"not {case.answer}"))
    assert {kind for kind, value in wrong.items() if value == 0} == {"words", "words about it"}


@pytest.mark.parametrize(
    ("text", "size", "texture", "color", "kind"),
    [
        ("A small striped red star.", "small", "striped", "red", "star"),
        ("an orange letter T", "", "plain", "orange", "letter t"),
        ("It is a thing", "", "", "", "it is thing"),
        ("", "", "", "", ""),
    ],
)
def test_attributes(text, size, texture, color, kind):
    assert attributes(text) == {"size": size, "texture": texture, "color": color, "kind": kind}


def test_short_answers_are_compared_without_articles_case_and_stops():
    assert plain_words("The Red  star.") == plain_words("a red star")
    assert plain_words("yes") != plain_words("no")


@given(st.lists(st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]), min_size=4, max_size=4), max_size=5))
def test_matching_takes_the_best_pairs_and_nothing_twice(rows):
    ious = np.array(rows).reshape(-1, 4)
    pairs = [(row, column) for row, column, iou in best_pairs(ious) if iou >= 0.5]
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    taken = [ious[pair] for pair in pairs]
    assert taken == sorted(taken, reverse=True)
    assert all(value >= 0.5 for value in taken)
    left = np.delete(np.delete(ious, [row for row, _ in pairs], 0), [column for _, column in pairs], 1)
    assert not (left >= 0.5).any()


@pytest.mark.parametrize("task", TASKS)
def test_items_show_what_the_cases_are_about(task):
    row = benchmark(task, length=4)
    items = row.items()
    ids = [query.id for item in items for query in item.queries]
    assert ids == [case.query.id for case in row.cases]
    assert len(set(ids)) == len(ids)
    assert len({item.id for item in items}) == len(items) == 4
    for index, item in enumerate(items):
        sample = row.world[index]
        if "chat" not in task:
            assert [query.tag for query in item.queries] == list(sample.tags)
            assert not any(query.history for query in item.queries)
        if item.media is None:
            assert task == "text"
            continue
        assert item.video == isinstance(item.media, list)
        np.testing.assert_array_equal(item.media if item.video else [item.media], sample.pictures())
        for number, query in enumerate(item.queries):
            if task == "region":
                np.testing.assert_array_equal(query.region, sample.regions[number])
                assert re.findall(r"region\d", query.text) == ["region1"]
            else:
                assert query.region is None
                assert query.text == sample.turns[number].question


def test_the_first_items_of_a_benchmark_are_those_of_its_part():
    whole, part = benchmark("refer", length=6), benchmark("refer", length=6).limited(2)
    assert [item.id for item in part.items()] == [item.id for item in whole.items()][:2]
    assert len(whole.limited(100).items()) == 6


def test_every_scene_is_drawn_once(monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []
    pair = SyntheticWorld.pair
    monkeypatch.setattr(SyntheticWorld, "pair", lambda self, index: drawn.append(index) or pair(self, index))
    row = benchmark("refer", length=3)
    row.score(answers(row))
    assert len(row.items()) == 3
    assert drawn == [0, 1, 2]


def test_the_truth_can_be_shown():
    row = benchmark("caption", length=2)
    case = row.cases[0]
    truth = row.expected(case.query.id)
    assert truth.masks == tuple(map(rle, case.masks))
    assert truth.text == right(case).text
    assert benchmark("refer", length=2).expected("synthetic/refer/val-2024-0/0").text == ""
    with pytest.raises(ValueError, match="no query 'nowhere'"):
        row.expected("nowhere")


def test_predictions_must_be_of_the_same_queries():
    row = benchmark("question", length=2)
    full = answers(row)
    first = next(iter(full))
    missing = {number: one for number, one in full.items() if number != first}
    with pytest.raises(ValueError, match=f"1 of {len(full)} predictions are missing .{first}"):
        row.score(missing)
    with pytest.raises(ValueError, match=r"1 predictions are of no query .* \(other\)"):
        row.score({**full, "other": full[first]})


def test_masks_of_another_size_are_refused():
    row = benchmark("refer", length=1)
    full = answers(row)
    first = next(iter(full))
    full[first] = replace(full[first], masks=(rle(np.ones((1, 5, 5), bool)),), phrases=("",))
    with pytest.raises(ValueError, match=rf"{first}: expected masks of 1 frames of \(128, 128\)"):
        row.score(full)


def test_rows_are_in_the_table():
    assert SYNTHETIC_ROWS.items() <= BENCHMARKS.items()
    for name, row in SYNTHETIC_ROWS.items():
        assert row.name == name == row.open(Path("nowhere")).name
        assert not row.files(Path("nowhere"))
        assert row.title


def test_a_benchmark_there_is_not():
    with pytest.raises(ValueError, match="expected a task of"):
        benchmark("refers")
    with pytest.raises(ValueError, match="is scored here"):
        benchmark("refer").pack({}, Path("x.zip"))
