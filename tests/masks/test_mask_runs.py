"""Masks as run lengths: the text is the one that pycocotools writes."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco

from sa2va import Mask


@pytest.mark.parametrize("kind", ["noise", "rectangle", "right part", "one pixel", "bars", "empty", "full"])
def test_runs_are_those_of_pycocotools(kind: str):
    """Only the columns of the object are read; what is empty beside them lengthens the first and last run."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 40, 2)
        mask = np.zeros((height, width), bool)
        if kind == "noise":
            mask = rng.random((height, width)) < rng.random()
        elif kind == "rectangle":
            (x0, x1), (y0, y1) = np.sort(rng.integers(0, width + 1, 2)), np.sort(rng.integers(0, height + 1, 2))
            mask[y0:y1, x0:x1] = True
        elif kind == "right part":
            mask[:, rng.integers(0, width) :] = True
        elif kind == "one pixel":
            mask[rng.integers(0, height), rng.integers(0, width)] = True
        elif kind == "bars":
            mask[:, : rng.integers(0, width + 1)] = rng.random((height, 1)) < 0.5
        elif kind == "full":
            mask[:] = True
        expected = coco.encode(np.asfortranarray(mask).view(np.uint8))["counts"].decode("ascii")
        assert Mask.from_array(mask).counts == expected


def test_a_mask_from_its_part_is_that_of_the_whole():
    rng = np.random.default_rng(1)
    for _ in range(200):
        height, width = (int(n) for n in rng.integers(1, 30, 2))
        (x0, x1), (y0, y1) = (np.sort(rng.integers(0, side + 1, 2)).tolist() for side in (width, height))
        mask = np.zeros((height, width), bool)
        mask[y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < rng.random()
        found = Mask.from_crop(mask[y0:y1, x0:x1], (x0, y0), (height, width))
        assert found == Mask.from_array(mask)
        np.testing.assert_array_equal(found.crop((x0, y0, x1, y1)), mask[y0:y1, x0:x1])


@pytest.mark.parametrize(
    ("part", "corner"),
    [
        (np.ones((2, 2), np.uint8), (0, 0)),
        (np.ones(4, bool), (0, 0)),
        (np.ones((2, 2), bool), (5, 0)),
        (np.ones((2, 2), bool), (0, 3)),
        (np.ones((2, 2), bool), (0, -1)),
        (np.ones((2, 2), bool), (-1, 0)),
    ],
)
def test_a_part_that_is_none_is_refused(part: np.ndarray, corner: tuple[int, int]):
    with pytest.raises(ValueError, match="expected a"):
        Mask.from_crop(part, corner, (4, 6))


def test_empty_runs_are_left_out_of_what_is_read():
    expected = Mask.from_array(np.array([[0, 0, 1, 1, 0, 1]], bool))
    for counts in ([2, 2, 1, 1], [2, 1, 0, 1, 1, 1], [1, 0, 1, 2, 1, 1, 0], [0, 0, 2, 2, 1, 0, 0, 1]):
        assert Mask.from_rle({"size": [1, 6], "counts": counts}) == expected


def test_the_largest_mask_and_one_that_is_too_large():
    side = 2**14
    assert Mask.from_rle({"size": [side, side], "counts": [side * side]}).area == 0
    with pytest.raises(ValueError, match="1 to 268435456 pixels"):
        Mask.from_rle({"size": [side, side + 1], "counts": [side * (side + 1)]})
