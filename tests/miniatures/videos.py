"""Tiny video data sets in the exact layouts of the published ones, with the truth beside them.

Every writer makes two videos of moving squares under a folder of all data and returns what was written. Letters in
shapes: F frames, H height, W width.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from PIL import Image
from pycocotools import mask as coco

FRAMES = 8
#: Texts of the expressions of each video, by id; "10" stands before "2" in text order.
EXPRESSIONS = {
    "0": "The Red square.",
    "1": "the blue square",
    "2": "Which square is never there?",
    "10": "both squares",
}
#: The objects that each of them means.
TARGETS = {"0": (1,), "1": (2,), "2": (), "10": (1, 2)}
_COLORS = {1: (220, 40, 40), 2: (50, 80, 230)}


@dataclass(frozen=True)
class Film:
    """A video: its name, pictures uint8 (F, H, W, 3), and for each object its masks bool (F, H, W)."""

    name: str
    pictures: np.ndarray
    objects: Mapping[int, np.ndarray]

    def masks(self, expression: str) -> np.ndarray:
        """What an expression means: bool (F, H, W)."""
        union = np.zeros(self.pictures.shape[:3], dtype=bool)
        for target in TARGETS[expression]:
            union |= self.objects[target]
        return union


@dataclass(frozen=True)
class VideoSet:
    """What a writer wrote.

    Attributes:
        films: by video id. expressions: by video id, text of each expression by id.
        masks: truth of (video id, expression id), bool (F, H, W); empty where only a server has it.
    """

    films: dict[str, Film]
    expressions: dict[str, dict[str, str]]
    masks: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)


def film(name: str, size: tuple[int, int] = (48, 64), frames: int = FRAMES, scale: int = 1) -> Film:
    """A red square that wanders and a blue one that comes half-way, before a grey that tells the frame's number.

    With a ``scale`` it is so much larger and covered with noise, so that decoding takes as long as of real pictures.
    """
    height, width = size
    levels = np.arange(frames, dtype=np.uint8) * 4 + 80
    pictures = np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()
    objects = {number: np.zeros((frames, height, width), dtype=bool) for number in _COLORS}
    for frame in range(frames):
        left = 4 + frame * (width - 24) // frames
        objects[1][frame, 4:20, left : left + 16] = True
        if frame >= frames // 2:
            objects[2][frame, height - 20 : height - 4, 8:24] = True
        for number, color in _COLORS.items():
            pictures[frame][objects[number][frame]] = color
    if scale > 1:
        objects = {number: mask.repeat(scale, 1).repeat(scale, 2) for number, mask in objects.items()}
        pictures = pictures.repeat(scale, 1).repeat(scale, 2)
        noise = np.random.default_rng(0).integers(0, 25, (height * scale // 2, width * scale // 2, 3), dtype=np.uint8)
        pictures = np.minimum(pictures, 230) + noise.repeat(2, 0).repeat(2, 1)
    return Film(name, pictures, objects)


def shows(picture: np.ndarray, frame: np.ndarray) -> bool:
    """Whether a decoded picture is this frame, lossy compression aside."""
    return picture.shape == frame.shape and float(np.abs(picture.astype(float) - frame).mean()) < 1.5


# -- pictures in folders -----------------------------------------------------------------------------------------------


def write_mevis(root: Path, split: str = "train", scale: int = 1) -> VideoSet:
    """MeViS: ``mask_dict.json`` by ``anno_id``; server splits (``valid``, ``test``) without masks and objects."""
    folder = root / "video_datas/mevis" / split
    server = split in ("valid", "test")
    name = "meta_expressions_release.json" if split == "test" else "meta_expressions.json"
    mask_file = None if server else folder / "mask_dict.json"
    return _write(folder / name, folder / "JPEGImages", mask_file, _films("0a1b", "9z8y", scale), server=server)


def write_revos(root: Path, split: str = "train") -> VideoSet:
    """ReVOS: video ids with slashes, types, sizes, one expression without target; and the foreground beside it."""
    folder = root / "video_datas/revos"
    films = _films("LVVIS/train/00001", "UVO/clip two")
    written = _write(folder / f"meta_expressions_{split}_.json", folder, folder / "mask_dict.json", films, typed=True)
    foreground = {
        name: {"masks_rle": [_rle(frame) for frame in sum(one.objects.values()).astype(bool)]}
        for name, one in written.films.items()
    }
    (folder / "mask_dict_foreground.json").write_text(json.dumps(foreground))
    return written


def write_ref_youtube_vos(root: Path, split: str = "train") -> VideoSet:
    """Ref-YouTube-VOS: a pickle of masks by the running number of the expression; ``valid`` without masks."""
    folder = root / "video_datas/rvos"
    return _write(
        folder / "meta_expressions" / split / "meta_expressions.json",
        folder / split / "JPEGImages",
        None if split == "valid" else folder / "mask_dict.pkl",
        _films("003234408d", "0062f687f1"),
        server=split == "valid",
        counted="file",
    )


def write_ref_davis17(root: Path, split: str = "valid") -> VideoSet:
    """Ref-DAVIS17: the same by sorted videos, which the file here does not have in order."""
    folder = root / "video_datas/davis17"
    return _write(
        folder / "meta_expressions" / split / "meta_expressions.json",
        folder / split / "JPEGImages",
        folder / split / "mask_dict.pkl",
        _films("soapbox", "bike-packing"),
        counted="sorted",
    )


def write_ref_sav_benchmark(folder: Path) -> VideoSet:
    """The Ref-SAV benchmark (``data/ref_sav_eval``): jpg frames under ``videos``, types 0 (long) and 1 (short)."""
    films = _films("sav_000101", "sav_000102")
    return _write(
        folder / "meta_expressions_valid.json", folder / "videos", folder / "mask_dict.json", films, typed=True
    )


def write_own_videos(root: Path, *, index_pictures: bool = False) -> VideoSet:
    """Own videos in the folder itself: masks as MeViS has them, or index pictures as YouTube-VOS has them."""
    written = _write(
        root / "meta_expressions.json",
        root / "JPEGImages",
        None if index_pictures else root / "mask_dict.json",
        _films("first", "second"),
        skip=("2",) if index_pictures else (),
    )
    if not index_pictures:
        return written
    masks = {}
    for name, one in written.films.items():
        (root / "Annotations" / name).mkdir(parents=True)
        for frame in range(FRAMES):
            labels = sum(number * mask[frame].astype(np.uint8) for number, mask in one.objects.items())
            picture = Image.fromarray(labels)
            picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            picture.save(root / "Annotations" / name / f"{frame:05d}.png")
        masks |= {(name, key): one.masks(key) for key in written.expressions[name]}
    return VideoSet(written.films, written.expressions, masks)


def _films(first: str, second: str, scale: int = 1) -> dict[str, Film]:
    return {first: film(first, scale=scale), second: film(second, (40, 56), scale=scale)}


def _write(
    expressions: Path,
    folder: Path,
    mask_file: Path | None,
    films: dict[str, Film],
    *,
    server: bool = False,
    typed: bool = False,
    counted: Literal["", "file", "sorted"] = "",
    skip: Iterable[str] = (),
) -> VideoSet:
    """One set. server: only texts. typed: with type_id, height, width. counted: no ``anno_id``, in which order."""
    texts = {key: text for key, text in EXPRESSIONS.items() if key not in skip}
    videos: dict[str, Any] = {}
    mask_dict: dict[str, Any] = {}
    for name, one in films.items():
        _write_pictures(folder / name, one)
        entries = {key: {"exp": text} for key, text in texts.items()}
        first_id = 100 * (1 + len(videos))  # of this video's annotations
        for key, entry in entries.items():
            if counted:
                entry["obj_id"] = "1" if server else str(TARGETS[key][0] if TARGETS[key] else 1)
            elif not server:
                entry |= {"obj_id": list(TARGETS[key]), "anno_id": [first_id + number for number in TARGETS[key]]}
            if typed:
                entry["type_id"] = {"0": 0, "1": 1, "2": 2, "10": 0}[key]
        height, width = one.pictures.shape[1:3]
        videos[name] = {"frames": [f"{frame:05d}" for frame in range(FRAMES)], "expressions": entries}
        videos[name] |= {"height": height, "width": width} if typed else {}
        mask_dict |= {str(first_id + number): _rles(masks) for number, masks in one.objects.items()}
    if counted:
        order = sorted(films) if counted == "sorted" else list(films)
        pairs = [(name, key) for name in order for key in sorted(texts)]
        mask_dict = {str(number): _rles(films[name].masks(key)) for number, (name, key) in enumerate(pairs)}
    expressions.parent.mkdir(parents=True, exist_ok=True)
    expressions.write_text(json.dumps({"videos": videos}))
    if mask_file is not None:
        _write_masks(mask_file, mask_dict)
    known = {} if mask_file is None else {(n, key): one.masks(key) for n, one in films.items() for key in texts}
    return VideoSet(films, {name: dict(texts) for name in films}, known)


def _write_pictures(folder: Path, one: Film) -> None:
    folder.mkdir(parents=True)
    for number, picture in enumerate(one.pictures):
        Image.fromarray(picture).save(folder / f"{number:05d}.jpg", quality=95, subsampling=0)


def _write_masks(path: Path, entries: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(entries))
        return
    raw = {
        key: [None if rle is None else {**rle, "counts": rle["counts"].encode()} for rle in rles]
        for key, rles in entries.items()
    }
    path.write_bytes(pickle.dumps(raw))


def _rles(masks: np.ndarray) -> list[dict[str, Any] | None]:
    """Run lengths per frame; null where there is nothing."""
    return [_rle(mask) if mask.any() else None for mask in masks]


def _rle(mask: np.ndarray) -> dict[str, Any]:
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": packed["counts"].decode()}


# -- video files -------------------------------------------------------------------------------------------------------


def write_mp4(path: Path, pictures: np.ndarray, *, key_every: int = 8, crf: int = 1) -> Path:
    """A video of uint8 (F, H, W, 3), 24 frames a second. key_every: frames per key frame. crf: 1 is all but exact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"g": str(key_every), "crf": str(crf)})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv444p" if crf < 10 else "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_ref_sav(root: Path, annotated: int = FRAMES, scale: int = 1, **encoding: int) -> VideoSet:
    """Ref-SAV over SA-V: every fourth frame of an mp4 is annotated; one video's path names its folder twice."""
    folder = root / "video_datas"
    films, entries = {}, {}
    for number, size in enumerate([(48, 64), (40, 56)]):
        name = f"sav_00000{number}"
        one = film(name, size, 4 * annotated - 3, scale)
        stem = f"sav_train/sav_000/{name}"
        write_mp4(folder / "sam_v_full" / f"{stem}.mp4", one.pictures, **encoding)
        # Masklets count from 0, and each frame lists all of them.
        masklet = [[_rle(mask[frame]) for mask in one.objects.values()] for frame in range(0, 4 * annotated - 3, 4)]
        height, width = one.pictures.shape[1:3]
        record = {"video_id": name, "video_height": height, "video_width": width, "masklet": masklet}
        (folder / "sam_v_full" / f"{stem}_manual.json").write_text(json.dumps(record))
        prefix = "sav_000/" if number == 0 else ""
        entries[name] = {
            "video_path": f"{prefix}{stem}.mp4",
            "anno_path": f"{prefix}{stem}_manual.json",
            "objects": {str(place): {"formated": text} for place, text in enumerate(SAV_TEXTS)},
        }
        films[name] = one
    (folder / "Ref-SAV.json").write_text(json.dumps(entries))
    texts = {name: dict(zip("01", SAV_TEXTS, strict=True)) for name in films}
    masks = {
        (name, str(place)): mask[::4] for name, one in films.items() for place, mask in enumerate(one.objects.values())
    }
    return VideoSet(films, texts, masks)


#: What Ref-SAV says of the two objects of each video.
SAV_TEXTS = ("A Red square that wanders to the right. It is never hidden.", "a blue square that comes late")


def write_video_qa(root: Path, frames: int = 40, scale: int = 1, **encoding: int) -> VideoSet:
    """Chat-UniVi: two conversations, one about a video of three frames whose container is not the one written down."""
    folder = root / "video_datas/chat_univi"
    films = {"v_one.mp4": film("v_one", (48, 64), frames, scale), "v_two.mkv": film("v_two", (40, 56), 3, scale)}
    for name, one in films.items():
        write_mp4((folder / "Activity_Videos" / name).with_suffix(".mp4"), one.pictures, **encoding)
    talk = [("human", "<video>\nWhat moves?"), ("gpt", "A red square."), ("human", "Which way?"), ("gpt", "Right.")]
    short = [("gpt", "Hello."), ("human", "Look. "), ("human", "What is blue?\n<video>"), ("gpt", "A square.")]
    entries = [
        {"id": str(place), "video": name, "conversations": [{"from": who, "value": text} for who, text in messages]}
        for place, (name, messages) in enumerate(zip(films, (talk, short), strict=True))
    ]
    (folder / "video_chat.json").write_text(json.dumps(entries))
    return VideoSet(films, {name: {} for name in films})
