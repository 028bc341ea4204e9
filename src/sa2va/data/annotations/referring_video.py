"""Referring video segmentation as MeViS, ReVOS, Ref-YouTube-VOS, Ref-DAVIS17 and the Ref-SAV benchmark store it.

One JSON of expressions, ``{"videos": {id: {"frames": [name, ...], "expressions": {id: {"exp": text, ...}}}}}``, a
folder of pictures per video, and the truth: a file of run lengths per annotation, or a folder of index pictures. Own
sets need not be annotated in every frame: ``{annotation id: {frame name: run lengths or null}}`` names those that are,
and so does the presence of an index picture. Letters in shapes: F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, Protocol

import numpy as np

from sa2va.data.annotations.annotated_images import stored_size
from sa2va.data.annotations.layout import Doubts, PictureFolders, require_files
from sa2va.data.annotations.mask_files import numbered_areas, read_numbers
from sa2va.data.annotations.unpickle import load_plain
from sa2va.masks.mask import Mask, Size
from sa2va.media.image import MAX_PIXELS
from sa2va.untrusted import STUMBLES, reading

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
        """The masks, bool (H, W), whose union the expression means in a frame; none where that is not annotated."""
        ...

    def annotated(self, video: RvosVideo, expression: RvosExpression) -> np.ndarray:
        """bool (F,), in which frames it is known what the expression means."""
        ...

    def size(self, video: RvosVideo, expression: RvosExpression) -> Size | None:
        """(height, width) that the masks have; None where there are none."""
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

    def annotated(self, expression: RvosExpression) -> np.ndarray:
        """bool (F,), in which frames it is known what an expression means. ValueError when the set has no masks."""
        return self._truth.annotated(self, expression)

    @property
    def mask_size(self) -> Size | None:
        """(height, width) that masks have of themselves; None where there are none."""
        found = (self._truth.size(self, expression) for expression in self.expressions)
        return next((size for size in found if size), None)

    def masks(
        self, expression: RvosExpression, frames: Sequence[int] | None = None, size: Size | None = None
    ) -> np.ndarray:
        """What an expression means: bool (F, H, W), False where it is hidden or absent, or not annotated.

        Args:
            expression: one of this video. frames: their indices; None for all.
            size: (height, width) of what masks were drawn on; that of the first frame when None.

        Raises:
            ValueError: the set has no masks, or one is malformed or of another size than the pictures.
        """
        truth, size = self._truth, size or self.size
        indices = range(len(self.frames)) if frames is None else frames
        union = np.zeros((len(indices), *size), dtype=bool)
        for row, index in zip(union, indices, strict=True):
            for part in truth.parts(self, expression, index):
                if part.shape != size:
                    raise ValueError(
                        f"video {self.id!r}, expression {expression.id!r}, frame {index}: the mask has size "
                        f"{part.shape}, the pictures {size}"
                    )
                row |= part
        return union

    @property
    def _truth(self) -> Truth:
        if self.truth is None:
            raise ValueError(f"video {self.id!r} comes without masks; its scores are computed by the set's server")
        return self.truth


def read_rvos(
    expressions: Path,
    frames: Path,
    masks: Path | None = None,
    *,
    counter: Literal["sorted", "file"] = "sorted",
    dataset: str = "",
    doubts: Doubts | None = None,
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
        doubts: of an own set, whose index pictures may be there for some frames only, or be black and white, of which
            it is told. None for published sets, which are to be complete.

    Raises:
        MissingData: a file is not there.
        ValueError: a file is malformed; the message names it and the entry.
    """
    wanted = {expressions: "the expressions", frames: "the folder of frames"}
    require_files(dataset or str(expressions), wanted if masks is None else {**wanted, masks: "the masks"})
    content = _videos(load_plain(expressions), expressions)
    truth = None if masks is None else _MaskFolder(masks, doubts) if masks.is_dir() else RunLengths.read(masks)
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
        entries: for each annotation its run lengths, or None, frame by frame; or by the name of a frame, where only
            some are annotated. name: for messages.

    Raises:
        ValueError: an entry is neither; the message names the annotation.
    """

    def __init__(
        self,
        entries: Mapping[Any, Sequence[Mapping[str, Any] | None] | Mapping[str, Mapping[str, Any] | None]],
        name: str,
    ):
        self.name = name
        self._rows: dict[str, tuple[int, int]] = {}
        #: Of annotations by name of a frame: where each frame is.
        self._places: dict[str, dict[str, int]] = {}
        offsets, sizes, counts = [0], [], bytearray()
        for key, frames in entries.items():
            if isinstance(frames, dict):
                self._places[str(key)] = {_stem(str(frame)): place for place, frame in enumerate(frames)}
                frames = list(frames.values())
            if not isinstance(frames, list | tuple):
                raise ValueError(
                    f"{name}, annotation {key!r}: expected a list of masks, one per frame, or masks by frame"
                )
            self._rows[str(key)] = (len(sizes), len(frames))
            for number, mask in enumerate(frames):
                try:  # there are millions: no context for each
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

    def annotated(self, video: RvosVideo, expression: RvosExpression) -> np.ndarray:
        known = np.ones(len(video.frames), dtype=bool)
        for annotation in expression.annotation_ids:
            if (places := self._places.get(annotation)) is not None:
                known &= [frame.stem in places for frame in video.frames]
        return known

    def size(self, video: RvosVideo, expression: RvosExpression) -> Size | None:
        for annotation in expression.annotation_ids:
            start, count = self._rows[annotation]
            for height, width in self._sizes[start : start + count].tolist():
                if height:
                    return height, width
        return None

    def looks_sparse(self, annotation: str) -> bool:
        """Whether an annotation of all frames has masks in the first alone, or in every n-th: null would be hidden."""
        start, count = self._rows[annotation]
        shown = np.flatnonzero(self._sizes[start : start + count, 0])
        if annotation in self._places or not len(shown) or shown[0]:
            return False
        steps = set(np.diff(shown).tolist())
        return (not steps and count > 2) or (len(steps) == 1 and min(steps) > 1)

    def check(self, video: RvosVideo, expression: RvosExpression) -> None:
        for annotation in expression.annotation_ids:
            if (places := self._places.get(annotation)) is not None:
                strange = sorted(places.keys() - {frame.stem for frame in video.frames})
                if strange or len(places) < self.frame_count(annotation):
                    raise ValueError(
                        f"{self.name}, annotation {annotation!r} names frames {strange[:3]} that video {video.id!r} "
                        "has not, or one twice"
                    )
                continue
            found = self._rows.get(annotation, (0, None))[1]
            if found != len(video.frames):
                what = "no such annotation" if found is None else f"annotation {annotation!r} with {found} frames"
                raise ValueError(
                    f"{self.name} has {what} for video {video.id!r}, expression {expression.id!r}: expected "
                    f"annotation {annotation!r} with {len(video.frames)} frames; the two files do not belong together, "
                    'or, where only some frames are annotated, they are to be named: {"00000": {...}, "00005": null}'
                )

    def parts(self, video: RvosVideo, expression: RvosExpression, frame: int) -> Iterator[np.ndarray]:
        for annotation in expression.annotation_ids:
            places = self._places.get(annotation)
            place = frame if places is None else places.get(video.frames[frame].stem)
            mask = None if place is None else self.mask(annotation, place)
            if mask is not None:
                yield mask.array


@dataclass(frozen=True)
class _MaskFolder:
    """Index pictures ``video/frame.png``, as YouTube-VOS and DAVIS have them. doubts: as in [`read_rvos`]."""

    path: Path
    doubts: Doubts | None
    files: PictureFolders = field(default_factory=lambda: PictureFolders(()))
    known: dict[str, np.ndarray] = field(default_factory=dict)

    def check(self, video: RvosVideo, expression: RvosExpression) -> None:
        if not expression.object_ids:
            raise ValueError(
                f"video {video.id!r}, expression {expression.id!r} has no obj_id; index pictures in {self.path} need "
                "one per expression"
            )

    def annotated(self, video: RvosVideo, expression: RvosExpression) -> np.ndarray:
        if self.doubts is None:
            return np.ones(len(video.frames), dtype=bool)
        if video.id not in self.known:  # the same for all its expressions
            there = [self.files.has(self._file(video, frame)) for frame in range(len(video.frames))]
            self.known[video.id] = np.array(there)
        return self.known[video.id]

    def size(self, video: RvosVideo, expression: RvosExpression) -> Size | None:
        files = (self._file(video, frame) for frame in range(len(video.frames)))
        return next((stored_size(path) for path in files if self.files.has(path)), None)

    def parts(self, video: RvosVideo, expression: RvosExpression, frame: int) -> Iterator[np.ndarray]:
        path = self._file(video, frame)
        if self.doubts is None:
            yield np.isin(read_numbers(path), expression.object_ids)
        elif self.files.has(path):
            wanted = {number for one in video.expressions for number in one.object_ids}
            areas = numbered_areas(path, wanted, self.doubts)
            yield from (areas[number] for number in expression.object_ids)

    def _file(self, video: RvosVideo, frame: int) -> Path:
        return self.path / video.id / f"{video.frames[frame].stem}.png"


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
    # Some write where the frame was on their disk.
    bare = [_bare(name) for name in names]
    if len(set(bare)) < len(set(names)):
        raise ValueError(f"{where}: frames of different folders have one name; frames lie in one folder per video")
    return bare


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
        with reading(f"{where}, expression {key!r}: ids must be whole numbers"):
            annotations = _numbers(entry.get("anno_id", ()) if first_number is None else first_number + place)
            objects, kinds = _numbers(entry.get("obj_id", ())), _numbers(entry.get("type_id", ()))
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
                    if (folder / name / _file_name(_bare(str(frame)), suffix)).is_file():
                        return folder, suffix
    return frames, _PICTURE_SUFFIXES[0]


def _bare(frame: str) -> str:
    """The name of a frame without folders before it."""
    return (PureWindowsPath(frame).name or frame) if "/" in frame or "\\" in frame else frame


def _stem(frame: str) -> str:
    return frame.rpartition(".")[0] if frame.lower().endswith(_PICTURE_SUFFIXES) else frame


def _file_name(frame: str, suffix: str) -> str:
    return frame if frame.lower().endswith(_PICTURE_SUFFIXES) else frame + suffix
