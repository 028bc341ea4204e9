"""Ref-SAV over SA-V: captions of objects beside SA-V's own videos (mp4) and masklets (JSON per video).

``Ref-SAV.json`` is ``{key: {"video_path": ..., "anno_path": ..., "objects": {number: {"formated": text}}}}`` with paths
under the folder that SA-V was unpacked in. SA-V annotates every fourth frame of a video; frames are read by seeking.
Letters in shapes: F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sa2va.data.annotations.layout import Problems, require_files
from sa2va.data.annotations.unpickle import load_plain
from sa2va.data.datasets.conversation_sampling import Draws
from sa2va.data.datasets.frame_sampling import SeekedFrames, check_counts, draw_frames
from sa2va.data.sample import Sample
from sa2va.masks.mask import Mask
from sa2va.media.video_file import VideoFile
from sa2va.processing.requests import TRAINING_REQUESTS, TrainingRequests
from sa2va.results.history import Turn

#: SA-V's videos have 24 frames a second and are annotated 6 times a second.
FRAMES_PER_ANNOTATION = 4


class RefSAV:
    """Ref-SAV: ``ROOT/video_datas/{Ref-SAV.json, sam_v_full}``; sample ``i`` shows view ``i // videos`` of a video.

    Frames are drawn anew for every view from those that SA-V annotates (every fourth), and objects are dealt out, so
    that the views of a video show all of them equally often (give or take one). Only the drawn frames are decoded, from
    the key frames before them, and only the masklets of the shown objects.

    Args:
        root: the folder of all data. frames: most of a sample. phrases: most objects of a sample.
        views: samples per video. seed: another seed draws others. requests: the templates of wordings.
        skip_broken: leave out videos of which files are missing, with a warning, instead of refusing.

    Raises:
        MissingData, ValueError: a file is missing or malformed; the message names it.
    """

    name = "ref-sav"

    def __init__(
        self,
        root: str | Path,
        *,
        frames: int = 5,
        phrases: int = 5,
        views: int = 1,
        seed: int = 0,
        requests: TrainingRequests = TRAINING_REQUESTS,
        skip_broken: bool = False,
    ):
        check_counts(frames=frames)
        self.frames, self.draws = frames, Draws(seed, phrases, views, requests)
        folder = Path(root) / "video_datas"
        problems, kept = Problems(str(folder / "Ref-SAV.json")), []
        for video in read_ref_sav(folder / "Ref-SAV.json", folder / "sam_v_full"):
            complete = [problems.present(path, "SA-V, from its authors' page") for path in video.files]
            if all(complete) and video.objects:
                kept.append(video)
        problems.settle(len(kept), skip=skip_broken)
        self.videos = tuple(kept)

    def __len__(self) -> int:
        return len(self.videos) * self.draws.views

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, pictures undecoded. ValueError or OSError when its files are wrong."""
        view = self.draws.view(index, len(self.videos))
        video, wording = self.videos[view.place], self.draws.clip(index)
        clip = video.open()
        shown = draw_frames(clip.frame_count, self.frames, wording.rng)
        objects = self.draws.choose(video.objects, view)
        # Descriptions are several sentences: they go where a request ends.
        templates = self.draws.requests.video_description
        requests = [wording.draw(templates, phrase=one.text.strip().removesuffix(".")) for one in objects]
        return Sample(
            id=f"{self.name}/{video.id}{view.suffix}",
            frames=SeekedFrames(clip.video, clip.in_file(shown)).lazy,
            turns=tuple(Turn(request, wording.answer()) for request in requests),
            masks=tuple(clip.masks(described.id, shown) for described in objects),
            video=True,
            source=self.name,
        )


# -- how it is read ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SavObject:
    """One object: its place in the lists of masklets, and the text that describes it."""

    id: int
    text: str


@dataclass(frozen=True)
class SavVideo:
    """One video with the objects that are described.

    Attributes:
        id: key in the annotation file. root: the folder of SA-V. paths: places of video and masklets under it, most
            likely first: archives differ in whether a folder occurs twice.
        objects: in the order of the file.
    """

    id: str
    root: Path
    paths: tuple[tuple[str, str], ...]
    objects: tuple[SavObject, ...]

    @property
    def files(self) -> tuple[Path, Path]:
        """The video and its masklets, whether or not they are there."""
        pairs = [(self.root / video, self.root / masklets) for video, masklets in self.paths]
        return next((pair for pair in pairs if pair[0].is_file()), pairs[0])

    def open(self) -> SavClip:
        """Read the masklets and the video's first frame.

        Raises:
            ValueError, OSError: a file is missing or damaged, or the two do not have the same length.
        """
        video, masklets = self.files
        if not masklets.is_file() or not video.is_file():
            raise ValueError(f"Ref-SAV video {self.id!r}: expected {video} and {masklets}; at least one is not there")
        content = load_plain(masklets)
        frames = content.get("masklet") if isinstance(content, dict) else None
        if not isinstance(frames, list) or not all(isinstance(frame, list) for frame in frames):
            raise ValueError(f'{masklets} must hold "masklet", a list per annotated frame of run lengths per object')
        return SavClip(VideoFile(video, threads=1), frames, masklets)


class SavClip:
    """An opened video with its masklets, in which frame k is the k-th annotated one.

    Args:
        video: the file. masklets: run lengths of each object, per annotated frame. path: of the masklets, for messages.

    Raises:
        ValueError: the lengths of the two do not agree.
    """

    def __init__(self, video: VideoFile, masklets: list[list[Any]], path: Path):
        self.video, self._masklets, self._path = video, masklets, path
        expected = -(-video.frame_count // FRAMES_PER_ANNOTATION)
        if len(masklets) != expected:
            raise ValueError(
                f"{path} annotates {len(masklets)} frames, but {video.path} has {video.frame_count}, of which every "
                f"{FRAMES_PER_ANNOTATION}th makes {expected}; one of the two is not complete"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.video.size

    @property
    def frame_count(self) -> int:
        """Number of annotated frames."""
        return len(self._masklets)

    def in_file(self, frames: Sequence[int]) -> list[int]:
        """Where annotated frames are in the video."""
        return [FRAMES_PER_ANNOTATION * frame for frame in frames]

    def masks(self, number: int, frames: Sequence[int]) -> np.ndarray:
        """One object: bool (F, H, W), False where it is hidden. No other object is decoded.

        Raises:
            ValueError: there is no such object, or its run lengths are malformed or of another size.
        """
        masks = np.zeros((len(frames), *self.size), dtype=bool)
        for row, frame in zip(masks, frames, strict=True):
            where = f"{self._path}, annotated frame {frame}"
            if not 0 <= number < len(self._masklets[frame]):
                raise ValueError(f"{where}: object {number} is not among {len(self._masklets[frame])} masklets")
            entry = self._masklets[frame][number]
            if entry is None:
                continue
            try:
                mask = Mask.from_rle(entry)
            except ValueError as error:
                raise ValueError(f"{where}, object {number}: {error}") from error
            if mask.size != self.size:
                raise ValueError(f"{where}, object {number}: the mask has size {mask.size}, the video {self.size}")
            row[:] = mask.array
        return masks


def read_ref_sav(annotations: Path, videos: Path) -> list[SavVideo]:
    """Read the captions of Ref-SAV; neither videos nor masklets are opened.

    Args:
        annotations: ``Ref-SAV.json``. videos: the folder in which SA-V was unpacked (``sam_v_full``).

    Raises:
        MissingData: one of them is not there. ValueError: the file is malformed; the message names the entry.
    """
    require_files("Ref-SAV", {annotations: "Dense-World/Sa2VA-Training", videos: "SA-V, from its authors' page"})
    content = load_plain(annotations)
    if not isinstance(content, dict):
        raise ValueError(f"{annotations} must hold a dict of videos, got {type(content).__name__}")
    return [_video(str(key), entry, videos, f"{annotations}, video {key!r}") for key, entry in content.items()]


def _video(key: str, entry: Any, root: Path, where: str) -> SavVideo:
    if not isinstance(entry, dict) or not {"video_path", "anno_path", "objects"} <= entry.keys():
        raise ValueError(f"{where}: expected video_path, anno_path and objects, got {entry!r:.200}")
    video, masklets = entry["video_path"], entry["anno_path"]
    if not isinstance(video, str) or not isinstance(masklets, str) or not isinstance(entry["objects"], dict):
        raise ValueError(f"{where}: expected two paths and a dict of objects, got {entry!r:.200}")
    objects = []
    for number, described in entry["objects"].items():
        text = described.get("formated") if isinstance(described, dict) else None
        if not str(number).isdecimal() or not isinstance(text, str) or not text.strip():
            raise ValueError(
                f'{where}: object {number!r} must be a number with a text "formated", got {described!r:.80}'
            )
        objects.append(SavObject(int(number), text))
    written = (video, masklets)
    shorter = _without_repeat(video, masklets)
    return SavVideo(key, root, (written,) if shorter is None else (shorter, written), tuple(objects))


def _without_repeat(video: str, masklets: str) -> tuple[str, str] | None:
    """Both paths without the folder before ``sav_train`` where it is the one after it again; else None."""
    parts, others = list(PurePosixPath(video).parts), list(PurePosixPath(masklets).parts)
    if "sav_train" not in parts:
        return None
    place = parts.index("sav_train")
    if place == 0 or place + 1 >= len(parts) or parts[place - 1] != parts[place + 1]:
        return None
    del parts[place - 1], others[place - 1 : place]
    return str(PurePosixPath(*parts)), str(PurePosixPath(*others))
