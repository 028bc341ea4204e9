"""The released ``config.json`` and ours.

A downloaded config is data: every sub-config is rebuilt from an allow-list of the native config's own fields, so no
key can reach transformers that this module does not know, and ``auto_map`` is never followed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    InternVLConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3VLConfig,
    Sam2VideoConfig,
)
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from sa2va.checkpoint.configs import build_config, named_dtype, rope_parameters
from sa2va.model.config_overlay import OWN_KEY, difference, overlaid
from sa2va.model.configuration import Sa2VAConfig, hiera_large_config
from sa2va.model.families import ADDED_TOKENS, INTERNVL, QWEN2_5_VL, QWEN3_VL, SEG_TOKEN, Family
from sa2va.untrusted import read_json_object, reading

RELEASED_MODEL_TYPE = "sa2va_chat"
#: SaSaSa2VA's exports: the same tensors as an InternVL-based Sa2VA, under a model type of their own.
SASASA2VA_MODEL_TYPE = "sasasa2va_chat"
#: Language models of InternVL by ``model_type``, and by the architecture that the reference goes by.
_TEXT_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "llama": LlamaConfig,
    "internlm2": LlamaConfig,  # the same computation under other names
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
    "LlamaForCausalLM": LlamaConfig,
    "InternLM2ForCausalLM": LlamaConfig,
}
_QWEN_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    QWEN2_5_VL.name: Qwen2_5_VLConfig,
    QWEN3_VL.name: Qwen3VLConfig,
}
#: InternVL adds nine tokens to its base tokenizer, the third of which is the image token; ``[SEG]`` follows the ninth.
_IMAGE_TOKEN_BEFORE_SEG = 7
#: Fields of InternVL's own vision config that are spelled otherwise in transformers.
_VISION_FIELDS = {"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm"}
_REMOTE_CODE = {
    INTERNVL.released_architecture: ("configuration_sa2va_chat.Sa2VAChatConfig", "modeling_sa2va_chat.Sa2VAChatModel"),
    QWEN2_5_VL.released_architecture: (
        "configuration_sa2va_chat.Sa2VAChatConfigQwen",
        "modeling_sa2va_qwen.Sa2VAChatModelQwen",
    ),
}


def is_released(config: Mapping[str, Any]) -> bool:
    """Whether a parsed ``config.json`` is one of the reference's."""
    return config.get("model_type") in (RELEASED_MODEL_TYPE, SASASA2VA_MODEL_TYPE)


def config_from_released(released: Mapping[str, Any]) -> Sa2VAConfig:
    """Our config from a released ``config.json``; ids of tokens as in the released order, see [`set_token_ids`].

    Args:
        released: the parsed file. Extra keys: ``grounding_config`` (a ``Sam2VideoConfig`` dict) describes another
            SAM 2 than the released Hiera-L, ``sa2va`` what else the layout has no word for.

    Raises:
        ValueError: the family or language model is not one of the released ones, or a field is of a wrong type.
    """
    with reading("config.json"):
        config = _spoken(released)
        if own := part_of(released, OWN_KEY).get("config"):
            config = build_config(Sa2VAConfig, overlaid(config.to_dict(), own), "config.json")
    return config


def _spoken(released: Mapping[str, Any]) -> Sa2VAConfig:
    """What the layout itself says."""
    family = _family(released)
    vlm = internvl_config(released) if family is INTERNVL else _qwen_config(released, family)
    grounding = part_of(released, "grounding_config")
    return Sa2VAConfig(
        vlm_config=vlm,
        sam2_config=build_config(Sam2VideoConfig, grounding, "config.json: grounding_config")
        if grounding
        else hiera_large_config(),
        seg_token_id=vlm.get_text_config().vocab_size - len(ADDED_TOKENS),
        dtype=named_dtype(released.get("dtype") or released.get("torch_dtype")),
        template=_template(released) if family is INTERNVL else None,
    )


def _family(released: Mapping[str, Any]) -> Family:
    """The family that the parts belong to: fine-tunes and other exporters write other names at the top."""
    if "llm_config" in released:
        return INTERNVL
    parts = [part_of(released, "text_config"), part_of(released, "vision_config")]
    kinds = [str(part.get("model_type")) for part in parts]
    for family in (QWEN2_5_VL, QWEN3_VL):
        if any(kind.startswith(family.name) for kind in kinds):
            return family
    raise ValueError(
        f"llm_config is missing, and text_config and vision_config have model types {kinds}; expected those of an "
        f"InternVL-based checkpoint, of {QWEN2_5_VL.name} or of {QWEN3_VL.name}"
    )


def says_tied(released: Mapping[str, Any]) -> bool:
    """Whether a config says that the language model's head is its embeddings, which then may be stored alone."""
    parts = (released, *(part_of(released, key) for key in ("text_config", "llm_config")))
    return any(part.get("tie_word_embeddings") is True for part in parts)


def set_token_ids(config: Sa2VAConfig, token_ids: Mapping[str, int]) -> None:
    """Take the ids of ``[SEG]`` and of the image token from a tokenizer, where it names them."""
    config.seg_token_id = token_ids.get(SEG_TOKEN, config.seg_token_id)
    config.vlm_config.image_token_id = token_ids.get(config.family.image_token, config.vlm_config.image_token_id)


def read_token_ids(folder: Path) -> dict[str, int]:
    """Ids of the added tokens of a checkpoint folder, from its tokenizer files; empty where it has none."""
    ids: dict[str, int] = {}
    for name in ("tokenizer_config.json", "tokenizer.json", "added_tokens.json"):
        path = folder / name
        if not path.is_file():
            continue
        content = read_json_object(path)
        with reading(path):
            if name == "tokenizer_config.json":
                found = {row["content"]: int(key) for key, row in part_of(content, "added_tokens_decoder").items()}
            elif name == "tokenizer.json":
                found = {row["content"]: row["id"] for row in content.get("added_tokens") or []}
            else:
                found = content
            ids |= {str(token): _checked_id(token, number) for token, number in found.items()}
    return ids


def _checked_id(token: str, number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**31:
        raise ValueError(f"token {token!r}: expected an id from 0, got {number!r}")
    return number


def config_to_released(config: Sa2VAConfig) -> dict[str, Any]:
    """A ``config.json`` that the reference's remote code reads; its Python files are not part of a converted folder."""
    family = config.family
    if family is INTERNVL:
        body = {"vision_config": _released_vision(config.vlm_config.vision_config)} | {
            "llm_config": _released_text(config.vlm_config.text_config),
            "select_layer": config.vlm_config.vision_feature_layer,
            "downsample_ratio": config.vlm_config.downsample_ratio,
            "force_image_size": config.vlm_config.vision_config.image_size[0],
            "dynamic_image_size": True,
            "use_thumbnail": True,
            "ps_version": "v2",
            "min_dynamic_patch": 1,
            "max_dynamic_patch": config.max_tiles,
        }
    else:
        body = _plain(config.vlm_config)
        body["text_config"] = _older_rope(body["text_config"])
    body |= {
        "model_type": RELEASED_MODEL_TYPE,
        "architectures": [family.released_architecture],
        "auto_map": _auto_map(family),
        "template": config.template or "qwen_chat",
        "tie_word_embeddings": False,
    }
    if config.dtype is not None:
        body["torch_dtype"] = str(config.dtype).removeprefix("torch.")
    grounding = _plain(config.sam2_config)
    if grounding != _plain(hiera_large_config()):
        body["grounding_config"] = grounding
    unspoken = difference(config_from_released(body).to_dict(), config.to_dict())
    if unspoken:
        body[OWN_KEY] = {"config": unspoken}
    return body


def _auto_map(family: Family) -> dict[str, str]:
    config_class, model_class = _REMOTE_CODE[family.released_architecture]
    return {"AutoConfig": config_class, "AutoModel": model_class, "AutoModelForCausalLM": model_class}


def _template(released: Mapping[str, Any]) -> str:
    """The chat template of an InternVL model; Qwen folders carry theirs in the tokenizer files."""
    return str(released.get("template") or "qwen_chat").replace("-", "_")


def internvl_config(released: Mapping[str, Any]) -> InternVLConfig:
    """transformers' InternVL config from InternVL's own, as a released Sa2VA or a base InternVL checkpoint holds it."""
    vision = {_VISION_FIELDS.get(str(key), str(key)): value for key, value in _part(released, "vision_config").items()}
    text: Any = _text_config(_part(released, "llm_config"))
    return InternVLConfig(
        vision_config=build_config(InternVLVisionConfig, vision, "config.json: vision_config"),
        text_config=text,
        image_token_id=text.vocab_size - len(ADDED_TOKENS) - _IMAGE_TOKEN_BEFORE_SEG,
        downsample_ratio=released.get("downsample_ratio", 0.5),
        vision_feature_layer=released.get("select_layer", -1),
        # The flag of the text config has no effect; released heads differ from the embeddings.
        tie_word_embeddings=False,
    )


def part_of(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object inside a parsed file; empty where it is missing."""
    part = content.get(key)
    if part is not None and not isinstance(part, Mapping):
        raise ValueError(f"{key}: expected an object, got a {type(part).__name__}")
    return part or {}


def _part(released: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = part_of(released, key)
    if not part:
        raise ValueError(f"config.json: {key} is missing")
    return _of_any_dtype(part)


def _of_any_dtype(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part without its dtype: weights are loaded in the one of the whole model."""
    return {key: value for key, value in part.items() if key not in ("dtype", "torch_dtype")}


def _text_config(llm: Mapping[str, Any]) -> PreTrainedConfig:
    names = [str(llm.get("model_type")), *(str(name) for name in llm.get("architectures") or [])]
    config_class = next((_TEXT_CONFIGS[name] for name in names if name in _TEXT_CONFIGS), None)
    if config_class is None:
        raise ValueError(
            f"config.json: llm_config is of model type and architecture {names}; expected one of "
            f"{sorted(_TEXT_CONFIGS)}"
        )
    values = {**llm, "rope_parameters": rope_parameters(llm, config_class), "tie_word_embeddings": False}
    return build_config(config_class, values, "config.json: llm_config")


def _qwen_config(released: Mapping[str, Any], family: Family) -> PreTrainedConfig:
    text = _of_any_dtype(part_of(released, "text_config") or released)  # exports before 4.52 are flat
    config_class = _QWEN_CONFIGS[family.name]
    text_class = config_class.sub_configs_defaults["text_config"].config_class
    # The vision tower's own rope settings, which transformers 5 writes, follow from its class.
    vision = {key: value for key, value in _part(released, "vision_config").items() if key != "rope_parameters"}
    values = _of_any_dtype(released) | {
        "text_config": {**text, "rope_parameters": rope_parameters(text, text_class)},
        "vision_config": vision,
        "tie_word_embeddings": False,
    }
    return build_config(config_class, values, "config.json")


def _older_rope(text: dict[str, Any]) -> dict[str, Any]:
    """What the transformers releases of the reference read."""
    rope = dict(text.pop("rope_parameters"))
    theta = rope.pop("rope_theta")
    kind = rope.get("rope_type", "default")
    scaling = (
        {"type": "mrope" if "mrope_section" in rope else kind, **rope} if rope != {"rope_type": "default"} else None
    )
    return text | {"rope_theta": theta, "rope_scaling": scaling}


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    content = config.to_dict()
    for key in ("transformers_version", "_name_or_path", "architectures", "dtype"):
        content.pop(key, None)
    return json.loads(json.dumps(content))


def _released_vision(vision: PreTrainedConfig) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in _VISION_FIELDS.items()}
    kept = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "norm_type",
        "layer_norm_eps",
        "hidden_act",
        "num_channels",
        "attention_bias",
        "use_qk_norm",
    ]
    sides = {"image_size": vision.image_size[0], "patch_size": vision.patch_size[0]}
    fields = {names.get(key, key): getattr(vision, key) for key in kept}
    return {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", **fields, **sides}


def _released_text(text: PreTrainedConfig) -> dict[str, Any]:
    fields = _older_rope(_plain(text))
    architecture = {"llama": "InternLM2ForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    fields["architectures"] = [architecture[text.model_type]]
    if text.model_type == "llama":
        fields |= {"model_type": "internlm2", "bias": False, "attn_implementation": "eager"}
    return fields
