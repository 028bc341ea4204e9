"""Write a small checkpoint in the released layout, with synthetic weights that follow from a rule and are not trained.

It is what the parity tests load, and a way to try the loading code without a download:

    python examples/synthetic_checkpoint.py OUT_FOLDER [--case iv25_qwen2]

The weights are deterministic noise: masks and answers mean nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
SAM2_PREFIX = "grounding_encoder.sam2_model."
SALT = "190:"
QWEN_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: The small SAM 2 of the fixtures, in the words of ``sa2va.model.configuration.sam2_config``.
TINY_SAM2: dict[str, Any] = {
    "image_size": 128,
    "embed_dim": 16,
    "num_heads": 1,
    "blocks": (1, 1, 2, 1),
    "global_blocks": (3,),
    "windows": (8, 4, 4, 2),
    "width": 128,
    "memory_layers": 2,
    "memory_mlp": 256,
}


def noise(text: str, count: int) -> np.ndarray:
    """``count`` float64 values of mean 0 and variance 1 that depend on ``text`` alone."""
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    bits = np.random.Philox(key=key).random_raw(count)
    return math.sqrt(3.0) * (2.0 * ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53) - 1.0)


def weight(name: str, shape: list[int]) -> np.ndarray:
    """The float32 tensor of a released name."""
    offset, scale = _sam2_scale(name, shape) if name.startswith(SAM2_PREFIX) else _vlm_scale(name, shape)
    return (offset + scale * noise(SALT + name, math.prod(shape))).astype(np.float32).reshape(shape)


def _sam2_scale(name: str, shape: list[int]) -> tuple[float, float]:
    leaf = name.rsplit(".", 1)[-1]
    codes = ("iou_token", "mask_tokens", "obj_score_token", "point_embed", "no_mask_embed")
    if name.endswith(".positional_encoding_gaussian_matrix"):
        return 0.0, 1.0
    if leaf == "bias":
        return 0.0, 0.02
    if len(shape) == 1:
        return 1.0, 0.1
    if leaf == "no_obj_ptr":
        return 0.0, 2.0
    if leaf.startswith(("pos_embed", "no_mem", "maskmem_tpos_enc")) or any(code in name for code in codes):
        return 0.0, 0.5
    return 0.0, (2.0 if "obj_ptr_proj" in name else 1.0) / math.sqrt(math.prod(shape[1:]))


def _vlm_scale(name: str, shape: list[int]) -> tuple[float, float]:
    leaf = name.rsplit(".", 1)[-1]
    if name.endswith(("embed_tokens.weight", "tok_embeddings.weight")):
        return 0.0, 1.0
    if leaf in ("class_embedding", "position_embedding") or name.endswith("pos_embed.weight"):
        return 0.0, 0.5
    if leaf == "bias":
        return 0.0, 0.02
    if len(shape) == 1:
        return 1.0, 0.1
    return 0.0, 1.0 / math.sqrt(math.prod(shape[1:]))


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A uint8 (H, W, 3) picture that follows from its size and seed."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    return (((x * (3 + c) + y * (5 - c)) // 4 + 37 * c + (x * y) // 97 + 11 * seed) % 256).astype(np.uint8)


def tensors(case: str) -> dict[str, np.ndarray]:
    """Every tensor of a case of the fixtures, with the small SAM 2, by released name."""
    configs = json.loads((GOLDEN / "mllm_tiny_configs.json").read_text())
    family = "internvl" if case in configs["internvl"] else "qwen"
    shapes = dict(configs[family][case]["tensors"])
    shapes |= {row["name"]: row["shape"] for row in json.loads((GOLDEN / "manifest_sam2_tiny.json").read_text())}
    weights = {name: weight(name, shape) for name, shape in shapes.items()}
    # The mask prompt is as wide as the small SAM 2; the projection of the fixtures was as wide as the large one.
    hidden = shapes["text_hidden_fcs.0.weight"][0]
    for leaf, shape in (("weight", [TINY_SAM2["width"], hidden]), ("bias", [TINY_SAM2["width"]])):
        weights[f"text_hidden_fcs.2.{leaf}"] = weight(f"text_hidden_fcs.2.{leaf}", shape)
    head = next(name for name in weights if name.endswith(("lm_head.weight", "language_model.output.weight")))
    for row, factor in configs["row_scale"][case].items():
        weights[head][int(row)] *= np.float32(factor)
    return weights


def write_checkpoint(folder: str | Path, case: str = "iv25_qwen2") -> Path:
    """Write the folder: ``config.json``, ``model.safetensors`` and tokenizer files, all in the released layout."""
    from safetensors.numpy import save_file

    from sa2va.model.configuration import sam2_config

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    configs = json.loads((GOLDEN / "mllm_tiny_configs.json").read_text())
    grounding = sam2_config(**TINY_SAM2).to_dict()
    if case in configs["internvl"]:
        row = configs["internvl"][case]
        config = {"architectures": ["Sa2VAChatModel"], "template": row["template"]}
        config |= {"vision_config": row["vision"], "llm_config": row["llm"]}
    else:
        config = {"architectures": ["Sa2VAChatModelQwen"], "template": "qwen_chat"} | configs["qwen"][case]["config"]
        (folder / "preprocessor_config.json").write_text(json.dumps(configs["qwen"][case]["image_processor"]))
        (folder / "chat_template.jinja").write_text(QWEN_CHAT_TEMPLATE)
    config |= {"model_type": "sa2va_chat", "auto_map": {"AutoModel": "never.Followed"}, "grounding_config": grounding}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    shutil.copy(GOLDEN / "mllm_tiny_tokenizer.json", folder / "tokenizer.json")
    save_file(tensors(case), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--case", default="iv25_qwen2")
    arguments = parser.parse_args()
    print(write_checkpoint(arguments.folder, arguments.case))
