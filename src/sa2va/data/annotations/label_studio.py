"""Label Studio's JSON export: tasks with results in percent of the picture, and masks as runs of RGBA bytes."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from sa2va.data.annotations.labelled_images import Drawing, LabelledPicture, Shapes, box, ellipse, head, polygon
from sa2va.data.annotations.layout import PictureFolders, Problems, read_json
from sa2va.masks.mask import MAX_PIXELS, Mask, Size
from sa2va.untrusted import STUMBLES, reading, stumbled

_PICTURE = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?)$", re.IGNORECASE)
#: What Label Studio puts before the names of uploaded files.
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")


def export_file(root: Path) -> Path | None:
    """The export in a folder, whatever its name; None where there is none."""
    return next((path for path in sorted(root.glob("*.json")) if _is_export(head(path))), None)


def is_label_studio(root: Path) -> bool:
    """Whether a folder holds an export."""
    return export_file(root) is not None


def read_label_studio(path: Path, problems: Problems) -> list[LabelledPicture]:
    """The pictures of an export, in the order of the file; those with nothing labelled are left out.

    Args:
        path: the file. Pictures are looked for in ``images`` beside it, and beside it, by the name that they had when
            they were uploaded or by the one that Label Studio gave them.
        problems: told of tasks that are malformed.

    Raises:
        ValueError: the file is no list of tasks.
    """
    tasks = read_json(path)
    if not isinstance(tasks, list):
        raise ValueError(f"{path} must hold a list of tasks, got {type(tasks).__name__}; export as JSON, not JSON-MIN")
    found, shapes = [], Shapes()
    folders = PictureFolders((path.parent / "images", path.parent))
    for place, task in enumerate(tasks):
        try:
            picture = _picture(task, place, folders, shapes)
        except STUMBLES as error:
            problems.malformed(f"a task cannot be read ({stumbled(error)})", f"task {place}")
            continue
        if picture.shapes:
            found.append(picture)
    shapes.warn(str(path))
    return found


def _is_export(text: str) -> bool:
    return text.lstrip().startswith("[") and '"annotations"' in text and '"result"' in text


def _picture(task: Any, place: int, folders: PictureFolders, shapes: Shapes) -> LabelledPicture:
    sizes: set[Size] = set()
    drawn = []
    # Annotations that were given up are kept in the file; of several good ones, all count.
    good = [one for one in task["annotations"] if not one.get("was_cancelled")]
    for number, result in enumerate(one for annotation in good for one in annotation["result"]):
        with reading(f"result {number}"):
            kind, value = str(result.get("type")), result["value"]
            labels = value.get(kind) if isinstance(value, dict) else None
            if labels is None:
                continue  # a relation, a rating, a text
            size = int(result["original_height"]), int(result["original_width"])
            if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
                raise ValueError("expected original_width and original_height in pixels")
            if result.get("image_rotation"):
                raise ValueError("the picture was turned in the editor; turn the file itself, and label it again")
            sizes.add(size)
            drawing = _drawing(kind, value, size, shapes)
            drawn += [(label, drawing) for label in _labels(labels) if drawing]
    if len(sizes) > 1:
        raise ValueError("its results are of pictures of different sizes")
    image = _find(_file_name(task["data"]), folders)
    return LabelledPicture(f"{task.get('id', place)}/{image.name}", image, next(iter(sizes), None), tuple(drawn))


def _file_name(data: dict[str, Any]) -> str:
    """The name of a task's picture: of a path, of a URL, or of ``/data/local-files/?d=PATH``."""
    for value in data.values():
        if isinstance(value, str):
            url = urlsplit(value)
            path = parse_qs(url.query).get("d", [unquote(url.path)])[0].replace("\\", "/")
            if _PICTURE.search(path):
                return path
    raise ValueError(
        "expected the name of a picture in data; of videos Label Studio has boxes alone, which are not read"
    )


def _find(path: str, folders: PictureFolders) -> Path:
    name = Path(path).name
    tails = (path.lstrip("/"), name, _UPLOAD.sub("", name))
    return next((place for tail in tails if folders.has(place := folders.find(tail))), folders.find(name))


def _labels(labels: Any) -> list[str]:
    if not isinstance(labels, list) or not all(isinstance(one, str) and one.strip(" .") for one in labels):
        raise ValueError("expected a list of labels")
    return labels


def _drawing(kind: str, value: dict[str, Any], size: Size, shapes: Shapes) -> Drawing | None:
    across, down = size[1] / 100, size[0] / 100
    if kind == "polygonlabels":
        return polygon((x * across, y * down) for x, y in value["points"])
    if kind == "brushlabels":
        return partial(_draw_brush, bytes(value["rle"]), size)
    if kind not in ("rectanglelabels", "ellipselabels"):
        shapes.skipped[str(kind)] += 1
        return None
    x, y, degrees = value["x"] * across, value["y"] * down, float(value.get("rotation") or 0)
    if kind == "ellipselabels":
        return ellipse(x, y, value["radiusX"] * across, value["radiusY"] * down, degrees)
    shapes.boxes += 1
    return box(x, y, x + value["width"] * across, y + value["height"] * down, degrees, pivot=(x, y))


def _draw_brush(rle: bytes, drawn_on: Size, size: Size) -> Mask:
    if drawn_on != size:
        raise ValueError(f"a mask was drawn on {drawn_on} (height, width) pixels, the picture has {size}")
    return Mask.from_array(decode_brush(rle, 4 * size[0] * size[1]).reshape(*size, 4)[..., 3] > 0)


def decode_brush(rle: bytes, length: int) -> np.ndarray:
    """Runs of bytes as Label Studio's editor packs them: uint8 (length,).

    A bit stream: 32 bits how many values; 5 bits the size of a value, less one; four times 4 bits sizes of lengths,
    less one; then runs: a bit whether one value repeats, two bits which size of length, the length less one, and the
    value, or so many values.

    Args:
        rle: the stream. length: how many values are expected.

    Raises:
        ValueError: it holds another number of values, or ends early.
    """
    bits = np.unpackbits(np.frombuffer(rle, np.uint8))
    weights = 1 << np.arange(31, -1, -1, dtype=np.int64)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise ValueError("a mask of a brush ends early")
        return int(bits[at - count : at] @ weights[32 - count :])

    if read(32) != length:
        raise ValueError(f"a mask of a brush has not 4 values for each of {length // 4} pixels")
    width = read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values, done = np.zeros(length, np.uint8), 0
    while done < length:
        repeats, count = read(1), 0
        count = read(sizes[read(2)]) + 1
        if done + count > length:
            raise ValueError("a mask of a brush holds more values than pixels")
        if repeats:
            values[done : done + count] = read(width) & 255
        else:
            if at + width * count > len(bits):
                raise ValueError("a mask of a brush ends early")
            rows = bits[at : at + width * count].reshape(count, width)
            values[done : done + count] = rows @ weights[32 - width :] & 255
            at += width * count
        done += count
    return values
