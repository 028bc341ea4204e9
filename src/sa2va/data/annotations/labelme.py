"""labelme's own files: a JSON beside each picture, with shapes in pixels."""

from __future__ import annotations

import base64
import io
import math
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from sa2va.data.annotations.labelled_images import Drawing, LabelledPicture, Shapes, box, ellipse, head, placed, polygon
from sa2va.data.annotations.layout import PictureFolders, Problems, read_json
from sa2va.masks.mask import Mask, Size
from sa2va.media.image import MAX_PIXELS, open_picture
from sa2va.untrusted import STUMBLES, reading, stumbled

#: Labels by which labelme means that nothing is there.
_NOTHING = ("_background_", "__ignore__")
#: Files that are looked at to tell whether a folder is labelme's.
_LOOKED_AT = 20


def is_labelme(root: Path) -> bool:
    """Whether a folder, one in it or one in that, such as of a video's frames, holds labelme's files."""
    depths = (islice(root.glob(pattern), _LOOKED_AT) for pattern in ("*.json", "*/*.json", "*/*/*.json"))
    return any(_is_labelme(head(path)) for path in chain.from_iterable(depths))


def read_labelme(root: Path, problems: Problems) -> list[LabelledPicture]:
    """The pictures of all files under a folder, sorted by path; those with nothing labelled are left out.

    Args:
        root: searched with all folders in it; JSON files of other kinds are passed over.
        problems: told of files that are malformed.
    """
    found, shapes, folders = [], Shapes(), PictureFolders((root, root / "images"))
    for path in sorted(root.rglob("*.json")):
        if not _is_labelme(head(path)):
            continue
        try:
            picture = _picture(path, root, read_json(path), folders, shapes)
        except STUMBLES as error:
            problems.malformed(f"a file cannot be read ({stumbled(error)})", str(path))
            continue
        if picture.shapes:
            found.append(picture)
    shapes.warn(str(root))
    return found


def _is_labelme(text: str) -> bool:
    # Files of ReasonSeg descend from labelme's.
    named = '"shapes"' in text and ('"version"' in text or '"imagePath"' in text)
    return text.lstrip().startswith("{") and named and '"is_sentence"' not in text


def _picture(path: Path, root: Path, record: Any, folders: PictureFolders, shapes: Shapes) -> LabelledPicture:
    height, width = record.get("imageHeight"), record.get("imageWidth")
    if not (height is None or width is None) and not (type(height) is type(width) is int and height > 0 and width > 0):
        raise ValueError("expected imageHeight and imageWidth in pixels")
    drawn = []
    for place, shape in enumerate(record["shapes"]):
        with reading(f"shape {place}"):
            label = shape["label"]
            if not isinstance(label, str) or not label.strip(" ."):
                raise ValueError("expected a label")
            drawing = None if label in _NOTHING else _drawing(shape, shapes)
        if drawing:
            drawn.append((label, drawing))
    written = str(record.get("imagePath") or "").replace("\\", "/")
    beside = path.parent / written
    image = beside if written and folders.has(beside) else _beside(path, folders) or folders.find(written or path.stem)
    size = None if height is None or width is None else (height, width)
    return LabelledPicture(path.relative_to(root).with_suffix("").as_posix(), image, size, tuple(drawn))


def _beside(path: Path, folders: PictureFolders) -> Path | None:
    """The picture of the same name, where the path that was written is one of another machine."""
    places = (
        path.with_suffix(suffix) for suffix in (".jpg", ".jpeg", ".png", ".JPG", ".webp", ".bmp", ".tif", ".tiff")
    )
    return next(filter(folders.has, places), None)


def _drawing(shape: dict[str, Any], shapes: Shapes) -> Drawing | None:
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind == "polygon":
        return polygon(points)
    if kind == "rectangle":
        shapes.boxes += 1
        corners = np.array(points, dtype=float).reshape(-1, 2)
        return box(*corners.min(axis=0), *corners.max(axis=0))
    if kind == "circle":
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return ellipse(x, y, radius, radius)
    if kind == "mask":
        (left, top), _ = points
        return partial(_draw_mask, _text(shape["mask"]), int(left), int(top))
    shapes.skipped[str(kind)] += 1
    return None


def _draw_mask(png: str, left: int, top: int, size: Size) -> Mask:
    with open_picture(io.BytesIO(base64.b64decode(png)), "the mask of a shape", MAX_PIXELS) as image:
        try:
            mask = np.asarray(image.convert("L")) > 0
        except Exception as error:  # Pillow's decoders fail on damaged files with whatever they stumble over
            raise ValueError(f"the mask of a shape is damaged: {error}") from error
    return placed(mask, left, top, size)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a mask in base64")
    return value
