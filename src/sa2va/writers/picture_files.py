"""Output files of an image: overlay, masks, cut-out, one image per object, and the answer as JSON."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sa2va.atomic import replacing
from sa2va.masks.mask import Segment
from sa2va.untrusted import parse_json
from sa2va.visualization.overlay import cutout, overlay, palette_png


def write_picture(
    files: Mapping[str, Path],
    image: Image.Image,
    segments: Sequence[Segment],
    record: dict[str, Any],
    *,
    folder: Path | None = None,
) -> list[str]:
    """Write the files about one picture, each whole or not at all.

    Args:
        files: path by kind of output: overlay, masks, objects, cutout, json.
        segments: of all answers together, ids 1, 2, ...; in the palette PNG a pixel holds its object's id.
        record: becomes the JSON file, with ``outputs`` added. folder: what holds all files, where one does.

    Returns:
        the files written, relative to ``folder`` where it is given.

    Raises:
        ValueError: more than 255 objects for a palette PNG.
    """
    written: list[Path] = []
    for kind, path in files.items():
        if kind == "objects":
            _remove_earlier(path, folder)
            written += _write_objects(path, segments)
        elif kind != "json":
            _save(_picture(kind, image, segments), path)
            written.append(path)
    outputs = [_shown(path, folder) for path in written]
    if (path := files.get("json")) is not None:
        outputs.append(_shown(path, folder))
        write_json(path, {**record, "outputs": outputs})
    return outputs


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _shown(path: Path, folder: Path | None) -> str:
    return str(path if folder is None else path.relative_to(folder))


def _picture(kind: str, image: Image.Image, segments: Sequence[Segment]) -> Image.Image:
    if kind == "overlay":
        return overlay(image, segments)
    masks = [segment.mask.array for segment in segments]
    nothing = np.zeros((image.height, image.width), np.bool_)
    if kind == "masks":
        indices, colors = [segment.id for segment in segments], [segment.color for segment in segments]
        return palette_png(masks or [nothing], indices or [1], colors or [None])
    assert kind == "cutout"
    opacities = [
        mask if segment.alpha is None else segment.alpha for mask, segment in zip(masks, segments, strict=True)
    ]
    return cutout(image, np.maximum.reduce([nothing, *opacities]))


def _write_objects(folder: Path, segments: Sequence[Segment]) -> list[Path]:
    """Black-and-white pictures (mode L, 0 and 255), one per object, named by id and phrase."""
    paths = []
    for segment in segments:
        words = re.sub(r"[^a-z0-9]+", "-", segment.phrase.lower())[:40].strip("-")  # no phrase can become a path
        path = folder / f"{segment.id:03d}{'-' if words else ''}{words}.png"
        _save(Image.fromarray(segment.mask.array.astype(np.uint8) * 255), path)
        paths.append(path)
    return paths


def _remove_earlier(objects: Path, folder: Path | None) -> None:
    """Remove the object pictures of the run that is overwritten, which its record names: their ids are used anew."""
    if folder is None:
        return
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        names = parse_json((folder / "result.json").read_bytes())["outputs"]
    for name in map(str, names):
        if (path := folder / name).parent == objects:
            path.unlink(missing_ok=True)


def _save(picture: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        picture.save(temporary)
