"""From ``--model`` and [`Loading`] to a loaded model, without the libraries' noise."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sa2va import zoo
from sa2va.cli.arguments import Dtype, Loading
from sa2va.cli.console import Screen
from sa2va.runtime import present_device

if TYPE_CHECKING:
    from sa2va.predictor import Sa2VA


def model_name(model: str | None) -> str:
    """The folder or hub id that ``--model`` names.

    Raises:
        ValueError: none is named, or it is known not to load.
    """
    if not model:
        raise ValueError(
            "no model is named; use --model or set SA2VA_MODEL to a hub id (ByteDance/Sa2VA-4B), a name from "
            "`sa2va models`, or a folder"
        )
    return zoo.resolve(model)


def load_model(screen: Screen, name: str, loading: Loading) -> Sa2VA:
    """Load a folder or hub id.

    Raises:
        ValueError: the device is not there or does not compute like this, the hub does not give the checkpoint, or it
            is damaged. ImportError: a package for this is missing.
    """
    screen.note(f"loading {name}")
    with _collector_paused():
        import torch

        from sa2va.model.quantization import quantization_of
        from sa2va.predictor import Sa2VA

        with quiet_libraries(screen):
            sa2va = Sa2VA.from_pretrained(
                name,
                device=None if loading.device == "auto" else checked_device(loading.device),
                dtype=None if loading.dtype is Dtype.AUTO else getattr(torch, loading.dtype),
                device_map=None if loading.device_map is None else loading.device_map.value,
                quantization=None if loading.quantize is None else loading.quantize.value,
            )
    weights = sa2va.model
    places = dict.fromkeys(str(place) for place in getattr(weights, "hf_device_map", {"": weights.device}).values())
    numbers = [str(weights.dtype).removeprefix("torch."), quantization_of(weights)]
    screen.note(f"on {' and '.join(places)}, {', '.join(filter(None, numbers))}")
    return sa2va


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Imports make a million objects that all stay; going through them again and again takes a tenth of the start."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def checked_device(name: str) -> str:
    """What ``--device`` names, where it is present. Raises ValueError for any other."""
    try:
        present_device(name)
    except ValueError as error:
        raise ValueError(f"--device: {error}") from None
    return name


@contextmanager
def quiet_libraries(screen: Screen) -> Iterator[None]:
    """Keep transformers and the hub client from writing over this program's lines; bars stay where they are seen."""
    import transformers
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    log = transformers.utils.logging
    level, had_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    if not screen.debug:
        log.set_verbosity_error()
    if not screen.lively:
        log.disable_progress_bar()
        disable_progress_bars()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if had_bars:
            log.enable_progress_bar()
            enable_progress_bars()
