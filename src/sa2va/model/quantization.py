"""Quantisation of the language model to 8 or 4 bits: which layers, with which settings, on which devices.

Training on a frozen base and inference quantise the same layers: the linear ones of the language model, which hold most
of the weights. The vision tower, its projector, embeddings, the head, the ``[SEG]`` projection and SAM 2 stay as they
are: they are small, trained, or decide where a mask's edge runs.
"""

from __future__ import annotations

import copy
import logging
from typing import Any, Literal, get_args

import torch
from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import AutoQuantizationConfig

from sa2va.runtime import default_device, present_device, require_extra

#: ``"int8"`` is LLM.int8 (arXiv 2208.07339); ``"nf4"`` is NF4 with double quantisation (QLoRA, arXiv 2305.14314,
#: section 3).
Quantization = Literal["int8", "nf4"]
#: Everything but the linear layers of the language model, by name.
UNQUANTISED = (
    "vlm.lm_head",
    "vlm.model.vision_tower",
    "vlm.model.visual",
    "vlm.model.multi_modal_projector",
    "projection",
    "sam2",
    "original_mask_decoder",
)
#: What a ``device_map`` says beside devices: ways to spread a model, and where its parts wait.
_SPREADING = ("auto", "balanced", "balanced_low_0", "sequential", "disk", "meta")
#: What the libraries' configs call such a list.
_SKIP_LISTS = ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules")


def check_quantization(quantization: str, device: torch.device) -> None:
    """Find out before loading whether a device computes with quantised weights.

    Raises:
        ValueError: no such quantisation, or none on this device. ImportError: the libraries for it are missing.
    """
    if quantization not in get_args(Quantization):
        raise ValueError(f"quantization must be one of {list(get_args(Quantization))}, or None; got {quantization!r}")
    _check_libraries(device)


def quantization_settings(quantization: str | None, given: Any, device: torch.device) -> Any:
    """The ``quantization_config`` that transformers loads a model with; None for a model as it is.

    Args:
        quantization: ``"int8"``, ``"nf4"`` or None. given: instead of it a ``quantization_config`` of transformers (an
            object, or its dict), which gets this model's own list of layers to leave alone beside the one it has.
        device: where the model will be.

    Raises:
        ValueError: both are given, the settings have no such list, or the device does not compute with them.
        ImportError: bitsandbytes or accelerate is missing.
    """
    if quantization is not None and given is not None:
        raise ValueError("pass quantization= for a ready choice, or quantization_config= for your own; not both")
    if quantization is not None:
        check_quantization(quantization, device)
        settings: Any = _ready_settings(quantization)
    else:
        settings = None if given is None else _with_skip_list(given)
    if isinstance(settings, BitsAndBytesConfig):
        _check_libraries(device)
        # It says of every layer at every token that LLM.int8 computes in float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return settings


def check_widths(settings: Any, text_config: Any) -> None:
    """Two weights of a row share a byte; bitsandbytes does not look, and reads past the end of odd rows.

    Raises:
        ValueError: the language model has layers of odd width, and four bits are wanted.
    """
    heads, hidden = text_config.num_attention_heads, text_config.hidden_size
    widths = (
        hidden,
        text_config.intermediate_size,
        heads * (getattr(text_config, "head_dim", None) or hidden // heads),
    )
    if getattr(settings, "load_in_4bit", False) and any(width % 2 for width in widths):
        raise ValueError(f"four bits need layers of even width, and this language model's are {widths}; take int8")


def quantization_of(model: Any) -> str:
    """How a loaded model is quantised: ``"int8"``, ``"nf4"``, another library's name, or ``""``."""
    settings = getattr(model.config, "quantization_config", None)
    if settings is None:
        return ""
    if isinstance(settings, BitsAndBytesConfig):
        return "int8" if settings.load_in_8bit else settings.bnb_4bit_quant_type
    return str(getattr(settings.quant_method, "value", settings.quant_method))


def main_device(device_map: Any) -> torch.device:
    """The device that a ``device_map`` puts everything on; the best one present where it spreads a model.

    Raises:
        ValueError: a device that it names is not on this machine.
    """
    places = list(device_map.values()) if isinstance(device_map, dict) else [device_map]
    named = {present_device(place) for place in places if place is not None and place not in _SPREADING}
    return named.pop() if len(named) == 1 else default_device()


def _ready_settings(quantization: str) -> BitsAndBytesConfig:
    skipped = list(UNQUANTISED)
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=skipped,
    )


def _with_skip_list(given: Any) -> Any:
    settings = AutoQuantizationConfig.from_dict(dict(given)) if isinstance(given, dict) else copy.copy(given)
    name = next((name for name in _SKIP_LISTS if hasattr(settings, name)), None)
    if name is None:
        raise ValueError(
            f"{type(settings).__name__} cannot leave SAM 2 as it is, which would break the masks; pass "
            'quantization="int8" or "nf4", or settings that have one of '
            f"{', '.join(_SKIP_LISTS)} (BitsAndBytesConfig, TorchAoConfig, QuantoConfig, ...)"
        )
    setattr(settings, name, [*dict.fromkeys([*(getattr(settings, name) or ()), *UNQUANTISED])])
    return settings


def _check_libraries(device: torch.device) -> None:
    if device.type not in ("cuda", "cpu"):
        raise ValueError(
            f"bitsandbytes quantises for CUDA and CPU, and the device is {device.type}; leave quantization out, take "
            "device cpu, or a smaller model"
        )
    for module in ("bitsandbytes", "accelerate"):
        require_extra(module, "quant")
