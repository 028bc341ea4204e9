"""Our interchange format: conversations with masks and regions, one JSON object per line. A reader and a writer.

A line is a sample; keys after ``turns`` may be left out::

    {"id": "street-1", "image": "street.jpg", "size": [480, 640],
     "turns": [{"question": "Please segment the dog.", "answer": "Sure, [SEG].", "tag": "refer"}],
     "masks": [{"size": [480, 640], "counts": "..."}], "regions": [...], "source": "mine"}

The k-th ``[SEG]`` of the answers belongs to the k-th mask: COCO's RLE, or polygons, or null where nothing is. Questions
call the regions ``region1``, ``region2``, ... A clip has ``"frames": [path, ...]`` instead of ``image``, and each of
its masks is a list with one entry per frame. Text alone has neither. Paths are relative to the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sa2va.atomic import check_target, replacing
from sa2va.data.formats.coco import decode_segmentation, is_segmentation
from sa2va.data.formats.layout import Problems, require_files
from sa2va.data.formats.pictures import file_of, lazy_picture, stored_size
from sa2va.data.sample import SEG, Sample
from sa2va.mask import Mask, Size
from sa2va.reading import STUMBLES, parse_json, stumbled
from sa2va.results import Turn


class Chat:
    """The samples of a chat file; lines are read when they are asked for.

    Args:
        root: the file, or the folder that holds ``chat.jsonl``.
        skip_broken: leave out lines that are malformed or whose pictures are missing, with a warning.

    Raises:
        MissingData: files are missing; the message names them. ValueError: lines are malformed.
    """

    def __init__(self, root: str | Path, *, skip_broken: bool = False):
        self.path = Path(root) / "chat.jsonl" if Path(root).is_dir() else Path(root)
        require_files("chat", {self.path: "write_chat, or your own annotations"})
        problems, starts, start = Problems(str(self.path)), [], 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip() and self._is_good(line, f"line {number}", problems):
                    starts.append(start)
                start += len(line)
        self._starts = np.array(starts, dtype=np.int64)
        problems.settle(len(starts), skip=skip_broken)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Sample:
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            record = parse_json(file.readline())
        paths, turns = [self.path.parent / name for name in _names(record)], record["turns"]
        try:
            given = tuple(map(int, record["size"])) if record.get("size") else None
            size: Size | None = given or (stored_size(paths[0]) if paths else None)  # type: ignore[assignment]
            return Sample(
                id=record["id"],
                frames=tuple(lazy_picture(path, size) for path in paths),
                turns=tuple(Turn(turn["question"], turn["answer"]) for turn in turns),
                masks=tuple(_mask(mask, size) for mask in _clips(record)),
                video="frames" in record,
                regions=tuple(
                    decode_segmentation(region, size or (0, 0)).array for region in record.get("regions", ())
                ),
                source=record.get("source", "chat"),
                tags=tuple(turn["tag"] for turn in turns if turn.get("tag")),
            )
        except STUMBLES as error:
            raise ValueError(f"{self.path}, {record['id']!r}: {stumbled(error)}") from error

    def _is_good(self, line: bytes, where: str, problems: Problems) -> bool:
        record: Any = None
        try:
            record = parse_json(line)
            trouble = _trouble(record)
        except STUMBLES as error:
            trouble = f"a line cannot be read ({stumbled(error)})"
        if trouble:
            problems.malformed(trouble, where)
            return False
        return all([problems.present(self.path.parent / name, "your pictures") for name in _names(record)])


def write_chat(samples: Iterable[Sample], path: str | Path) -> Path:
    """Write samples of any source as a chat file, from which [`Chat`] reads the same.

    Pictures that lie beneath the file's folder are referred to. All others are written without loss into the folder
    ``<name>_images`` beside the file, each only once.

    Args:
        samples: decoded one at a time. path: ``*.jsonl``; it appears when all samples are written.

    Returns:
        The path.

    Raises:
        ValueError: a sample is invalid, and nothing is written then but pictures; or ``path`` is the samples' own file.
    """
    path = Path(path)
    check_target(path, getattr(samples, "path", None))
    pictures = path.with_name(f"{path.stem}_images")
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
    if masks:
        record["masks"] = masks if sample.video else [mask[0] for mask in masks]
    if sample.regions:
        record["regions"] = [Mask.from_array(region).rle for region in sample.regions]
    return record | ({"source": sample.source} if sample.source else {})


def _stored(sample: Sample, place: int, folder: Path, pictures: Path) -> str:
    """The path of a frame's file, relative to the folder."""
    own = file_of(sample.frames[place])
    if own and own.resolve().is_relative_to(folder.resolve()):
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


def _clips(record: dict[str, Any]) -> list[list[Any]]:
    """Masks as lists of frames."""
    masks = record.get("masks", ())
    return list(masks) if "frames" in record else [[mask] for mask in masks]


def _mask(frames: list[Any], size: Size | None) -> np.ndarray:
    """bool (F, H, W)."""
    size = size or (0, 0)
    empty = np.zeros(size, dtype=bool)
    return np.stack([empty if frame is None else decode_segmentation(frame, size).array for frame in frames])


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
    if not all(mask is None or is_segmentation(mask) for clip in clips for mask in clip):
        return "a mask is neither RLE nor polygons nor null"
    return None if all(map(is_segmentation, regions)) else "a region is neither RLE nor polygons"


def _is_turn(turn: Any) -> bool:
    texts = (turn.get("question"), turn.get("answer")) if isinstance(turn, dict) else (None,)
    return all(isinstance(text, str) and text.strip() for text in texts)
