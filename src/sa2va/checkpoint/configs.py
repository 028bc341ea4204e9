"""Configs from untrusted values: only fields that the class knows, and errors that name the field."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, PreTrainedConfig

from sa2va.untrusted import reading

Config = TypeVar("Config", bound=PreTrainedConfig)

_SHARED = {"bos_token_id", "eos_token_id", "pad_token_id"}
_DROPPED = {"model_type", "architectures", "transformers_version", "auto_map"}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: Fields that say how often something is built: each time makes tensors of its own.
_COUNTS = re.compile(r"depth|num_hidden_layers|\w+_num_layers|blocks_per_stage|iou_head_depth|num_multimask_outputs")


def build_config(config_class: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """A config of the values whose keys are fields of the class or of its parts; everything else is dropped.

    Args:
        where: file, and place in it, for messages.

    Raises:
        ValueError: a value is of another type than its field.
    """
    own = {field.name for field in dataclasses.fields(config_class) if not field.name.startswith("_")}
    known = {key: value for key, value in values.items() if key in (own | _SHARED) - _DROPPED}
    with reading(where):
        for key in known.keys() & {"dtype"}:
            known[key] = named_dtype(known[key])
        for key, spec in config_class.sub_configs_defaults.items():
            part = known.get(key)
            if isinstance(part, Mapping):
                part_class = spec.config_class
                if issubclass(part_class, AutoConfig):
                    part_class = spec.get_config_class(part.get("model_type", spec.model_type))
                known[key] = build_config(part_class, part, f"{where}.{key}" if "." in where else f"{where}: {key}")
        return config_class(**known)


def named_dtype(name: Any) -> torch.dtype | None:
    """The torch dtype that a config names, with or without ``torch.``; None for None.

    Raises:
        ValueError: it is not the name of one that weights are held in.
    """
    if name is None or name in _FLOATS:
        return name
    dtype = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else None
    if dtype not in _FLOATS:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATS)
        raise ValueError(f"dtype: expected one of {expected}, got {name!r}")
    return dtype


def rope_parameters(text: Mapping[str, Any], config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """RoPE settings in the form of transformers 5, from that or the older ``rope_theta`` and ``rope_scaling``."""
    rope = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    kind = rope.pop("type", "default")
    rope.setdefault("rope_type", kind)
    if rope["rope_type"] == "mrope":
        rope["rope_type"] = "default"
    default = getattr(config_class, "default_theta", 10000.0)
    return {"rope_theta": float(text.get("rope_theta") or default), **rope}


def check_counts(values: Mapping[str, Any], most: int, where: str) -> None:
    """Refuse a config that claims more layers than its weights have, before anything is built from it.

    Args:
        most: layers that the weights have, of any kind.

    Raises:
        ValueError: a count is larger.
    """
    for key, value in values.items():
        place = f"{where}.{key}" if where else key
        if isinstance(value, Mapping):
            check_counts(value, most, place)
        elif isinstance(value, list) and (len(value) > most and key.endswith(("_indexes", "_list", "_per_stage"))):
            raise ValueError(f"config.json: {place} has {len(value)} entries, but the weights have {most} layers")
        elif _COUNTS.fullmatch(str(key)):
            for count in value if isinstance(value, list) else [value]:
                if isinstance(count, int) and count > most:
                    raise ValueError(
                        f"config.json: {place} is {count}, but the weights have at most {most} layers; the config is "
                        "of another model, or files are missing"
                    )
