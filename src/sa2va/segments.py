"""From the decoder's logits to the masks a user gets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from sa2va.mask import Mask, Size
from sa2va.model.grounding import MaskPrediction, upsample_logits
from sa2va.results import Frame, Segment


def logit(probability: float) -> float:
    """The logit of a probability threshold.

    Raises:
        ValueError: not above 0 and below 1.
    """
    if not 0 < probability < 1:
        raise ValueError(f"threshold is a probability above 0 and below 1; got {probability}")
    return math.log(probability / (1 - probability))


def frame_segments(
    prediction: MaskPrediction,
    ids: Sequence[int],
    phrases: Sequence[str],
    *,
    side: int,
    size: Size,
    threshold: float,
    probabilities: bool,
) -> list[Segment]:
    """The objects of one frame; one mask at a time is at full resolution.

    Args:
        side: of the grounding image, pixels. size: (height, width) of the frame.
        threshold: probability above which a pixel belongs to the object.
        probabilities: keep float32 probabilities too.
    """
    cut = logit(threshold)
    scores, presences = prediction.iou.float().tolist(), prediction.presence.float().sigmoid().tolist()
    segments = []
    for row, (number, phrase) in enumerate(zip(ids, phrases, strict=True)):
        logits: Tensor = upsample_logits(prediction.logits[row : row + 1], side, size)
        mask = Mask.from_array((logits[0] > cut).cpu().numpy())
        kept = logits.sigmoid().cpu().numpy() if probabilities else None
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
    )
