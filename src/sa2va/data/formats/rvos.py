"""Referring video segmentation as MeViS, ReVOS, Ref-YouTube-VOS, Ref-DAVIS17 and the Ref-SAV benchmark store it.

One JSON of expressions, ``{"videos": {id: {"frames": [name, ...], "expressions": {id: {"exp": text, ...}}}}}``, a
folder of pictures per video, and the truth: a file of run lengths per annotation, or a folder of index pictures.
Letters in shapes: F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from sa2va.data.formats.layout import require_files
from sa2va.data.formats.pictures import stored_size
from sa2va.data.formats.unpickle import load_plain
from sa2va.mask import Mask
from sa2va.processing.pictures import MAX_PIXELS, open_picture
from sa2va.reading import STUMBLES

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class RvosExpression:
    """One sentence about a video.

    Attributes:
        id: unique in its video. text: as the file has it.
        object_ids: what it refers to, as the file numbers objects; empty where the file does not say.
        annotation_ids: keys into the file of masks; the target is their union, none of them means nothing is meant.
        type_id: 0 referring, 1 reasoning, 2 no target (ReVOS); 0 long, 1 short (Ref-SAV); None elsewhere.
    """

    id: str
    text: str
    object_ids: tuple[int, ...] = ()
    annotation_ids: tuple[str, ...] = ()
    type_id: int | None = None


class Truth(Protocol):
    """Where the masks of a set are."""

    def check(self, video: RvosVideo, expression: RvosExpression) -> None:
        """Raise ValueError where what the expression refers to is not there; nothing is decoded."""
        ...

    def parts(self, video: RvosVideo, expression: RvosExpression, frame: int) -> Iterator[np.ndarray]:
        """The masks, bool (H, W), whose union the expression means in a frame."""
        ...


@dataclass(frozen=True)
class RvosVideo:
    """One video with its expressions.

    Attributes:
        id: may contain slashes. frames: picture files, sorted by name as text. expressions: sorted by id as text.
        truth: where the masks are; None for sets whose masks only a server has.
    """

    id: str
    frames: tuple[Path, ...]
    expressions: tuple[RvosExpression, ...]
    truth: Truth | None = field(default=None, repr=False, compare=False)

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) of the first frame, from its header. ValueError or OSError when it cannot be read."""
        return stored_size(self.frames[0])

    def masks(self, expression: RvosExpression, frames: Sequence[int] | None = None) -> np.ndarray:
        """What an expression means: bool (F, H, W), False where it is hidden or absent.

        Args:
            expression: one of this video. frames: their indices; None for all.

        Raises:
            ValueError: the set has no masks, or one is malformed or of another size than the pictures.
        """
        if self.truth is None:
            raise ValueError(f"video {self.id!r} comes without masks; its scores are computed by the set's server")
        indices = range(len(self.frames)) if frames is None else frames
        union = np.zeros((len(indices), *self.size), dtype=bool)
        for row, index in zip(union, indices, strict=True):
            for part in self.truth.parts(self, expression, index):
                if part.shape != self.size:
                    raise ValueError(
                        f"video {self.id!r}, expression {expression.id!r}, frame {index}: the mask has size "
                        f"{part.shape}, the pictures {self.size}"
                    )
                row |= part
        return union


def read_rvos(
    expressions: Path,
    frames: Path,
    masks: Path | None = None,
    *,
    counter: Literal["sorted", "file"] = "sorted",
    dataset: str = "",
) -> list[RvosVideo]:
    """Read a set. No picture is opened, and masks are decoded when they are asked for.

    Args:
        expressions: the JSON of expressions. frames: folder with a folder of pictures per video, there or under its
            ``JPEGImages``.
        masks: a ``.json`` or ``.pkl`` with ``{annotation id: [run lengths or null, one per sorted frame]}``; or a
            folder of index pictures ``video/frame.png`` in which pixels hold object ids; None where there are none.
        counter: expressions without ``anno_id`` (Ref-DAVIS17, Ref-YouTube-VOS) are numbered by a counter that runs over
            the videos, sorted or as the file has them, and in each over the expressions sorted as text.
        dataset: name for messages.

    Raises:
        MissingData: a file is not there.
        ValueError: a file is malformed; the message names it and the entry.
    """
    wanted = {expressions: "the expressions", frames: "the folder of frames"}
    require_files(dataset or str(expressions), wanted if masks is None else {**wanted, masks: "the masks"})
    content = _videos(load_plain(expressions), expressions)
    truth = None if masks is None else _MaskFolder(masks) if masks.is_dir() else RunLengths.read(masks)
    folder, suffix = _place(content, frames)
    numbered = isinstance(truth, RunLengths) and not _any_annotation(content)
    next_number, videos = 0, {}
    for name in sorted(content) if counter == "sorted" else content:
        where = f"{expressions}, video {name!r}"
        pictures = tuple(folder / name / _file_name(frame, suffix) for frame in sorted(_names(content[name], where)))
        spoken = _expressions(content[name], where, next_number if numbered else None)
        next_number += len(spoken)
        videos[name] = RvosVideo(name, pictures, spoken, truth)
    if truth is not None:
        for video in videos.values():
            for expression in video.expressions:
                truth.check(video, expression)
    return list(videos.values())


class RunLengths:
    """Run lengths of all masks of a set, in three flat arrays.

    Data loader workers share their memory, which they would not of millions of small Python objects.

    Args:
        entries: for each annotation its run lengths, or None, frame by frame. name: for messages.

    Raises:
        ValueError: an entry is neither; the message names the annotation.
    """

    def __init__(self, entries: Mapping[Any, Sequence[Mapping[str, Any] | None]], name: str):
        self.name = name
        self._rows: dict[str, tuple[int, int]] = {}
        offsets, sizes, counts = [0], [], bytearray()
        for key, frames in entries.items():
            if not isinstance(frames, list | tuple):
                raise ValueError(f"{name}, annotation {key!r}: expected a list of masks, one per frame")
            self._rows[str(key)] = (len(sizes), len(frames))
            for number, mask in enumerate(frames):
                try:
                    size, text = _raw(mask)
                except STUMBLES as error:
                    raise ValueError(f"{name}, annotation {key!r}, frame {number}: {error}") from error
                sizes.append(size)
                counts += text
                offsets.append(len(counts))
        self._offsets = np.array(offsets, dtype=np.int64)
        self._sizes = np.array(sizes, dtype=np.int32).reshape(-1, 2)
        self._counts = bytes(counts)

    @classmethod
    def read(cls, path: Path) -> RunLengths:
        """From a ``.json`` or ``.pkl`` file."""
        entries = load_plain(path)
        if not isinstance(entries, dict):
            raise ValueError(f"{path} must hold a dict of annotations, got {type(entries).__name__}")
        return cls(entries, str(path))

    def frame_count(self, annotation: str) -> int:
        """Number of frames of an annotation. KeyError for an unknown one."""
        return self._rows[annotation][1]

    def mask(self, annotation: str, frame: int) -> Mask | None:
        """One mask; None where there is none. KeyError for an unknown annotation, IndexError beyond its frames."""
        start, count = self._rows[annotation]
        if not 0 <= frame < count:
            raise IndexError(f"{self.name}, annotation {annotation!r} has {count} frames, not frame {frame}")
        first, last = self._offsets[start + frame : start + frame + 2].tolist()
        size = self._sizes[start + frame].tolist()
        if not any(size):
            return None
        try:
            return Mask.from_rle({"size": size, "counts": self._counts[first:last]})
        except ValueError as error:
            raise ValueError(f"{self.name}, annotation {annotation!r}, frame {frame}: {error}") from error

    def check(self, video: RvosVideo, expression: RvosExpression) -> None:
        for annotation in expression.annotation_ids:
            found = self._rows.get(annotation, (0, None))[1]
            if found != len(video.frames):
                what = "no such annotation" if found is None else f"annotation {annotation!r} with {found} frames"
                raise ValueError(
                    f"{self.name} has {what} for video {video.id!r}, expression {expression.id!r}: expected "
                    f"annotation {annotation!r} with {len(video.frames)} frames; the two files do not belong together"
                )

    def parts(self, video: RvosVideo, expression: RvosExpression, frame: int) -> Iterator[np.ndarray]:
        masks = (self.mask(annotation, frame) for annotation in expression.annotation_ids)
        return (mask.array for mask in masks if mask is not None)


@dataclass(frozen=True)
class _MaskFolder:
    """Index pictures ``video/frame.png``, as YouTube-VOS and DAVIS have them."""

    path: Path

    def check(self, video: RvosVideo, expression: RvosExpression) -> None:
        if not expression.object_ids:
            raise ValueError(
                f"video {video.id!r}, expression {expression.id!r} has no obj_id; index pictures in {self.path} need "
                "one per expression"
            )

    def parts(self, video: RvosVideo, expression: RvosExpression, frame: int) -> Iterator[np.ndarray]:
        path = self.path / video.id / f"{video.frames[frame].stem}.png"
        with open_picture(str(path), str(path), MAX_PIXELS) as image:
            if image.mode not in ("P", "L", "1", "I", "I;16"):
                raise ValueError(f"{path} must be an index picture whose pixels are object ids, got mode {image.mode}")
            try:
                image.load()
            except Exception as error:  # Pillow's plugins fail on damaged files with whatever they stumble over
                raise ValueError(f"{path} is damaged or cut short: {error}") from error
            yield np.isin(np.asarray(image), expression.object_ids)


def _raw(mask: Mapping[str, Any] | None) -> tuple[tuple[int, int], bytes]:
    """Size and compressed text of run lengths, not yet checked; (0, 0) for no mask."""
    if mask is None:
        return (0, 0), b""
    height, width = mask["size"]
    counts = mask["counts"]
    if isinstance(counts, list):
        counts = Mask.from_rle(mask).counts
    if not 0 < int(height) * int(width) <= MAX_PIXELS or min(height, width) < 1 or not isinstance(counts, str | bytes):
        raise ValueError(f"expected run lengths with size and counts, or null; got {mask!r:.80}")
    return (int(height), int(width)), counts.encode("ascii") if isinstance(counts, str) else counts


def _videos(content: Any, path: Path) -> dict[str, dict[str, Any]]:
    videos = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(videos, dict) or not all(isinstance(video, dict) for video in videos.values()):
        raise ValueError(f'{path} must hold {{"videos": {{id: {{"frames": ..., "expressions": ...}}}}}}')
    return videos


def _names(video: dict[str, Any], where: str) -> list[str]:
    names = video.get("frames")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{where}: frames must be a list of names, got {names!r:.80}")
    return names


def _any_annotation(videos: dict[str, dict[str, Any]]) -> bool:
    spoken = [video["expressions"] for video in videos.values() if isinstance(video.get("expressions"), dict)]
    return any("anno_id" in entry for entries in spoken for entry in entries.values() if isinstance(entry, dict))


def _expressions(video: dict[str, Any], where: str, first_number: int | None) -> tuple[RvosExpression, ...]:
    """Expressions sorted as text; where a number is given, they are counted on from it instead of by ``anno_id``."""
    entries, found = video.get("expressions"), []
    if not isinstance(entries, dict):
        raise ValueError(f"{where}: expressions must be a dict, got {entries!r:.80}")
    for place, key in enumerate(sorted(entries)):
        entry = entries[key]
        text = entry.get("exp") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}, expression {key!r}: exp must be a text, got {entry!r:.80}")
        try:
            annotations = _numbers(entry.get("anno_id", ()) if first_number is None else first_number + place)
            objects, kinds = _numbers(entry.get("obj_id", ())), _numbers(entry.get("type_id", ()))
        except STUMBLES as error:
            raise ValueError(f"{where}, expression {key!r}: ids must be whole numbers; {error}") from error
        found.append(RvosExpression(key, text, objects, tuple(map(str, annotations)), kinds[0] if kinds else None))
    return tuple(found)


def _numbers(value: Any) -> tuple[int, ...]:
    """One number, several, or null for none."""
    several = value if isinstance(value, list | tuple) else () if value is None else (value,)
    return tuple(int(number) for number in several)


def _place(videos: dict[str, dict[str, Any]], frames: Path) -> tuple[Path, str]:
    """Folder of the videos and ending of their pictures, as the first one found has them: sets have only one kind."""
    for name, video in videos.items():
        names = video.get("frames")
        for frame in names[:1] if isinstance(names, list) else ():
            for folder in (frames, frames / "JPEGImages"):
                for suffix in _PICTURE_SUFFIXES:
                    if (folder / name / _file_name(str(frame), suffix)).is_file():
                        return folder, suffix
    return frames, _PICTURE_SUFFIXES[0]


def _file_name(frame: str, suffix: str) -> str:
    return frame if frame.lower().endswith(_PICTURE_SUFFIXES) else frame + suffix
