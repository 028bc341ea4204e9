"""Image files with several frames as videos: animations, and TIFFs with several pages."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sa2va.media.frames import DecodedFrame, FrameSource, check_weight
from sa2va.media.image import MAX_PIXELS, SampleDepth, open_picture, to_rgb, upright_rgb
from sa2va.runtime import logger

# What browsers take for a frame that says it lasts no time.
_UNTIMED_MILLISECONDS = 100.0
# No format stores a frame in fewer bytes; headers that promise more frames than that are wrong.
_LEAST_FRAME_BYTES = 10
_MAX_PAGES = 50_000
# NewSubfileType, and its bits for a smaller copy of another page and for a transparency mask.
_SUBFILE_TYPE, _NO_PAGE = 254, 0b101


class AnimatedPicture(FrameSource):
    """An animated GIF, PNG, WebP or AVIF, composited as a browser shows it, on white.

    A file that is cut short ends where it can no longer be decoded, with a warning.

    Raises:
        ValueError: not a picture, too large (frames times pixels, too), or nothing in it can be decoded. Or (when its
            turn comes) a frame that is whole and cannot be shown.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> None:
        self._path = Path(path)
        self._max_pixels = max_pixels
        self._depth = SampleDepth()
        self._times: list[float] | None = None
        with self._open() as image:
            self._size = image.height, image.width
            self._promised = self._count = self._count_frames(image)
        check_weight(self._path, self._count, self._size)
        if next(self._steps(), None) is None:
            raise ValueError(f"nothing can be decoded in {self._path}: the file is damaged or cut short")

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    @property
    def frame_count(self) -> int:
        return self._count

    @property
    def fps(self) -> Fraction | None:
        milliseconds = round(self.times()[-1] * 1000)
        return Fraction((len(self.times()) - 1) * 1000, milliseconds) if milliseconds else None

    @property
    def path(self) -> Path:
        return self._path

    @property
    def decode_errors(self) -> int:
        return self._promised - self._count

    def times(self) -> list[float]:
        if self._times is None:
            self._times = [time for _, time, _ in self._steps()]
        return self._times

    def pick(self, indices: Iterable[int]) -> Iterator[DecodedFrame]:
        steps = self._steps()
        for wanted in indices:
            step = next((step for step in steps if step[0] == wanted), None)
            if step is None:
                return
            yield DecodedFrame(wanted, step[1], np.array(step[2]), wanted)

    def _open(self) -> Image.Image:
        return open_picture(str(self._path), str(self._path), self._max_pixels)

    def _count_frames(self, image: Image.Image) -> int:
        with contextlib.suppress(Exception):
            return min(int(getattr(image, "n_frames", 1)), os.path.getsize(self._path) // _LEAST_FRAME_BYTES)
        # A GIF that is cut short cannot be counted: it promises one frame more than can be reached.
        last = 0
        with self._open() as again, contextlib.suppress(Exception):
            while True:
                again.seek(last + 1)
                last += 1
        return last + 2

    def _bound(self, purpose: str) -> int:
        # As for a video file: indices chosen before the damage was seen stay valid.
        return self._promised

    def _steps(self) -> Iterator[tuple[int, float, Image.Image]]:
        """(index, time, RGB image) for each frame: each one builds on those before, so none can be skipped."""
        milliseconds = 0.0
        with self._open() as image:
            for index in range(self._count):
                try:
                    image.seek(index)
                    image.load()
                except Exception as error:
                    # Pillow's plugins fail on damaged files with whatever the parser stumbles over.
                    self._count = index
                    logger.warning(
                        "%s is damaged: %d of %d frames can be read (%s)",
                        self._path,
                        index,
                        self._promised,
                        str(error) or type(error).__name__,
                    )
                    return
                try:
                    picture = to_rgb(image, self._depth)
                except Exception as error:  # all of it is there, so it was not cut short
                    raise ValueError(
                        f"{self._path}: frame {index} of {self._promised} cannot be shown "
                        f"({str(error) or type(error).__name__}); save it anew with another program"
                    ) from error
                yield index, milliseconds / 1000, picture
                milliseconds += image.info.get("duration") or _UNTIMED_MILLISECONDS


class PictureStack(FrameSource):
    """A TIFF of several pages, each a frame. Smaller copies of pages and masks, which are no pages, are left out.

    Raises:
        ValueError: not a picture, too large, too many pages, or (when its turn comes) a page that cannot be read or
            whose size differs.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> None:
        self._path = Path(path)
        self._max_pixels = max_pixels
        self._depth = SampleDepth()
        with self._open() as image:
            self._pages = list(full_pages(image, str(self._path)))
        first = next(self.pick([0]))
        self._size = first.pixels.shape[0], first.pixels.shape[1]
        check_weight(self._path, len(self._pages), self._size)

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    @property
    def frame_count(self) -> int:
        return len(self._pages)

    @property
    def path(self) -> Path:
        return self._path

    def pick(self, indices: Iterable[int]) -> Iterator[DecodedFrame]:
        with open(self._path, "rb") as file, open_picture(file, str(self._path), self._max_pixels) as image:
            for wanted in indices:
                if wanted >= len(self._pages):
                    return
                name = f"page {self._pages[wanted] + 1} of {self._path}"
                try:
                    image.seek(self._pages[wanted])
                except Exception as error:
                    raise ValueError(f"{name} is damaged: {error}") from error
                pixels = np.array(upright_rgb(image, name, self._max_pixels, self._depth, file))
                if wanted and pixels.shape[:2] != self._size:
                    raise ValueError(
                        f"all pages must have one size to be a video: {name} is {pixels.shape[1]}x{pixels.shape[0]}, "
                        f"the first {self._size[1]}x{self._size[0]}; save the page you mean as a picture of its own"
                    )
                yield DecodedFrame(wanted, None, pixels, wanted)

    def _open(self) -> Image.Image:
        return open_picture(str(self._path), str(self._path), self._max_pixels)


def full_pages(image: Any, name: str) -> Iterator[int]:
    """The pages of a TIFF opened by Pillow that are pictures of their own."""
    for page in range(_MAX_PAGES + 1):
        try:
            image.seek(page)
        except EOFError:
            return
        except Exception as error:
            raise ValueError(f"{name} is a damaged picture: page {page + 1} cannot be read ({error})") from error
        if page == _MAX_PAGES:
            raise ValueError(f"{name} has more than {_MAX_PAGES} pages; split it")
        kind = image.tag_v2.get(_SUBFILE_TYPE, 0)
        if not (isinstance(kind, int) and kind & _NO_PAGE):
            yield page
