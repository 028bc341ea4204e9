"""A video file through the tracker: key frames first, then every frame once, with bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice, pairwise
from operator import index as whole
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from sa2va.inference.encoded_frames import EncodedFrames
from sa2va.inference.options import KeyFrames
from sa2va.inference.tracker import VideoTracker
from sa2va.masks.mask import Size
from sa2va.media.cuts import scene_starts
from sa2va.media.frames import DecodedFrame, FrameSource, first_indices, prefetch, uniform_indices
from sa2va.results.answer import Frame

#: Frames that pass the image encoder together; more only cost memory once the device is busy.
FRAMES_PER_ENCODING = 4


class Window(NamedTuple):
    """Frames ``start`` to ``stop - 1`` of a video, which the language model is asked about together.

    ``is_scene``: they show another scene than those before and after.
    """

    start: int
    stop: int
    is_scene: bool


def key_frame_indices(policy: KeyFrames, number: int, count: int) -> list[int]:
    """Which frames the language model sees and the objects are prompted on.

    Args:
        policy: ``"first"`` (the reference), ``"uniform"`` over the whole video, or indices: one, or a list or integer
            array of them, in any order; one that comes twice counts once.
        number: how many, for the two named policies. count: frames of the video.

    Returns:
        ascending indices, each once.

    Raises:
        ValueError: an unknown policy, an index that is no whole number, or one outside the video.
    """
    if isinstance(policy, str) and policy in ("first", "uniform"):
        return (first_indices if policy == "first" else uniform_indices)(count, number)
    indices = _whole_numbers(policy)
    if not indices:
        raise ValueError(f"key_frames is 'first', 'uniform' or a list of frame indices; got {policy!r}")
    if indices[0] < 0 or indices[-1] >= count:
        raise ValueError(f"key_frames {indices} are not all frames of a video of {count}, whose last is {count - 1}")
    return indices


def _whole_numbers(given: Any) -> list[int]:
    """One index or several, ascending, each once; nothing for what is neither."""
    try:
        several = list(given) if np.ndim(given) else [given]
        return [] if any(isinstance(index, bool | np.bool_) for index in several) else sorted(set(map(whole, several)))
    except (TypeError, ValueError):
        return []


def frame_count(source: FrameSource) -> int:
    """How many frames a source has.

    Raises:
        ValueError: it has no end.
    """
    count = source.frame_count
    if count is None:
        raise ValueError("this source has no end (a camera?); follow objects in it with Sa2VA.stream()")
    return count


def propagate_video(
    tracker: VideoTracker, source: FrameSource, keys: Sequence[int]
) -> Iterator[tuple[Frame, np.ndarray]]:
    """Every frame of a source with its pixels, in order, after the tracker's objects were prompted on the key frames.

    A frame passes the image encoder once: key frames when they are prompted, frames before the first of them while
    masks are carried backwards, all others on the way forward. Results that come early are kept as run lengths.
    """
    size = source.size
    if not tracker.ids:
        for decoded in source:
            yield Frame(decoded.index, decoded.time, size), decoded.pixels
        return
    first = None
    for decoded in _key_frames(source, keys):
        tracker.prompt_frame(tracker.encode([decoded.pixels]), size, decoded.index)
        first = decoded.index if first is None else first
    if first:
        for decoded in source.iter_backward(first - 1):
            tracker.propagate_reverse(tracker.encode([decoded.pixels]), size, decoded.index)
    with closing(_read_ahead(source)) as frames:
        yield from _forward(tracker, frames, size, {})


def propagate_windows(
    tracker: VideoTracker,
    source: FrameSource,
    windows: Iterable[Window],
    key_frames: Callable[[Window], Sequence[int]],
    ask: Callable[[Sequence[np.ndarray]], Mapping[str, Tensor]],
) -> Iterator[tuple[Frame, np.ndarray]]:
    """[`propagate_video`] for a video that is asked about window by window.

    Between the key frames of a window masks follow from both of its sides. A frame passes the image encoder once.

    Args:
        windows: of the video, in order and without gaps. key_frames: indices of those of a window, ascending.
        ask: the mask prompts (K, C) of each phrase in some frames.
    """
    size = source.size
    with closing(_read_ahead(source)) as frames:
        for window in windows:
            shown = list(source.pick(key_frames(window)))
            if not shown:
                return  # lost at a damaged file's end
            found = ask([decoded.pixels for decoded in shown])
            features = {decoded.index: tracker.encode([decoded.pixels]) for decoded in shown}
            tracker.prompt_window(found, features, size, scene=window.is_scene)
            yield from _forward(tracker, islice(frames, window.stop - window.start), size, features)


def video_windows(source: FrameSource, ask_every: int | Literal["scene"]) -> Iterator[Window]:
    """The windows of a video that is asked about after so many frames, or at its cuts, which are looked for lazily."""
    count = frame_count(source)
    is_scene = ask_every == "scene"
    starts = scene_starts(decoded.pixels for decoded in source) if is_scene else range(0, count, int(ask_every))
    for start, stop in pairwise(chain(starts, [count])):
        yield Window(start, stop, is_scene)


def _read_ahead(source: FrameSource) -> Generator[DecodedFrame, None, None]:
    """Decoding runs ahead in its own thread while the model computes."""
    return prefetch(iter(source), depth=FRAMES_PER_ENCODING)


class _Chunk(NamedTuple):
    """Frames that follow each other; those of them that are still to be encoded, by index and squashed."""

    frames: list[DecodedFrame]
    waiting: list[int]
    squashed: Tensor | None


def _chunks(
    tracker: VideoTracker, frames: Iterator[DecodedFrame], encoded: Mapping[int, EncodedFrames]
) -> Generator[_Chunk, None, None]:
    while chunk := list(islice(frames, FRAMES_PER_ENCODING)):
        waiting = [one for one in chunk if one.index not in encoded and not tracker.is_ready(one.index)]
        squashed = tracker.squash([one.pixels for one in waiting]) if waiting else None
        yield _Chunk(chunk, [one.index for one in waiting], squashed)


def _forward(
    tracker: VideoTracker, frames: Iterator[DecodedFrame], size: Size, encoded: Mapping[int, EncodedFrames]
) -> Iterator[tuple[Frame, np.ndarray]]:
    """The next frames with their pixels; those that are encoded already are not encoded again.

    The next chunk is squashed in a thread of its own meanwhile, which takes as long as all else does on this side.
    """
    with closing(prefetch(_chunks(tracker, frames, encoded), depth=1)) as chunks:
        for chunk in chunks:
            batch = None if chunk.squashed is None else tracker.encode_squashed(chunk.squashed)
            features = {index: batch[row] for row, index in enumerate(chunk.waiting) if batch}
            for decoded in chunk.frames:
                if tracker.is_ready(decoded.index):
                    frame = tracker.pop_result(size, time=decoded.time)
                else:
                    known = encoded if decoded.index in encoded else features
                    frame = tracker.step_encoded(known[decoded.index], size, time=decoded.time)
                yield frame, decoded.pixels


def _key_frames(source: FrameSource, keys: Sequence[int]) -> Iterator[DecodedFrame]:
    """The key frames; for those lost at a damaged file's end the last good frame, as ``FrameSource.read`` gives it."""
    found = -1
    for decoded in source.pick(keys):
        found = decoded.index
        yield decoded
    if found != keys[-1]:
        last = next(source.iter_backward(keys[-1]), None)
        if last is not None and last.index > found:
            yield last
