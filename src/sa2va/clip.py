"""A video file through the tracker: key frames first, then every frame once, with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Literal

import numpy as np

from sa2va.processing.frames import FrameSource, first_indices, prefetch, uniform_indices
from sa2va.results import Frame
from sa2va.tracker import VideoTracker

KeyFrames = Literal["first", "uniform"] | Sequence[int]
#: Frames that pass the image encoder together; more only cost memory once the device is busy.
FRAMES_PER_ENCODING = 4


def key_frame_indices(policy: KeyFrames, number: int, count: int) -> list[int]:
    """Which frames the language model sees and the objects are prompted on.

    Args:
        policy: ``"first"`` (the reference), ``"uniform"`` over the whole video, or indices.
        number: how many, for the two named policies. count: frames of the video.

    Raises:
        ValueError: an unknown policy, or an index outside the video.
    """
    if policy == "first":
        return first_indices(count, number)
    if policy == "uniform":
        return uniform_indices(count, number)
    if isinstance(policy, str) or not policy:
        raise ValueError(f"key_frames is 'first', 'uniform' or a list of frame indices; got {policy!r}")
    indices = sorted({int(index) for index in policy})
    if indices[0] < 0 or indices[-1] >= count:
        raise ValueError(f"key_frames {list(policy)} are not all frames of a video of {count}")
    return indices


def frame_count(source: FrameSource) -> int:
    """How many frames a source has.

    Raises:
        ValueError: it has no end.
    """
    count = source.frame_count
    if count is None:
        raise ValueError("this source has no end (a camera?); follow objects in it with Sa2VA.stream()")
    return count


def follow(tracker: VideoTracker, source: FrameSource, keys: Sequence[int]) -> Iterator[tuple[Frame, np.ndarray]]:
    """Every frame of a source with its pixels, in order, after the tracker's objects were prompted on the key frames.

    A frame passes the image encoder once: key frames when they are prompted, frames before the first of them while
    masks are carried backwards, all others on the way forward. Results that come early are kept as run lengths.
    """
    size = source.size
    if not tracker.ids:
        for decoded in source:
            yield Frame(decoded.index, decoded.time, size), decoded.pixels
        return
    for decoded in source.pick(keys):
        tracker.look_ahead(tracker.encode([decoded.pixels]), size, decoded.index)
    if keys[0] > 0:
        for decoded in source.iter_backward(keys[0] - 1):
            tracker.step_backward(tracker.encode([decoded.pixels]), size, decoded.index)
    # Decoding runs ahead in its own thread while the model computes.
    with closing(prefetch(iter(source), depth=2 * FRAMES_PER_ENCODING)) as frames:
        while chunk := list(islice(frames, FRAMES_PER_ENCODING)):
            waiting = [decoded for decoded in chunk if not tracker.is_ready(decoded.index)]
            encoded = tracker.encode([decoded.pixels for decoded in waiting]) if waiting else None
            features = {decoded.index: encoded[row] for row, decoded in enumerate(waiting) if encoded}
            for decoded in chunk:
                if decoded.index in features:
                    frame = tracker.step_encoded(features[decoded.index], size, time=decoded.time)
                else:
                    frame = tracker.take_ready(size, time=decoded.time)
                yield frame, decoded.pixels
