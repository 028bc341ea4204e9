"""Annotated images and their orientation: as stored or upright, and in which of the two their masks were drawn.

A camera stores a picture as its sensor lies and notes in its EXIF data how to turn it. Viewers, annotation tools in a
browser and this package's inference show it upright; readers such as OpenCV's or plain Pillow's see it as stored. Own
data become upright samples: masks that were drawn on the stored picture are turned with it. Published sets are read as
the reference reads them, as stored.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from sa2va.data.annotations.layout import Doubts
from sa2va.data.sample import FrameLike, LazyFrame
from sa2va.masks.mask import Mask, Size
from sa2va.media.image import MAX_PIXELS, open_picture, to_rgb

#: How annotators saw a picture that its EXIF data turn.
Orientation = Literal["upright", "stored"]

_EXIF_ORIENTATION = 0x0112
#: By the value of EXIF's orientation; 1 is upright already.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset((_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8]))


@dataclass(frozen=True)
class PictureHeader:
    """What a picture file says of itself without being decoded.

    Attributes:
        path: the file. stored: (height, width) of its pixels as they lie in it. turn: what makes it upright; None where
            it is.
    """

    path: Path
    stored: Size
    turn: Image.Transpose | None

    @classmethod
    def read(cls, path: Path) -> PictureHeader:
        """FileNotFoundError where there is no such file, ValueError where it is no picture; the message names it."""
        with path.open("rb") as file, open_picture(file, str(path), MAX_PIXELS) as image:
            return cls(path, (image.height, image.width), _turn(image))

    @property
    def upright(self) -> Size:
        """(height, width) of the upright picture."""
        height, width = self.stored
        return (width, height) if self.turn in _SIDEWAYS else self.stored


@dataclass(frozen=True)
class UprightPicture:
    """A picture that is shown upright, whose masks may have been drawn on the stored one.

    Attributes:
        header: of its file. drawn: on which picture masks were drawn.
    """

    header: PictureHeader
    drawn: Orientation

    @property
    def canvas(self) -> Size:
        """(height, width) of the picture that masks were drawn on."""
        return self.header.stored if self.drawn == "stored" else self.header.upright

    @property
    def frame(self) -> LazyFrame:
        """The upright picture as a frame of a sample, decoded when asked for."""
        return LazyFrame(partial(read_upright, self.header.path), self.header.upright)

    def turned(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the canvas, bool (H, W), as one of the upright picture."""
        if self.drawn == "upright" or self.header.turn is None:
            return mask
        return np.asarray(Image.fromarray(mask.view(np.uint8)).transpose(self.header.turn)).view(np.bool_)

    def turned_mask(self, mask: Mask) -> Mask:
        """The same for run lengths."""
        plain = self.drawn == "upright" or self.header.turn is None
        return mask if plain else Mask.from_array(self.turned(mask.array))


def upright_picture(
    path: Path,
    size: Size | None = None,
    orientation: Orientation | None = None,
    doubts: Doubts | None = None,
    *,
    claimed: bool = False,
) -> UprightPicture:
    """Find out on which picture the masks of a file were drawn: on the one that has their size.

    Args:
        path: the picture. size: (height, width) of its masks, or that its annotations claim; None where these say none.
        orientation: what the user knows; None where nothing.
        doubts: is told of a picture where sizes do not tell and nothing is known; upright is taken then. None for
            pictures without masks.
        claimed: the size is not that of masks but written beside them, maybe by a program that read the stored picture:
            what the user knows counts more.

    Raises:
        FileNotFoundError, ValueError: no such file, not a picture, or not of this size.
    """
    header = PictureHeader.read(path)
    if size is not None and size not in (header.stored, header.upright):
        raise ValueError(_wrong_size(path, header.stored, size))
    if header.turn is None:
        return UprightPicture(header, "upright")
    telling = size is not None and header.stored != header.upright
    if telling and not (claimed and orientation):
        return UprightPicture(header, "stored" if size == header.stored else "upright")
    if orientation is not None:
        return UprightPicture(header, orientation)
    if doubts is not None:
        doubts.note(
            "pictures are turned by their EXIF data and their annotations do not say which way they were drawn; "
            "upright is taken, orientation=stored or orientation=upright says it",
            str(path),
        )
    return UprightPicture(header, "upright")


def checked_orientation(orientation: str | None) -> Orientation | None:
    """An option of a source. ValueError where it is neither ``"upright"`` nor ``"stored"`` nor None."""
    known: dict[str | None, Orientation | None] = {None: None, "upright": "upright", "stored": "stored"}
    if orientation not in known:
        raise ValueError(f'orientation must be "upright", "stored" or null, got {orientation!r}')
    return known[orientation]


def stored_size(path: Path) -> Size:
    """(height, width) of a picture file as stored, from its header. ValueError when it is not a picture."""
    return PictureHeader.read(path).stored


def read_picture(path: Path, size: Size | None = None) -> np.ndarray:
    """Decode a picture of a published set, as stored: uint8 RGB (H, W, 3).

    Args:
        path: the file. size: (height, width) that its annotations claim; where only the picture turned upright by its
            EXIF data has this size, that one is taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another size; the message names it.
    """
    image, turn = decode_stored(path)
    if size is not None and (image.height, image.width) != size:
        stored = (image.height, image.width)
        image = image if turn is None else image.transpose(turn)
        if (image.height, image.width) != size:
            raise ValueError(_wrong_size(path, stored, size))
    return np.array(to_rgb(image))


def read_upright(path: Path) -> np.ndarray:
    """Decode a picture as inference sees it, upright: uint8 RGB (H, W, 3). Raises as [`read_picture`] does."""
    image, turn = decode_stored(path)
    return np.array(to_rgb(image if turn is None else image.transpose(turn)))


def decode_stored(path: Path) -> tuple[Image.Image, Image.Transpose | None]:
    """A loaded picture as stored, and what turns it upright. Raises as [`read_picture`] does."""
    with path.open("rb") as file, open_picture(file, str(path), MAX_PIXELS) as image:
        turn = _turn(image)
        try:
            image.load()
        except Exception as error:
            # Pillow's decoders fail on damaged files with whatever they stumble over.
            raise ValueError(f"{path} is damaged or cut short: {error}") from error
        return image, turn


def lazy_picture(path: Path, size: Size | None = None) -> LazyFrame:
    """A picture of a published set as a frame, decoded when asked for. size: as in [`read_picture`]; read when None."""
    size = size or stored_size(path)
    return LazyFrame(partial(read_picture, path, size), size)


def file_of(frame: FrameLike) -> Path | None:
    """The picture file that a frame of a sample is read from; None where it is none, or not known."""
    if isinstance(frame, LazyFrame) and isinstance(frame.load, partial) and frame.load.func in _READERS:
        return frame.load.args[0]
    return None


_READERS = (read_picture, read_upright)


def _wrong_size(path: Path, stored: Size, size: Size) -> str:
    return (
        f"{path} has {stored[0]} x {stored[1]} pixels (height x width) but its annotation says "
        f"{size[0]} x {size[1]}; annotate the file as it is, or get the original one"
    )


def _turn(image: Image.Image) -> Image.Transpose | None:
    # The base class's reader: that of PNG would decode the picture to look for EXIF data behind its pixels.
    with contextlib.suppress(Exception):  # EXIF data that cannot be parsed say nothing
        return _TURNS.get(Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1))
    return None
