"""The interface of every video source: lazy RGB frames with times, random access, backward passes and sampling.

A source decodes only what is asked for and keeps a bounded number of frames in memory, whatever the video's length.
It implements one primitive, ``pick``; forward, random and backward access and sampling are built on it, so all of them
give the same pixels for the same index.
"""

from __future__ import annotations

import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, islice
from numbers import Integral
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from sa2va.runtime import logger

T = TypeVar("T")

#: Pixels of all frames together that any file may have; some 2,000 frames of 1920x1080.
_FREE_PIXELS = 4 * 10**9
#: Beyond that, per byte of the file. A black video of 3840x2160 has 300,000.
_PIXELS_PER_BYTE = 10**6


@dataclass(frozen=True, slots=True, eq=False)
class DecodedFrame:
    """One frame of a video.

    Attributes:
        index: position in the source it was read from, from 0 without gaps.
        time: seconds since the video's first frame; None for sources without timestamps (folders, lists).
        pixels: uint8 array (H, W, 3), RGB, upright.
        source_index: position in the original video; differs from ``index`` after sampling.
    """

    index: int
    time: float | None
    pixels: np.ndarray
    source_index: int


class FrameSource(ABC):
    """A video as numbered RGB frames of one size. Each iteration starts at the first frame (a camera continues)."""

    backward_bytes: int = 256 << 20
    """Memory limit of ``iter_backward`` in bytes of pixels. A lower one costs more repeated decoding."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(height, width) of every frame in pixels, after rotation."""

    @property
    @abstractmethod
    def frame_count(self) -> int | None:
        """Number of frames; None for a camera. It may shrink when the end of a damaged file is decoded."""

    @abstractmethod
    def pick(self, indices: Iterable[int]) -> Iterator[DecodedFrame]:
        """Lazily decode the frames at strictly ascending ``indices``; stops where the video ends."""

    @property
    def fps(self) -> Fraction | None:
        """Average frames per second; None when unknown."""
        return None

    @property
    def path(self) -> Path | None:
        """The file or folder on disk; None when there is none."""
        return None

    @property
    def start_time(self) -> float:
        """Time of the first frame in seconds on the file's own clock, which its audio uses too."""
        return 0.0

    @property
    def decode_errors(self) -> int:
        """Number of missing or damaged frames so far."""
        return 0

    def times(self) -> Sequence[float] | None:
        """Seconds since the first frame, for every frame; None for sources without timestamps."""
        return None

    def close(self) -> None:
        """Release devices and open files. Safe to call twice."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[DecodedFrame]:
        return self.pick(count())

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Random access: the pixels at ``indices``, in that order, equal to those of an iteration.

        A frame lost at the end of a damaged file is replaced by the last good one before it, with a warning.

        Raises:
            ValueError: an index is outside ``0 <= index < frame_count``, or the source is a camera.
        """
        total = self._bound("random access")
        for index in indices:
            if not 0 <= index < total:
                raise ValueError(f"frame index {index} is outside the video: it has {total} frames, 0 to {total - 1}")
        found = {frame.index: frame.pixels for frame in self.pick(sorted(set(indices)))}
        for index in sorted(set(indices) - found.keys()):
            found[index] = self._last_good(index)
        return [found[index] for index in indices]

    def iter_backward(self, from_index: int | None = None) -> Iterator[DecodedFrame]:
        """Yield the frames ``from_index``, ``from_index - 1``, ... 0; by default from the last one.

        Decodes forward in chunks of at most ``backward_bytes`` of pixels and hands each chunk out reversed.
        """
        total = self._bound("backward access")
        last = total - 1 if from_index is None else from_index
        if not 0 <= last < total:
            raise ValueError(f"from_index {last} is outside the video: it has {total} frames, 0 to {total - 1}")
        return self._backward(last + 1)

    def _backward(self, stop: int) -> Iterator[DecodedFrame]:
        height, width = self.size
        chunk = max(1, self.backward_bytes // (height * width * 3))
        while stop > 0:
            start = self._chunk_start(max(0, stop - chunk), stop)
            block = list(self.pick(range(start, stop)))
            while block:
                yield block.pop()
            stop = start

    def _chunk_start(self, earliest: int, stop: int) -> int:
        """Where to begin a backward chunk that ends before ``stop`` and may reach down to ``earliest``."""
        del stop
        return earliest

    def _bound(self, purpose: str) -> int:
        """The number of addressable frames, for bounds checks."""
        if self.frame_count is None:
            raise ValueError(f"{purpose} needs a video with a known end; this one is live: iterate over it")
        return self.frame_count

    def _last_good(self, index: int) -> np.ndarray:
        for frame in self.iter_backward(index):
            logger.warning("frame %d cannot be decoded; frame %d, the last good one, stands in", index, frame.index)
            return frame.pixels
        raise ValueError(f"frame {index} cannot be decoded, nor any frame before it")


def frames_at(frames: Iterator[DecodedFrame], indices: Iterable[int]) -> Iterator[DecodedFrame]:
    """Those of ``frames``, a contiguous numbering, that stand at ascending ``indices``."""
    position = 0
    for wanted in indices:
        frame = next(islice(frames, wanted - position, None), None)
        if frame is None:
            return
        position = wanted + 1
        yield frame


def uniform_indices(count: int, n: int) -> list[int]:
    """At most ``n`` indices spread evenly over ``0 .. count - 1``, first and last included, ascending, no repeats."""
    _check_counts(count, n)
    return sorted({int(index) for index in np.linspace(0, count - 1, min(count, n))})


def first_indices(count: int, n: int) -> list[int]:
    """The first ``n`` indices of ``0 .. count - 1``, or all of them when there are fewer."""
    _check_counts(count, n)
    return list(range(min(count, n)))


def _check_counts(count: int, n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, Integral) or count < 1 or n < 1:
        raise ValueError(f"choosing frames needs at least one frame and one index, got count={count}, n={n!r}")


_END = object()


def prefetch(iterable: Iterable[T], depth: int = 4) -> Generator[T, None, None]:
    """Run ``iterable`` in a thread, at most ``depth`` items ahead, so that decoding overlaps with compute.

    An exception of ``iterable`` is raised here, after the items before it. When the consumer stops early, close the
    returned generator (or drop it): the thread ends and ``iterable`` is closed.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, not {depth}")
    items: queue.Queue[object] = queue.Queue(depth)
    stop = threading.Event()
    failure: list[BaseException] = []
    worker = threading.Thread(target=_feed, args=(iterable, items, stop, failure), daemon=True, name="sa2va-prefetch")
    return _drain(worker, items, stop, failure)


def _feed(
    iterable: Iterable[object], items: queue.Queue[object], stop: threading.Event, failure: list[BaseException]
) -> None:
    try:
        iterator = iter(iterable)
        for item in iterator:
            if stop.is_set():
                break
            items.put(item)
            # The name would keep a whole frame alive while the next one is decoded.
            del item
        if isinstance(iterator, Generator):
            iterator.close()
    except BaseException as error:
        failure.append(error)
    finally:
        items.put(_END)


def _drain(
    worker: threading.Thread, items: queue.Queue[object], stop: threading.Event, failure: list[BaseException]
) -> Generator:
    worker.start()
    try:
        while (item := items.get()) is not _END:
            yield item
            del item
        if failure:
            raise failure[0]
    finally:
        stop.set()
        # The worker may be waiting for room, for the item in its hands and then for the end mark.
        while worker.is_alive():
            try:
                items.get(timeout=0.02)
            except queue.Empty:
                continue
        worker.join()


def check_weight(path: Path, frames: int, size: tuple[int, int]) -> None:
    """Refuse a video whose frames are out of all proportion to its file.

    Args:
        size: (height, width) of a frame.

    Raises:
        ValueError: it is.
    """
    height, width = size
    weight = os.path.getsize(path)
    if frames * height * width > max(_FREE_PIXELS, _PIXELS_PER_BYTE * weight):
        raise ValueError(
            f"{path} claims {frames} frames of {width}x{height} in {weight} bytes; it is no real video, or damaged"
        )
