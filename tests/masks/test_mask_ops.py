"""Mask operations against naive versions, and the rules that make them safe to use on a picture's edge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sa2va.masks import mask_ops
from sa2va.masks.mask_ops import Cleanup

bool_masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12))
radii = st.sampled_from([1, 1.5, 2, 3, 4.3])


def flood(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, int]:
    """Connected components by flood fill."""
    steps = [(0, 1), (0, -1), (1, 0), (-1, 0)]
    if connectivity == 8:
        steps += [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    labels, count = np.zeros(mask.shape, int), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        count += 1
        stack = [start]
        while stack:
            y, x = stack.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not labels[y, x]:
                labels[y, x] = count
                stack += [(y + dy, x + dx) for dy, dx in steps]
    return labels, count


def dilate_slowly(mask: np.ndarray, radius: float) -> np.ndarray:
    y, x = np.indices(mask.shape)
    grown = np.zeros_like(mask)
    for cy, cx in zip(*np.nonzero(mask), strict=True):
        grown |= (y - cy) ** 2 + (x - cx) ** 2 <= radius * radius
    return grown


@given(bool_masks, st.sampled_from([4, 8]))
def test_components_are_those_of_flood_fill(mask, connectivity):
    labels, count = mask_ops.components(mask, connectivity=connectivity)
    expected, expected_count = flood(mask, connectivity)
    assert count == expected_count
    np.testing.assert_array_equal(labels, expected)


def test_components_follow_a_long_spiral():
    mask = np.zeros((41, 41), bool)
    for ring in range(0, 20, 2):
        mask[ring, ring : 41 - ring] = mask[ring : 41 - ring, 40 - ring] = True
        mask[40 - ring, ring : 41 - ring] = mask[ring + 2 : 41 - ring, ring] = True
        mask[ring + 2, ring : ring + 2] = True
    assert mask_ops.components(mask, connectivity=4)[1] == 1


@given(bool_masks, radii)
def test_dilate_is_the_union_of_disks(mask, radius):
    np.testing.assert_array_equal(mask_ops.dilate(mask, radius), dilate_slowly(mask, radius))


@given(bool_masks, radii)
def test_erode_is_the_dual_of_dilate(mask, radius):
    np.testing.assert_array_equal(mask_ops.erode(mask, radius), ~dilate_slowly(~mask, radius))


@given(bool_masks, radii)
def test_opening_and_closing_bound_the_mask_and_settle_at_once(mask, radius):
    opened, closed = mask_ops.opening(mask, radius), mask_ops.closing(mask, radius)
    assert not (opened & ~mask).any()
    assert not (mask & ~closed).any()
    np.testing.assert_array_equal(mask_ops.opening(opened, radius), opened)
    np.testing.assert_array_equal(mask_ops.closing(closed, radius), closed)


def test_the_edge_of_the_picture_does_not_erode():
    mask = np.zeros((20, 20), bool)
    mask[:, 10:] = True
    eroded = mask_ops.erode(mask, 3)
    assert eroded[:, 13:].all()
    assert not eroded[:, :13].any()


def test_fill_holes_fills_small_holes_only_and_no_notch_at_the_border():
    mask = np.ones((20, 30), bool)
    mask[5, 5] = False  # a hole of 1
    mask[10:13, 10:13] = False  # a hole of 9
    mask[0, 20] = False  # a notch
    filled = mask_ops.fill_holes(mask, 8)
    assert filled[5, 5]
    assert not filled[10:13, 10:13].any()
    assert not filled[0, 20]
    assert mask_ops.fill_holes(mask, 9)[10:13, 10:13].all()


def test_a_hole_that_touches_the_outside_at_a_corner_is_a_hole():
    mask = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    assert mask_ops.fill_holes(mask, 1)[1, 1]


@given(bool_masks, st.integers(0, 8))
def test_remove_specks_keeps_exactly_the_parts_that_are_large_enough(mask, min_area):
    labels, count = flood(mask, 8)
    expected = np.zeros_like(mask)
    for label in range(1, count + 1):
        if (labels == label).sum() >= min_area:
            expected |= labels == label
    np.testing.assert_array_equal(mask_ops.remove_specks(mask, min_area), expected)


@given(bool_masks)
def test_largest_component_is_one_part_and_none_is_larger(mask):
    largest = mask_ops.largest_component(mask)
    labels, count = flood(mask, 8)
    sizes = [(labels == label).sum() for label in range(1, count + 1)]
    assert largest.sum() == max(sizes, default=0)
    assert len(np.unique(labels[largest])) == min(count, 1)


@given(bool_masks, st.integers(1, 5))
def test_feather_changes_nothing_beyond_its_radius(mask, radius):
    soft = mask_ops.feather(mask, radius)
    assert soft.dtype == np.float32
    assert soft.min() >= 0 and soft.max() <= 1
    square = np.ones((2 * radius + 1, 2 * radius + 1), bool)
    padded = np.pad(mask, radius, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, square.shape)
    np.testing.assert_array_equal(soft[windows.all(axis=(2, 3))], 1)
    np.testing.assert_array_equal(soft[~windows.any(axis=(2, 3))], 0)


def test_feather_crosses_one_half_at_the_outline():
    mask = np.zeros((40, 40), bool)
    mask[:, 20:] = True
    soft = mask_ops.feather(mask, 6)
    assert (np.diff(soft[5]) >= 0).all()
    assert soft[5, 19] < 0.5 < soft[5, 20]
    assert 0 < soft[5, 16] < soft[5, 23] < 1


def test_feather_of_radius_zero_is_the_mask():
    mask = np.eye(5, dtype=bool)
    np.testing.assert_array_equal(mask_ops.feather(mask, 0), mask.astype(np.float32))


def test_cleanup_changes_nothing_by_default():
    mask = np.random.default_rng(0).random((20, 20)) > 0.5
    np.testing.assert_array_equal(Cleanup().apply(mask), mask)


def test_cleanup_runs_its_steps():
    solid = np.zeros((30, 30), bool)
    solid[5:20, 5:20] = True
    mask = solid.copy()
    mask[10, 10] = False  # a hole
    mask[28, 28] = True  # a speck
    np.testing.assert_array_equal(Cleanup(fill_holes=1, remove_specks=2).apply(mask), solid)
    grown = Cleanup(fill_holes=1, largest_component=True, dilate=2).apply(mask)
    np.testing.assert_array_equal(grown, dilate_slowly(solid, 2))


@pytest.mark.parametrize("wrong", [{"dilate": -1}, {"fill_holes": -3}])
def test_cleanup_refuses_impossible_values(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Cleanup(**wrong)


@pytest.mark.parametrize("operation", ["fill_holes", "remove_specks", "dilate", "erode", "feather"])
def test_operations_refuse_probabilities(operation):
    with pytest.raises(ValueError, match="bool"):
        getattr(mask_ops, operation)(np.zeros((4, 4), np.float32), 2)


@given(bool_masks)
def test_outlines_enclose_everything_that_the_outside_cannot_reach(mask):
    polygons = mask_ops.outlines(mask)
    assert len(polygons) == flood(mask, 4)[1]
    labels, _ = flood(np.pad(~mask, 1, constant_values=True), 8)
    inside = np.zeros_like(mask)
    for polygon in polygons:
        inside |= crossing_fill(polygon, *mask.shape)
    np.testing.assert_array_equal(inside, (labels != labels[0, 0])[1:-1, 1:-1])


@settings(max_examples=10)
@given(bool_masks)
def test_an_outline_without_tolerance_keeps_its_corners(mask):
    for outline in mask_ops.outlines(mask):
        np.testing.assert_array_equal(mask_ops.simplified(outline, 0), outline)


@pytest.mark.parametrize(
    ("tolerance", "corners"),
    [
        (0.9, [[5, 1], [30, 2], [30, 10], [0, 10], [0, 2], [5, 2]]),
        (1.1, [[5, 1], [30, 2], [30, 10], [0, 10], [0, 2]]),
        (20, [[5, 1], [30, 10], [0, 10]]),  # fewer would have no area
    ],
)
def test_corners_within_the_tolerance_are_left_out(tolerance: float, corners: list[list[int]]):
    mask = np.zeros((12, 30), bool)
    mask[2:10] = mask[1, 5:8] = True
    (outline,) = mask_ops.outlines(mask)
    assert mask_ops.simplified(outline, tolerance).tolist() == corners


def crossing_fill(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """Even-odd rule at pixel centres."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    for (x0, y0), (_, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= (min(y0, y1) < y) & (y < max(y0, y1)) & (x < x0)
    return inside


@given(bool_masks)
def test_the_innermost_pixel_is_as_far_from_the_outside_as_any(mask: np.ndarray):
    """Along its row and column; the picture's edge is outside."""
    if not mask.any():
        with pytest.raises(ValueError, match="an empty mask has no inside"):
            mask_ops.innermost(mask)
        return
    padded = np.pad(mask, 1)

    def depth(x: int, y: int) -> int:
        lines = [
            padded[y + 1, : x + 2][::-1],
            padded[y + 1, x + 1 :],
            padded[: y + 2, x + 1][::-1],
            padded[y + 1 :, x + 1],
        ]
        return min(int(np.argmin(line)) for line in lines)

    x, y = mask_ops.innermost(mask)
    assert mask[y, x] and depth(x, y) == max(depth(int(u), int(v)) for v, u in zip(*np.nonzero(mask), strict=True))
