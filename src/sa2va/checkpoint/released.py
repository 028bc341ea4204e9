"""The released ``config.json`` and ours.

A downloaded config is data: every sub-config is rebuilt from an allow-list of the native config's own fields, so no
key can reach transformers that this module does not know, and ``auto_map`` is never followed.
"""

from __future__ import annotations

import dataclasses
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

from sa2va.checkpoint.files import read_json_object
from sa2va.model.config import Sa2VAConfig, hiera_large_config
from sa2va.model.families import ADDED_TOKENS, INTERNVL, QWEN2_5_VL, QWEN3_VL, SEG_TOKEN, Family

RELEASED_MODEL_TYPE = "sa2va_chat"
#: SaSaSa2VA's exports: the same tensors as an InternVL-based Sa2VA, under a model type of their own.
SASASA2VA_MODEL_TYPE = "sasasa2va_chat"
_TEXT_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
    "LlamaForCausalLM": LlamaConfig,
    "InternLM2ForCausalLM": LlamaConfig,  # the same computation under other names
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


def config_from_released(released: Mapping[str, Any], token_ids: Mapping[str, int] | None = None) -> Sa2VAConfig:
    """Our config from a released ``config.json``.

    Args:
        released: the parsed file. An extra key ``grounding_config`` (a ``Sam2VideoConfig`` dict) describes another
            SAM 2 than the released Hiera-L.
        token_ids: ids of the added tokens, from the tokenizer's files; without them the released order is assumed.

    Raises:
        ValueError: the architecture or language model is not one of the released ones.
    """
    architecture = (released.get("architectures") or [None])[0]
    if released.get("model_type") == SASASA2VA_MODEL_TYPE:
        architecture = INTERNVL.released_architecture
    if architecture == INTERNVL.released_architecture:
        vlm = internvl_config(released)
    elif architecture == QWEN2_5_VL.released_architecture:
        vlm = _qwen_config(released)
    else:
        expected = sorted({INTERNVL.released_architecture, QWEN2_5_VL.released_architecture})
        raise ValueError(f"config.json: architectures[0] is {architecture!r}; expected one of {expected}")
    grounding = released.get("grounding_config")
    dtype = released.get("dtype") or released.get("torch_dtype")
    config = Sa2VAConfig(
        vlm_config=vlm,
        sam2_config=Sam2VideoConfig.from_dict(dict(grounding)) if grounding else hiera_large_config(),
        seg_token_id=vlm.get_text_config().vocab_size - len(ADDED_TOKENS),
        dtype=dtype,
        template=_template(released) if architecture == INTERNVL.released_architecture else None,
    )
    set_token_ids(config, token_ids or {})
    return config


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
        if name == "tokenizer_config.json":
            ids |= {row["content"]: int(key) for key, row in content.get("added_tokens_decoder", {}).items()}
        elif name == "tokenizer.json":
            ids |= {row["content"]: row["id"] for row in content.get("added_tokens", [])}
        else:
            ids |= content
    return ids


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
        vision_config=InternVLVisionConfig(**_known(InternVLVisionConfig, vision)),
        text_config=text,
        image_token_id=text.vocab_size - len(ADDED_TOKENS) - _IMAGE_TOKEN_BEFORE_SEG,
        downsample_ratio=released.get("downsample_ratio", 0.5),
        vision_feature_layer=released.get("select_layer", -1),
        # The flag of the text config has no effect; released heads differ from the embeddings.
        tie_word_embeddings=False,
    )


def _part(released: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = released.get(key)
    if not isinstance(part, Mapping):
        raise ValueError(f"config.json: {key} is {'missing' if part is None else 'not an object'}")
    return part


def _text_config(llm: Mapping[str, Any]) -> PreTrainedConfig:
    architecture = (llm.get("architectures") or [None])[0]
    if architecture not in _TEXT_CONFIGS:
        raise ValueError(
            f"config.json: llm_config.architectures[0] is {architecture!r}; expected one of {sorted(_TEXT_CONFIGS)}"
        )
    config_class: Any = _TEXT_CONFIGS[architecture]
    return config_class(**_known(config_class, llm) | {"rope_parameters": _rope(llm), "tie_word_embeddings": False})


def _qwen_config(released: Mapping[str, Any]) -> PreTrainedConfig:
    text = dict(released.get("text_config") or released)  # exports before 4.52 are flat
    vision = dict(_part(released, "vision_config"))
    kinds = (str(text.get("model_type")), str(vision.get("model_type")))
    name = next((name for name in _QWEN_CONFIGS if any(kind.startswith(name) for kind in kinds)), None)
    if name is None:
        raise ValueError(f"config.json: sub-config model types {kinds} belong to none of {sorted(_QWEN_CONFIGS)}")
    config_class: Any = _QWEN_CONFIGS[name]
    parts = config_class.sub_configs_defaults
    text_class, vision_class = (_config_class(parts[key]) for key in ("text_config", "vision_config"))
    known = _known(config_class, released)
    known["text_config"] = text_class(**_known(text_class, text) | {"rope_parameters": _rope(text)})
    known["vision_config"] = vision_class(**_known(vision_class, vision))
    return config_class(**known | {"tie_word_embeddings": False})


def _config_class(spec: Any) -> Any:
    return spec if isinstance(spec, type) else spec.config_class


def _rope(text: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE settings in the form of transformers 5, from the older ``rope_theta`` and ``rope_scaling``."""
    if text.get("rope_parameters"):
        return dict(text["rope_parameters"])
    scaling = dict(text.get("rope_scaling") or {})
    kind = scaling.pop("type", "default")
    scaling.setdefault("rope_type", "default" if kind == "mrope" else kind)
    return {"rope_theta": float(text.get("rope_theta", 10000.0)), **scaling}


def _older_rope(text: dict[str, Any]) -> dict[str, Any]:
    """The inverse of [`_rope`]: what the transformers releases of the reference read."""
    rope = dict(text.pop("rope_parameters"))
    theta = rope.pop("rope_theta")
    kind = rope.get("rope_type", "default")
    scaling = (
        {"type": "mrope" if "mrope_section" in rope else kind, **rope} if rope != {"rope_type": "default"} else None
    )
    return text | {"rope_theta": theta, "rope_scaling": scaling}


def _known(config_class: type[PreTrainedConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose keys are fields of the config class itself; everything else is dropped."""
    own = {field.name for field in dataclasses.fields(config_class) if not field.name.startswith("_")}
    shared = {"bos_token_id", "eos_token_id", "pad_token_id"}
    unwanted = {"model_type", "architectures", "transformers_version", "dtype", "rope_parameters", "auto_map"}
    return {key: value for key, value in values.items() if key in (own | shared) - unwanted}


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
