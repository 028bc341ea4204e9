"""Our interchange format: conversations with masks and regions, one JSON object per line. A reader and a writer.

A line is a sample; keys after ``turns`` may be left out::

    {"id": "street-1", "image": "street.jpg", "size": [480, 640],
     "turns": [{"question": "Please segment the dog.", "answer": "Sure, [SEG].", "tag": "refer"}],
     "masks": [{"size": [480, 640], "counts": "..."}], "regions": [...], "source": "mine"}

The k-th ``[SEG]`` of the answers belongs to the k-th mask: COCO's RLE, or polygons, or null where nothing is. Questions
call the regions ``region1``, ``region2``, ... A clip has ``"frames": [path, ...]`` instead of ``image``, and each of
its masks is a list with one entry per frame; or, where it is not known in all of them, an object with one entry per
known frame: ``{path: RLE or null}``. Text alone has neither. Paths are relative to the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sa2va.atomic import check_target, remove_leftovers, replacing
from sa2va.data.annotations.annotated_images import (
    Orientation,
    PictureHeader,
    UprightPicture,
    checked_orientation,
    file_of,
    upright_picture,
)
from sa2va.data.annotations.coco import decode_segmentation, is_segmentation, size_of
from sa2va.data.annotations.layout import Doubts, PictureFolders, Problems, require_files, text_encoding
from sa2va.data.sample import SEG, Sample
from sa2va.masks.mask import Mask
from sa2va.results.history import Turn
from sa2va.untrusted import STUMBLES, parse_json, reading, stumbled


class Chat:
    """The samples of a chat file; lines are read when they are asked for.

    Args:
        root: the file, or the folder that holds ``chat.jsonl``.
        orientation: of pictures that their EXIF data turn, how they were annotated: ``"upright"`` or ``"stored"``. None
            takes the one of the line's ``size``; where both have it, or there is none, upright, with a warning.
        skip_broken: leave out lines that are malformed or whose pictures are missing, with a warning.

    Attributes:
        doubts: what was decided without being told.

    Raises:
        MissingData: files are missing; the message names them. ValueError: lines are malformed.
    """

    def __init__(self, root: str | Path, *, orientation: Orientation | None = None, skip_broken: bool = False):
        self.path = Path(root) / "chat.jsonl" if Path(root).is_dir() else Path(root)
        require_files("chat", {self.path: "write_chat, or your own annotations"})
        self.orientation: Orientation | None = checked_orientation(orientation)
        self.doubts = Doubts(str(self.path))
        self._folders, self._encoding = PictureFolders((self.path.parent,)), text_encoding(self.path)
        problems, spans = Problems(str(self.path)), []
        for number, (start, line) in enumerate(_lines(self.path, self._encoding), start=1):
            if line.strip() and self._is_good(line, f"line {number}", problems):
                spans.append((start, start + len(line)))
        self._spans = np.array(spans, dtype=np.int64).reshape(-1, 2)
        problems.settle(len(spans), skip=skip_broken)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Sample:
        start, end = self._spans[index].tolist()
        with self.path.open("rb") as file:
            file.seek(start)
            record = self._record(file.read(end - start))
        with reading(f"{self.path}, {record['id']!r}"):
            return self._sample(record)

    def _record(self, line: bytes) -> Any:
        return parse_json(line.decode(self._encoding).removeprefix("\ufeff"))

    def _sample(self, record: dict[str, Any]) -> Sample:
        names, clips, regions = _names(record), _clips(record), record.get("regions", ())
        drawn = [mask for clip in clips for mask in clip if mask is not None and mask is not _UNKNOWN] + [*regions]
        size: Any = record.get("size") or next(filter(None, map(size_of, drawn)), None)
        pictures = [
            upright_picture(
                self._folders.find(name),
                size and tuple(size),
                self.orientation,
                self.doubts if drawn else None,
                claimed=True,
            )
            for name in names
        ]
        known_KF = np.array([[mask is not _UNKNOWN for mask in clip] for clip in clips], dtype=bool)
        turns = record["turns"]
        return Sample(
            id=record["id"],
            frames=tuple(picture.frame for picture in pictures),
            turns=tuple(Turn(turn["question"], turn["answer"]) for turn in turns),
            masks=tuple(
                np.stack([_drawn(mask, picture) for mask, picture in zip(clip, pictures, strict=True)])
                for clip in clips
            ),
            video="frames" in record,
            regions=tuple(_drawn(region, pictures[0]) for region in regions),
            source=record.get("source", "chat"),
            tags=tuple(turn["tag"] for turn in turns if turn.get("tag")),
            annotated=None if known_KF.all() else known_KF,
        )

    def _is_good(self, line: bytes, where: str, problems: Problems) -> bool:
        record: Any = None
        try:
            record = self._record(line)
            trouble = _trouble(record)
        except STUMBLES as error:
            trouble = f"a line cannot be read ({stumbled(error)})"
        if trouble:
            problems.malformed(trouble, where)
            return False
        return all([problems.present(self._folders.find(name), "your pictures") for name in _names(record)])


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, bytes]]:
    """Each line with the byte it starts at."""
    with path.open("rb") as file:
        # The bytes of a line break may also lie across two characters of UTF-16, so such files are taken apart as text.
        lines = file if encoding == "utf-8" else _encoded_lines(file.read(), encoding, path)
        start = 0
        for line in lines:
            yield start, line
            start += len(line)


def _encoded_lines(content: bytes, encoding: str, path: Path) -> Iterator[bytes]:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in {encoding}: {error}; save it as UTF-8") from error
    return (line.encode(encoding) for line in io.StringIO(text, newline="\n"))


def write_chat(samples: Iterable[Sample], path: str | Path) -> Path:
    """Write samples of any source as a chat file, from which [`Chat`] reads the same.

    Pictures that lie beneath the file's folder are referred to. All others are written without loss into the folder
    ``<name>_images`` beside the file, each only once.

    Args:
        samples: decoded one at a time. path: ``*.jsonl``; it appears when all samples are written.

    Returns:
        The path.

    Raises:
        ValueError: a sample is invalid; nothing is written then but pictures.
        OSError: nothing can be written there.
    """
    path = Path(path)
    pictures = path.with_name(f"{path.stem}_images")
    check_target(path)
    for target in (path, pictures):
        remove_leftovers(target)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for sample in samples:
            sample.validate()
            names = [_stored(sample, place, path.parent, pictures) for place in range(len(sample.frames))]
            file.write(json.dumps(_record(sample, names), ensure_ascii=False) + "\n")
    return path


def _record(sample: Sample, names: list[str]) -> dict[str, Any]:
    record: dict[str, Any] = {"id": sample.id}
    if names:
        record |= {"frames": names} if sample.video else {"image": names[0]}
        record["size"] = sample.size
    tags = sample.tags or (None,) * len(sample.turns)
    record["turns"] = [
        {"question": turn.question, "answer": turn.answer} | ({"tag": tag} if tag else {})
        for turn, tag in zip(sample.turns, tags, strict=True)
    ]
    masks = [[Mask.from_array(frame).rle if frame.any() else None for frame in mask] for mask in sample.masks]
    if masks and sample.annotated is not None:
        record["masks"] = [
            {names[frame]: mask[frame] for frame in np.flatnonzero(known_F).tolist()}
            for known_F, mask in zip(sample.annotated, masks, strict=True)
        ]
    elif masks:
        record["masks"] = masks if sample.video else [mask[0] for mask in masks]
    if sample.regions:
        record["regions"] = [Mask.from_array(region).rle for region in sample.regions]
    return record | ({"source": sample.source} if sample.source else {})


def _stored(sample: Sample, place: int, folder: Path, pictures: Path) -> str:
    """The path of a frame's file, relative to the folder."""
    own = file_of(sample.frames[place])
    # A file that is turned is stored as it was shown: of some nobody could tell which way.
    if own and PictureHeader.read(own).turn is None and own.resolve().is_relative_to(folder.resolve()):
        return own.resolve().relative_to(folder.resolve()).as_posix()
    pixels = sample.picture(place)
    # Named by what they show: equal pictures are one file, and no file of an earlier run is ever changed.
    name = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()[:24]
    target = pictures / f"{name}.png"
    if not target.exists():
        with replacing(target) as temporary:
            Image.fromarray(pixels).save(temporary)
    return Path(os.path.relpath(target, folder)).as_posix()


def _names(record: dict[str, Any]) -> list[str]:
    return record["frames"] if "frames" in record else [record["image"]] if record.get("image") else []


#: The mask of a frame in which it is not known.
_UNKNOWN = object()


def _clips(record: dict[str, Any]) -> list[list[Any]]:
    """Masks as lists of frames."""
    masks = record.get("masks", ())
    if "frames" not in record:
        return [[mask] for mask in masks]
    return [[mask.get(name, _UNKNOWN) for name in _names(record)] if _is_partial(mask) else mask for mask in masks]


def _is_partial(mask: Any) -> bool:
    """Whether the mask of a clip names its known frames."""
    return isinstance(mask, dict) and "counts" not in mask


def _drawn(mask: Any, picture: UprightPicture) -> np.ndarray:
    """bool (H, W), upright."""
    if mask is None or mask is _UNKNOWN:
        return np.zeros(picture.header.upright, dtype=bool)
    drawn = decode_segmentation(mask, picture.canvas).array
    if not drawn.any():
        raise ValueError(f"a mask or region of {picture.header.path.name} is empty; write null where nothing is")
    return picture.turned(drawn)


def _trouble(record: Any) -> str | None:
    """What is wrong with a line, if anything."""
    if not isinstance(record, dict) or not isinstance(record.get("id"), str) or not record["id"]:
        return "a line is no JSON object with an id"
    turns = record.get("turns")
    if not isinstance(turns, list) or not turns or not all(map(_is_turn, turns)):
        return "a line has no turns, or one without question or answer"
    if len({bool(turn.get("tag")) for turn in turns}) > 1:
        return "only some turns of a line have a tag"
    names = _names(record)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "image is no path, or frames is no list of paths"
    return _mask_trouble(record, len(names))


def _mask_trouble(record: dict[str, Any], frames: int) -> str | None:
    clips, regions = _clips(record), record.get("regions", [])
    if sum(turn["answer"].count(SEG) for turn in record["turns"]) != len(clips):
        return f"a line has not as many masks as {SEG} in its answers"
    if any(not isinstance(clip, list) or len(clip) != frames for clip in clips):
        return "a mask has not one entry per frame"
    if any(all(mask is _UNKNOWN for mask in clip) for clip in clips if clip):
        return "a mask names no frame of its clip"
    if not all(mask is None or mask is _UNKNOWN or is_segmentation(mask) for clip in clips for mask in clip):
        return "a mask is neither RLE nor polygons nor null"
    return None if all(map(is_segmentation, regions)) else "a region is neither RLE nor polygons"


def _is_turn(turn: Any) -> bool:
    texts = (turn.get("question"), turn.get("answer")) if isinstance(turn, dict) else (None,)
    return all(isinstance(text, str) and text.strip() for text in texts)
