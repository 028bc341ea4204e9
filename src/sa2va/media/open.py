"""Whatever a user hands over as a video, as a ``FrameSource``; and the way in to this package's media functions.

``load_image`` reads one picture, ``open_media`` opens a video lazily, ``is_video`` tells which of them a source needs.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import IO, Literal, TypeAlias, cast

import numpy as np
from PIL import Image

from sa2va.media.animation import AnimatedPicture, PictureStack, full_pages
from sa2va.media.camera import CAMERA_PREFIX, Camera
from sa2va.media.container import HEAD_BYTES, container_format
from sa2va.media.frames import (
    DecodedFrame,
    FrameSource,
    SampledFrames,
    Sampling,
    first_indices,
    prefetch,
    uniform_indices,
)
from sa2va.media.image import (
    MAX_PIXELS,
    ImageSource,
    decode_image,
    is_url,
    load_image,
    load_pixels,
    open_picture,
)
from sa2va.media.sample_depth import SampleDepth
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
_MAYBE_ANIMATED = (b"GIF8", b"\x89PNG", b"RIFF")
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
                return Picture(decode_image(file, repr(str(path)), max_pixels, SampleDepth()), path)
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
    if container_format(head) is not None:
        return "video"
    if not head.startswith(_MAYBE_ANIMATED + _TIFF) and head[4:12] != b"ftypavis":
        return "picture"
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
