"""Polygon rasterisation equal to OpenCV's pixel by pixel, on which published scores rely."""

from __future__ import annotations

import numpy as np

from sa2va.masks.mask import Size

# OpenCV follows edges in fixed point.
_FRACTION = 16


def paint_polygon(points: np.ndarray, size: Size) -> np.ndarray:
    """A polygon with its outline, as ``cv2.fillPoly`` and ``cv2.polylines`` paint it together.

    What leaves the picture is cut as if it had been painted on a larger one; OpenCV moves such edges a little.

    Args:
        points: int (P, 2) corners x, y in pixels. Where edges cross, the even-odd rule says what is inside.
        size: (height, width) of the picture.

    Returns:
        bool (H, W).
    """
    canvas = np.zeros(size, dtype=bool)
    corners = np.asarray(points, dtype=np.int64).reshape(-1, 2)
    if not len(corners):
        return canvas
    ends = np.roll(corners, -1, axis=0)
    for start, end in zip(corners, ends, strict=True):
        _set(canvas, *_line(start, end))
    _fill(canvas, corners, ends)
    return canvas


def _line(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of an eight-connected line, from left to right."""
    if end[0] < start[0]:
        start, end = end, start
    step = end - start
    way, sign = np.abs(step), np.sign(step)
    longer = int(way[1] > way[0])
    along = np.arange(way[longer] + 1)
    across = (2 * way[1 - longer] * along + way[longer] - 1) // max(2 * way[longer], 1)
    moved = (along, across) if longer == 0 else (across, along)
    return start[0] + sign[0] * moved[0], start[1] + sign[1] * moved[1]


def _set(canvas: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    inside = (x >= 0) & (x < canvas.shape[1]) & (y >= 0) & (y < canvas.shape[0])
    canvas[y[inside], x[inside]] = True


def _fill(canvas: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
    """Set what lies between each two crossings of a row, both included."""
    height, width = canvas.shape
    rows, crossings = [], []
    for start, end in zip(starts, ends, strict=True):
        (x0, y0), (x1, y1) = (start, end) if start[1] < end[1] else (end, start)
        if y0 == y1:
            continue
        # As in C, the quotient is cut towards zero.
        slope = int(np.sign(x1 - x0)) * ((abs(int(x1 - x0)) << _FRACTION) // int(y1 - y0))
        y = np.arange(max(y0, 0), min(y1, height))
        rows.append(y)
        crossings.append((int(x0) << _FRACTION) + (y - y0) * slope)
    if not rows:
        return
    y, x = np.concatenate(rows), np.concatenate(crossings)
    order = np.lexsort((x, y))
    # A span goes from the first pixel right of one edge to the last left of the next; the outline has the rest.
    y, x = y[order], x[order] + np.tile([(1 << _FRACTION) - 1, 0], len(order) // 2) >> _FRACTION
    x = np.clip(x, -1, width)
    changes = np.zeros((height, width + 2), dtype=np.int64)
    np.add.at(changes, (y[::2], np.maximum(x[::2], 0)), 1)
    np.add.at(changes, (y[1::2], x[1::2] + 1), -1)
    canvas |= np.cumsum(changes, axis=1)[:, :width] > 0
