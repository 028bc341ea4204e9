"""What all video datasets share: the choice of frames and sentences, and reading frames by seeking."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TypedDict, TypeVar

import numpy as np

from sa2va.data.sample import LazyFrame
from sa2va.media.video_file import VideoFile
from sa2va.processing.requests import TrainingRequests

T = TypeVar("T")


class Draw(TypedDict, total=False):
    """Options of every source of videos with masks.

    Attributes:
        frames: most frames of a sample (5). phrases: most sentences of a sample (5).
        views: samples per video, each with frames and wordings of its own (1).
        seed: another seed draws others (0). requests: the templates of wordings (ours).
        skip_broken: leave out videos of which files are missing, with a warning, instead of refusing (False).
    """

    frames: int
    phrases: int
    views: int
    seed: int
    requests: TrainingRequests
    skip_broken: bool


def check_counts(**counts: int) -> None:
    """ValueError for a number below 1, by name."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def draw_frames(count: int, wanted: int, rng: random.Random) -> list[int]:
    """``wanted`` different frames of ``count``, ascending; all of them where there are no more."""
    return sorted(rng.sample(range(count), min(count, wanted)))


def draw_annotated(annotated_KF: np.ndarray, wanted: int, rng: random.Random) -> list[int]:
    """``wanted`` different frames, ascending: as many as can be in which objects are known, others to look at.

    Args:
        annotated_KF: bool (K, F), which frames of which objects are known. wanted: every object is known in one of
            these frames at least, if they are so many. rng: draws as [`draw_frames`] does where all is known.
    """
    if annotated_KF.all():
        return draw_frames(annotated_KF.shape[1], wanted, rng)
    shown: list[int] = []
    for known_F in annotated_KF:
        if len(shown) < wanted and not known_F[shown].any():
            shown.append(rng.choice(np.flatnonzero(known_F).tolist()))
    for pool in (np.flatnonzero(annotated_KF.any(axis=0)).tolist(), range(annotated_KF.shape[1])):
        left = [frame for frame in pool if frame not in shown]
        shown += rng.sample(left, min(len(left), wanted - len(shown)))
    return sorted(shown)


def draw_from_segments(count: int, wanted: int, rng: random.Random) -> list[int]:
    """One frame of each of ``wanted`` equal stretches of ``count`` frames; all of them where there are no more."""
    if count <= wanted:
        return list(range(count))
    edges = [count * place // wanted for place in range(wanted + 1)]
    return [rng.randrange(start, end) for start, end in pairwise(edges)]


def deal(items: Sequence[T], wanted: int, view: int, rng: random.Random) -> list[T]:
    """The items that a view shows, each at most once: over the views, all come equally often (give or take one).

    Args:
        items: of a video. wanted: most items of a view. view: from 0. rng: in the same state for all views.
    """
    shuffled = rng.sample(items, len(items))
    count = min(wanted, len(items))
    return [shuffled[(view * count + place) % len(items)] for place in range(count)]


class SeekedFrames:
    """Some frames of a video file, decoded together by seeking when the first of them is asked for.

    Args:
        video: the file. indices: of the frames, ascending.
    """

    def __init__(self, video: VideoFile, indices: Sequence[int]):
        self._video, self._indices = video, indices
        self._pixels: list[np.ndarray] | None = None

    @property
    def lazy(self) -> tuple[LazyFrame, ...]:
        """The frames of a sample. ValueError where the file is damaged: a frame before it would stand in."""
        return tuple(LazyFrame(partial(self._load, place), self._video.size) for place in range(len(self._indices)))

    def _load(self, place: int) -> np.ndarray:
        if self._pixels is None:
            pixels = self._video.read(self._indices)
            if self._video.decode_errors:
                raise ValueError(f"{self._video.path} is damaged: {self._video.decode_errors} frames cannot be decoded")
            self._pixels = pixels
        return self._pixels[place]
