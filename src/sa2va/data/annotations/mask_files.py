"""Mask files: object numbers, or one object in white, even if compression has damaged the values.

Masks are PNG files by their nature, and yet many went through JPEG, were smoothed when they were resized, carry the
void border of PASCAL VOC and DAVIS, or a palette that begins with white. What is certain is read, what is likely is
read and noted, and the rest is an error that names the file.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from sa2va.data.annotations.annotated_images import decode_stored
from sa2va.data.annotations.layout import Doubts

#: What VOC and DAVIS write where nobody knows to whom a pixel belongs.
VOID = 255
# Grey values from here on are white, those below the first are black.
_DARK, _THRESHOLD, _BRIGHT = 64, 128, 192
# More than this share of a picture between black and white, and it is no mask.
_MOST_GREY = 0.2
# Values that are no object's number, and their share of all that is not background; fewer are objects that nobody
# named, or specks.
_FEWEST_STRANGE, _LEAST_STRANGE = 3, 0.01

_GREYS = (
    "masks hold grey values, as after JPEG or a smooth resize; 128 and above is taken as the object: "
    "save masks as PNG and resize them to the nearest pixel"
)
_BORDER = "masks hold 255 beside small numbers; it is taken as the void border of VOC and DAVIS, which is background"


def read_numbers(path: Path) -> np.ndarray:
    """Decode a mask file: integers (H, W), the palette index or grey value of each pixel.

    A picture in colour all of which is grey counts as grey. So does a palette of black and white whose first colour is
    white: its number 0 is no background.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or in colour without a palette; the message names it.
    """
    return _read(path)[0]


def object_area(path: Path, doubts: Doubts) -> np.ndarray:
    """A mask file of one object: bool (H, W), what is not 0 in it.

    Args:
        path: the file. doubts: is told where grey values or a void border had to be interpreted.

    Raises:
        FileNotFoundError, ValueError: as [`read_numbers`]; or it is a picture rather than a mask.
    """
    numbers, indexed = _read(path)
    values = _values(numbers)
    if len(values) < 2 or values[-1] > VOID:
        return numbers != 0
    small = values[values < _DARK]
    if values[-1] == VOID and len(small) == len(values) - 1 and not _is_noise(numbers, small):
        doubts.note(_BORDER, str(path))
        return (numbers != 0) & (numbers != VOID)
    if indexed or values[-1] < _THRESHOLD:
        return (numbers != 0) & ((numbers != VOID) | (not indexed))
    return _bright(numbers, path, doubts)


def numbered_areas(path: Path, wanted: Collection[int], doubts: Doubts) -> dict[int, np.ndarray]:
    """A mask file of several objects: bool (H, W) of each wanted number, all False where it does not occur.

    Black and white, also after JPEG, is taken for the only wanted number.

    Args:
        path, doubts: as in [`object_area`]. wanted: the numbers of the objects.

    Raises:
        FileNotFoundError, ValueError: as [`read_numbers`]; or it is black and white where several numbers are wanted,
            or its numbers went through JPEG or a smooth resize.
    """
    numbers, indexed = _read(path)
    values = _values(numbers)
    known = values[np.isin(values, list(wanted))]
    strange = values[~np.isin(values, [*wanted, VOID])]
    white = not indexed and VOID not in wanted and not len(known) and values.tolist() == [VOID]
    noise = not indexed and values.max(initial=0) <= VOID and _is_noise(numbers, strange)
    if (white or noise) and len(wanted) == 1 and (white or _mostly_bright(numbers)):
        (number,) = wanted
        return {number: _bright(numbers, path, doubts)}
    if white:
        raise ValueError(
            f"{path} is black and white, but its objects are numbered {sorted(wanted)}; give every pixel the number of "
            "its object, or a mask file of its own to every object"
        )
    if noise:
        raise ValueError(
            f"{path} holds {len(values)} values where objects are numbered {sorted(wanted)}, as after JPEG or a smooth "
            "resize; save masks as PNG from the start and resize them to the nearest pixel"
        )
    return {number: numbers == number for number in wanted}


def _read(path: Path) -> tuple[np.ndarray, bool]:
    """Numbers, and whether they are indices into a palette."""
    image, _ = decode_stored(path)
    if image.mode in ("RGB", "RGBA", "LA"):
        image = _grey(image)
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise ValueError(f"{path} is a colour picture of mode {image.mode}; save masks with a palette or in grey")
    if image.mode == "P" and _white_first(image):
        image = image.convert("L")
    return np.asarray(image, dtype=np.int64), image.mode == "P"


def _grey(image: Image.Image) -> Image.Image:
    """The grey of a picture that has no other colour and no holes; any other as it is."""
    colors, opaque = [np.asarray(band) for band in image.split()], True
    if image.mode.endswith("A"):
        opaque = bool((colors.pop() == 255).all())
    return image.getchannel(0) if opaque and all((band == colors[0]).all() for band in colors) else image


def _white_first(image: Image.Image) -> bool:
    """Whether a palette picture is white by its index 0, and else black."""
    colors = np.array(image.getpalette("RGB")).reshape(-1, 3)
    used = [index for index in np.unique(np.asarray(image)).tolist() if index < len(colors)]
    return len(used) == 2 and used[0] == 0 and colors[used].tolist() == [[255, 255, 255], [0, 0, 0]]


def _values(numbers: np.ndarray) -> np.ndarray:
    """What occurs beside 0, ascending. Counting is much faster than sorting where numbers are small."""
    if numbers.min() >= 0 and numbers.max() < 1 << 16:
        return np.flatnonzero(np.bincount(numbers.ravel()))[int((numbers == 0).any()) :]
    return np.setdiff1d(np.unique(numbers), [0])


def _is_noise(numbers: np.ndarray, strange: np.ndarray) -> bool:
    """Whether there are many pixels of these values and most lie alone: objects fill squares of 2 x 2 pixels."""
    pixels = np.isin(numbers, strange)
    if len(strange) < _FEWEST_STRANGE or pixels.sum() < _LEAST_STRANGE * (numbers != 0).sum():
        return False
    square = (numbers[1:, 1:] == numbers[:-1, 1:]) & (numbers[1:, 1:] == numbers[1:, :-1])
    square &= numbers[1:, 1:] == numbers[:-1, :-1]
    solid = np.zeros(numbers.shape, dtype=bool)
    for rows in (slice(1, None), slice(None, -1)):
        for columns in (slice(1, None), slice(None, -1)):
            solid[rows, columns] |= square
    return bool((pixels & solid).sum() * 2 < pixels.sum())


def _mostly_bright(numbers: np.ndarray) -> bool:
    """Whether there is more white than grey."""
    return bool((numbers >= _BRIGHT).sum() > ((numbers >= _DARK) & (numbers < _BRIGHT)).sum())


def _bright(numbers: np.ndarray, path: Path, doubts: Doubts) -> np.ndarray:
    grey = ((numbers >= _DARK) & (numbers < _BRIGHT)).mean()
    if grey > _MOST_GREY:
        raise ValueError(
            f"{path} is grey in {grey:.0%} of its pixels, a mask is 0 but for its object; is it a picture, or a map of "
            "probabilities? Save it where it is above a half"
        )
    if ((numbers > 0) & (numbers < VOID)).any():
        doubts.note(_GREYS, str(path))
    return numbers >= _THRESHOLD
