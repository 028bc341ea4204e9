"""Looking at a picture again: closer at what was found, and by tiles for what is too small to be found at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from sa2va.inference.work import together
from sa2va.masks.mask import Mask, Segment, Size
from sa2va.results.answer import Answer

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
_AT_ONCE = 16
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
    if len(windows) < 2:
        return answer
    whole = (0, 0, size[1], size[0])
    seen = [_Seen(segment, whole, size) for segment in answer.segments]
    best, most = answer, -math.inf
    for first in range(0, len(windows), _AT_ONCE):
        for told, parts in await together([_asked(ask, window, size) for window in windows[first : first + _AT_ONCE]]):
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
