"""Scores of regions against plain definitions and an independent package: run lengths, gRefCOCO, J and F, ReVOS's R."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sa2va.eval.metrics import (
    Areas,
    generalized_areas,
    generalized_scores,
    jf_sequence,
    mask_areas,
    overlap,
    pixel_agreement,
    robustness,
)
from sa2va.masks.mask import Mask

SHAPE = (13, 17)
masks = arrays(np.bool_, SHAPE)
clips = arrays(np.bool_, (3, *SHAPE))
# Few pixels, so that samples without any, and targets without any, come up.
sparse = arrays(np.bool_, (4, 5), fill=st.just(False), elements=st.booleans())


def blob(shape: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    wave = radius * (1 + 0.2 * np.sin(5 * np.arctan2(rows - y, columns - x)))
    return (columns - x) ** 2 + (rows - y) ** 2 < wave**2


@settings(max_examples=50)
@given(masks, masks)
def test_run_lengths_count_what_pixels_count(prediction, target):
    areas = mask_areas(Mask.from_array(prediction), Mask.from_array(target))
    assert areas.overlap == overlap(prediction, target)
    assert (areas.prediction, areas.target) == (prediction.sum(), target.sum())


def test_masks_of_different_sizes_are_not_counted():
    with pytest.raises(ValueError, match="one size"):
        mask_areas(Mask.from_array(np.ones((4, 5), bool)), Mask.from_array(np.ones((5, 4), bool)))


def plain_generalized(pairs, least):
    """ReLA's table, case by case."""
    ious, inter, union = [], 0, 0
    counts = {"TP": 0, "FN": 0, "FP": 0, "TN": 0}
    for prediction, target in pairs:
        i, u, none = (prediction & target).sum(), (prediction | target).sum(), prediction.sum() < least
        if not target.any():
            counts["TP" if none else "FN"] += 1
            ious.append(1.0 if none else 0.0)
            union += 0 if none else u
        elif none:
            counts["FP"] += 1
            ious.append(0.0)
            union += u
        else:
            counts["TN"] += 1
            ious.append(i / u)
            inter, union = inter + i, union + u
    share = [counts[a] / max(counts[a] + counts[b], 1) for a, b in (("TP", "FN"), ("TN", "FP"))]
    return np.mean(ious), inter / union if union else 1.0, *share


@settings(max_examples=100)
@given(st.lists(st.tuples(sparse, sparse), min_size=1, max_size=6), st.sampled_from([1, 3]))
def test_generalized_scores_are_the_official_table(pairs, least):
    predictions, targets = zip(*pairs, strict=True)
    scores = generalized_scores(predictions, targets, least_pixels=least)
    np.testing.assert_allclose(astuple(scores)[:4], plain_generalized(pairs, least), atol=1e-12)
    counted = [mask_areas(*map(Mask.from_array, pair)) for pair in pairs]
    assert generalized_areas(counted, least_pixels=least) == scores


def test_pixels_of_a_wrong_no_target_stay_in_the_union():
    # 3 pixels drawn beside a target of 10, under a convention that takes fewer than 50 for "no target"
    scores = generalized_areas([Areas(3, 10, 0), Areas(100, 100, 100)], least_pixels=50)
    assert scores.ciou == 100 / 113
    assert scores.ious == (0.0, 1.0)
    assert (scores.t_acc, scores.n_acc) == (0.5, 0.0)


def test_precision_of_generalized_scores_is_over_targets_only():
    scores = generalized_areas([Areas(0, 0, 0), Areas(10, 10, 10), Areas(4, 4, 2)])
    assert scores.precision_at(0.7) == 0.5
    assert scores.precision_at(1 / 3) == 1.0
    assert generalized_areas([Areas(1, 10, 1)]).t_acc == 1.0  # one pixel is a mask
    assert generalized_areas([Areas(0, 0, 0)]).precision_at(0.7) == 0.0


@settings(max_examples=50)
@given(clips, clips, clips)
def test_robustness_and_agreement_are_the_plain_definitions(prediction, target, others):
    objects = target | others
    frames = [
        max(0.0, 1 - (p & ~t).sum() / (o.sum() + 1e-6)) for p, t, o in zip(prediction, target, objects, strict=True)
    ]
    assert robustness(prediction, target, objects) == pytest.approx(np.mean(frames))
    assert pixel_agreement(prediction, target) == pytest.approx(np.mean([(prediction == target)]))


def test_robustness_where_no_object_is():
    nothing, something = np.zeros((1, *SHAPE), bool), np.zeros((1, *SHAPE), bool)
    something[0, 2:5, 2:5] = True
    assert robustness(something, nothing, nothing) == 0.0
    assert robustness(nothing, nothing, nothing) == 1.0
    assert robustness(nothing, something, something) == 1.0


@settings(max_examples=30)
@given(clips, clips, clips)
def test_void_pixels_are_as_if_nobody_had_marked_them(prediction, target, void):
    assert jf_sequence(prediction, target, void) == jf_sequence(prediction & ~void, target & ~void)


@pytest.mark.parametrize("shape", [(24, 31), (97, 130), (1, 40), (40, 1)])
def test_noise_that_is_looked_up_in_pieces_scores_the_same(shape, monkeypatch):
    random = np.random.default_rng(0)
    pair = random.random((2, 2, *shape)) > 0.5
    whole = jf_sequence(*pair)
    monkeypatch.setattr("sa2va.eval.metrics._LOOKUPS", 50)
    assert jf_sequence(*pair) == pytest.approx(whole, abs=1e-12)


def independent_jf(prediction: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """J and F by the package vos-benchmark, of clips in which the target shows somewhere."""
    evaluator = pytest.importorskip("vos_benchmark.evaluator").Evaluator()
    # It scores an object from the frame on in which either side first shows it, so both start with a full match.
    start = np.zeros((1, *target.shape[1:]), bool)
    start[0, 0, 0] = True
    for ours, theirs in zip(*(np.concatenate([start, clip]) for clip in (prediction, target)), strict=True):
        evaluator.feed_frame(ours.astype(np.uint8), theirs.astype(np.uint8))
    j, f = (value[1] / 100 * (len(target) + 1) - 1 for value in evaluator.conclude())
    return j / len(target), f / len(target)


@settings(max_examples=40)
@given(clips, clips)
def test_j_and_f_of_noise_are_those_of_an_independent_package(prediction, target):
    assert jf_sequence(prediction, target) == pytest.approx(independent_jf(prediction, target), abs=1e-9)


@settings(max_examples=15)
@given(st.tuples(*[st.floats(-10, 130)] * 4), st.floats(1, 60), st.floats(1, 60))
def test_j_and_f_of_objects_are_those_of_an_independent_package(places, one, other):
    shape = (120, 160)
    prediction, target = blob(shape, *places[:2], one)[None], blob(shape, *places[2:], other)[None]
    for pair in ((prediction, target), (prediction, prediction), (~prediction, target)):
        assert jf_sequence(*pair) == pytest.approx(independent_jf(*pair), abs=1e-9)
