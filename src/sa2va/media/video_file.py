"""Videos on disk, decoded lazily by FFmpeg (PyAV).

A frame's index is the rank of its timestamp among the file's packets. That rank is known from demuxing alone, so random
access can seek and still return what plain iteration returns at that index. Where timestamps cannot carry this
(AVI with reordered frames), access decodes from the start: slower, same pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from sa2va.media.container import (
    HEAD_BYTES,
    MAX_STREAMS,
    PacketIndex,
    Pending,
    container_format,
    demux,
    frames_by_table,
    frames_missing,
    land,
    open_video,
)
from sa2va.media.frames import DecodedFrame, FrameSource
from sa2va.media.image import MAX_PIXELS
from sa2va.media.mp4_tables import check_tables
from sa2va.runtime import logger

# Decoding through up to this many unwanted frames is cheaper than seeking over them.
_SEEK_GAP = 16


class _Picture(NamedTuple):
    """A decoded frame before its conversion: its index, its timestamp in stream units, FFmpeg's picture."""

    number: int
    pts: int | None
    frame: VideoFrame


class VideoFile(FrameSource):
    """A local video file. Nothing stays open between passes, so several passes may run at once.

    Orientation metadata is applied, transparency is composited on white, pixels that are not square stay as stored, and
    frames that change size within the file are scaled to the first one's. A frame that cannot be decoded repeats the
    one before it, so that indices and times hold; frames lost at the beginning or the end are left out. Both are
    counted in ``decode_errors`` and logged.

    Args:
        path: a regular file in a container that ``container_format`` knows.
        max_pixels: refuse larger frames (height * width).
        threads: of the decoder, 0 for one per core. They decode ahead of what is asked for: 1 does the least work where
            few frames are picked and other processes have the cores, as in a data loader.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a video, no video stream in it, nothing in it can be decoded, the frames are too large, or the
            file claims more than it can hold.
    """

    def __init__(self, path: str | Path, *, max_pixels: int = MAX_PIXELS, threads: int = 0) -> None:
        self._path = Path(path)
        with open(self._path, "rb") as file:
            format = container_format(file.read(HEAD_BYTES))
        if format is None:
            raise ValueError(f"{self._path} is not a video that can be read: expected mp4, mov, webm, mkv or avi")
        if format == "mov":
            check_tables(self._path, MAX_STREAMS)
        self._format = format
        self._max_pixels = max_pixels
        self._threads = threads
        self._first_pts: int | None = None
        self._index: PacketIndex | None = None
        self._end: int | None = None
        self._lost: set[int] = set()
        self._failures = self._missing = self._reported = 0
        self._probe()

    def _probe(self) -> None:
        with open_video(self._path, self._format, self._max_pixels) as (container, stream, _):
            self._time_base = stream.time_base or Fraction(1, 1000)
            self._fps = stream.average_rate or stream.guessed_rate
            # AVI stores no presentation times: what FFmpeg reports there is the decoding order.
            self._timed = self._format != "avi" or not stream.codec_context.has_b_frames
            claimed = frames_by_table(container, stream)
        first = next(self._decode(None), None)
        if first is None:
            raise ValueError(f"nothing can be decoded in {self._path}: the file is damaged or empty")
        self._claimed = None if claimed is None else claimed - len(self._lost)
        self._first_pts = first.pts
        self._stored = width, height = first.frame.width, first.frame.height
        self._orientation = Orientation.of(first.frame)
        self._size = (width, height) if self._orientation.transpose else (height, width)

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    @property
    def fps(self) -> Fraction | None:
        return self._fps

    @property
    def path(self) -> Path:
        return self._path

    @property
    def start_time(self) -> float:
        return float((self._first_pts or 0) * self._time_base)

    @property
    def frame_count(self) -> int:
        return self._bound("counting") if self._end is None else self._end

    @property
    def decode_errors(self) -> int:
        return len(self._lost) + self._failures + self._missing

    def times(self) -> list[float]:
        pts = self._packets().pts
        return [self._time(index, pts[index]) for index in range(len(pts))]

    def pick(self, indices: Iterable[int]) -> Iterator[DecodedFrame]:
        reformatter = VideoReformatter()
        pictures: Iterator[_Picture] = iter(())
        position = -1
        for wanted in indices:
            if position < 0 or (wanted - position > _SEEK_GAP and self._entry(wanted) > position):
                pictures = self._decode_to(wanted)
            picture = next((picture for picture in pictures if picture.number >= wanted), None)
            if picture is None:
                return
            position = wanted + 1
            time = self._time(wanted, picture.pts)
            pixels = self._orientation.apply(to_rgb(reformatter, picture.frame, self._stored))
            del picture
            yield DecodedFrame(wanted, time, np.ascontiguousarray(pixels), wanted)

    # Where frames are

    def _packets(self) -> PacketIndex:
        if self._index is None:
            with open_video(self._path, self._format, self._max_pixels) as (container, stream, _):
                self._index = PacketIndex.scan(container, stream, self._first_pts)
            self._timed = self._timed and self._index.sound
        return self._index

    def _bound(self, purpose: str) -> int:
        # A damaged file's end, once seen, does not narrow what may be asked for: indices chosen before stay valid.
        return self._claimed if self._claimed is not None else len(self._packets().pts)

    def _time(self, index: int, pts: int | None) -> float:
        if self._timed and pts is not None and self._first_pts is not None:
            return float((pts - self._first_pts) * self._time_base)
        return float(index / self._fps) if self._fps else 0.0

    def _entry(self, index: int) -> int:
        """The index of the key frame that ``index`` is decoded from; 0 where seeking is not safe."""
        packets = self._packets()
        key = packets.key_for(index)
        return packets.rank(packets.keys[key]) if self._timed and key >= 0 else 0

    def _chunk_start(self, earliest: int, stop: int) -> int:
        # From the first key frame in the chunk on, nothing is decoded only to be thrown away.
        packets = self._packets()
        if not self._timed:
            return earliest
        key = max(0, packets.key_for(earliest))
        inside = [rank for rank in map(packets.rank, packets.keys[key : key + 2]) if earliest <= rank < stop]
        return inside[0] if inside else earliest

    # Decoding

    def _decode_to(self, target: int) -> Iterator[_Picture]:
        """Pictures from ``target`` or earlier, in order.

        Starts at the nearest key frame that decodes by itself; where one does not, at earlier and earlier ones.
        """
        packets = self._packets() if target > 0 else None
        if packets is not None and self._timed:
            key, step = packets.key_for(target), 1
            while key > 0 and packets.rank(packets.keys[key]) > 0:
                pictures = self._decode(packets.keys[key])
                first = next(pictures, None)
                if first is not None and first.number <= target and self._timed:
                    return chain([first], pictures)
                key, step = key - step, step * 2
        return self._decode(None)

    def _decode(self, key: int | None) -> Iterator[_Picture]:
        """Pictures from the key frame with that timestamp on, or from the beginning.

        Yields nothing when the key frame itself does not come out first: what follows would then be decoded from
        other references than in a pass from the beginning, and could differ from it.
        """
        with open_video(self._path, self._format, self._max_pixels, self._threads) as (container, stream, decoder):
            packets, floor, index = demux(container, stream), self._first_pts, 0
            if key is not None:
                packets = land(container, stream, key)
                landing = next(packets, None)
                if landing is None or landing.pts is None:
                    return
                packets, floor, index = chain([landing], packets), landing.pts, self._packets().rank(landing.pts)
            pending = Pending()
            frames = self._frames(packets, decoder, pending, floor)
            first = next(frames, None)
            if first is None or (key is not None and (first.pts != floor or first.is_corrupt)):
                return
            for picture in self._number(chain([first], frames), pending, index):
                first = None
                index = picture.number + 1
                yield picture
                del picture
            self._end = index
            if self._timed:
                self._lost |= pending.members
            if key is None:
                self._missing = frames_missing(stream, pending.sent, pending.end)
            self._report()

    def _frames(
        self, packets: Iterable[Packet], decoder: VideoCodecContext, pending: Pending, floor: int | None
    ) -> Iterator[VideoFrame]:
        """Frames as they leave the decoder, without those before ``floor``: they lack what they refer to."""
        for packet in chain(packets, [None]):
            if packet is not None:
                self._timed = pending.add(packet, floor) and self._timed
                if not packet.size:
                    # To a decoder this would mean the end.
                    continue
            try:
                frames = decoder.decode(packet)
            except FFmpegError:
                # With timestamps, the frame that does not come out is counted; the error may belong to another one.
                self._failures += not self._timed
                continue
            for frame in frames:
                if not self._timed or floor is None or frame.pts is None or frame.pts >= floor:
                    yield frame

    def _number(self, frames: Iterable[VideoFrame], pending: Pending, index: int) -> Iterator[_Picture]:
        """Count frames from ``index``; where one was lost between two, the earlier one stands in for it.

        After damage a decoder may hand out a frame after later ones: its place has been taken then.
        """
        last, given_up = None, set[int]()
        for frame in frames:
            if frame.pts in given_up:
                continue
            in_order = last is None or (frame.pts or 0) > (last.pts or 0)
            self._timed = self._timed and in_order and frame.pts in pending.members
            lost = pending.pop_before(frame.pts) if self._timed and frame.pts is not None else []
            given_up.update(lost)
            self._lost.update(lost)
            if frame.is_corrupt and frame.pts is not None:
                self._lost.add(frame.pts)
            if last is not None:
                for pts in lost:
                    yield _Picture(index, pts, last)
                    index += 1
            last = frame
            yield _Picture(index, frame.pts, frame)
            index += 1

    def _report(self) -> None:
        if self.decode_errors > self._reported:
            self._reported = self.decode_errors
            logger.warning(
                "%s is damaged: %d frames are missing or broken, %d can be read",
                self._path,
                self.decode_errors,
                self.frame_count,
            )


class Orientation(NamedTuple):
    """How stored pixels become upright ones: transpose first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, frame: VideoFrame) -> Orientation:
        """From the display matrix, to the nearest quarter turn."""
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return cls()
        # Rows (a, b, _), (c, d, _): a stored pixel (x, y) is shown at (a x + c y, b x + d y).
        a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
        return cls(True, c < 0, b < 0) if abs(b) > abs(a) else cls(False, a < 0, d < 0)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        pixels = pixels.swapaxes(0, 1) if self.transpose else pixels
        return pixels[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


def to_rgb(reformatter: VideoReformatter, frame: VideoFrame, stored: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3) RGB of a decoded frame at ``stored`` (width, height), transparency composited on white.

    Colours are converted as the ``ffmpeg`` command does by default: by the file's tags, BT.601 where it has none.
    """
    transparent = frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)
    # One thread: this takes a fraction of a millisecond, and the decoder's threads have the cores.
    pixels = reformatter.reformat(frame, *stored, "rgba" if transparent else "rgb24", threads=1).to_ndarray()
    if transparent:
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return pixels
