"""Masks and the objects they show: binary masks as COCO run lengths, and segments, which name and score them.

Run lengths are checked here because pycocotools trusts them.

COCO's runs alternate background, foreground, ... down the columns. Each is written in base 32, least significant digit
first, as characters from "0" on, bit 5 meaning "more follows"; from the fourth run on, as the difference to two before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from sa2va.masks.mask_ops import outlines, simplified
from sa2va.untrusted import STUMBLES

Size = tuple[int, int]

# A few bytes can claim any size; this is far above any picture and keeps a hostile file from filling the memory.
MAX_PIXELS = 2**28
#: Scores below this are marked wherever a result is shown.
DOUBTFUL = 0.2


class Rle(TypedDict):
    """COCO's compressed RLE: ``size`` is [height, width], ``counts`` its text."""

    size: list[int]
    counts: str


@dataclass(frozen=True, repr=False)
class Mask:
    """A binary mask, stored as canonical RLE: masks with equal pixels are equal and have equal hashes.

    Attributes:
        size: (height, width) in pixels.
        counts: COCO's compressed run lengths. Build masks with [`from_array`] or [`from_rle`], which check them.

    Examples:
        >>> import numpy as np
        >>> from sa2va import Mask
        >>> left, top = np.zeros((2, 4, 6), bool)
        >>> left[:, :3] = top[:2] = True
        >>> mask, other = Mask.from_array(left), Mask.from_array(top)
        >>> mask.area, mask.box
        (12, (0.0, 0.0, 3.0, 4.0))
        >>> round(mask.iou(other), 3)
        0.333
        >>> mask | other
        Mask(4x6, area=18)
        >>> Mask.from_rle(mask.rle) == mask
        True
    """

    size: Size
    counts: str

    @classmethod
    def from_array(cls, array: NDArray[np.bool_]) -> Mask:
        """Encode a bool array (H, W).

        Raises:
            ValueError: another dtype or number of axes, or an empty array.
        """
        if array.dtype != np.bool_ or array.ndim != 2 or array.size == 0:
            raise ValueError(
                f"expected a non-empty bool array (H, W), got {array.dtype} {array.shape}; "
                "threshold probabilities first, e.g. Mask.from_array(probabilities > 0.5)"
            )
        height, width = array.shape
        return cls((height, width), _encode(array))

    @classmethod
    def from_crop(cls, part: NDArray[np.bool_], corner: tuple[int, int], size: Size) -> Mask:
        """Encode a mask that is empty outside a part of it: the inverse of [`crop`].

        Args:
            part: bool (h, w); may have no pixels, for an empty mask. corner: its place (x, y) in the picture.
            size: (height, width) of the picture.

        Raises:
            ValueError: another dtype or number of axes, or a part that reaches over the picture's edge.
        """
        (x, y), (height, width) = corner, size
        if part.dtype != np.bool_ or part.ndim != 2 or height < 1 or width < 1:
            raise ValueError(f"expected a bool array (h, w) of a picture, got {part.dtype} {part.shape} of {size}")
        if min(x, y) < 0 or y + part.shape[0] > height or x + part.shape[1] > width:
            raise ValueError(f"expected a part inside the picture (h, w) {size}, got {part.shape} at (x, y) {corner}")
        return cls((height, width), _encode_part(part, corner, (height, width)))

    @classmethod
    def from_rle(cls, record: Mapping[str, Any]) -> Mask:
        """Read ``{"size": [h, w], "counts": ...}``, the counts compressed text or a list of run lengths.

        Raises:
            ValueError: the record is malformed, or its runs do not add up to its size.
        """
        try:
            height, width = (int(n) for n in record["size"])
            counts = record["counts"]
        except STUMBLES as error:
            raise ValueError(f'expected {{"size": [h, w], "counts": ...}}, got {_shown(record)}') from error
        return cls((height, width), _canonical((height, width), counts))

    @property
    def rle(self) -> Rle:
        """COCO's compressed RLE, ready for JSON and pycocotools."""
        return {"size": list(self.size), "counts": self.counts}

    @property
    def array(self) -> NDArray[np.bool_]:
        """The pixels, decoded into a new bool array (H, W)."""
        return _decode(self.size, self.counts)

    def crop(self, box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
        """The pixels inside a box, bool (y1 - y0, x1 - x0).

        Only the columns of the box are decoded.

        Args:
            box: (x0, y0, x1, y1) in whole pixels, ends exclusive, inside the image.
        """
        x0, y0, x1, y1 = box
        height = self.size[0]
        ends = np.clip(np.cumsum(_parse(self.counts)), x0 * height, x1 * height)
        return _paint((height, x1 - x0), np.diff(ends, prepend=x0 * height))[y0:y1]

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(coco.area(cast(Any, self.rle)))

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """The bounding box (x0, y0, x1, y1), ends exclusive; None for an empty mask."""
        x, y, width, height = (float(n) for n in coco.toBbox(cast(Any, self.rle)))
        return (x, y, x + width, y + height) if width and height else None

    def polygons(self, tolerance: float = 0.0) -> list[NDArray[np.float32]]:
        """The outer outlines: float32 (P, 2) arrays of (x, y) between pixels, so that (0, 0) is the image's corner.

        They follow the pixels exactly, but polygons cannot have holes: those are filled.

        Args:
            tolerance: pixels by which they may miss the edge instead, to have fewer corners; 1 suits people who
                correct them by hand.
        """
        found = outlines(self.array)
        return [simplified(outline, tolerance) for outline in found] if tolerance else found

    def iou(self, other: Mask) -> float:
        """Intersection over union, 0..1; 1 if both are empty. Raises ValueError if the sizes differ."""
        self._check_size(other)
        if self.area == 0 and other.area == 0:
            return 1.0
        return float(coco.iou([cast(Any, self.rle)], [cast(Any, other.rle)], [False])[0][0])

    def __or__(self, other: Mask) -> Mask:
        """The union. Raises ValueError if the sizes differ."""
        self._check_size(other)
        merged = coco.merge([cast(Any, self.rle), cast(Any, other.rle)])
        return Mask(self.size, cast(bytes, merged["counts"]).decode("ascii"))

    def _check_size(self, other: Mask) -> None:
        if self.size != other.size:
            raise ValueError(f"expected two masks of one picture, got sizes (h, w) {self.size} and {other.size}")

    def __repr__(self) -> str:
        return f"Mask({self.size[0]}x{self.size[1]}, area={self.area})"


@dataclass(frozen=True, repr=False)
class Segment:
    """An object: its masks, the phrase that names it, and the model's confidence.

    Attributes:
        id: stable within an answer or a track.
        phrase: the words that name it; "" if there are none.
        masks: one per frame; an image has one.
        score: the model's own estimate of the mask's IoU, 0..1.
        presence: probability that the object is visible at all, 0..1.
        span: start and (exclusive) end of the phrase in ``Answer.text``, in characters.
        probabilities: float32 (T, H, W), 0..1, if they were asked for. Not in JSON, and ignored in comparisons.
        alpha: float32 (H, W), 0..1, opacity for cut-outs, if ``refine="matting"`` has asked for it. Not in JSON, and
            ignored in comparisons.
        color: RGB, 0..255, in which every output shows the object; None until it is first seen. Ignored in comparisons.

    Raises:
        ValueError: no masks, masks of different sizes, or a score that is not finite.

    Examples:
        >>> import numpy as np
        >>> from sa2va import Mask, Segment
        >>> mask = Mask.from_array(np.ones((4, 6), bool))
        >>> segment = Segment(id=1, phrase="the dog", masks=(mask,), score=0.12, presence=0.97)
        >>> segment.mask.area
        24
        >>> segment.doubtful
        True
    """

    id: int
    phrase: str
    masks: tuple[Mask, ...]
    score: float
    presence: float
    span: tuple[int, int] | None = None
    probabilities: NDArray[np.float32] | None = field(default=None, compare=False)
    alpha: NDArray[np.float32] | None = field(default=None, compare=False)
    color: tuple[int, int, int] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.masks or any(mask.size != self.masks[0].size for mask in self.masks):
            raise ValueError(f"expected one or more masks of one size, got {[mask.size for mask in self.masks]}")
        if not (math.isfinite(self.score) and math.isfinite(self.presence)):
            raise ValueError(f"expected finite scores, got score {self.score} and presence {self.presence}")

    @property
    def mask(self) -> Mask:
        """The mask of an image's segment. Raises ValueError if the segment spans several frames."""
        if len(self.masks) != 1:
            raise ValueError(f"expected a segment of one picture, got {len(self.masks)} frames; use .masks[frame]")
        return self.masks[0]

    @property
    def doubtful(self) -> bool:
        """Whether the model itself has little confidence in the masks: a score below 0.2."""
        return self.score < DOUBTFUL

    def __repr__(self) -> str:
        return (
            f"Segment(id={self.id}, phrase={self.phrase!r}, score={self.score:.2f}, presence={self.presence:.2f}, "
            f"masks={len(self.masks)})"
        )


def segment_record(segment: Segment) -> dict[str, Any]:
    """A segment as JSON-ready values; the schema is in ``Answer.to_json``."""
    single = segment.masks[0] if len(segment.masks) == 1 else None
    return {
        "id": int(segment.id),
        "phrase": segment.phrase,
        "span": segment.span,
        "score": float(segment.score),
        "presence": float(segment.presence),
        "box": single.box if single else None,
        "area": single.area if single else None,
        "color": segment.color,
        "masks": [mask.rle for mask in segment.masks],
    }


def segment_from_record(record: dict[str, Any]) -> Segment:
    """The inverse of ``segment_record``; ``box`` and ``area`` are derived again, not trusted."""
    return Segment(
        id=record["id"],
        phrase=record["phrase"],
        masks=tuple(Mask.from_rle(mask) for mask in record["masks"]),
        score=record["score"],
        presence=record["presence"],
        span=_pair(record["span"]),
        color=_color(record.get("color")),  # JSON of earlier versions has none
    )


def _pair(values: list[int] | None) -> tuple[int, int] | None:
    if values is None:
        return None
    first, second = values
    return first, second


def _color(values: list[int] | None) -> tuple[int, int, int] | None:
    if values is None:
        return None
    red, green, blue = map(int, values)
    return red, green, blue


def _encode(mask: NDArray[np.bool_]) -> str:
    """Compressed runs of a bool (H, W) mask; only the box of the object is read twice."""
    columns = np.flatnonzero(mask.any(axis=0))
    left, right = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
    rows = np.flatnonzero(mask[:, left:right].any(axis=1))
    top, bottom = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
    return _encode_part(mask[top:bottom, left:right], (left, top), (mask.shape[0], mask.shape[1]))


def _encode_part(part: NDArray[np.bool_], corner: tuple[int, int], size: Size) -> str:
    """Compressed runs of a mask that is empty outside a part (h, w), whose corner is at (x, y)."""
    (x, y), height, rows = corner, size[0], len(part)
    # Down the columns, each closed by an empty pixel where there is one below or above.
    stride = rows + (rows < height)
    down = np.zeros((part.shape[1], stride), np.bool_)
    down[:, :rows] = part.T
    flat = down.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if len(flat) and flat[0]:
        changes = np.concatenate([[0], changes])
    if len(flat) and flat[-1]:
        changes = np.append(changes, len(flat))
    column, row = np.divmod(changes, stride)
    return _compressed((x + column) * height + y + row, size)


def _compressed(changes: NDArray[np.int64], size: Size) -> str:
    """COCO's text of runs that end at these pixels, ascending, each once."""
    pixels = size[0] * size[1]
    runs = np.diff(changes[changes < pixels], prepend=0, append=pixels)
    record = coco.frPyObjects(cast(Any, {"size": list(size), "counts": runs}), *size)
    return cast(bytes, record["counts"]).decode("ascii")


def _decode(size: tuple[int, int], counts: str) -> NDArray[np.bool_]:
    """The bool (H, W) mask, C-contiguous, of runs that are known to be sound."""
    # Not pycocotools: its decoder warns under NumPy 2, and is no faster.
    return np.ascontiguousarray(_paint(size, _parse(counts)))


def _paint(size: tuple[int, int], runs: NDArray[np.int64]) -> NDArray[np.bool_]:
    height, width = size
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _canonical(size: tuple[int, int], counts: str | bytes | list[int]) -> str:
    """The one spelling of these runs that ``_encode`` would give, so that equal masks have equal text.

    Args:
        size: (height, width) in pixels.
        counts: compressed text, or the plain list of runs.

    Raises:
        ValueError: a size that no picture has, malformed text, or runs that do not add up to the size.
    """
    height, width = size
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"expected a mask size of 1 to {MAX_PIXELS} pixels, got {height} x {width}")
    pixels = height * width
    runs = _plain(counts) if isinstance(counts, list) else _parse(counts)
    # Each run is bounded before they are summed: a sum of hostile numbers could wrap round to the right one.
    if ((runs < 0) | (runs > pixels)).any() or runs.sum() != pixels:
        raise ValueError(f"expected RLE runs that add up to {height} x {width} = {pixels} pixels, got {_shown(counts)}")
    # An empty run joins those before and after it: what ends twice at one pixel does not end there.
    ends, times = np.unique(np.cumsum(runs), return_counts=True)
    return _compressed(ends[times % 2 == 1], size)


def _shown(value: object) -> str:
    """A value for an error message, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plain(counts: list[int]) -> NDArray[np.int64]:
    runs = np.asarray(counts)
    if runs.ndim != 1 or not (np.issubdtype(runs.dtype, np.integer) or len(runs) == 0):
        raise ValueError(f"expected a list of whole run lengths, got {_shown(counts)}")
    return runs.astype(np.int64)


def _parse(counts: str | bytes) -> NDArray[np.int64]:
    if not isinstance(counts, str | bytes):
        raise ValueError(f"expected COCO RLE text or a list of runs, got {_shown(counts)}")
    raw = counts.encode("utf-8", "replace") if isinstance(counts, str) else counts
    digits = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if ((digits < 0) | (digits > 63)).any() or (len(digits) and digits[-1] & 32):
        raise ValueError(f"expected COCO compressed RLE text, got {_shown(counts)}")
    last = np.flatnonzero(digits & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    place = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    if len(place) and place.max() > 6:
        raise ValueError(f"expected COCO compressed RLE text, got a run of more than 35 bits in {_shown(counts)}")
    if len(first) == 0:
        return np.zeros(0, np.int64)
    values = np.add.reduceat((digits & 31) << (5 * place), first)
    values -= np.where(digits[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
