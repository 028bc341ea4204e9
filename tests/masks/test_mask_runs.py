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
