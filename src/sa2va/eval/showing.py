"""Pictures of single answers: the prediction drawn over its picture or over a few frames, the truth beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sa2va.draw import contact_sheet, overlay
from sa2va.eval.benchmark import Benchmark, Expected, Explains, Item, Prediction, Query
from sa2va.mask import Mask
from sa2va.processing.frames import uniform_indices
from sa2va.processing.media import is_video, load_image, open_media
from sa2va.results import Segment

#: Longest side of one picture, pixels, and frames shown of a clip.
SIDE = 360
FRAMES = 4


@dataclass(frozen=True)
class Sample:
    """One answer as a reader sees it.

    Attributes:
        id, request, answer: of the query. expected: the right answer in words, "" where there is none.
        score: higher is better. ours, truth: pictures; None where there is nothing to see.
    """

    id: str
    request: str
    answer: str
    expected: str
    score: float
    ours: Image.Image | None
    truth: Image.Image | None


def extremes(scores: Mapping[str, float], count: int) -> tuple[list[str], list[str]]:
    """Ids of the worst and of the best samples, worst and best first; none is in both."""
    order = sorted(scores, key=lambda one: (scores[one], one))
    worst = order[: min(count, len(order) // 2)]
    best = sorted(order[len(worst) :], key=lambda one: (-scores[one], one))[:count]
    return worst, best


def show(
    benchmark: Benchmark, predictions: Mapping[str, Prediction], scores: Mapping[str, float], wanted: Sequence[str]
) -> list[Sample]:
    """The wanted queries as samples, in their order. Raises ValueError when the media cannot be read."""
    found: dict[str, Sample] = {}
    for item in benchmark.items():
        own = [query for query in item.queries if query.id in wanted]
        media = _media(item) if own else None
        for query in own:
            truth = benchmark.expected(query.id) if isinstance(benchmark, Explains) else Expected()
            found[query.id] = _sample(media, query, predictions[query.id], truth, scores[query.id])
    return [found[one] for one in wanted]


def _sample(media: Any, query: Query, prediction: Prediction, truth: Expected, score: float) -> Sample:
    marked = () if query.region is None else ((Mask.from_array(query.region),),)
    ours = _picture(media, marked or prediction.masks, prediction.phrases)
    masks_matter = bool(truth.masks or prediction.masks) and not marked
    theirs = _picture(media, truth.masks, ()) if masks_matter else None
    return Sample(query.id, query.text, prediction.text, truth.text, score, ours, theirs)


def _media(item: Item) -> Any:
    media = item.media() if callable(item.media) else item.media
    return list(media) if isinstance(media, tuple) else media


def _picture(media: Any, masks: Sequence[Sequence[Mask]], phrases: Sequence[str]) -> Image.Image | None:
    """Masks over a picture, or over some frames of a clip side by side; None for words alone."""
    if media is None:
        return None
    if not is_video(media):
        return _small(_drawn(load_image(media), masks, phrases, 0))
    source = open_media(media)
    indices = uniform_indices(source.frame_count or 1, FRAMES)
    frames = source.read(indices)
    drawn = [_small(_drawn(frame, masks, phrases, index)) for frame, index in zip(frames, indices, strict=True)]
    return contact_sheet(drawn, columns=len(drawn))


def _drawn(
    picture: Image.Image | np.ndarray, masks: Sequence[Sequence[Mask]], phrases: Sequence[str], frame: int
) -> Image.Image:
    segments = [
        Segment(number, phrases[number - 1] if number <= len(phrases) else "", (own[frame],), 0.0, 0.0)
        for number, own in enumerate(masks, 1)
    ]
    return overlay(picture, segments, labels=any(segment.phrase for segment in segments))


def _small(picture: Image.Image) -> Image.Image:
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
