"""Ten pictures or clips of the synthetic world, each with one object of its own name, in the layout of every source.

The names mean nothing, so what is learnt of them are these ten samples. F frames, H height, W width.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from miniatures.images import rle, save, write_json
from miniatures.videos import write_mp4
from sa2va.data.annotations.coco import decode_segmentation
from sa2va.data.datasets.interchange import write_chat
from sa2va.data.sample import Sample
from sa2va.masks.mask import Mask
from sa2va.results.history import Turn
from sa2va.tiny.synthetic import SyntheticWorld

COUNT, FRAMES = 10, 4
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Piece:
    """One sample. pictures: uint8 (F, H, W, 3). mask: bool (F, H, W), its object."""

    number: int
    pictures: np.ndarray
    mask: np.ndarray

    @property
    def word(self) -> str:
        """Its number in words."""
        return _WORDS[self.number]

    @property
    def name(self) -> str:
        """What the object is called."""
        return f"piece {self.word}"


@cache
def pieces(frames: int = 1) -> tuple[Piece, ...]:
    """Ten pictures, or clips, that the embedded model was not trained on."""
    world = SyntheticWorld("val", seed=77, tasks={"segment": 1.0}, phrases=1, frames=frames)
    samples = (world[index] for index in count())
    found = ((np.stack(sample.pictures()), sample.masks[0]) for sample in samples if sample.masks)
    chosen = islice((pair for pair in found if _drawable(pair[1]) and all(map(_without_holes, pair[1]))), COUNT)
    return tuple(Piece(number, *pair) for number, pair in enumerate(chosen))


def _drawable(mask: np.ndarray) -> bool:
    """Whether 32 x 32 cells, half as fine as the embedded model draws, show an object to an IoU of 0.96."""
    truth = torch.from_numpy(mask).float()[:, None]
    drawn = F.interpolate(F.adaptive_avg_pool2d(truth, 32), size=mask.shape[-2:], mode="bilinear") > 0.5
    both, either = (drawn & (truth > 0)).sum((1, 2, 3)), (drawn | (truth > 0)).sum((1, 2, 3))
    return bool((both / either.clamp(min=1)).min() > 0.96)


def _without_holes(mask: np.ndarray) -> bool:
    """Whether polygons say of a mask what run lengths say, so that all sources hold the same."""
    return mask.any() and np.array_equal(decode_segmentation(_polygons(mask), mask.shape).array, mask)


def _polygons(mask: np.ndarray) -> list[list[float]]:
    return [outline.flatten().tolist() for outline in Mask.from_array(mask).polygons()]


# -- sources with masks ------------------------------------------------------------------------------------------------


def _refer(root: Path) -> None:
    """RefCOCO: pickled references, polygons."""
    folder = root / "ref_seg/refcoco"
    images, annotations, references = [], [], []
    for piece in pieces():
        number, (height, width) = piece.number + 1, piece.mask.shape[1:]
        name = f"COCO_train2014_{number:012d}.jpg"
        save(piece.pictures[0], folder / "coco2014/train2014" / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        shape = {"segmentation": _polygons(piece.mask[0]), "iscrowd": 0, "category_id": 1}
        annotations.append({"id": number, "image_id": number, **shape})
        sentences = [{"sent_id": number, "raw": piece.name, "sent": piece.name, "tokens": piece.name.split()}]
        reference = {"ref_id": number, "ann_id": number, "image_id": number, "split": "train", "file_name": name}
        references.append({**reference, "sentences": sentences})
    write_json({"images": images, "annotations": annotations, "categories": []}, folder / "instances.json")
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))


def _reasonseg(root: Path) -> None:
    """ReasonSeg: a question and polygons beside each picture."""
    folder = root / "lisa_reasoning/train"
    for piece in pieces():
        save(piece.pictures[0], folder / f"{piece.number}.jpg")
        shapes = [{"label": "target", "points": np.reshape(one, (-1, 2)).tolist()} for one in _polygons(piece.mask[0])]
        text = [f"Where would {piece.name} be?"]
        write_json({"text": text, "is_sentence": True, "shapes": shapes}, folder / f"{piece.number}.json")


def _annotations(root: Path) -> None:
    """The reference's own format for fine-tuning."""
    entries = []
    for piece in pieces():
        save(piece.pictures[0], root / "images" / f"{piece.number}.jpg")
        mask = [_polygons(piece.mask[0])]
        entries.append({"image": f"{piece.number}.jpg", "mask": mask, "text": [piece.name]})
    write_json(entries, root / "annotations.json")


def _coco(root: Path) -> None:
    """COCO with run lengths and phrases."""
    images, annotations = [], []
    for piece in pieces():
        number, (height, width) = piece.number + 1, piece.mask.shape[1:]
        save(piece.pictures[0], root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        shape = {"segmentation": rle(piece.mask[0]), "phrase": piece.name}
        annotations.append({"id": number, "image_id": number, **shape})
    write_json({"images": images, "annotations": annotations, "categories": []}, root / "annotations.json")


def _masks(root: Path) -> None:
    """Black and white PNGs."""
    for piece in pieces():
        save(piece.pictures[0], root / "images" / f"{piece.number}.png")
        save(piece.mask[0].astype(np.uint8) * 255, root / "masks" / f"{piece.number}.png")
    write_json({str(piece.number): piece.name for piece in pieces()}, root / "phrases.json")


def _captions(root: Path) -> None:
    """Grounded captions in the generic form of GranDf."""
    entries: list[dict[str, Any]] = []
    for piece in pieces():
        save(piece.pictures[0], root / "glamm_data/images/grandf/train" / f"{piece.number}.jpg")
        grounding = {"token_positives": [8, 8 + len(piece.name)], "rle_masks": [rle(piece.mask[0])]}
        caption = {"caption": f"This is {piece.name}.", "groundings": {piece.name: grounding}}
        entries.append({"file_name": f"{piece.number}.jpg", **caption})
    write_json(entries, root / "glamm_data/annotations/GranDf_HA_GCG_train.json")


def _videos(root: Path) -> None:
    """Clips in folders of frames with ``mask_dict.json``, as MeViS has them."""
    videos, masks = {}, {}
    for piece in pieces(FRAMES):
        name = str(piece.number)
        for index, picture in enumerate(piece.pictures):
            save(picture, root / "JPEGImages" / name / f"{index:05d}.jpg")
        frames = [f"{index:05d}" for index in range(FRAMES)]
        videos[name] = {"frames": frames, "expressions": {"0": {"exp": piece.name, "anno_id": [piece.number]}}}
        masks[name] = [rle(frame) for frame in piece.mask]
    write_json({"videos": videos}, root / "meta_expressions.json")
    write_json(masks, root / "mask_dict.json")


def _ref_sav(root: Path) -> None:
    """Ref-SAV over SA-V: mp4 files of which every fourth frame is annotated."""
    folder, entries = root / "video_datas", {}
    for piece in pieces(FRAMES):
        stem = f"sav_train/sav_000/sav_{piece.number:06d}"
        write_mp4(folder / f"sam_v_full/{stem}.mp4", piece.pictures.repeat(4, axis=0)[: 4 * FRAMES - 3])
        write_json({"masklet": [[rle(frame)] for frame in piece.mask]}, folder / f"sam_v_full/{stem}_manual.json")
        paths = {"video_path": f"{stem}.mp4", "anno_path": f"{stem}_manual.json"}
        entries[f"sav_{piece.number:06d}"] = {**paths, "objects": {"0": {"formated": f"{piece.name}."}}}
    write_json(entries, folder / "Ref-SAV.json")


def _chat(root: Path) -> None:
    """Our own interchange format."""
    samples = (
        Sample(
            id=str(piece.number),
            frames=tuple(piece.pictures),
            turns=(Turn(f"Please segment {piece.name}.", "Sure, [SEG]."),),
            masks=(piece.mask,),
            source="mine",
        )
        for piece in pieces()
    )
    root.mkdir(parents=True)
    write_chat(samples, root / "chat.jsonl")


# -- sources of text ---------------------------------------------------------------------------------------------------


def _messages(question: str, piece: Piece) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": piece.word}]


def _llava(root: Path) -> None:
    """LLaVA: a question about each picture."""
    entries = []
    for piece in pieces():
        save(piece.pictures[0], root / "llava_data/llava_images" / f"{piece.number}.jpg")
        turns = _messages("<image>\nWhich piece is this?", piece)
        entries.append({"id": str(piece.number), "image": f"{piece.number}.jpg", "conversations": turns})
    write_json(entries, root / "llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json")


def _regions(root: Path) -> None:
    """Osprey: a question about a region of each picture."""
    base, entries = root / "osprey-724k", []
    for piece in pieces():
        (height, width), name = piece.mask.shape[1:], f"{piece.number}.jpg"
        save(piece.pictures[0], base / "coco/train2017" / name)
        region = {"height": height, "width": width, "annotation": [{"segmentation": rle(piece.mask[0])}]}
        entries.append({"file_name": name, **region, "conversations": _messages("Which piece is <region1>?", piece)})
    write_json(entries, base / "Osprey-724K/osprey_short_form.json")


def _video_questions(root: Path) -> None:
    """Chat-UniVi: a question about each video."""
    folder, entries = root / "video_datas/chat_univi", []
    for piece in pieces(FRAMES):
        write_mp4(folder / "Activity_Videos" / f"{piece.number}.mp4", piece.pictures)
        turns = _messages("<video>\nWhich piece is this?", piece)
        entries.append({"id": str(piece.number), "video": f"{piece.number}.mp4", "conversations": turns})
    write_json(entries, folder / "video_chat.json")


#: One source of each kind by its short name: what writes its ten samples into a folder.
MASK_SOURCES: Mapping[str, Callable[[Path], None]] = {
    "refcoco": _refer,
    "reasonseg": _reasonseg,
    "annotations": _annotations,
    "coco": _coco,
    "mask-folder": _masks,
    "gcg-grandf": _captions,
    "video-json": _videos,
    "ref-sav": _ref_sav,
    "chat": _chat,
}
TEXT_SOURCES: Mapping[str, Callable[[Path], None]] = {
    "llava": _llava,
    "osprey-short": _regions,
    "video-chat": _video_questions,
}
