"""Images of single answers for the report: predicted and true masks in an image or a few frames.

What no mask covers is faded, so that a mask is seen whatever the colour of its object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sa2va.eval.benchmark import Benchmark, Expected, Explains, Item, Prediction, Query
from sa2va.masks.mask import Mask, Segment
from sa2va.media.frames import uniform_indices
from sa2va.media.open import Picture, load_image, open_media
from sa2va.visualization.colors import ObjectColors
from sa2va.visualization.overlay import overlay

#: Longest side of one picture and of a frame, pixels; frames shown of a clip, and pixels between them.
SIDE, FRAME_SIDE = 360, 240
FRAMES = 4
_GAP = 6
#: What is not meant goes this far towards grey; several masks are tinted, so that they can be told apart.
_FADED, _TINT = 0.7, 0.3
_GREY = (128, 128, 128)


@dataclass(frozen=True)
class SampleImage:
    """One answer as a reader sees it.

    Attributes:
        id, request, answer: of the query. before: the turns it follows, "" where it is the first.
        expected: the right answer in words, "" where there is none.
        score: higher is better. ours, truth: pictures; None where there is nothing to see.
        labelled: whether there are words in the pictures, which must not become too small to read.
    """

    id: str
    before: str
    request: str
    answer: str
    expected: str
    score: float
    ours: Image.Image | None
    truth: Image.Image | None
    labelled: bool = False


def extremes(scores: Mapping[str, float], count: int) -> tuple[list[str], list[str]]:
    """Ids of the worst and of the best samples, worst and best first; none is in both."""
    order = sorted(scores, key=lambda one: (scores[one], one))
    worst = order[: min(count, len(order) // 2)]
    best = sorted(order[len(worst) :], key=lambda one: (-scores[one], one))[:count]
    return worst, best


def show(
    benchmark: Benchmark, predictions: Mapping[str, Prediction], scores: Mapping[str, float], wanted: Sequence[str]
) -> list[SampleImage]:
    """The wanted queries as samples, in their order. Raises ValueError when the media cannot be read."""
    found: dict[str, SampleImage] = {}
    for item in benchmark.items():
        own = [query for query in item.queries if query.id in wanted]
        media = _media(item) if own else None
        for query in own:
            truth = benchmark.expected(query.id) if isinstance(benchmark, Explains) else Expected()
            found[query.id] = _sample(media, query, predictions[query.id], truth, scores[query.id])
    return [found[one] for one in wanted]


def _sample(media: Any, query: Query, prediction: Prediction, truth: Expected, score: float) -> SampleImage:
    before = " / ".join(f"{turn.question} - {turn.answer}" for turn in query.history)
    words = (query.id, before, query.text, prediction.text, truth.text, score)
    colors = ObjectColors()
    if query.region is not None:
        return SampleImage(*words, _picture(media, ((Mask.from_array(query.region),),), colors), None)
    if not truth.masks and not prediction.masks:
        return SampleImage(*words, _picture(media, None, colors), None)
    labelled = media is not None and any(prediction.phrases)
    ours = _picture(media, prediction.masks, colors, prediction.phrases)
    return SampleImage(*words, ours, _picture(media, truth.masks, colors), labelled)


def _media(item: Item) -> Any:
    media = item.media() if callable(item.media) else item.media
    return list(media) if isinstance(media, tuple) else media


def _picture(
    media: Any, masks: Sequence[Sequence[Mask]] | None, colors: ObjectColors, phrases: Sequence[str] = ()
) -> Image.Image | None:
    """What masks point at in a picture, or in some frames of a clip side by side; None for words alone.

    Args:
        masks: per object, per frame; None where nothing is to be pointed at.
        colors: of the objects, kept from frame to frame and from our masks to the true ones.
    """
    if media is None:
        return None
    source = open_media(media)
    if isinstance(source, Picture):
        return _drawn(source.image, masks, phrases, 0, SIDE, colors)
    indices = uniform_indices(source.frame_count or 1, FRAMES)
    frames = zip(source.read(indices), indices, strict=True)
    shown = [_drawn(load_image(frame), masks, phrases, index, FRAME_SIDE, colors) for frame, index in frames]
    return _side_by_side(shown)


def _drawn(
    picture: Image.Image,
    masks: Sequence[Sequence[Mask]] | None,
    phrases: Sequence[str],
    frame: int,
    side: int,
    colors: ObjectColors,
) -> Image.Image:
    """One picture in the size it is shown in, so that lines and letters are sharp whatever size it had."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    shown = picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    if masks is None:
        return shown
    own = [_resized(one[frame], size) for one in masks]
    faded = Image.blend(shown, Image.new("RGB", size, _GREY), _FADED)
    for mask in own:
        faded.paste(shown, mask=Image.fromarray(mask.array))
    segments = [
        Segment(number, phrases[number - 1] if number <= len(phrases) else "", (mask,), 1.0, 1.0)
        for number, mask in enumerate(own, 1)
    ]
    segments = colors.apply(np.asarray(shown), segments)
    return overlay(faded, segments, alpha=_TINT if len(segments) > 1 else 0, labels=any(phrases))


def _resized(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask of (width, height) pixels."""
    return Mask.from_array(np.asarray(Image.fromarray(mask.array).resize(size, Image.Resampling.NEAREST)))


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in a row, like a strip of film."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (len(pictures) * (width + _GAP) - _GAP, height))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number * (width + _GAP), 0))
    return sheet
