"""Second looks at a picture, where they are asked for: each makes an answer's segments better, or more of them.

* ``zoom``: [`look_closer`] at what was found, and [`look_by_tiles`] for what is too small to be found at once.
* ``instances``: [`separate`] the objects that one mask holds: connected parts, each confirmed by SAM 2.
* ``refine="sam"``: a mask [`refined`]: its box, a point and its logits given to SAM 2's original decoder.
* ``refine="matting"``: a segment [`with_alpha`] for cut-outs, hair and blur at its edge, from VitMatte
  (arXiv 2305.15272).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sa2va.inference.engine import DecodeMarks, Matte, together
from sa2va.inference.point_prompts import BOX_CORNERS, INSIDE, Clicks
from sa2va.masks.mask import Mask, Segment, Size
from sa2va.masks.mask_ops import components, dilate, erode, innermost
from sa2va.model.mask_decoder import FrameFeatures, MaskPrediction
from sa2va.results.answer import Answer

# -- zoom --------------------------------------------------------------------------------------------------------------

#: A part of a picture: (x0, y0, x1, y1) in whole pixels, ends exclusive.
Box: TypeAlias = tuple[int, int, int, int]
#: Asks the same again about a part of the picture.
AskPart: TypeAlias = Callable[[Box], Coroutine[Any, Any, Answer]]

#: Around a box, in its longer sides, and the least side of a window as a share of the grounding image's.
_MARGIN, _LEAST_WINDOW = 0.75, 1 / 8
#: A window of more of the picture than this shows hardly more than the picture does.
_MOST_OF_PICTURE = 0.5
#: Side of a tile as a share of the grounding image's, by how much neighbours overlap, and how many there are at most:
#: tiles of a larger picture are larger.
_TILE, _OVERLAP, _MOST_TILES = 1 / 2, 1 / 4, 144
#: Tiles that are looked at side by side: each has features in memory.
_TILES_AT_ONCE = 16
#: Least IoU of two masks of one object, seen from afar and close; and how much of the smaller one lies in the other, in
#: what two windows share.
_SAME_CLOSER, _SAME_BESIDE = 0.2, 0.5


@dataclass(frozen=True)
class _Seen:
    """An object in pixels of the picture, and the window in which it was seen."""

    segment: Segment
    window: Box
    size: Size

    @property
    def is_whole(self) -> bool:
        """Whether the window does not cut the object."""
        box, (x0, y0, x1, y1) = self.segment.mask.box, self.window
        height, width = self.size
        if box is None:
            return True
        inside = (
            box[0] > x0 or x0 == 0,
            box[1] > y0 or y0 == 0,
            box[2] < x1 or x1 == width,
            box[3] < y1 or y1 == height,
        )
        return all(inside)

    @property
    def worth(self) -> float:
        return self.segment.score * self.segment.presence


async def look_closer(answer: Answer, size: Size, side: int, ask: AskPart) -> Answer:
    """The answer with each object as it is seen in a window around it, where it is found there again.

    Args:
        size: (height, width) of the picture. side: of the grounding image.
    """
    segments = answer.segments
    windows = [_window_around(segment, size, side) for segment in segments]
    found = await together([_asked(ask, window, size) for window in windows if window is not None])
    closer = iter(found)
    seen = [
        segment if window is None else _again(segment, [one.segment for one in next(closer)[1]])
        for segment, window in zip(segments, windows, strict=True)
    ]
    return replace(answer, segments=tuple(seen))


async def look_by_tiles(answer: Answer, size: Size, side: int, ask: AskPart, *, several: bool) -> Answer:
    """The answer with what tiles of a large picture show and the whole does not.

    Args:
        size: (height, width) of the picture. side: of the grounding image.
        several: all objects that are found, and not only the likeliest.
    """
    windows = tiles(size, side)
    if len(windows) == 1:
        return answer
    whole = (0, 0, size[1], size[0])
    seen = [_Seen(segment, whole, size) for segment in answer.segments]
    best, most = answer, -math.inf
    for first in range(0, len(windows), _TILES_AT_ONCE):
        for told, parts in await together(
            [_asked(ask, window, size) for window in windows[first : first + _TILES_AT_ONCE]]
        ):
            seen += parts
            worth = max((part.worth for part in parts), default=-math.inf)
            if worth > most:
                best, most = told, worth
    merged = sorted(_merged(seen), key=lambda one: -one.worth)
    merged = [one for one in merged if one.is_whole] or merged  # a piece that no other tile goes on with is no object
    segments = tuple(one.segment for one in (merged if several else merged[:1]))
    if answer.segments or not segments:
        return replace(answer, segments=segments)
    return replace(best, segments=segments, size=answer.size, history=best.history, origin=answer.origin)


def tiles(size: Size, side: int) -> list[Box]:
    """Windows that cover a picture, row by row; one where the models see it well as a whole.

    Args:
        size: (height, width) of the picture. side: of the grounding image.
    """
    height, width = size
    if max(size) <= side:
        return [(0, 0, width, height)]
    tile = side * _TILE
    while True:
        length = min(round(tile), *size)
        rows, columns = (_starts(extent, length) for extent in size)
        if len(rows) * len(columns) <= _MOST_TILES:
            return [(x, y, x + length, y + length) for y in rows for x in columns]
        tile *= 1.1


def _starts(extent: int, length: int) -> list[int]:
    """Where tiles begin along one side, evenly, neighbours overlapping by at least a share."""
    steps = math.ceil((extent - length) / (length * (1 - _OVERLAP)))
    return [round(step * (extent - length) / max(steps, 1)) for step in range(steps + 1)]


async def _asked(ask: AskPart, window: Box, size: Size) -> tuple[Answer, list[_Seen]]:
    answer = await ask(window)
    return answer, [_Seen(_in_picture(segment, window, size), window, size) for segment in answer.segments]


def _window_around(segment: Segment, size: Size, side: int) -> Box | None:
    """A square around an object, as far as there is picture; None if it is hardly smaller than the picture."""
    box = segment.mask.box
    if box is None:
        return None
    length = max(box[2] - box[0], box[3] - box[1])
    wanted = max(length * (1 + 2 * _MARGIN), side * _LEAST_WINDOW)
    (x0, x1), (y0, y1) = (
        _span((box[axis] + box[axis + 2]) / 2, wanted, extent) for axis, extent in ((0, size[1]), (1, size[0]))
    )
    return (x0, y0, x1, y1) if (x1 - x0) * (y1 - y0) <= _MOST_OF_PICTURE * size[0] * size[1] else None


def _span(middle: float, length: float, extent: int) -> tuple[int, int]:
    whole = min(math.ceil(length), extent)
    start = min(max(round(middle - whole / 2), 0), extent - whole)
    return start, start + whole


def _in_picture(segment: Segment, window: Box, size: Size) -> Segment:
    """A segment of a part of a picture in the picture."""
    x0, y0, x1, y1 = window

    def placed(part: np.ndarray) -> np.ndarray:
        whole = np.zeros((*part.shape[:-2], *size), part.dtype)
        whole[..., y0:y1, x0:x1] = part
        return whole

    kept = None if segment.probabilities is None else placed(segment.probabilities)
    return replace(segment, masks=(Mask.from_array(placed(segment.mask.array)),), span=None, probabilities=kept)


def _again(segment: Segment, others: Sequence[Segment]) -> Segment:
    """The object as it was seen again, or as before."""
    best = max(others, key=lambda other: segment.mask.iou(other.mask), default=None)
    if best is None or segment.mask.iou(best.mask) < _SAME_CLOSER:
        return segment
    return replace(best, id=segment.id, phrase=segment.phrase, span=segment.span)


def _merged(seen: Sequence[_Seen]) -> list[_Seen]:
    """Each object once, the surest first: as a window shows it that does not cut it, else joined."""
    kept: list[_Seen] = []
    for one in sorted(seen, key=lambda one: (-one.is_whole, -one.worth)):
        place = next((place for place, other in enumerate(kept) if _is_same(one, other)), None)
        if place is None:
            kept.append(one)
        elif not kept[place].is_whole:
            kept[place] = _joined(kept[place], one)
    return kept


def _is_same(one: _Seen, other: _Seen) -> bool:
    """Whether two windows show the same object in what they share."""
    x0, y0 = max(one.window[0], other.window[0]), max(one.window[1], other.window[1])
    x1, y1 = min(one.window[2], other.window[2]), min(one.window[3], other.window[3])
    if x0 >= x1 or y0 >= y1:
        return False
    here, there = (seen.segment.mask.crop((x0, y0, x1, y1)) for seen in (one, other))
    return bool((here & there).sum() >= _SAME_BESIDE * max(1, min(here.sum(), there.sum())))


def _joined(one: _Seen, other: _Seen) -> _Seen:
    first, second = one.segment, other.segment
    kept = None
    if first.probabilities is not None and second.probabilities is not None:
        kept = np.maximum(first.probabilities, second.probabilities)
    window = (
        min(one.window[0], other.window[0]),
        min(one.window[1], other.window[1]),
        max(one.window[2], other.window[2]),
        max(one.window[3], other.window[3]),
    )
    return _Seen(replace(first, masks=(first.mask | second.mask,), probabilities=kept), window, one.size)


# -- instances ---------------------------------------------------------------------------------------------------------

#: Least area of a part: pixels, and as a share of the largest one's.
_LEAST_PIXELS, _LEAST_SHARE = 16, 0.02
#: What SAM 2 sees must fill this much of the part it was clicked in, and lie in the phrase's mask by that much.
_FILLS, _INSIDE = 0.25, 0.2
#: It is cut out of the part if it fills this much of it; so no part loses most of itself to one look.
_CUTS = 0.5
#: Two of its masks with this IoU are one object.
_SAME = 0.8
#: SAM 2's masks may miss an object's edge by this share of the root of their area.
_RIM = 0.1
#: Objects that touch come off one by one, at most so many of one part.
_ROUNDS = 8
#: Parts that are decoded at once.
_PARTS_AT_ONCE = 16


@dataclass
class _Object:
    """What SAM 2 sees, bool (H, W), with its scores; and the pixels of the phrase's mask that belong to it."""

    seen: np.ndarray
    score: float
    presence: float
    mask: np.ndarray


async def separate(segment: Segment, features: FrameFeatures, side: int, *, original: bool) -> list[Segment]:
    """One segment for each object of a mask, in reading order; the segment itself where none is confirmed.

    SAM 2 is clicked in the middle of each connected part (and given its box, where its original decoder is there).
    Parts in which it sees the same object belong together, and what the object leaves of a part is another's.

    Args:
        features: of the picture. side: of the grounding image. original: the model has SAM 2's original decoder.
    """
    mask = segment.mask.array
    left, found = mask, list[_Object]()
    for _ in range(_ROUNDS):
        parts, left = _parts(left), np.zeros_like(mask)
        for first in range(0, len(parts), _PARTS_AT_ONCE):
            chunk = parts[first : first + _PARTS_AT_ONCE]
            prediction = await DecodeMarks(features, *_prompts(chunk, side, with_box=original), original=original)
            for row, part in enumerate(chunk):
                one = _confirmed(prediction[row : row + 1], part, mask)
                if one is None:
                    continue
                left |= part & ~one.mask
                same = next((other for other in found if _iou(one.seen, other.seen) > _SAME), None)
                if same is None:
                    found.append(one)
                else:
                    same.mask |= one.mask
        if not left.any():
            break
    if not found:
        return [segment]
    return [_instance(segment, one) for one in sorted(found, key=lambda one: int(np.flatnonzero(one.mask)[0]))]


def _parts(mask: np.ndarray) -> list[np.ndarray]:
    """Connected parts, bool (H, W) each, from the largest on, without specks."""
    labels, count = components(mask, connectivity=8)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    least = max(_LEAST_PIXELS, _LEAST_SHARE * areas.max(initial=0))
    return [labels == number + 1 for number in np.argsort(-areas, kind="stable") if areas[number] >= least]


def _prompts(parts: list[np.ndarray], side: int, *, with_box: bool) -> tuple[Tensor, Tensor]:
    """A click in the middle of each part, and its box."""
    clicks = [
        Clicks.of(Mask.from_array(part).box if with_box else None, [innermost(part)]).tensors(part.shape[:2], side)
        for part in parts
    ]
    points, labels = zip(*clicks, strict=True)
    return torch.cat(points), torch.cat(labels)


def _confirmed(prediction: MaskPrediction, part: np.ndarray, mask: np.ndarray) -> _Object | None:
    """The object that SAM 2 sees in a part of a mask, if there is one."""
    candidates = (prediction.candidates[0] > 0).float()
    area = torch.from_numpy(part).to(candidates)[None, None]
    covered = F.interpolate(area, size=candidates.shape[-2:], mode="area")[0, 0]
    shared = torch.minimum(candidates, covered).sum(dim=(1, 2))
    best = int((shared / torch.maximum(candidates, covered).sum(dim=(1, 2))).argmax())
    logits = prediction.candidates[0, best][None, None].float()
    seen = (F.interpolate(logits, size=part.shape, mode="bilinear", align_corners=False)[0, 0] > 0).cpu().numpy()
    filled = (seen & part).sum() / part.sum()
    if prediction.presence[0] <= 0 or filled < _FILLS or (seen & mask).sum() < _INSIDE * seen.sum():
        return None
    own = part & dilate(seen, max(1.0, _RIM * float(seen.sum()) ** 0.5)) if filled >= _CUTS else part
    presence = prediction.presence[0].float().sigmoid().item()
    return _Object(seen, prediction.ious[0, best].float().item(), presence, own)


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def _instance(segment: Segment, one: _Object) -> Segment:
    kept = None if segment.probabilities is None else segment.probabilities * one.mask
    mask = Mask.from_array(one.mask)
    return replace(segment, masks=(mask,), score=one.score, presence=one.presence, probabilities=kept)


# -- refinement --------------------------------------------------------------------------------------------------------


async def refined(features: FrameFeatures, prediction: MaskPrediction, side: int) -> MaskPrediction:
    """A picture's masks as SAM 2's original decoder draws them, with its scores; empty masks stay as they are.

    Whether an object is there is for the decoder that has heard of it to say: ``presence`` stays.

    Args:
        side: of the grounding image.
    """
    logits = prediction.logits
    inside = (logits > 0).cpu().numpy()
    rows = [row for row, mask in enumerate(inside) if mask.any()]
    if not rows:
        return prediction
    cell = side / inside.shape[1]
    points = torch.tensor(np.stack([_box_and_point(inside[row]) for row in rows]) * cell, dtype=torch.float32)
    labels = torch.tensor([[*BOX_CORNERS, INSIDE]] * len(rows))
    again = await DecodeMarks(features, points, labels, logits_KHW=logits[rows], original=True)
    masks, scores = logits.clone(), prediction.iou.clone()
    masks[rows], scores[rows] = again.logits, again.iou
    return replace(prediction, candidates=masks[:, None], ious=scores[:, None], best=torch.zeros_like(prediction.best))


def _box_and_point(mask: np.ndarray) -> np.ndarray:
    """Corners of a mask's box and a pixel inside it, (3, 2) in (x, y)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = innermost(mask)
    return np.array([(columns[0], rows[0]), (columns[-1] + 1, rows[-1] + 1), (x + 0.5, y + 0.5)])


# -- matting -----------------------------------------------------------------------------------------------------------

#: Half the width of the edge that is unknown, as a share of the root of an object's area, and its limits in pixels.
_EDGE, _LEAST_EDGE, _MOST_EDGE = 0.04, 2.0, 32.0
#: Around an object, in widths of its edge; and the longer side of what VitMatte sees, pixels.
_AROUND_EDGE, _LONGEST = 4, 1024


async def with_alpha(image: Image.Image, segment: Segment, weights: str) -> Segment:
    """A segment of a picture with ``alpha``: 1 well inside its mask, 0 well outside, and VitMatte's opacity between."""
    mask = segment.mask.array
    edge = min(max(_LEAST_EDGE, _EDGE * float(mask.sum()) ** 0.5), _MOST_EDGE)
    sure, possible = erode(mask, edge), dilate(mask, edge)
    alpha = sure.astype(np.float32)
    unknown = possible & ~sure
    if unknown.any():
        x0, y0, x1, y1 = window = _window_of(possible, round(_AROUND_EDGE * edge))
        trimap = Image.fromarray((sure * np.uint8(255) + unknown * np.uint8(128))[y0:y1, x0:x1])
        found = await _matted(image.crop(window), trimap, weights)
        alpha[y0:y1, x0:x1][unknown[y0:y1, x0:x1]] = found[unknown[y0:y1, x0:x1]]
    return replace(segment, alpha=alpha)


async def _matted(image: Image.Image, trimap: Image.Image, weights: str) -> np.ndarray:
    """VitMatte's opacity, float32 (H, W); of a large part it sees a smaller picture."""
    scale = min(1.0, _LONGEST / max(image.size))
    width, height = (max(1, round(length * scale)) for length in image.size)
    size = (width, height)
    small, seen = image.resize(size, Image.Resampling.BILINEAR), trimap.resize(size, Image.Resampling.NEAREST)
    alpha = (await Matte(small, seen, weights)).cpu().numpy()
    return np.asarray(Image.fromarray(alpha).resize(image.size, Image.Resampling.BILINEAR))


def _window_of(mask: np.ndarray, margin: int) -> tuple[int, int, int, int]:
    """The box (x0, y0, x1, y1) of a mask with a margin, inside the picture."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return (
        max(int(columns[0]) - margin, 0),
        max(int(rows[0]) - margin, 0),
        min(int(columns[-1]) + 1 + margin, width),
        min(int(rows[-1]) + 1 + margin, height),
    )
