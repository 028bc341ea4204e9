"""Recipes: functions that return the configuration of a run."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Literal

from sa2va.runtime import default_device
from sa2va.train.config import SourceOptions, TrainConfig


def finetune(
    model: str, data: str, output: str = "runs/finetune", family: Literal["internvl", "qwen"] = "internvl"
) -> TrainConfig:
    """Fine-tune a released checkpoint on own pictures, as the reference does on one machine of eight GPUs.

    Args:
        model: checkpoint to start from. data: folder with ``annotations.json`` and ``images``.
        output: folder of the run. family: of the model; the two differ in batch size and accumulation.
    """
    batch_size, accumulation = {"internvl": (2, 16), "qwen": (1, 4)}[family]
    return TrainConfig(
        model=model,
        output=output,
        data=(SourceOptions("annotations", {"root": data}, repeats=100),),
        batch_size=batch_size,
        accumulation=accumulation,
        precision="fp32" if default_device().type == "cpu" else "bf16",
        workers=min(4, os.cpu_count() or 1),
    )


PRESETS: dict[str, Callable[..., TrainConfig]] = {"finetune": finetune}


def preset(name: str, words: Sequence[str]) -> TrainConfig:
    """A preset by name. Words ``key=value`` that name its arguments go to it, the others override what it returns.

    Raises:
        ValueError: there is no such preset, or an argument is missing.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; take one of {sorted(PRESETS)}, or a .yaml or .json file")
    function = PRESETS[name]
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
        return function(**arguments).with_overrides(overrides)
    except KeyError as error:
        raise ValueError(f"preset {name!r} does not know {error}; see its arguments: {list(parameters)}") from error
