"""Detect the family of a model and the kind of a data folder, so that presets need not be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from sa2va import zoo
from sa2va.checkpoint.released_config import config_from_released, is_released
from sa2va.hub import is_hub_id
from sa2va.model.configuration import Sa2VAConfig
from sa2va.model.families import INTERNVL, QWEN2_5_VL, QWEN3_VL
from sa2va.processing.tokenizer import read_json

FamilyName = Literal["internvl", "qwen"]
#: ``model_type`` of base vision-language models: InternVL's own, and transformers'.
_BASES = ("internvl_chat", INTERNVL.name, QWEN2_5_VL.name, QWEN3_VL.name)


def family_of_model(model: str) -> FamilyName:
    """The family of a folder, a model of the zoo, or another hub id, whose ``config.json`` is downloaded.

    A name that is none of these counts as InternVL; loading it will say what is wrong with it.
    """
    known = {entry.hub_id: entry for entry in zoo.ZOO}.get(zoo.resolve(model))
    if known:
        return "qwen" if "Qwen" in known.name else "internvl"
    text = json.dumps(_config(model))
    return "qwen" if '"qwen2_5_vl' in text or '"qwen3_vl' in text else "internvl"


def language_width(model: str) -> int | None:
    """Hidden size of the language model of a Sa2VA checkpoint.

    None for a model of the zoo, whose ``config.json`` is not downloaded for it (the narrowest has 896), and for a name
    or a folder that is no Sa2VA.
    """
    name = zoo.resolve(model)
    content = {} if name in {entry.hub_id for entry in zoo.ZOO} else _config(name)
    if is_released(content):
        return config_from_released(content).get_text_config().hidden_size
    if content.get("model_type") == Sa2VAConfig.model_type:
        return Sa2VAConfig.from_dict(content).get_text_config().hidden_size
    return None


def is_base_model(model: str) -> bool:
    """Whether a folder or hub id is a vision-language model that has not become a Sa2VA yet."""
    content = _config(model)
    return not is_released(content) and content.get("model_type") in _BASES


def _config(model: str) -> dict[str, Any]:
    exists = Path(model).is_dir() or is_hub_id(model)
    return read_json(model, "config.json") if exists else {}
