"""How the embedded ``tiny`` checkpoint is trained from nothing, in the order in which the released models came to be.

Trained on everything at once, a random model draws empty masks and stays there. So the image encoders first learn to
name what they see, SAM 2 to segment and to follow what is clicked on, the language model to read, answer and point, and
only then masks from words, in pictures, then in clips; at last memory and mask decoder learn to follow what was asked
for, as they are served.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sa2va.data.encode import EncodeOptions
from sa2va.runtime import default_device, fast_bfloat16
from sa2va.tiny.random_model import GROUNDING_SIDE, RANDOM_TINY
from sa2va.tiny.synthetic.dialogs import CLIP_MIX
from sa2va.train.auxiliary import AuxiliaryOptions
from sa2va.train.config import SourceOptions, TrainConfig
from sa2va.train.losses import LossOptions, LossWeights
from sa2va.train.trainable import TrainableOptions

# The vision tower stays as it is while the language model learns to read it; on clips both adapt.
_LANGUAGE = ("language", "embeddings", "head")
_DRAWING = ("prompt_encoder", "mask_decoder")
#: Samples of an epoch; of a world without end, so many that no run of full length shows one twice.
_EPOCH = 1_000_000
_CLIP_FRAMES = 6
#: Frames of a clip that is asked about, and how many of them the language model sees and SAM 2 is prompted in.
_WATCHED, _SEEN = 8, 5
_DRAWN = {"segment": 4.0, "caption": 1.0}
#: Counting is learnt last: many questions.
_ASKED = {"segment": 6.0, "question": 4.5, "caption": 0.8, "region": 0.6, "chat": 1.0, "text": 0.1}
#: Every object of a scene, each with its name and mask.
_NAMED = {"caption": 1.0}
#: As SAM was trained.
_CLICKS = LossOptions(LossWeights(text=0, bce=0, focal=20, dice=1, iou=1, presence=1), points=None, candidate="best")
#: What these parts do is known before; they only adapt.
_SLOWLY = {
    "vision": 0.2,
    "projector": 0.3,
    "embeddings": 0.1,
    "image_encoder": 0.3,
    "prompt_encoder": 0.3,
    "mask_decoder": 0.3,
}


def tiny(output: str = "runs/tiny", scale: float = 1.0) -> tuple[TrainConfig, ...]:
    """The stages, each starting from the one before.

    Args:
        output: folder of the runs. scale: factor on the steps of every stage, to try it in little time.
    """
    root = Path(output)
    stages = (
        _stage(
            data=_tasks(_NAMED, seed=0, crowd=True),
            trainable=_parts("vision", "projector", "embeddings", "image_encoder"),
            loss=_losses(text=0, bce=0, dice=0),
            auxiliary=(AuxiliaryOptions("sa2va.tiny.grid_pretraining:CellNaming", {"words": 1, "middle": 2}),),
            grounding_side=GROUNDING_SIDE // 2,
            learning_rate=2e-3,
            batch_size=32,
            steps=4000,
        ),
        _stage(
            stage="segmenter",
            data=_tasks(_NAMED, seed=1),
            trainable=_parts("image_encoder", *_DRAWING),
            loss=_CLICKS,
            learning_rate=2e-3,
            batch_size=16,
            steps=2000,
        ),
        _stage(
            stage="segmenter",
            data=_tasks(_NAMED, seed=11),
            trainable=_parts("image_encoder", *_DRAWING),
            loss=_CLICKS,
            grounding_side=GROUNDING_SIDE,
            learning_rate=1e-3,
            batch_size=16,
            steps=450,
        ),
        _stage(
            stage="segmenter",
            data=_tasks(_NAMED, seed=41, frames=_CLIP_FRAMES),
            trainable=_parts("memory"),
            loss=_losses(text=0, bce=0, dice=0),
            auxiliary=(AuxiliaryOptions("sa2va.tiny.memory_pretraining:MemoryRecall", {"recall": 1}),),
            learning_rate=2e-3,
            batch_size=8,
            steps=1000,
        ),
        _stage(
            stage="segmenter",
            data=_tasks(_NAMED, seed=21, frames=_CLIP_FRAMES),
            trainable=_parts("mask_decoder", "memory"),
            loss=_CLICKS,
            prompted_frames=1,
            lr_scale=_SLOWLY,
            learning_rate=1e-3,
            batch_size=4,
            steps=2000,
        ),
        _stage(
            data=(*_tasks(_ASKED, seed=2, share=0.9), *_tasks(CLIP_MIX, seed=32, frames=_CLIP_FRAMES, share=0.1)),
            trainable=_parts(*_LANGUAGE),
            loss=_losses(text=1, bce=0, dice=0),
            auxiliary=(
                AuxiliaryOptions("sa2va.tiny.grid_pretraining:SegPlacement", {"place": 1}),
                _looks(attention=1, mentions=1),
            ),
            lr_scale=_SLOWLY,
            learning_rate=2e-3,
            batch_size=20,
            steps=15000,
        ),
        _stage(
            data=_tasks(_DRAWN, seed=3),
            trainable=_parts("projection", *_DRAWING),
            loss=_losses(text=0, bce=2, dice=1, iou=0.2, presence=0.2),
            learning_rate=1e-3,
            batch_size=24,
            steps=1000,
        ),
        _stage(
            data=_tasks(_ASKED, seed=4),
            trainable=_parts(*_LANGUAGE, "projection", "image_encoder", *_DRAWING),
            # What is asked for is in every picture: the object score, trained there, forgets that it can be gone.
            loss=_losses(text=1, bce=2, dice=1, iou=0.3),
            auxiliary=(_looks(attention=0.5, mentions=0.5),),
            lr_scale=_SLOWLY,
            learning_rate=1e-3,
            batch_size=24,
            steps=4000,
        ),
        _stage(
            data=(*_tasks(_ASKED, seed=5, share=0.6), *_tasks(CLIP_MIX, seed=6, frames=_WATCHED, share=0.4)),
            # Few frames are drawn of each clip, so that more clips are seen.
            encode=EncodeOptions(max_length=900, targets="area", key_frames=_SEEN, drawn_frames=2),
            trainable=_parts("vision", "projector", *_LANGUAGE, "projection", "image_encoder", *_DRAWING),
            loss=_losses(text=1, bce=2, dice=1, iou=0.5, presence=0.5),
            auxiliary=(_looks(attention=0.5, mentions=1),),
            lr_scale=_SLOWLY,
            learning_rate=7e-4,
            batch_size=24,
            steps=3000,
        ),
        _stage(
            data=(*_tasks(_DRAWN, seed=7, share=0.2), *_tasks(_DRAWN, seed=8, frames=_WATCHED, share=0.8)),
            encode=EncodeOptions(max_length=900, targets="area", key_frames=_SEEN),
            trainable=_parts(*_DRAWING, "memory"),
            loss=_losses(text=0, bce=2, dice=1, iou=1, presence=0.5),
            prompted_frames=_SEEN,
            lr_scale=_SLOWLY,
            learning_rate=1e-3,
            batch_size=12,
            steps=1000,
        ),
    )
    names = ("towers", "segmenter", "finer", "recall", "memory", "language", "drawing", "joint", "clips", "tracking")
    previous, configs = RANDOM_TINY, []
    for number, (name, stage) in enumerate(zip(names, stages, strict=True), start=1):
        steps, folder = max(1, round((stage.steps or 1) * float(scale))), str(root / f"{number}-{name}")
        configs.append(replace(stage, model=previous, output=folder, steps=steps))
        previous = folder
    return tuple(configs)


def _stage(**settings: Any) -> TrainConfig:
    return TrainConfig(
        model="",
        output="",
        encode=settings.pop("encode", EncodeOptions(max_length=640, targets="area")),
        optimizer="muon",
        betas=(0.9, 0.98),
        weight_decay=0.05,
        decay="matrices",
        precision="bf16" if fast_bfloat16(default_device()) else "fp32",
        accumulation=1,
        checkpoint_activations=False,
        compile=True,
        workers=0,
        save_every=500,
        **settings,
    )


def _tasks(
    weights: dict[str, float], seed: int, *, frames: int = 1, share: float = 1.0, crowd: bool = False
) -> tuple[SourceOptions, ...]:
    """A group for each task: conversations of a batch are about equally long, so little of it is padding.

    Args:
        share: of the samples of an epoch, which all the tasks together have.
    """
    common = {"split": "train", "seed": seed, "frames": frames, "crowd": crowd}
    total = sum(weights.values())
    return tuple(
        SourceOptions(
            "synthetic",
            {**common, "tasks": {task: 1.0}, "length": round(share * _EPOCH * weight / total)},
            group=task if frames == 1 else f"clips/{task}",
        )
        for task, weight in weights.items()
    )


def _parts(*parts: str) -> TrainableOptions:
    return TrainableOptions(parts, lora=None)


def _looks(**weights: float) -> AuxiliaryOptions:
    return AuxiliaryOptions("sa2va.tiny.attention_supervision:AttentionSupervision", weights)


def _losses(**weights: float) -> LossOptions:
    return LossOptions(LossWeights(**weights), points=None)
