"""Results of many images and videos as one labelled dataset: images in a folder, and labels in some tool's format."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sa2va.atomic import check_target, remove_leftovers, replacing
from sa2va.masks.mask import Segment, Size
from sa2va.media.open import Picture, load_image, open_media
from sa2va.results.answer import Answer, Frame
from sa2va.writers.frame_writer import FramePairs

IMAGES = "images"
_UPRIGHT = 1
_ORIENTATION = 0x0112  # the tag of EXIF

Pixels = NDArray[np.uint8]
Found = Answer | Frame | FramePairs | Sequence[Answer]


class DatasetWriter(ABC):
    """Collects results as ``FOLDER/images`` and labels.

    The labels appear complete when the block ends; after an error there are none.

    Args:
        folder: new, or without labels.

    Raises:
        ValueError: the folder has labels already.
        OSError: the folder is not writable.
    """

    #: The file that makes a folder of images a dataset.
    label_file: ClassVar[str]

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / self.label_file
        check_target(self.path)
        remove_leftovers(self.folder)
        if self.path.exists():
            raise ValueError(f"{self.path} exists; choose another folder, or remove it")
        self._written: dict[str, bool] = {}  # by name, whether it made a file

    def add(
        self,
        source: str | Path,
        found: Found,
        image: Image.Image | Pixels | None = None,
        *,
        name: str | None = None,
    ) -> None:
        """Add an image, or every frame of a video, with what was found in it.

        Args:
            source: the file of the image or video (images are copied, frames are written as PNG), or a name for
                ``image``.
            found: an answer, the answers to several phrases, a frame, or a track.
            image: the image, if it is not in a file.
            name: what the image's file is called in the dataset; None for the name of its source.

        Raises:
            ValueError: an image of this name was added before, masks have another size, or the track's pixels cannot be
                read again.
        """
        name = Path(source).name if name is None else name
        if isinstance(found, FramePairs):
            for frame, pixels in found.pairs():
                if pixels is None:
                    raise ValueError(f"the frames of {source} are gone: this track was read before and cannot be again")
                self._add_frame(name, frame, pixels)
            return
        segments = found.segments if isinstance(found, Answer | Frame) else [s for one in found for s in one.segments]
        if isinstance(found, Frame) or image is not None:
            pixels = None if image is None else np.asarray(load_image(image))
            target = name if Path(name).suffix else f"{name}.png"
            picture = load_image(source) if pixels is None else Image.fromarray(pixels)
            self._add(target, picture, (picture.height, picture.width), segments)
        elif not isinstance(media := open_media(source), Picture):
            for decoded in media:
                here = tuple(_at(segment, decoded.index) for segment in segments)
                frame = Frame(decoded.index, decoded.time, decoded.pixels.shape[:2], here)
                self._add_frame(name, frame, decoded.pixels)
        else:
            self._add(name, Path(source) if Path(source).is_file() else media.image, media.size, segments)

    @abstractmethod
    def close(self) -> None:
        """Write the labels."""

    def abort(self) -> None:
        """Discard the dataset: no labels appear, and the images written for them are removed."""
        for name, own in self._written.items():
            if own:
                (self.folder / IMAGES / name).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @abstractmethod
    def _label(self, name: str, size: Size, segments: Sequence[Segment]) -> None:
        """Keep the labels of an image that is in the folder."""

    def _add_frame(self, video: str, frame: Frame, pixels: Pixels) -> None:
        name = f"{Path(video).stem}/{frame.index:05d}.png"
        self._add(name, Image.fromarray(pixels), frame.size, frame.segments)

    def _add(self, name: str, picture: Path | Image.Image, size: Size, segments: Sequence[Segment]) -> None:
        if name in self._written:
            raise ValueError(f"there is an image named {name} already; rename one, or collect it in another folder")
        for segment in segments:
            if segment.mask.size != size:
                raise ValueError(f"expected masks (h, w) {size} of {name}, got {segment.mask.size}")
        self._written[name] = _put(picture, self.folder / IMAGES / name)
        self._label(name, size, segments)


def _at(segment: Segment, frame: int) -> Segment:
    return replace(segment, masks=(segment.masks[frame],))


def _put(picture: Path | Image.Image, target: Path) -> bool:
    """Store a picture as its masks see it. Returns whether that made a file; one that is there already is kept."""
    if isinstance(picture, Path) and target.exists() and picture.samefile(target):
        return False
    check_target(target, picture)
    with replacing(target) as temporary:
        if isinstance(picture, Path) and _is_upright(picture):
            shutil.copyfile(picture, temporary)
        else:
            load_image(picture).save(temporary, quality=95)
    return True


def _is_upright(path: Path) -> bool:
    """Whether readers that ignore EXIF show a file as the others do, and as its masks are."""
    with Image.open(path) as picture:
        return picture.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT
