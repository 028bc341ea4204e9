"""Tokenizer and processor files of a converted checkpoint, ours or as the reference's code reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from sa2va.model.configuration import Sa2VAConfig
from sa2va.model.families import QWEN2_5_VL, QWEN3_VL
from sa2va.processing.processor_settings import ProcessorSettings, QwenPixels
from sa2va.untrusted import read_json_object

_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
    "*processor_config.json",
    "generation_config.json",
)
_OUR_SETTINGS = "processor_config.json"
_PIXELS = ("preprocessor_config.json", "video_preprocessor_config.json")
_PROCESSORS = {
    QWEN2_5_VL.name: ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    QWEN3_VL.name: ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
}
#: What transformers 5 writes into tokenizer_config.json that version 4 has no use for.
_NEWER = ("backend", "is_local", "local_files_only")
_TOKENIZERS = {"TokenizersBackend": "PreTrainedTokenizerFast"}
_INTERNLM2 = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}


def copy_companions(
    source: Path,
    destination: Path,
    config: Sa2VAConfig,
    settings: ProcessorSettings,
    layout: Literal["native", "released"],
) -> None:
    """Take over tokenizer and processor files; the released layout gets them in the form of transformers 4.

    Qwen folders then also carry the files that the reference's ``AutoProcessor`` asks for, with the pixel settings of
    our own.
    """
    for pattern in _PATTERNS:
        for path in source.glob(pattern):
            shutil.copy(path, destination / path.name)
    if layout == "native":
        settings.save(destination)
        return
    # The reference would take the file of our own settings for its own.
    (destination / _OUR_SETTINGS).unlink(missing_ok=True)
    if settings.patches:
        for name, content in zip(_PIXELS, _pixel_files(settings.patches, config), strict=True):
            if not (destination / name).exists():
                _write(destination / name, content)
    path = destination / "tokenizer_config.json"
    if path.is_file():
        _write(path, _older_tokenizer(read_json_object(path)))


def _pixel_files(patches: QwenPixels, config: Sa2VAConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    processor, video = _PROCESSORS[config.family.name]
    shared = {
        "patch_size": patches.patch,
        "merge_size": patches.merge,
        "temporal_patch_size": patches.frames,
        "image_mean": patches.mean,
        "image_std": patches.std,
        "size": {"shortest_edge": patches.min_pixels, "longest_edge": patches.max_pixels},
        "processor_class": processor,
    }
    return shared | {"image_processor_type": "Qwen2VLImageProcessorFast"}, shared | {"video_processor_type": video}


def _older_tokenizer(content: dict[str, Any]) -> dict[str, Any]:
    older = {key: value for key, value in content.items() if key not in _NEWER}
    name = str(older.get("tokenizer_class"))
    older["tokenizer_class"] = _TOKENIZERS.get(name, name)
    if isinstance(older.get("extra_special_tokens"), list):
        older["additional_special_tokens"] = older.pop("extra_special_tokens")
    if name == "InternLM2Tokenizer":
        older["auto_map"] = _INTERNLM2
    return older


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
