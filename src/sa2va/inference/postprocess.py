"""From the decoder's logits to the masks a user gets.

The pixels that a low-resolution mask covers are computed only where there can be any ([`foreground`]). They equal, to
the bit, those of the whole of [`upsample_logits`], thresholded. Two bilinear steps are one linear map per axis, so a
pixel inside a box is a sum of three cells along each. These sums round in another order than torch's kernel does, which
changes a pixel only where its value is within that rounding of the threshold. The rounding is bounded; where a pixel is
closer than the bound, the whole picture is computed by torch. As matrix products the sums would be as fast, but the
threads of a BLAS then wait for the next one on a core that decoding and encoding need.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sa2va.inference.options import NO_CLEANUP, MaskPostprocessing
from sa2va.masks.mask import Mask, Segment, Size
from sa2va.model.finite import not_finite
from sa2va.model.mask_decoder import MaskPrediction, upsample_logits
from sa2va.results.answer import Frame

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

#: Two steps in torch round a value at most 8 times, two sums of at most four terms and their weights at most 12 times,
#: each by half a unit in the last place of the sum of magnitudes (2^-24); this is more than the sum of both.
_ROUNDING = 2.0**-19
#: torch resizes to less than this (height + width) with another kernel, whose weights are not those looked up here.
_SMALL = 128
#: So many pixels near the threshold are looked at one by one; a mask with more of them is flat there.
_MANY_CLOSE = 1000


def frame_segments(
    prediction: MaskPrediction,
    ids: Sequence[int],
    phrases: Sequence[str],
    *,
    side: int | None,
    size: Size,
    output: MaskPostprocessing,
) -> list[Segment]:
    """The objects of one frame; one mask at a time is at full resolution, and only where it is not empty.

    Args:
        side: of the grounding image, pixels; None as for [`upsample_logits`]. size: (height, width) of the frame.

    Raises:
        FloatingPointError: the prediction holds NaN or infinity.
    """
    # One transfer from the device for all three.
    is_finite = prediction.is_finite.float()
    numbers = torch.stack([prediction.iou.float(), prediction.presence.float().sigmoid(), is_finite])
    scores, presences, finite = numbers.tolist()
    if not all(finite):
        raise not_finite("SAM 2", prediction.candidates.dtype)
    segments = []
    for row, (number, phrase, logits) in enumerate(zip(ids, phrases, prediction.logits, strict=True)):
        mask = Mask.from_crop(*foreground(logits, side, size, output.cut), size)
        if output.cleanup != NO_CLEANUP:
            mask = output.mask(mask.array)
        kept = None
        if output.probabilities:
            kept = upsample_logits(logits[None], side, size).sigmoid().cpu().numpy()
        segments.append(Segment(number, phrase, (mask,), scores[row], presences[row], probabilities=kept))
    return segments


def clip_segments(frames: Iterable[Frame]) -> list[Segment]:
    """The objects of a whole clip: every mask, and the means of score and presence over its frames."""
    by_id: dict[int, list[Segment]] = {}
    for frame in frames:
        for segment in frame.segments:
            by_id.setdefault(segment.id, []).append(segment)
    return [_joined(parts) for parts in by_id.values()]


def _joined(parts: Sequence[Segment]) -> Segment:
    kept = [part.probabilities for part in parts if part.probabilities is not None]
    return Segment(
        id=parts[0].id,
        phrase=parts[0].phrase,
        masks=tuple(part.mask for part in parts),
        score=sum(part.score for part in parts) / len(parts),
        presence=sum(part.presence for part in parts) / len(parts),
        probabilities=np.concatenate(kept) if kept else None,
        color=parts[-1].color,  # none before the object was first seen
    )


def foreground(logits_ss: Tensor, side: int | None, size: tuple[int, int], cut: float) -> tuple[Bools, tuple[int, int]]:
    """Where ``upsample_logits(...) > cut``, as the part of the picture outside of which it is nowhere so.

    Args:
        logits_ss: finite low-resolution logits (s, s). side, size: as for [`upsample_logits`]. cut: a logit.

    Returns:
        bool (h, w), and the place (x, y) of its corner in the picture; (0, 0) pixels where the mask is empty.
    """
    if logits_ss.device.type == "cpu" and sum(size) > _SMALL and (side is None or side > _SMALL // 2):
        found = _inside_box(logits_ss.detach().float().numpy(), side, size, cut)
        if found is not None:
            return found
    return (upsample_logits(logits_ss[None], side, size)[0] > cut).cpu().numpy(), (0, 0)


def _inside_box(
    low: Floats, side: int | None, size: tuple[int, int], cut: float
) -> tuple[Bools, tuple[int, int]] | None:
    """See [`foreground`]; None where rounding could decide a pixel."""
    # No pixel is above all cells it is made from, save for rounding.
    cells = low > cut - _ROUNDING * (float(np.abs(low).max()) + abs(cut))
    rows, columns = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
    if len(rows) == 0:
        return np.zeros((0, 0), np.bool_), (0, 0)
    down, across = (_resampling(len(low), side, length) for length in size)
    y0, y1 = down.reach(int(rows[0]), int(rows[-1]))
    x0, x1 = across.reach(int(columns[0]), int(columns[-1]))
    (top, bottom), (left, right) = down.needs(y0, y1), across.needs(x0, x1)
    part = low[top:bottom, left:right]
    cells_y, by_row = down.cells[y0:y1] - top, down.weights[y0:y1]
    cells_x, by_column = across.cells[x0:x1] - left, across.weights[x0:x1]
    values = _summed(_summed(part.T, cells_x, by_column).T, cells_y, by_row)
    inside = values > cut
    values -= np.float32(cut)
    np.abs(values, out=values)
    magnitude = np.abs(part)
    close_y, close_x = np.nonzero(values <= _ROUNDING * (float(magnitude.max()) + abs(cut)))
    if len(close_y):
        if len(close_y) > _MANY_CLOSE:
            return None
        near = magnitude[cells_y[close_y, :, None], cells_x[close_x, None, :]]
        around = (by_row[close_y, :, None] * near * by_column[close_x, None, :]).sum(axis=(1, 2))
        if (values[close_y, close_x] <= _ROUNDING * (around + abs(cut))).any():
            return None
    return inside, (x0, y0)


def _summed(rows: Floats, cells: NDArray[np.intp], weights: Floats) -> Floats:
    """Rows (n, ...) as weighted sums of those that ``cells`` (n, k) names."""
    total = rows[cells[:, 0]] * weights[:, :1]
    for term in range(1, cells.shape[1]):
        part = rows[cells[:, term]]
        part *= weights[:, term : term + 1]
        total += part
    return total


@dataclass(frozen=True)
class _Resampling:
    """What the pixels of one axis are made from: each one's ``cells`` (n, k), ascending, and their ``weights``."""

    cells: NDArray[np.intp]
    weights: Floats

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """The pixels that some cells, both ends inclusive, have a part in: start and end."""
        start = np.searchsorted(self.cells[:, -1], first)
        return int(start), int(np.searchsorted(self.cells[:, 0], last, side="right"))

    def needs(self, start: int, end: int) -> tuple[int, int]:
        """The cells, start and end, that pixels are made from."""
        return int(self.cells[start, 0]), int(self.cells[end - 1, -1]) + 1


@lru_cache(maxsize=16)
def _resampling(cells: int, side: int | None, pixels: int) -> _Resampling:
    steps = [(cells, pixels)] if side is None else [(cells, side), (side, pixels)]
    weights = np.eye(cells)
    for step in steps:
        weights = _torch_weights(*step) @ weights
    counts = weights != 0
    # The cells that count come first; pixels of fewer than others repeat their last one, with weight 0.
    order = np.argsort(~counts, axis=1, kind="stable")[:, : counts.sum(axis=1).max()]
    last = cells - 1 - counts[:, ::-1].argmax(axis=1, keepdims=True)
    has_part = np.take_along_axis(counts, order, axis=1)
    taken = np.take_along_axis(weights, order, axis=1)
    return _Resampling(np.where(has_part, order, last), np.where(has_part, taken, 0).astype(np.float32))


def _torch_weights(cells: int, pixels: int) -> NDArray[np.float64]:
    """The weights (pixels, cells) that torch's bilinear kernel uses on this machine, to the bit: what it makes of ones.

    Its places between cells are rounded, and differently with and without fused multiply-add; so they are not computed
    here again.
    """
    height = max(1, _SMALL + 1 - pixels)  # not so small that the other kernel runs; the first row is that of the cells
    ones = torch.eye(cells)[:, None, None]
    resized = F.interpolate(ones, size=(height, pixels), mode="bilinear", align_corners=False)
    return resized[:, 0, 0].T.double().numpy()
