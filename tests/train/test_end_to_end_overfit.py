"""Ten samples by heart: a small model learns any kind of source to an IoU of 0.9, answered by the user's path."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from miniatures.images import rle
from sa2va import Sa2VA
from sa2va.data.encode import EncodeOptions
from sa2va.data.sample import Sample
from sa2va.data.synthetic import SyntheticWorld
from sa2va.train.config import SourceOptions, TrainConfig
from sa2va.train.losses import LossOptions
from sa2va.train.run import prepare, train
from sa2va.train.trainable import LoraOptions, TrainableOptions

TINY = Path(__file__).parents[2] / "src" / "sa2va" / "assets" / "tiny"
COUNT, FRAMES = 10, 4


@dataclass(frozen=True)
class Start:
    """What learns, and how. model: its folder."""

    model: Path
    trainable: TrainableOptions
    learning_rate: float
    steps: int


@pytest.fixture(scope="module")
def start(checkpoint: Callable[[str], Path]) -> Start:
    """The embedded ``tiny`` checkpoint with LoRA; where it is not in the package yet, a random model, trained whole."""
    if (TINY / "config.json").is_file():
        return Start(TINY, TrainableOptions(lora=LoraOptions(rank=16, alpha=32, dropout=0.0)), 1e-3, 150)
    return Start(checkpoint("iv25_qwen2"), TrainableOptions(parts=("all",), lora=None), 2e-3, 300)


def seen(frames: int = 1) -> list[tuple[Sample, str, np.ndarray]]:
    """Ten samples of the synthetic world that training never shows: each with a name of its own for its first object.

    The names mean nothing, so what is learnt are these ten samples.
    """
    world = SyntheticWorld("val", seed=77, tasks={"segment": 1.0}, phrases=1, frames=frames)
    samples = (world[index] for index in range(400))
    chosen = list(islice((sample for sample in samples if sample.masks and _drawable(sample.masks[0])), COUNT))
    return [(sample, f"piece number {n}", sample.masks[0]) for n, sample in enumerate(chosen)]


def _drawable(mask: np.ndarray) -> bool:
    """Whether masks of 32 x 32 cells, as a model of this size makes them, can show an object to an IoU of 0.96."""
    truth = torch.from_numpy(mask).float()[:, None]
    cells = F.adaptive_avg_pool2d(truth, 32)
    drawn = F.interpolate(cells, size=mask.shape[-2:], mode="bilinear") > 0.5
    both, either = (drawn & (truth > 0)).sum((1, 2, 3)), (drawn | (truth > 0)).sum((1, 2, 3))
    return bool((both / either.clamp(min=1)).min() > 0.96)


def write_masks(root: Path) -> None:
    """Black and white PNGs with ``phrases.json``."""
    phrases = {}
    for number, (sample, phrase, mask) in enumerate(seen()):
        for folder, pixels in (("images", sample.picture(0)), ("masks", mask[0].astype(np.uint8) * 255)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
        phrases[str(number)] = phrase
    (root / "phrases.json").write_text(json.dumps(phrases))


def write_coco(root: Path) -> None:
    """COCO with run lengths and phrases."""
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for number, (sample, phrase, mask) in enumerate(seen(), start=1):
        Image.fromarray(sample.picture(0)).save(root / "images" / f"{number}.png")
        height, width = mask.shape[1:]
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        annotations.append({"id": number, "image_id": number, "segmentation": rle(mask[0]), "phrase": phrase})
    (root / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))


def write_captions(root: Path) -> None:
    """Grounded captions in the generic form of GranDf."""
    entries: list[dict[str, Any]] = []
    (root / "glamm_data/images/grandf/train").mkdir(parents=True)
    (root / "glamm_data/annotations").mkdir(parents=True)
    for number, (sample, phrase, mask) in enumerate(seen()):
        Image.fromarray(sample.picture(0)).save(root / f"glamm_data/images/grandf/train/{number}.jpg", quality=95)
        caption = f"This is {phrase}."
        grounding = {"token_positives": [8, 8 + len(phrase)], "rle_masks": [rle(mask[0])]}
        entries.append({"file_name": f"{number}.jpg", "caption": caption, "groundings": {phrase: grounding}})
    (root / "glamm_data/annotations/GranDf_HA_GCG_train.json").write_text(json.dumps(entries))


def write_videos(root: Path) -> None:
    """Clips in folders of frames with ``mask_dict.json``, as MeViS has them."""
    videos, masks = {}, {}
    for number, (sample, phrase, mask) in enumerate(seen(FRAMES)):
        folder = root / "JPEGImages" / str(number)
        folder.mkdir(parents=True)
        for index, picture in enumerate(sample.pictures()):
            Image.fromarray(picture).save(folder / f"{index:05d}.jpg", quality=95)
        frames = [f"{index:05d}" for index in range(FRAMES)]
        videos[str(number)] = {"frames": frames, "expressions": {"0": {"exp": phrase, "anno_id": [number]}}}
        masks[str(number)] = [rle(frame) for frame in mask]
    (root / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (root / "mask_dict.json").write_text(json.dumps(masks))


KINDS: dict[str, Callable[[Path], None]] = {  # one source of each kind
    "mask-folder": write_masks,
    "coco": write_coco,
    "gcg-grandf": write_captions,
    "video-json": write_videos,
}


def settings(start: Start, folder: Path, kind: str) -> TrainConfig:
    return TrainConfig(
        model=str(start.model),
        output=str(folder / "run"),
        data=(SourceOptions(kind, {"root": str(folder / "data")}),),
        encode=EncodeOptions(targets="area"),
        trainable=start.trainable,
        loss=LossOptions(points=None),
        steps=start.steps,
        batch_size=5 if kind != "video-json" else 2,
        accumulation=1,
        learning_rate=start.learning_rate,
        precision="fp32",
        checkpoint_activations=False,
        workers=0,
        save_every=1000,
    )


def overlaps(sa2va: Sa2VA, source: Any) -> list[float]:
    """IoU of what the model draws when it is asked what it was trained on."""
    found = []
    for index in range(len(source)):
        sample = source[index]
        medium = list(sample.pictures()) if sample.video else sample.picture(0)
        answer = sa2va.chat(medium, sample.turns[0].question, max_new_tokens=40)
        truth, drawn = sample.masks[0], np.zeros_like(sample.masks[0])
        if answer.segments:
            drawn = np.stack([mask.array for mask in answer.segments[0].masks])
        found.append(float((truth & drawn).sum() / max(1, (truth | drawn).sum())))
    return found


@pytest.mark.parametrize(
    "kind", [kind if kind == "mask-folder" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_ten_samples_are_learnt_by_heart(kind: str, start: Start, tmp_path: Path, record_property, capfd):
    KINDS[kind](tmp_path / "data")
    run = prepare(settings(start, tmp_path, kind))
    assert len(run.parts[0].source) == COUNT
    output = train(run, progress=False)
    assert output is not None
    ious = overlaps(Sa2VA.from_pretrained(output), run.parts[0].source)
    record_property(kind, f"IoU {np.mean(ious):.3f}, least {min(ious):.3f}")
    assert np.mean(ious) > 0.9, ious
