"""Whatever a user hands over, opened as a ``FrameSource``; and the way in to this package's media functions.

``load_image`` reads one picture, ``open_media`` opens a video lazily, ``is_video`` tells which of them a source needs.
[`Sampling`] keeps some frames of a video, [`Origin`] finds a medium again when its result is shown.
"""

from __future__ import annotations

import math
import os
import re
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, takewhile
from numbers import Integral, Real
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, TypeVar, cast

import numpy as np
from PIL import Image

from sa2va.media.animation import AnimatedPicture, PictureStack, full_pages
from sa2va.media.camera import CAMERA_PREFIX, Camera
from sa2va.media.container import HEAD_BYTES, container_format
from sa2va.media.frames import (
    DecodedFrame,
    FrameSource,
    first_indices,
    frames_at,
    prefetch,
    uniform_indices,
)
from sa2va.media.image import (
    MAX_PIXELS,
    ImageSource,
    SampleDepth,
    decode_image,
    is_url,
    load_image,
    load_pixels,
    open_picture,
)
from sa2va.media.video_file import VideoFile

__all__ = [
    "MAX_PIXELS",
    "AnimatedPicture",
    "Camera",
    "DecodedFrame",
    "FrameFolder",
    "FrameList",
    "FrameSource",
    "ImageSource",
    "MediaSource",
    "Picture",
    "PictureStack",
    "VideoFile",
    "first_indices",
    "is_video",
    "load_image",
    "open_media",
    "prefetch",
    "uniform_indices",
]

MediaSource: TypeAlias = "ImageSource | Sequence[ImageSource] | FrameSource"

#: What a file of a folder is called where it is taken for a picture; others are left alone.
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
T = TypeVar("T")
# Containers round times (Matroska to the millisecond), so a frame may sit this much (s) before where it belongs.
TIME_TOLERANCE = 0.001
_JPEG = b"\xff\xd8\xff"
_MAYBE_ANIMATED = (b"GIF8", b"\x89PNG")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Picture(FrameSource):
    """A decoded image, as a source of one frame.

    Args:
        image: upright, mode RGB, as returned by [`load_image`].
        path: its file, if there is one.

    Attributes:
        image: the image.
    """

    def __init__(self, image: Image.Image, path: Path | None = None) -> None:
        self.image = image
        self._path = path

    @property
    def size(self) -> tuple[int, int]:
        return self.image.height, self.image.width

    @property
    def frame_count(self) -> int:
        return 1

    @property
    def path(self) -> Path | None:
        return self._path

    def pick(self, indices: Iterable[int]) -> Iterator[DecodedFrame]:
        if 0 in islice(indices, 1):
            yield DecodedFrame(0, None, np.array(self.image), 0)


class FrameList(FrameSource):
    """Pictures as the frames of a video: a list of what ``load_image`` takes, or a uint8 array (T, H, W, 3).

    Files are read one at a time when their turn comes.

    Raises:
        ValueError: no pictures, or (when its turn comes) one that cannot be read or whose size differs.
    """

    def __init__(self, pictures: Sequence[ImageSource] | np.ndarray, *, max_pixels: int = MAX_PIXELS) -> None:
        if not len(pictures):
            raise ValueError("a video needs at least one frame; the list is empty")
        self._pictures = pictures
        self._max_pixels = max_pixels
        self._depth = SampleDepth()
        height, width = self._load(0).shape[:2]
        self._size = height, width

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    @property
    def frame_count(self) -> int:
        return len(self._pictures)

    def pick(self, indices: Iterable[int]) -> Iterator[DecodedFrame]:
        for index in indices:
            if index >= len(self._pictures):
                return
            pixels = self._load(index)
            if pixels.shape[:2] != self._size:
                raise ValueError(
                    f"all frames must have one size: {self._name(index)} is {pixels.shape[1]}x{pixels.shape[0]}, "
                    f"the first is {self._size[1]}x{self._size[0]}; resize them"
                )
            yield DecodedFrame(index, None, pixels, index)

    def _load(self, index: int) -> np.ndarray:
        try:
            return load_pixels(self._pictures[index], max_pixels=self._max_pixels, depth=self._depth)
        except ValueError as error:
            raise ValueError(f"{self._name(index)}: {error}") from error

    def _name(self, index: int) -> str:
        return f"frame {index}"


class FrameFolder(FrameList):
    """A folder of picture files as a video, in natural order of their names: 2.jpg comes before 10.jpg."""

    def __init__(self, path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> None:
        self._path = Path(path)
        names = [entry.name for entry in os.scandir(self._path) if entry.is_file() and not entry.name.startswith(".")]
        self._names = sorted((name for name in names if Path(name).suffix.lower() in PICTURE_SUFFIXES), key=_natural)
        if not self._names:
            raise ValueError(f"{self._path} holds no pictures (jpg, png, webp, ...) among its {len(names)} files")
        super().__init__([self._path / name for name in self._names], max_pixels=max_pixels)

    @property
    def path(self) -> Path:
        return self._path

    def _name(self, index: int) -> str:
        return str(self._path / self._names[index])


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", name.lower())
    return [(int(part) if part.isdecimal() else -1, part) for part in parts], name


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video to keep. See ``open_media`` for the meaning of the fields."""

    stride: int = 1
    fps: Fraction | None = None
    start: int | float | None = None
    end: int | float | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("stride", self.stride), ("max_frames", self.max_frames)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        for name, value in (("start", self.start), ("end", self.end)):
            valid = value is None or (isinstance(value, Real) and not isinstance(value, bool) and value >= 0)
            if not valid:
                raise ValueError(f"{name} must be a frame index (int) or seconds (float), not {value!r}")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"fps must be above 0, not {self.fps}")
        if self.fps is not None and self.stride != 1:
            raise ValueError("give either stride or fps, not both")

    @property
    def needs_times(self) -> bool:
        return self.fps is not None or any(isinstance(bound, float) for bound in (self.start, self.end))

    def filter(self, items: Iterable[T], place: Callable[[T], tuple[int, float | None]]) -> Iterator[T]:
        """Keep the wanted ones of ``items``; ``place`` tells an item's frame index and time (s).

        One rule for recorded and live video, so it looks at each item once and never ahead. ``fps`` keeps the first
        frame of every 1/fps interval since the range's first frame; it never repeats a frame.
        """
        taken, seen, origin, last_tick = 0, 0, 0.0, -1
        for item in items:
            index, time = place(item)
            if self.start is not None and not _reached(self.start, index, time):
                continue
            if self.end is not None and _reached(self.end, index, time):
                return
            origin = _known(time) if self.fps is not None and not seen else origin
            seen += 1
            if self.fps is not None:
                tick = int((_known(time) - origin + TIME_TOLERANCE) * self.fps)
                if tick <= last_tick:
                    continue
                last_tick = tick
            elif (seen - 1) % self.stride:
                continue
            yield item
            taken += 1
            if taken == self.max_frames:
                return


def _reached(bound: int | float, index: int, time: float | None) -> bool:
    return _known(time) >= bound - TIME_TOLERANCE if isinstance(bound, float) else index >= bound


def _known(time: float | None) -> float:
    if time is None:
        raise ValueError("this source has no times: sample it by stride and frame indices, not by fps or seconds")
    return time


class SampledFrames(FrameSource):
    """Some frames of another source, renumbered from 0. ``time`` and ``source_index`` stay those of the original."""

    def __init__(self, source: FrameSource, sampling: Sampling) -> None:
        self._source = source
        self._sampling = sampling
        self._kept: list[int] | None = None
        if source.frame_count is not None:
            times = source.times() if sampling.needs_times else None
            places = enumerate(times) if times is not None else ((i, None) for i in range(source.frame_count))
            self._kept = [index for index, _ in sampling.filter(places, lambda place: place)]
            if not self._kept:
                raise ValueError(
                    f"the range start={sampling.start}, end={sampling.end} holds no frame: "
                    f"the video has {source.frame_count} frames"
                )

    @property
    def size(self) -> tuple[int, int]:
        return self._source.size

    @property
    def frame_count(self) -> int | None:
        return None if self._kept is None else len(self._kept)

    @property
    def fps(self) -> Fraction | None:
        rate, wanted = self._source.fps, self._sampling.fps
        if wanted is not None:
            return wanted if rate is None else min(rate, wanted)
        return None if rate is None else rate / self._sampling.stride

    @property
    def path(self) -> Path | None:
        return self._source.path

    @property
    def start_time(self) -> float:
        return self._source.start_time

    @property
    def decode_errors(self) -> int:
        return self._source.decode_errors

    def times(self) -> Sequence[float] | None:
        times = self._source.times()
        return None if times is None or self._kept is None else [times[index] for index in self._kept]

    def close(self) -> None:
        self._source.close()

    def pick(self, indices: Iterable[int]) -> Iterator[DecodedFrame]:
        kept = self._kept
        if kept is None:
            yield from frames_at(self._sample_live(), indices)
            return
        wanted = (kept[index] for index in takewhile(lambda index: index < len(kept), indices))
        for frame in self._source.pick(wanted):
            yield replace(frame, index=bisect_left(kept, frame.index))

    def _sample_live(self) -> Iterator[DecodedFrame]:
        kept = self._sampling.filter(self._source, lambda frame: (frame.index, frame.time))
        return (replace(frame, index=index) for index, frame in enumerate(kept))


def is_video(source: MediaSource) -> bool:
    """Whether a source is a video (several frames, or a camera) rather than an image. Files are judged by content.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if isinstance(source, str) and source.startswith(CAMERA_PREFIX):
        return True
    if isinstance(source, np.ndarray):
        return source.ndim == 4
    if isinstance(source, FrameSource | list | tuple):
        return True
    if not isinstance(source, str | os.PathLike) or (isinstance(source, str) and is_url(source)):
        return False
    if os.path.isdir(source):
        return True
    with _opened(Path(source)) as file:
        return _file_kind(file, Path(source)) != "picture"


def open_media(
    source: MediaSource,
    *,
    stride: int = 1,
    fps: float | Fraction | None = None,
    start: int | float | None = None,
    end: int | float | None = None,
    max_frames: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> FrameSource:
    """Open a video for lazy decoding, or an image, which is read at once and becomes a [`Picture`] of one frame.

    An image file is opened once, a video file once more than it is read.

    Args:
        source: a local video file (mp4, mov, webm, mkv, avi, gif and animated png or webp; also mpeg, flv, ogg and
            wmv), a TIFF with several pages, a folder of image files, a list of images, a uint8 array (T, H, W, 3),
            ``"camera:0"``, a [`FrameSource`], or whatever [`load_image`] takes.
        stride: keep every stride-th frame.
        fps: keep the first frame of every 1/fps seconds, by timestamps; frames are never repeated. Excludes ``stride``.
        start, end: range of frames, end exclusive: an int is a frame index, a float seconds since the first frame.
        max_frames: keep at most this many.
        max_pixels: refuse larger frames (height * width).

    Returns:
        a source whose frames are numbered 0, 1, ...; ``source_index`` and ``time`` are those of the original video.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the source cannot be decoded, the range has no frames, or the sampling is contradictory.

    Examples:
        >>> from sa2va.media.open import open_media
        >>> with open_media("shapes.mp4", stride=8) as video:
        ...     for frame in video:
        ...         print(frame.index, frame.source_index, frame.time, frame.pixels.shape)
        0 0 0.0 (256, 256, 3)
        1 8 1.0 (256, 256, 3)
        2 16 2.0 (256, 256, 3)
    """
    sampling = Sampling(stride, _rate(fps), _plain(start), _plain(end), max_frames)
    media = source if isinstance(source, FrameSource) else _open(source, max_pixels)
    return media if sampling == Sampling() else SampledFrames(media, sampling)


def _open(source: ImageSource | Sequence[ImageSource], max_pixels: int) -> FrameSource:
    if isinstance(source, np.ndarray) and source.ndim == 4:
        return FrameList(source, max_pixels=max_pixels)
    if isinstance(source, list | tuple):
        return FrameList(source, max_pixels=max_pixels)
    if isinstance(source, str) and source.startswith(CAMERA_PREFIX):
        return Camera(source.removeprefix(CAMERA_PREFIX))
    if isinstance(source, str) and is_url(source):
        try:
            return Picture(load_image(source, max_pixels=max_pixels))
        except ValueError as error:
            raise ValueError(f"{error}. A video is read from a local file; download it first") from error
    if isinstance(source, str | os.PathLike) and os.fspath(source):
        return _open_path(Path(source), max_pixels)
    return Picture(load_image(cast("ImageSource", source), max_pixels=max_pixels))


def _open_path(path: Path, max_pixels: int) -> FrameSource:
    if path.is_dir():
        return FrameFolder(path, max_pixels=max_pixels)
    with _opened(path) as file:
        kind = _file_kind(file, path)
        if kind == "picture":
            file.seek(0)
            try:
                return Picture(decode_image(file, repr(str(path)), max_pixels), path)
            except ValueError as error:
                raise ValueError(
                    f"{path} is neither a video (mp4, mov, webm, mkv, avi, gif) nor a picture: {error}"
                ) from error
    if kind == "video":
        return VideoFile(path, max_pixels=max_pixels)
    if kind == "animation":
        return AnimatedPicture(path, max_pixels=max_pixels)
    return PictureStack(path, max_pixels=max_pixels)


def _opened(path: Path) -> IO[bytes]:
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    return open(path, "rb")


def _file_kind(file: IO[bytes], path: Path) -> Literal["video", "animation", "stack", "picture"]:
    head = file.read(HEAD_BYTES)
    if head.startswith(_JPEG):
        return "picture"
    webp, avif = head[:4] == b"RIFF" and head[8:12] == b"WEBP", head[4:12] == b"ftypavis"
    if not (webp or avif or head.startswith(_MAYBE_ANIMATED + _TIFF)):
        return "picture" if container_format(head) is None else "video"
    file.seek(0)
    try:
        with open_picture(file, str(path), MAX_PIXELS) as image:
            if not getattr(image, "is_animated", False):
                return "picture"
            if head.startswith(_TIFF):
                return "stack" if len(list(islice(full_pages(image, str(path)), 2))) > 1 else "picture"
            return "animation"
    except Exception:
        # Whoever opens it as a picture says what is wrong with it.
        return "picture"


def _rate(fps: float | Fraction | None) -> Fraction | None:
    if fps is None:
        return None
    if isinstance(fps, bool) or not isinstance(fps, Real) or not 0 < fps < math.inf:
        raise ValueError(f"fps must be a number of frames per second above 0, not {fps!r}")
    return Fraction(fps).limit_denominator(100_000)


def _plain(bound: int | float | None) -> int | float | None:
    """numpy numbers as Python's, so that int and float tell frames from seconds."""
    if isinstance(bound, Real) and not isinstance(bound, bool):
        return int(bound) if isinstance(bound, Integral) else float(bound)
    return bound


class Origin:
    """A medium that may be opened again: a local file by its path, an object of the caller as long as they hold it.

    It costs a few hundred bytes. Neither downloads nor cameras are opened again, and a copy (or a pickle) only knows
    files. What was changed since is opened as it is now.

    Args:
        media: as for [`open_media`]. sampling: its keywords.
    """

    def __init__(self, media: MediaSource | None, sampling: Mapping[str, Any]) -> None:
        self._sampling = dict(sampling)
        self._path = os.path.abspath(str(media)) if _is_local(media) else None
        self._object: weakref.ref[Any] | None = None
        if self._path is None:
            try:
                self._object = weakref.ref(media)
            except TypeError:  # bytes, lists and strings
                return

    def pictures(self, indices: list[int], size: tuple[int, int]) -> list[np.ndarray] | None:
        """Frames as uint8 RGB (H, W, 3); None where the medium is gone, or is another than it was.

        Args:
            indices: of the frames; 0 is a picture. size: (height, width) that they had.
        """
        try:
            source = self._open()
            return source.read(indices) if source.size == size else None
        except (ValueError, OSError):
            return None

    def _open(self) -> FrameSource:
        media = self._path if self._object is None else self._object()
        if media is None:
            raise ValueError("the medium is gone")
        return open_media(media, **self._sampling)

    def __reduce__(self) -> tuple[Any, ...]:
        return Origin, (self._path, self._sampling)


def _is_local(media: Any) -> bool:
    if isinstance(media, str):
        return not (is_url(media) or media.startswith(CAMERA_PREFIX))
    return isinstance(media, os.PathLike)
