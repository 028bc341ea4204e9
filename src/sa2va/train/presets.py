"""Presets: functions that return the configuration of a run, by name and with ``key=value`` words."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from sa2va.data.check import OWN_CLIPS, kind_of_data
from sa2va.data.encode import EncodeOptions
from sa2va.runtime import default_device, import_object
from sa2va.train.autodetect import FamilyName, family_of_model, language_width
from sa2va.train.config import SourceOptions, TrainConfig
from sa2va.train.losses import LossOptions, LossWeights
from sa2va.train.recipes import RECIPES, pretraining
from sa2va.train.trainable import TrainableOptions, lora_share

#: Samples per GPU and micro-batch, and micro-batches per step, of the released fine-tuning.
_BATCHES: dict[FamilyName, tuple[int, int]] = {"internvl": (2, 16), "qwen": (1, 4)}
#: Own data that are clips.
_VIDEO_KINDS = {*OWN_CLIPS, "revos", "mevis", "ref-ytvos", "ref-davis17", "ref-sav", "video-chat"}
#: Sources without views, that is, without anything but wordings to draw anew where they are shown again.
_WITHOUT_VIEWS = {"chat", "llava"}
#: How often an epoch shows each picture or clip.
_REPEATS = 100
#: Micro-batches between two checkpoints.
_SAVE_EVERY = 2000


def finetune(
    model: str,
    data: str,
    output: str = "runs/finetune",
    family: FamilyName | None = None,
    kind: str | None = None,
) -> TrainConfig:
    """Fine-tune a checkpoint on own pictures or videos, as the reference does on one machine of eight GPUs.

    Clips take one sample per micro-batch and twice the micro-batches: a step is as large, in half the memory.

    A base whose language model is so narrow that LoRA would have more parameters than its matrices, like ``tiny``, is
    trained in all its parts: nothing is saved by freezing them, and what so small a model knows of the world, its image
    encoders included, is not enough to stay as it is.

    Args:
        model: checkpoint to start from, released or ours. data: folder of the data.
        output: folder of the run.
        family: of the model, ``"internvl"`` or ``"qwen"``; the two differ in batch size and accumulation. None asks
            its ``config.json``.
        kind: of the data, a key of ``sa2va.train.config.SOURCES``; None looks what is in the folder.
    """
    kind = kind or kind_of_data(data)
    batch_size, accumulation = _BATCHES[family or family_of_model(model)]
    if kind in _VIDEO_KINDS:
        batch_size, accumulation = 1, batch_size * accumulation
    source = SourceOptions(kind, {"root": data, "views": _REPEATS})
    if kind in _WITHOUT_VIEWS:
        source = SourceOptions(kind, {"root": data}, repeats=_REPEATS)
    config = TrainConfig(
        model=model,
        output=output,
        data=(source,),
        batch_size=batch_size,
        accumulation=accumulation,
        workers=4,
        save_every=_SAVE_EVERY // accumulation,
    )
    width = language_width(model)
    narrow = width is not None and lora_share(width) >= 1
    return fitted(_whole(config) if narrow else config)


def _whole(config: TrainConfig) -> TrainConfig:
    """All parts of a small model: a higher rate and small steps, and nothing that saves memory for time."""
    return replace(
        config,
        trainable=TrainableOptions(("all",), lora=None),
        # Its masks have fewer cells than the released loss has points, and objects have borders finer than a cell.
        loss=LossOptions(LossWeights(dice=1), points=None),
        encode=EncodeOptions(targets="area"),
        learning_rate=7e-4,
        weight_decay=0.0,  # what a run does not use, as pictures SAM 2's memory, stays as it is
        betas=(0.9, 0.98),
        batch_size=2,
        accumulation=1,
        checkpoint_activations=False,
        save_every=_SAVE_EVERY // 4,
    )


def _pretraining(name: str) -> Callable[..., TrainConfig]:
    def build(data: str, output: str | None = None, model: str | None = None, sam2: str | None = None) -> TrainConfig:
        return fitted(pretraining(name, data, output, model, sam2))

    build.__doc__ = f"Train {name} as it was released; see [`pretraining`]."
    return build


Preset = Callable[..., TrainConfig | tuple[TrainConfig, ...]]
#: A preset is one run, or several of which each starts from the one before: a function, or ``"package.module:name"``.
PRESETS: dict[str, Preset | str] = {
    "finetune": finetune,
    "tiny": "sa2va.tiny.curriculum:tiny",
    **{name.lower(): _pretraining(name) for name in RECIPES},
}


def preset(name: str, words: Sequence[str]) -> TrainConfig:
    """A preset of one run. Words ``key=value`` that name its arguments go to it, the others override what it returns.

    Raises:
        ValueError: there is no such preset, an argument is missing, or it has several runs.
    """
    recipes, overrides = recipes_and_overrides(name, words)
    if len(recipes) != 1:
        raise ValueError(f"preset {name!r} is {len(recipes)} runs; take them from recipes_and_overrides")
    (recipe,) = recipes
    return recipe.with_overrides(overrides)


def recipes_and_overrides(name: str, words: Sequence[str]) -> tuple[tuple[TrainConfig, ...], list[str]]:
    """The runs that a preset returns of the words that are its arguments, and the words that are left.

    Raises:
        ValueError: there is no such preset, or an argument is missing.
    """
    found = PRESETS.get(name.lower())
    if found is None:
        raise ValueError(f"unknown preset {name!r}; take one of {sorted(PRESETS)}, or a .yaml or .json file")
    function: Preset = import_object(found, "preset") if isinstance(found, str) else found
    parameters = inspect.signature(function).parameters
    arguments, overrides = {}, []
    for word in words:
        key, _, value = word.partition("=")
        if key in parameters:
            arguments[key] = value
        else:
            overrides.append(word)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise ValueError(f"preset {name!r} needs {key}; add {key}=...")
    try:
        runs = function(**arguments)
        return (runs if isinstance(runs, tuple) else (runs,)), overrides
    except KeyError as error:
        raise ValueError(f"preset {name!r} does not know {error}; see its arguments: {list(parameters)}") from error


def fitted(config: TrainConfig) -> TrainConfig:
    """A recipe on this machine: float32 where there is only a CPU, and no more workers than cores."""
    return replace(
        config,
        precision="fp32" if default_device().type == "cpu" else "bf16",
        workers=min(config.workers, os.cpu_count() or 1),
    )
