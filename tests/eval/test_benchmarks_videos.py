"""Benchmarks on videos scored here: requests, J and F, kinds of expressions, and Ref-DAVIS17 under both protocols."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from miniatures.benchmarks import described, perfect, prediction, silent, write_davis_labels
from miniatures.videos import (
    FRAMES,
    VideoSet,
    write_mevis,
    write_ref_davis17,
    write_ref_sav_benchmark,
    write_revos,
)
from sa2va.eval.benchmarks import BENCHMARKS
from sa2va.eval.metrics import jf_sequence, robustness

OFFICIAL = "ref-davis17/official"


def _ref_sav(root: Path) -> VideoSet:
    """Without its expressions of a third kind, which only ReVOS has."""
    written = write_ref_sav_benchmark(root / "ref_sav_eval")
    path = root / "ref_sav_eval/meta_expressions_valid.json"
    content = json.loads(path.read_text())
    for video in content["videos"].values():
        del video["expressions"]["2"]
    path.write_text(json.dumps(content))
    return VideoSet(written.films, written.expressions, {k: v for k, v in written.masks.items() if k[1] != "2"})


SETS: dict[str, Callable[[Path], VideoSet]] = {
    "mevis/valid_u": lambda root: write_mevis(root, "valid_u"),
    "ref-davis17/per-expression": write_ref_davis17,
    "revos/valid": lambda root: write_revos(root, "valid"),
    "ref-sav/valid": _ref_sav,
}


@pytest.mark.parametrize("name", SETS)
def test_perfect_answers_score_one(name, tmp_path):
    SETS[name](tmp_path)
    benchmark = BENCHMARKS[name].open(tmp_path)
    scores = benchmark.score(perfect(benchmark))
    assert set(scores.values.values()) == {1.0}
    assert set(scores.samples.values()) == {1.0}
    assert (scores.headline, benchmark.kind, benchmark.submission) == ("j&f", "segment", False)


@pytest.mark.parametrize("name", SETS)
def test_each_expression_is_asked_and_counted_against_its_own_masks(name, tmp_path):
    written = SETS[name](tmp_path)
    benchmark = BENCHMARKS[name].open(tmp_path)
    assert len(benchmark.items()) == 2
    for item in benchmark.items():
        video = item.id.removeprefix(f"{name}/")
        assert item.video and len(item.media) == FRAMES and all(path.is_file() for path in item.media)
        assert item.size == written.films[video].pictures.shape[1:3]
        for query in item.queries:
            key = query.id.removeprefix(f"{item.id}/")
            text = written.expressions[video][key]
            is_question = text == "Which square is never there?"
            assert query.text == (
                " Which square is never there? Please respond with a segmentation mask."
                if is_question
                else f"Please segment {text}."
            )
            (masks,) = benchmark.expected(query.id).masks
            np.testing.assert_array_equal([mask.array for mask in masks], written.masks[video, key])


def test_only_the_first_mask_counts_and_silence_is_empty(tmp_path):
    written = write_mevis(tmp_path, "valid_u")
    benchmark = BENCHMARKS["mevis/valid_u"].open(tmp_path)
    answers = silent(benchmark)
    quiet = benchmark.score(answers)
    # Of each video: one object is always there, one in half of the frames, one never, and both together always.
    assert quiet.values["j"] == quiet.values["f"] == (0 + 0.5 + 1 + 0) / 4
    video = "0a1b"
    red, blue = written.masks[video, "0"], written.masks[video, "1"]
    query = f"mevis/valid_u/{video}/0"
    right_first = benchmark.score(answers | {query: prediction(query, red, blue)})
    wrong_first = benchmark.score(answers | {query: prediction(query, blue, red)})
    assert right_first.samples[query] == 1.0
    assert wrong_first.samples[query] == 0.0
    assert right_first.values["j&f"] == pytest.approx(quiet.values["j&f"] + 1 / 8)


def test_long_videos_counted_piece_by_piece_score_the_same(tmp_path, monkeypatch):
    written = write_mevis(tmp_path, "valid_u")
    benchmark = BENCHMARKS["mevis/valid_u"].open(tmp_path)
    shifted = {key: np.roll(masks, 3, axis=2) for key, masks in written.masks.items()}
    answers = {f"mevis/valid_u/{v}/{k}": prediction(f"mevis/valid_u/{v}/{k}", m) for (v, k), m in shifted.items()}
    for chunk in (3, 100):
        monkeypatch.setattr("sa2va.eval.benchmarks.video_segmentation._CHUNK", chunk)
        scores = benchmark.score(answers)
        for (video, key), masks in shifted.items():
            j, f = jf_sequence(masks, written.masks[video, key])
            assert scores.samples[f"mevis/valid_u/{video}/{key}"] == pytest.approx((j + f) / 2)


def test_answers_must_be_of_these_frames(tmp_path):
    write_mevis(tmp_path, "valid_u")
    benchmark = BENCHMARKS["mevis/valid_u"].open(tmp_path)
    answers = perfect(benchmark)
    query = "mevis/valid_u/0a1b/0"
    with pytest.raises(ValueError, match="has 2 masks of sizes"):
        benchmark.score(answers | {query: prediction(query, np.zeros((2, 48, 64), bool))})
    with pytest.raises(ValueError, match="mevis/valid_u/0a1b/0"):
        benchmark.score({name: one for name, one in answers.items() if name != query})


# -- kinds of expressions ----------------------------------------------------------------------------------------------


def test_revos_is_the_mean_of_two_kinds_and_leaves_no_target_out(tmp_path):
    written = write_revos(tmp_path, "valid")
    benchmark = BENCHMARKS["revos/valid"].open(tmp_path)
    tags = {query.id.rsplit("/", 1)[1]: query.tag for item in benchmark.items() for query in item.queries}
    assert tags == {"0": "referring", "1": "reasoning", "10": "referring", "2": "no target"}
    answers = perfect(benchmark)
    for video in written.films:  # every reasoning expression is answered with the other object
        query = f"revos/valid/{video}/1"
        answers[query] = prediction(query, written.masks[video, "0"])
        ghost = f"revos/valid/{video}/2"
        answers[ghost] = prediction(ghost, written.masks[video, "0"])
    scores = benchmark.score(answers)
    assert scores.groups["referring"]["j&f"] == 1.0
    assert scores.groups["reasoning"]["j"] == 0.0
    assert (scores.groups["no target"]["count"], scores.groups["no target"]["j&f"]) == (2, 0.0)
    assert scores.values["j"] == 0.5  # whatever the number of expressions of a kind
    reasoning = scores.groups["reasoning"]["j&f"]
    assert scores.values["j&f"] == pytest.approx((1 + reasoning) / 2)
    assert scores.values["j&f_by_expression"] == pytest.approx((4 + 2 * reasoning) / 6)


def test_revos_robustness_is_against_all_objects(tmp_path):
    written = write_revos(tmp_path, "valid")
    benchmark = BENCHMARKS["revos/valid"].open(tmp_path)
    answers, rows = perfect(benchmark), []
    for video, film in written.films.items():
        query = f"revos/valid/{video}/0"
        both, red = written.masks[video, "10"], written.masks[video, "0"]
        answers[query] = prediction(query, both)
        objects = film.objects[1] | film.objects[2]
        rows.append(robustness(both, red, objects))
        assert 0.5 < rows[-1] < 1
        agreement = (both == red).mean()
    scores = benchmark.score(answers)
    # Per video one wrong and one right referring expression; all reasoning ones are right.
    assert scores.values["r"] == pytest.approx(((np.mean(rows) + 1) / 2 + 1) / 2)
    assert scores.groups["referring"]["r"] == pytest.approx((np.mean(rows) + 1) / 2)
    assert agreement < scores.groups["referring"]["a"] < 1


def test_revos_foreground_may_come_in_parts_and_must_be_complete(tmp_path):
    write_revos(tmp_path, "valid")
    path = tmp_path / "video_datas/revos/mask_dict_foreground.json"
    content = json.loads(path.read_text())
    before = BENCHMARKS["revos/valid"].open(tmp_path).foreground
    name = next(iter(content))
    parts = {key: {"masks_rle": [[one, one] for one in value["masks_rle"]]} for key, value in content.items()}
    path.write_text(json.dumps(parts))
    assert BENCHMARKS["revos/valid"].open(tmp_path).foreground == before
    content[name]["masks_rle"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{name}.*7 masks for 8 frames"):
        BENCHMARKS["revos/valid"].open(tmp_path)


def test_ref_sav_is_the_mean_of_long_and_short(tmp_path):
    written = _ref_sav(tmp_path)
    benchmark = BENCHMARKS["ref-sav/valid"].open(tmp_path)
    answers = perfect(benchmark)
    for video in written.films:
        query = f"ref-sav/valid/{video}/1"
        answers[query] = prediction(query, ~written.masks[video, "1"])
    scores = benchmark.score(answers)
    assert scores.groups["long"] == {"count": 4, "j&f": 1.0, "j": 1.0, "f": 1.0}
    assert scores.groups["short"]["count"] == 2 and scores.groups["short"]["j"] == 0.0
    assert scores.values["j"] == 0.5


def test_an_unknown_kind_of_expression_is_named(tmp_path):
    write_ref_sav_benchmark(tmp_path / "ref_sav_eval")
    with pytest.raises(ValueError, match="type_id 2"):
        _ = BENCHMARKS["ref-sav/valid"].open(tmp_path).items()[0]


# -- Ref-DAVIS17 -------------------------------------------------------------------------------------------------------


def test_official_davis_matches_label_maps_to_objects(tmp_path):
    films = write_davis_labels(tmp_path)
    benchmark = BENCHMARKS[OFFICIAL].open(tmp_path)
    right = described(films, OFFICIAL, lambda video, number, _: films[video].objects[number])
    scores = benchmark.score(right)
    assert scores.values == {"j&f": 1.0, "j": 1.0, "f": 1.0}
    assert [group["count"] for group in scores.groups.values()] == [4, 4, 4, 4]
    # In a set, which expression draws which object does not matter: maps are matched.
    swapped = described(films, OFFICIAL, lambda video, number, _: films[video].objects[3 - number])
    assert benchmark.score(swapped).values == {"j&f": 1.0, "j": 1.0, "f": 1.0}


def test_official_davis_sets_are_scored_apart_and_averaged(tmp_path):
    films = write_davis_labels(tmp_path)
    benchmark = BENCHMARKS[OFFICIAL].open(tmp_path)

    def drawn(video, number, words):
        mask = films[video].objects[number]
        return mask if words != 2 else np.zeros_like(mask)

    scores = benchmark.score(described(films, OFFICIAL, drawn))
    assert [group["j&f"] for group in scores.groups.values()] == [1.0, 1.0, 0.0, 1.0]
    assert list(scores.groups)[2] == "annotator 2, first frame"
    assert scores.values["j&f"] == 0.75
    assert scores.samples[f"{OFFICIAL}/soapbox/2"] == 0.0 and scores.samples[f"{OFFICIAL}/soapbox/3"] == 1.0


def test_official_davis_gives_shared_pixels_to_the_first_object(tmp_path):
    films = write_davis_labels(tmp_path)
    benchmark = BENCHMARKS[OFFICIAL].open(tmp_path)

    def drawn(video, number, _):
        objects = films[video].objects
        return objects[1] | objects[2] if number == 1 else objects[2]

    scores = benchmark.score(described(films, OFFICIAL, drawn))
    j = []
    for film in films.values():
        for number in (1, 2):
            own = film.objects[number]
            # The first map holds both, the second nothing: one object is half found, the other not at all.
            j.append(jf_sequence(film.objects[1] | film.objects[2], own)[0])
    best = [max(pair) for pair in zip(j[::2], j[1::2], strict=True)]
    assert scores.values["j"] == pytest.approx(sum(best) / 4)


def test_official_davis_does_not_count_void(tmp_path):
    films = write_davis_labels(tmp_path)
    benchmark = BENCHMARKS[OFFICIAL].open(tmp_path)

    def drawn(video, number, _):
        mask = films[video].objects[number].copy()
        mask[:, :2, :2] = number == 1
        return mask

    assert benchmark.score(described(films, OFFICIAL, drawn)).values["j&f"] == 1.0


def test_official_davis_expects_four_descriptions_per_object(tmp_path):
    write_davis_labels(tmp_path)
    path = tmp_path / "video_datas/davis17/meta_expressions/valid/meta_expressions.json"
    content = json.loads(path.read_text())
    del content["videos"]["soapbox"]["expressions"]["7"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"soapbox.*4k to 4k"):
        BENCHMARKS[OFFICIAL].open(tmp_path)
