"""Metrics against plain definitions, and every corner case of theirs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from sa2va.eval.metrics import (
    Overlap,
    boundary,
    boundary_f,
    ciou,
    generalized_scores,
    giou,
    jf_sequence,
    overlap,
    precision_at,
)

SHAPE = (24, 31)
masks = arrays(np.bool_, SHAPE)


def disk(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return y**2 + x**2 <= radius**2


def dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    out = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        for dy, dx in zip(*np.nonzero(disk(radius)), strict=True):
            row, column = y + dy - radius, x + dx - radius
            if 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]:
                out[row, column] = True
    return out


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    out = np.zeros_like(mask)
    height, width = mask.shape
    for y in range(height):
        for x in range(width):
            neighbours = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            out[y, x] = any(mask[a, b] != mask[y, x] for a, b in neighbours if a < height and b < width)
    return out


def plain_f(prediction: np.ndarray, target: np.ndarray) -> float:
    ours, theirs = plain_boundary(prediction), plain_boundary(target)
    if not ours.any() and not theirs.any():
        return 1.0
    if not ours.any() or not theirs.any():
        return 0.0
    radius = math.ceil(0.008 * math.sqrt(SHAPE[0] ** 2 + SHAPE[1] ** 2))
    precision = (ours & dilated(theirs, radius)).sum() / ours.sum()
    recall = (theirs & dilated(ours, radius)).sum() / theirs.sum()
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


@settings(max_examples=30)
@given(masks, masks)
def test_boundary_and_f_are_the_plain_definitions(prediction, target):
    np.testing.assert_array_equal(boundary(prediction), plain_boundary(prediction))
    assert boundary_f(prediction, target) == pytest.approx(plain_f(prediction, target), abs=1e-12)


@settings(max_examples=30)
@given(masks, masks)
def test_scores_are_symmetric_and_perfect_for_equals(one, other):
    assert jf_sequence(one[None], one[None]) == (1.0, 1.0)
    assert jf_sequence(one[None], other[None]) == pytest.approx(jf_sequence(other[None], one[None]))


def test_a_frame_without_target_wants_an_empty_prediction():
    empty, speck = np.zeros((2, *SHAPE), bool), np.zeros((2, *SHAPE), bool)
    speck[1, 3, 3] = True
    assert jf_sequence(empty, empty) == (1.0, 1.0)
    assert jf_sequence(speck, empty) == (0.5, 0.5)


def test_a_mask_of_the_whole_picture_has_no_boundary():
    full, half = np.ones(SHAPE, bool), np.zeros(SHAPE, bool)
    half[:12] = True
    assert boundary_f(full, full) == 1.0
    assert boundary_f(full, half) == 0.0


def test_boundaries_match_within_the_band_only():
    target, near, far = (np.zeros((480, 854), bool) for _ in range(3))
    target[100:200, 100:200] = True
    near[100:200, 108:208] = True  # the band is 8 pixels wide
    far[100:200, 140:240] = True
    assert boundary_f(near, target) == 1.0
    assert boundary_f(far, target) < 0.8


@pytest.mark.parametrize("shape", [(400, 30), (30, 400)])
def test_a_video_of_one_frame_scores_as_the_frame(shape):
    """The band follows the picture's diagonal, whatever part of it is looked at."""
    target, prediction = np.zeros((2, *shape), bool)
    target[10:20, 10:20] = prediction[13:23, 10:20] = True
    assert jf_sequence(prediction[None], target[None])[1] == boundary_f(prediction, target) > 0.9


def test_void_pixels_do_not_count():
    target, prediction = np.zeros((1, *SHAPE), bool), np.zeros((1, *SHAPE), bool)
    target[0, 4:12, 4:12] = prediction[0, 4:12, 4:20] = True
    void = np.zeros_like(target)
    void[0, :, 12:] = True
    assert jf_sequence(prediction, target)[0] == 0.5
    assert jf_sequence(prediction, target, void) == (1.0, 1.0)


def test_cumulative_and_mean_iou_weigh_differently():
    samples = [Overlap(90, 100), Overlap(0, 10), Overlap(0, 0)]
    assert ciou(samples) == pytest.approx(90 / 110)
    assert giou(samples) == pytest.approx((0.9 + 0 + 1) / 3)
    assert precision_at(samples, 0.5) == pytest.approx(2 / 3)
    assert precision_at([Overlap(1, 2)], 0.5) == 1.0  # reached, as the official scripts count
    assert ciou([Overlap(0, 0)]) == 1.0


@settings(max_examples=50)
@given(masks, masks, masks)
def test_overlaps_are_counts_of_pixels(prediction, target, void):
    counted = overlap(prediction, target, void)
    assert counted.intersection == (prediction & target & ~void).sum()
    assert counted.union == ((prediction | target) & ~void).sum()


def test_generalized_scores_follow_the_official_table():
    thing, other, nothing = (np.zeros((4, 4), bool) for _ in range(3))
    thing[:2], other[1:3] = True, True
    # no target: said so / pointed somewhere; target: said none / pointed
    scores = generalized_scores([None, other, None, other], [nothing, nothing, thing, thing])
    assert scores.giou == pytest.approx((1 + 0 + 0 + 4 / 12) / 4)
    assert scores.ciou == pytest.approx(4 / (0 + 8 + 8 + 12))
    assert (scores.n_acc, scores.t_acc) == (0.5, 0.5)
    assert generalized_scores([thing], [thing]).n_acc == 0.0


@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        (np.zeros((1, 4, 4)), np.zeros((1, 4, 4), bool)),
        (np.zeros((1, 4, 4), bool), np.zeros((1, 4, 5), bool)),
        (np.zeros((4, 4), bool), np.zeros((4, 4), bool)),
        (np.zeros((0, 4, 4), bool), np.zeros((0, 4, 4), bool)),
    ],
)
def test_wrong_arrays_are_named(prediction, target):
    with pytest.raises(ValueError, match="expected bool"):
        jf_sequence(prediction, target)
