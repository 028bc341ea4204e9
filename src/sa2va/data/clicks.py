"""Random clicks and boxes from a mask, as in the training of SAM. Numpy only."""

from __future__ import annotations

import numpy as np

#: Most clicks of one prompt; shorter ones are padded.
MOST_CLICKS = 4
INSIDE, OUTSIDE, BOX_FROM, BOX_TO, PADDING = 1, 0, 2, 3, -1

_BOX_SHARE = 0.4
_OUTSIDE_SHARE = 0.25  # of prompts by points that also say where the object is not
_BOX_NOISE = 0.1  # standard deviation of a corner, in sides of the box (SAM)


def random_clicks(mask: np.ndarray, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One random prompt for a mask: a loose box, or one to three points inside and sometimes one outside.

    Args:
        mask: bool (H, W). An empty one gives padding only, which prompts nothing.
        side: side of the square picture that SAM 2 sees; coordinates are in its pixels.

    Returns:
        float32 (4, 2) points (x, y) and int64 (4,) labels, both padded.
    """
    points = np.zeros((MOST_CLICKS, 2), dtype=np.float32)
    labels = np.full(MOST_CLICKS, PADDING, dtype=np.int64)
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return points, labels
    if rng.random() < _BOX_SHARE:
        chosen, kinds = _loose_box(rows, columns, rng), [BOX_FROM, BOX_TO]
    else:
        chosen, kinds = _points(mask, rows, columns, rng)
    scale = np.array([side / mask.shape[1], side / mask.shape[0]])
    points[: len(kinds)] = np.clip(np.asarray(chosen) * scale - 0.5, 0, side - 1)  # SAM 2 adds the half pixel itself
    labels[: len(kinds)] = kinds
    return points, labels


def _loose_box(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> list[tuple[float, float]]:
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    noise = rng.normal(0, _BOX_NOISE, 4).clip(-2 * _BOX_NOISE, 2 * _BOX_NOISE)
    noise *= np.array([right - left, bottom - top] * 2)
    x0, y0, x1, y1 = np.array([left, top, right, bottom]) + noise
    return [(x0, y0), (x1, y1)]


def _points(
    mask: np.ndarray, rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator
) -> tuple[list[tuple[float, float]], list[int]]:
    inside = rng.integers(0, len(rows), int(rng.integers(1, MOST_CLICKS)))
    chosen = [(float(columns[i]) + 0.5, float(rows[i]) + 0.5) for i in inside]
    kinds = [INSIDE] * len(chosen)
    outside_rows, outside_columns = np.nonzero(~mask)
    if len(outside_rows) and rng.random() < _OUTSIDE_SHARE:
        i = int(rng.integers(0, len(outside_rows)))
        chosen.append((float(outside_columns[i]) + 0.5, float(outside_rows[i]) + 0.5))
        kinds.append(OUTSIDE)
    return chosen, kinds
