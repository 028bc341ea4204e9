"""YOLO's layout: ``data.yaml``, pictures under ``images``, and of each a text file of outlines in ``labels``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sa2va.data.annotations.labelled_images import Drawing, LabelledPicture, Shapes, polygon
from sa2va.data.annotations.layout import MissingData, Problems, require_files
from sa2va.masks.mask import Mask, Size
from sa2va.untrusted import STUMBLES, read_yaml, reading, stumbled

CONFIGS = ("data.yaml", "data.yml", "dataset.yaml")
_PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))
_SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
# What is rounded may stick out a little.
_TOLERANCE = 0.01


def read_yolo(root: Path, split: str, problems: Problems) -> list[LabelledPicture]:
    """The pictures of a split, sorted by path; those without labels are left out.

    Args:
        root: the folder of ``data.yaml``. split: ``train``, ``val`` or ``test``.
        problems: told of label files that are malformed.

    Raises:
        MissingData: the pictures of the split are not where the file says. ValueError: the file is malformed.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
    path = next((root / name for name in CONFIGS if (root / name).is_file()), root / CONFIGS[0])
    require_files("YOLO labels", {path: "your labelling tool: names, and where pictures are"})
    config = read_yaml(path)
    with reading(path, "names, a list or numbers with names, and paths of pictures in train, val and test"):
        names = _names(config["names"])
        given = next((config[key] for key in _SPLITS[split] if config.get(key)), None)
        pictures = _pictures(root, config, [given] if isinstance(given, str) else list(given or ()))
    if not pictures:
        raise MissingData(
            f"{path}: the pictures of {split!r} are not where it says, {given!r}, under {root.absolute()}"
        )
    found, shapes = [], Shapes()
    for image in pictures:
        labels = _labels(image)
        try:
            drawn = _read_labels(labels, names, shapes) if labels.is_file() else ()
        except STUMBLES as error:
            problems.malformed("a label file cannot be read", f"{labels}, {stumbled(error)}")
            continue
        if drawn:
            found.append(LabelledPicture(image.relative_to(root).as_posix(), image, None, drawn))
    shapes.warn(str(path))
    return found


def _names(names: Any) -> dict[int, str]:
    numbered = dict(enumerate(names)) if isinstance(names, list) else {int(key): name for key, name in names.items()}
    return {number: str(name) for number, name in numbered.items()}


def _pictures(root: Path, config: dict[str, Any], given: list[str]) -> list[Path]:
    """All pictures of the folders, and of the lists of paths, that a split names; none from outside of the root."""
    base = str(config.get("path") or ".")
    found: list[Path] = []
    for place in given:
        # Exports often name the folder from another place: "../train/images", or an absolute path of another machine.
        inside = place.lstrip("./\\")
        places = [
            root / base / place,
            root / place,
            root / inside,
            *(root / "/".join(Path(place).parts[n:]) for n in (-2, -1)),
        ]
        there = next((one for one in places if one.exists() and _within(one, root)), None)
        if there and there.is_dir():
            found += (path for path in there.rglob("*") if path.suffix.lower() in _PICTURES)
        elif there:
            lines = (line.strip() for line in there.read_text(encoding="utf-8").splitlines())
            listed = (root / base / line.removeprefix("./") for line in lines if line)
            found += (path for path in listed if path.suffix.lower() in _PICTURES and path.is_file())
    return sorted(path for path in found if _within(path, root) and not path.name.startswith("."))


def _within(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def _labels(image: Path) -> Path:
    """Beside the last folder ``images`` of the path, its twin ``labels``; else the file beside the picture."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_labels(path: Path, names: dict[int, str], shapes: Shapes) -> tuple[tuple[str, Drawing], ...]:
    drawn = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        with reading(f"line {number}"):
            drawn.append(_read_line(line.split(), names, shapes))
    return tuple(drawn)


def _read_line(words: list[str], names: dict[int, str], shapes: Shapes) -> tuple[str, Drawing]:
    """A class and its outline, or its box: centre, width and height, and maybe a confidence."""
    label, numbers = names.get(int(words[0])), np.array(words[1:], dtype=float)
    if label is None:
        raise ValueError(f"class {words[0]} has no name in data.yaml")
    if not ((numbers >= -_TOLERANCE) & (numbers <= 1 + _TOLERANCE)).all():
        raise ValueError("expected numbers between 0 and 1, shares of the picture's width and height")
    if len(numbers) in (4, 5):
        shapes.boxes += 1
        (x, y), (right, low) = numbers[:2] - numbers[2:4] / 2, numbers[:2] + numbers[2:4] / 2
        numbers = np.array([x, y, right, y, right, low, x, low])
    if len(numbers) % 2 or len(numbers) < 6:
        raise ValueError(f"expected a class and three pairs of x and y or more, got {len(words)} numbers")
    return label, partial(_draw, tuple(numbers.tolist()))


def _draw(shares: tuple[float, ...], size: Size) -> Mask:
    height, width = size
    return polygon([(x * width, y * height) for x, y in zip(shares[::2], shares[1::2], strict=True)])(size)
