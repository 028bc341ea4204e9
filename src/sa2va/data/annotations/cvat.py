"""CVAT's own XML: shapes on pictures ("CVAT for images 1.1"), tracks through a video ("CVAT for video 1.1")."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeElementTree

from sa2va.data.annotations.labelled_images import Drawing, LabelledPicture, Shapes, box, ellipse, head, placed, polygon
from sa2va.data.annotations.layout import MissingData, PictureFolders, Problems, require_files
from sa2va.data.annotations.referring_video import RvosExpression, RvosVideo
from sa2va.masks.mask import Mask, Size
from sa2va.untrusted import STUMBLES, reading, stumbled

FILE = "annotations.xml"
_PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))
_VIDEOS = frozenset((".mp4", ".mov", ".avi", ".mkv", ".webm"))
_NUMBER = re.compile(r"(\d+)$")
#: Elements of a picture or track that are no shapes.
_NO_SHAPES = frozenset(("attribute", "tag"))


def is_cvat(root: Path) -> bool:
    """Whether a folder holds an export of pictures."""
    return "<annotations>" in head(root / FILE) and not is_cvat_video(root)


def is_cvat_video(root: Path) -> bool:
    """Whether a folder holds an export of a video with tracks."""
    text = head(root / FILE)
    return "<annotations>" in text and ("<track " in text or "<mode>interpolation</mode>" in text)


def read_cvat(root: Path, problems: Problems) -> list[LabelledPicture]:
    """The pictures of an export, in the order of the file; those with nothing labelled are left out.

    Args:
        root: the folder of ``annotations.xml``; pictures are looked for in ``images``, with or without the folder of
            their subset, and in the folder itself.
        problems: told of pictures that are malformed.

    Raises:
        MissingData: there is no such file. ValueError: it is no XML, or of another kind.
    """
    tree, shapes, found = _tree(root), Shapes(), []
    subsets = sorted({element.get("subset") or "" for element in tree.iter("image")})
    folders = PictureFolders([*(root / "images" / subset for subset in ("", *subsets)), root])
    for place, element in enumerate(tree.iter("image")):
        name = element.get("name") or ""
        try:
            size = _size(element.attrib)
            drawn = tuple(_drawings(element, shapes))
            if not name:
                raise ValueError("expected a name")
        except STUMBLES as error:
            problems.malformed(f"a picture cannot be read ({stumbled(error)})", name or f"picture {place}")
            continue
        if drawn:
            found.append(LabelledPicture(name, folders.find(name.replace("\\", "/")), size, drawn))
    shapes.warn(str(root / FILE))
    return found


def read_cvat_video(root: Path) -> list[RvosVideo]:
    """The video of an export, an expression for each label: the union of its tracks.

    Args:
        root: the folder of ``annotations.xml`` and of the video's frames, ``images/frame_000000.png`` and so on, which
            CVAT exports too when "save images" is on.

    Raises:
        MissingData: the file, or the frames. ValueError: the file is malformed, or a track has a gap.
    """
    tree, shapes = _tree(root), Shapes()
    frames = _frames(root)
    tracks: dict[str, list[Mapping[int, Drawing]]] = {}
    for place, element in enumerate(tree.iter("track")):
        with reading(f"{root / FILE}, track {element.get('id', place)}"):
            track = _track(element, sorted(frames), shapes)
            if track:
                tracks.setdefault(_label(element), []).append(track)
    shapes.warn(str(root / FILE))
    if not tracks:
        raise ValueError(f"{root / FILE} holds no track with an area")
    numbers = tuple(sorted(frames))
    spoken = tuple(RvosExpression(str(place), label) for place, label in enumerate(tracks))
    return [
        RvosVideo(root.resolve().name, tuple(frames[number] for number in numbers), spoken, Tracks(tracks, numbers))
    ]


@dataclass(frozen=True)
class Tracks:
    """Where tracks are in each frame: the truth of a video. tracks: by label. numbers: of the frames, in order."""

    tracks: Mapping[str, list[Mapping[int, Drawing]]]
    numbers: tuple[int, ...]

    def check(self, video: RvosVideo, expression: RvosExpression) -> None:
        """Nothing: tracks were read with their frames."""

    def parts(self, video: RvosVideo, expression: RvosExpression, frame: int) -> Iterator[np.ndarray]:
        """The masks, bool (H, W), of the tracks of a label in a frame."""
        for track in self.tracks[expression.text]:
            if drawing := track.get(self.numbers[frame]):
                yield drawing(video.size).array

    def annotated(self, video: RvosVideo, expression: RvosExpression) -> np.ndarray:
        """Every frame: a track that is not there has ended, and gaps are refused."""
        return np.ones(len(video.frames), dtype=bool)

    def size(self, video: RvosVideo, expression: RvosExpression) -> Size | None:
        """Shapes have no size of their own."""


def _tree(root: Path) -> Element:
    path = root / FILE
    require_files("CVAT annotations", {path: "CVAT: export as 'CVAT for images 1.1' or 'CVAT for video 1.1'"})
    try:
        tree = SafeElementTree.parse(path).getroot()
    except (ParseError, DefusedXmlException, *STUMBLES) as error:
        raise ValueError(f"{path} is not XML that can be read: {error}") from error
    if tree is None or tree.tag != "annotations":
        raise ValueError(f"{path} is not an export of CVAT: expected <annotations>")
    return tree


def _drawings(element: Element, shapes: Shapes) -> Iterator[tuple[str, Drawing]]:
    for place, shape in enumerate(one for one in element if one.tag not in _NO_SHAPES):
        with reading(f"shape {place}, {shape.tag}"):
            drawing = _drawing(shape.tag, shape.attrib, shapes)
            if drawing:
                yield _label(shape), drawing


def _drawing(kind: str, values: Mapping[str, str], shapes: Shapes) -> Drawing | None:
    degrees = float(values.get("rotation", 0))
    if kind == "polygon":
        return polygon(point.split(",") for point in values["points"].split(";"))
    if kind == "box":
        shapes.boxes += 1
        x0, y0, x1, y1 = (float(values[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        return box(x0, y0, x1, y1, degrees)
    if kind == "ellipse":
        x, y, radius_x, radius_y = (float(values[name]) for name in ("cx", "cy", "rx", "ry"))
        return ellipse(x, y, radius_x, radius_y, degrees)
    if kind == "mask":
        left, top, width, height = (int(values[name]) for name in ("left", "top", "width", "height"))
        return partial(_draw_runs, values["rle"], left, top, (height, width))
    shapes.skipped[kind] += 1
    return None


def _draw_runs(text: str, left: int, top: int, part: Size, size: Size) -> Mask:
    """Runs along the rows of a part of the picture, first of pixels that are outside of the mask."""
    runs = np.array([int(run) for run in text.split(",")])
    if part[0] > size[0] or part[1] > size[1] or min(part) < 1:
        raise ValueError(f"a mask of {part} (height, width) pixels does not fit into {size}")
    pixels = part[0] * part[1]
    if ((runs < 0) | (runs > pixels)).any() or runs.sum() != pixels:
        raise ValueError(f"expected runs that add up to {part[0]} x {part[1]} pixels, got {text[:40]}")
    return placed(np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(part), left, top, size)


def _track(element: Element, numbers: list[int], shapes: Shapes) -> dict[int, Drawing]:
    """What a track shows, by frame. ValueError where it is silent on one between others: CVAT writes them all."""
    shown: dict[int, Drawing] = {}
    states: dict[int, bool] = {}
    for shape in (one for one in element if one.tag not in _NO_SHAPES):
        frame = int(shape.attrib["frame"])
        outside = shape.get("outside", "0") == "1"
        drawing = None if outside else _drawing(shape.tag, shape.attrib, shapes)
        states[frame] = not outside
        if drawing:
            shown[frame] = drawing
    said = sorted(states)
    visible = False
    for number in (number for number in numbers if said and said[0] <= number <= said[-1]):
        if visible and number not in states:
            raise ValueError(f"no shape on frame {number}, though the track goes on; export as 'CVAT for video 1.1'")
        visible = states.get(number, visible)
    absent = sorted(shown.keys() - set(numbers))
    if absent:
        raise ValueError(f"shapes on frames that have no picture: {absent[:3]}")
    return shown


def _frames(root: Path) -> dict[int, Path]:
    """Pictures by the number at the end of their name."""
    folder = root / "images" if (root / "images").is_dir() else root
    pictures = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _PICTURES]
    found = {int(match[1]): path for path in pictures if (match := _NUMBER.search(path.stem))}
    if not found:
        video = next((path.name for path in sorted(root.iterdir()) if path.suffix.lower() in _VIDEOS), "VIDEO.mp4")
        raise MissingData(
            f"the frames of the video are missing: expected {root / 'images'}/frame_000000.png and so on; export with "
            f"'save images', or: mkdir images && ffmpeg -i {video} -start_number 0 images/frame_%06d.png"
        )
    return found


def _label(element: Element) -> str:
    label = element.get("label") or ""
    if not label.strip(" ."):
        raise ValueError("expected a label")
    return label


def _size(values: Mapping[str, Any]) -> Size:
    size = int(values["height"]), int(values["width"])
    if min(size) < 1:
        raise ValueError("expected width and height in pixels")
    return size
