"""Cleanup of masks: holes, specks, the largest component, morphology.

Pure functions over numpy arrays; nothing here is applied unless it is asked for.
The world outside the picture is unknown, not background: an object that leaves the picture is not eaten at its edge.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Cleanup:
    """Postprocessing of a thresholded mask; by default none.

    The steps run in the order of the fields. The world outside the image is unknown, not background, so an object that
    leaves the image keeps its edge there.

    Attributes:
        fill_holes: fill holes of at most this many pixels.
        remove_specks: remove connected parts of fewer pixels.
        largest_component: keep only the largest connected part.
        closing, opening, dilate, erode: radius in pixels of a Euclidean disk.

    Raises:
        ValueError: a negative area or radius.

    Examples:
        >>> import numpy as np
        >>> from sa2va.masks.mask_ops import Cleanup
        >>> mask = np.ones((5, 5), bool)
        >>> mask[2, 2] = False
        >>> int(Cleanup(fill_holes=4).apply(mask).sum())
        25
    """

    fill_holes: int = 0
    remove_specks: int = 0
    largest_component: bool = False
    closing: float = 0
    opening: float = 0
    dilate: float = 0
    erode: float = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"{field.name} must not be negative (0 turns it off), got {getattr(self, field.name)}")

    def apply(self, mask: BoolArray) -> BoolArray:
        """The cleaned mask: bool (H, W) to bool (H, W)."""
        if self.fill_holes:
            mask = fill_holes(mask, self.fill_holes)
        if self.remove_specks:
            mask = remove_specks(mask, self.remove_specks)
        if self.largest_component:
            mask = largest_component(mask)
        for name, operation in (("closing", closing), ("opening", opening), ("dilate", dilate), ("erode", erode)):
            if radius := getattr(self, name):
                mask = operation(mask, radius)
        return mask


def fill_holes(mask: BoolArray, max_area: int) -> BoolArray:
    """Fill holes of at most ``max_area`` pixels. bool (H, W) -> bool (H, W).

    A hole is background (4-connected) that does not reach the border of the picture.
    """
    labels, count = components(~_checked(mask), connectivity=4)
    if count == 0:
        return mask.copy()
    small = np.bincount(labels.ravel(), minlength=count + 1) <= max_area
    small[0] = False
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        small[edge] = False
    return mask | small[labels]


def remove_specks(mask: BoolArray, min_area: int) -> BoolArray:
    """Drop 8-connected parts of fewer than ``min_area`` pixels. bool (H, W) -> bool (H, W)."""
    labels, count = components(_checked(mask), connectivity=8)
    keep = np.bincount(labels.ravel(), minlength=count + 1) >= min_area
    keep[0] = False
    return keep[labels]


def largest_component(mask: BoolArray) -> BoolArray:
    """Only the largest 8-connected part; the first in reading order when two are equal. bool (H, W) -> bool (H, W)."""
    labels, count = components(_checked(mask), connectivity=8)
    if count == 0:
        return mask.copy()
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))


def innermost(mask: BoolArray) -> tuple[int, int]:
    """The pixel (x, y) of a mask that is farthest from its outside along its row and column.

    Raises:
        ValueError: an empty mask.
    """
    rows, columns = np.flatnonzero(_checked(mask).any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError("an empty mask has no inside")
    outside = ~np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    limit = max(outside.shape)
    depth = np.minimum(_row_distance(outside, limit=limit), _row_distance(outside.T, limit=limit).T)
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(columns[0] + x) - 1, int(rows[0] + y) - 1


def components(mask: BoolArray, *, connectivity: int) -> tuple[NDArray[np.int32], int]:
    """Label the connected parts of a mask.

    Horizontal runs are the nodes, overlaps between runs of neighbouring rows the edges; so the work grows with the
    outline of the mask, not with its pixels.

    Args:
        mask: bool (H, W).
        connectivity: 4 or 8 neighbours per pixel.

    Returns:
        int32 (H, W) with 0 for background and 1..N in reading order of each part's first pixel, and N.
    """
    height, width = mask.shape
    starts, ends = _runs(mask)
    if len(starts) == 0:
        return np.zeros(mask.shape, np.int32), 0
    upper, lower = _touching_runs(starts, ends, width + 1, reach=1 if connectivity == 8 else 0)
    roots = _connect(len(starts), upper, lower)
    number = np.cumsum(roots == np.arange(len(roots)), dtype=np.int32)[roots]
    # Painting runs as +label at the start and -label at the end, then summing, fills them in one pass.
    steps = np.zeros(height * (width + 1), np.int32)
    steps[starts] = number
    steps[ends] = -number
    return np.cumsum(steps, out=steps).reshape(height, width + 1)[:, :width], int(number.max())


def _runs(mask: BoolArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and (exclusive) ends of horizontal runs, as positions in rows that are padded by one empty column."""
    height, width = mask.shape
    padded = np.zeros((height, width + 1), np.int8)
    padded[:, :width] = mask
    changes = np.diff(padded.ravel(), prepend=np.int8(0))
    return np.flatnonzero(changes == 1), np.flatnonzero(changes == -1)


def _touching_runs(
    starts: NDArray[np.int64], ends: NDArray[np.int64], stride: int, *, reach: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (run, run in the next row) that overlap, or also touch at a corner when ``reach`` is 1."""
    # A run seen from the next row is the same interval one stride later; sorted starts and ends bound its partners.
    first = np.searchsorted(ends, starts + stride - reach, side="right")
    last = np.searchsorted(starts, ends + stride + reach, side="left")
    counts = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(starts)), counts)
    offsets = np.arange(len(upper)) - np.repeat(np.cumsum(counts) - counts, counts)
    return upper, first[upper] + offsets


def _connect(count: int, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Union-find over all edges at once: the smallest node of each node's part, int64 (count,)."""
    parent = np.arange(count)
    while len(left):
        low, high = np.minimum(left, right), np.maximum(left, right)
        parent[high] = low  # where several edges compete any one may win: the others come back in the next round
        while True:
            grandparent = parent[parent]
            if np.array_equal(grandparent, parent):
                break
            parent = grandparent
        left, right = parent[left], parent[right]
        apart = left != right
        left, right = left[apart], right[apart]
    return parent


def dilate(mask: BoolArray, radius: float) -> BoolArray:
    """Grow by a Euclidean disk: all pixels within ``radius`` of a pixel of the mask. bool (H, W) -> bool (H, W)."""
    _checked(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0 or radius < 1:
        return mask.copy()
    reach = int(radius)
    top, bottom = max(rows[0] - reach, 0), rows[-1] + 1 + reach
    left, right = max(columns[0] - reach, 0), columns[-1] + 1 + reach
    grown = np.zeros_like(mask)
    grown[top:bottom, left:right] = _dilate(mask[top:bottom, left:right], radius)
    return grown


def erode(mask: BoolArray, radius: float) -> BoolArray:
    """Shrink by a Euclidean disk; the picture's edge does not erode. bool (H, W) -> bool (H, W)."""
    _checked(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0 or radius < 1:
        return mask.copy()
    # One pixel around the mask holds all the background that can reach into it first.
    box = np.s_[max(rows[0] - 1, 0) : rows[-1] + 2, max(columns[0] - 1, 0) : columns[-1] + 2]
    shrunk = np.zeros_like(mask)
    shrunk[box] = ~_dilate(~mask[box], radius)
    return shrunk


def opening(mask: BoolArray, radius: float) -> BoolArray:
    """Erode, then dilate: removes what is thinner than the disk. bool (H, W) -> bool (H, W)."""
    return dilate(erode(mask, radius), radius)


def closing(mask: BoolArray, radius: float) -> BoolArray:
    """Dilate, then erode: closes gaps that are narrower than the disk. bool (H, W) -> bool (H, W)."""
    return erode(dilate(mask, radius), radius)


def _dilate(mask: BoolArray, radius: float) -> BoolArray:
    """A disk is a stack of horizontal bars: one row-wise distance serves every bar, compared and shifted per row."""
    height = len(mask)
    reach = int(radius)
    distance = _row_distance(mask, limit=reach + 1)
    grown = np.zeros_like(mask)
    for offset in range(-min(reach, height - 1), min(reach, height - 1) + 1):
        bar = distance <= int((radius * radius - offset * offset) ** 0.5)
        if offset < 0:
            grown[:offset] |= bar[-offset:]
        else:
            grown[offset:] |= bar[: height - offset]
    return grown


def _row_distance(mask: BoolArray, *, limit: int) -> NDArray[np.uint16]:
    """Pixels to the nearest set pixel of the same row, cut off at ``limit``. uint16 (H, W)."""
    width = mask.shape[1]
    columns = np.arange(width, dtype=np.int32)
    far = width + limit
    last = np.maximum.accumulate(np.where(mask, columns, np.int32(-far)), axis=1)
    following = np.minimum.accumulate(np.where(mask, columns, np.int32(2 * far))[:, ::-1], axis=1)[:, ::-1]
    return np.minimum(np.minimum(columns - last, following - columns), limit).astype(np.uint16)


def feather(mask: BoolArray, radius: int) -> NDArray[np.float32]:
    """A soft edge: opacity 0..1, float32 (H, W), that crosses 0.5 at the outline.

    Opacity changes only within ``radius`` pixels of the outline and has 8 bits of depth, as alpha channels do.

    Raises:
        ValueError: a negative radius.
    """
    from PIL import Image, ImageFilter

    if radius < 0:
        raise ValueError(f"radius must not be negative, got {radius}")
    picture = Image.fromarray(_checked(mask).astype(np.uint8) * 255)
    # Two boxes make a tent, whose reach (unlike a Gaussian's) ends: what is far from the edge stays exactly 0 or 1.
    near, far = radius // 2, radius - radius // 2
    soft = picture.filter(ImageFilter.BoxBlur(near)).filter(ImageFilter.BoxBlur(far))
    return np.asarray(soft, np.float32) / np.float32(255)


def outlines(mask: BoolArray) -> list[NDArray[np.float32]]:
    """The outer outlines of a mask, bool (H, W), as polygons; holes are left out.

    Returns:
        One float32 (P, 2) array of x, y per 4-connected part, clockwise on screen, not closed, in pixel-corner
        coordinates: the pixel (x, y) is the square from (x, y) to (x + 1, y + 1).
    """
    height, width = _checked(mask).shape
    padded = np.zeros((height + 2, width + 2), np.int8)
    padded[1:-1, 1:-1] = mask
    across = np.diff(padded, axis=0)[:, 1:-1]  # +1: a top edge, walked rightwards; -1: a bottom edge, leftwards
    down = -np.diff(padded, axis=1)[1:-1].T  # +1: a right edge, walked downwards; -1: a left edge, upwards
    stride = width + 1
    h_start, h_end, h_sign = _edge_runs(across, step=1, line_step=stride)
    v_start, v_end, v_sign = _edge_runs(down, step=stride, line_step=1)
    to_v = _next_edge(h_end, h_sign, v_start, v_sign)  # right turns to down, left to up: clockwise round one pixel
    to_h = _next_edge(v_end, -v_sign, h_start, h_sign)  # down turns to left, up to right
    h_corner, v_corner = h_start.tolist(), v_start.tolist()
    polygons = []
    seen = bytearray(len(h_corner))
    for first in range(len(h_corner)):
        if seen[first]:
            continue
        corners = []
        edge = first
        while not seen[edge]:
            seen[edge] = True
            vertical = to_v[edge]
            corners += [h_corner[edge], v_corner[vertical]]
            edge = to_h[vertical]
        y, x = np.divmod(np.array(corners, np.int64), stride)
        if np.dot(x, np.roll(y, -1)) > np.dot(y, np.roll(x, -1)):  # clockwise, so the mask is inside: not a hole
            polygons.append(np.stack([x, y], axis=1).astype(np.float32))
    return polygons


def simplified(outline: NDArray[np.float32], tolerance: float) -> NDArray[np.float32]:
    """An outline with fewer corners (Douglas and Peucker).

    Args:
        outline: float32 (P, 2), not closed. tolerance: pixels by which the corners left out may lie beside it.

    Returns:
        float32 (Q, 2): a part of the corners, in their order. At least three, so that there is an area.
    """
    closed = np.concatenate([outline, outline[:1]]).astype(np.float64)
    keep = np.zeros(len(closed), bool)
    # From corner to corner of those farthest from each other, so that neither piece is a point.
    far = int(np.hypot(*(closed - closed[0]).T).argmax())
    keep[[0, far, -1]] = True
    pieces = [(0, far), (far, len(closed) - 1)]
    while pieces:
        first, last = pieces.pop()
        if last - first < 2:
            continue
        along, beside = closed[last] - closed[first], closed[first + 1 : last] - closed[first]
        distances = np.abs(along[0] * beside[:, 1] - along[1] * beside[:, 0]) / np.hypot(*along)
        place = int(distances.argmax())
        # The two halves of the outline must not become one line.
        if distances[place] > tolerance or keep.sum() == 3:
            middle = first + 1 + place
            keep[middle] = True
            pieces += [(first, middle), (middle, last)]
    return outline[keep[:-1]]


def _edge_runs(
    signs: NDArray[np.int8], *, step: int, line_step: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Straight pieces of outline: first and last corner in walking order, and direction (+1 or -1) of each."""
    lines, length = signs.shape
    padded = np.zeros((lines, length + 2), np.int8)
    padded[:, 1:-1] = signs
    flat = padded.ravel()
    breaks = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    sign = flat[breaks].astype(np.int64)
    begin, end = breaks[:-1][sign[:-1] != 0], breaks[1:][sign[:-1] != 0]
    sign = sign[:-1][sign[:-1] != 0]
    line = begin // (length + 2)
    low = line * line_step + (begin - line * (length + 2) - 1) * step
    high = line * line_step + (end - line * (length + 2) - 1) * step
    return np.where(sign > 0, low, high), np.where(sign > 0, high, low), sign


def _next_edge(
    ends: NDArray[np.int64], wanted: NDArray[np.int64], starts: NDArray[np.int64], signs: NDArray[np.int64]
) -> list[int]:
    """For each end corner the piece that starts there, the one of the wanted direction where two do."""
    keys = starts * 2 + (signs > 0)
    order = np.argsort(keys)
    if len(order) == 0:
        return []
    wished = ends * 2 + (wanted > 0)
    found = order[np.minimum(np.searchsorted(keys, wished, sorter=order), len(order) - 1)]
    other = order[np.minimum(np.searchsorted(keys, wished ^ 1, sorter=order), len(order) - 1)]
    return np.where(keys[found] == wished, found, other).tolist()


def _checked(mask: BoolArray) -> BoolArray:
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"expected a bool mask (H, W), got {mask.dtype} {mask.shape}; threshold probabilities first")
    return mask
