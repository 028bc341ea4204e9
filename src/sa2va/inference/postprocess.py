"""From the decoder's logits to the masks a user gets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Real

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sa2va.masks.mask import Mask, Segment, Size
from sa2va.masks.mask_ops import Cleanup
from sa2va.model.finite import not_finite
from sa2va.model.foreground import foreground
from sa2va.model.mask_decoder import MaskPrediction, upsample_logits
from sa2va.results.answer import Frame


@dataclass(frozen=True)
class MaskPostprocessing:
    """How logits become the masks of a result.

    Attributes:
        threshold: probability above which a pixel belongs to the object.
        probabilities: keep float32 probabilities next to the masks.
        cleanup: postprocessing of each mask; by default none.

    Raises:
        ValueError: the threshold is not between 0 and 1.
    """

    threshold: float = 0.5
    probabilities: bool = False
    cleanup: Cleanup = field(default_factory=Cleanup)

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, Real) or not 0 < self.threshold < 1:
            raise ValueError(f"threshold is a probability above 0 and below 1; got {self.threshold!r}")

    @property
    def cut(self) -> float:
        """The threshold as a logit."""
        return math.log(self.threshold / (1 - self.threshold))

    def mask(self, inside_HW: NDArray[np.bool_]) -> Mask:
        """Clean a bool array (H, W) up and encode it."""
        return Mask.from_array(self.cleanup.apply(inside_HW))


def frame_segments(
    prediction: MaskPrediction,
    ids: Sequence[int],
    phrases: Sequence[str],
    *,
    side: int,
    size: Size,
    output: MaskPostprocessing,
) -> list[Segment]:
    """The objects of one frame; one mask at a time is at full resolution, and only where it is not empty.

    Args:
        side: of the grounding image, pixels. size: (height, width) of the frame.

    Raises:
        FloatingPointError: the prediction holds NaN or infinity.
    """
    # One transfer from the device for all three.
    numbers = torch.stack([prediction.iou.float(), prediction.presence.float().sigmoid(), finite_rows(prediction)])
    scores, presences, finite = numbers.tolist()
    if not all(finite):
        raise not_finite("SAM 2", prediction.candidates.dtype)
    segments = []
    for row, (number, phrase, logits) in enumerate(zip(ids, phrases, prediction.logits, strict=True)):
        mask = Mask.from_crop(*foreground(logits, side, size, output.cut), size)
        if output.cleanup != Cleanup():
            mask = output.mask(mask.array)
        kept = None
        if output.probabilities:
            kept = upsample_logits(logits[None], side, size).sigmoid().cpu().numpy()
        segments.append(Segment(number, phrase, (mask,), scores[row], presences[row], probabilities=kept))
    return segments


def finite_rows(prediction: MaskPrediction) -> Tensor:
    """(N,) float32, 1 for predictions without NaN and infinity, else 0."""
    finite = prediction.logits.isfinite().flatten(1).all(dim=1)
    return (finite & prediction.iou.isfinite() & prediction.presence.isfinite()).float()


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
