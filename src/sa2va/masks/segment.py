"""A segment: an object's masks, its phrase, and the model's confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sa2va.masks.mask import Mask

#: Scores below this are marked wherever a result is shown.
DOUBTFUL = 0.2


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
