"""Pixels, prompts and tokens against numbers recorded from the released code."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from sa2va.model.configuration import Sa2VAConfig
from sa2va.model.network import normalized_frames, normalized_tiles
from sa2va.processing.processor import Sa2VAProcessor, qwen_patches, squashed_frames, tile_grid, tile_image
from sa2va.processing.processor_settings import QwenPixels
from sa2va.processing.regions import region_cells
from sa2va.processing.tokenizer import add_sa2va_tokens, load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
PREPROC = json.loads((GOLDEN / "mllm_preproc.json").read_text())
TINY = json.loads((GOLDEN / "mllm_tiny_configs.json").read_text())
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
QWEN = {"q25": QwenPixels(14, 2, 2, *CLIP), "q3": QwenPixels(16, 2, 2, *HALF)}

#: The public instruct templates of Qwen3-VL and Qwen2.5-VL, cut down to what these prompts use.
QWEN3_CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for item in message.content %}"
    "{% if item.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ item.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2_5_CHAT = "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}" + QWEN3_CHAT


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """The synthetic picture of the fixtures."""
    x, y, c = np.arange(width)[None, :, None], np.arange(height)[:, None, None], np.arange(3)
    values = (x * (3 + c) + y * (5 - c)) // 4 + 37 * c + (x * y) // 97 + 11 * seed
    return Image.fromarray((values % 256).astype(np.uint8))


def digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    path = str(GOLDEN / "mllm_tiny_tokenizer.json")
    return PreTrainedTokenizerFast(tokenizer_file=path, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def internvl_processor(name: str) -> Sa2VAProcessor:
    entry = TINY["internvl"][name]
    vision = {"image_size": entry["vision"]["image_size"], "patch_size": entry["vision"]["patch_size"]}
    vlm = {"model_type": "internvl", "vision_config": vision, "downsample_ratio": 0.5}
    return Sa2VAProcessor(tiny_tokenizer(), Sa2VAConfig(vlm_config=vlm, template=entry["template"]))


def qwen_processor(name: str) -> Sa2VAProcessor:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"q25": QWEN2_5_CHAT, "q3": QWEN3_CHAT}[name]
    model_type = {"q25": "qwen2_5_vl", "q3": "qwen3_vl"}[name]
    vlm = {"model_type": model_type, "vision_config": TINY["qwen"][name]["config"]["vision_config"]}
    return Sa2VAProcessor(tokenizer, Sa2VAConfig(vlm_config=vlm))


# -- pixels -----------------------------------------------------------------------------------------------------------


def testtile_grids():
    assert [[w, h, *tile_grid(w, h, 448, 12)] for w, h, _, _ in PREPROC["internvl_grid"]] == PREPROC["internvl_grid"]


@pytest.mark.parametrize("case", PREPROC["internvl"], ids=lambda case: f"{case['w']}x{case['h']}")
def test_tiles_are_bit_equal(case: dict):
    tiles = tile_image(picture(case["w"], case["h"]), 448)
    assert (tiles.dtype, tiles.shape) == (torch.uint8, (case["n"], 448, 448, 3))
    assert digest(normalized_tiles(tiles)) == case["float32_sha256"]


@pytest.mark.parametrize("case", PREPROC["qwen"]["q25"], ids=lambda case: f"{case['w']}x{case['h']}")
def test_qwen2_5_patches_are_bit_equal(case: dict):
    patches, grid = qwen_patches(picture(case["w"], case["h"]), QWEN["q25"])
    assert (list(grid), digest(patches)) == (case["grid"], case["float32_sha256"])


@pytest.mark.parametrize("case", PREPROC["qwen"]["q3"], ids=lambda case: f"{case['w']}x{case['h']}")
def test_qwen3_patches_are_bit_equal(case: dict):
    patches, grid = qwen_patches(picture(case["w"], case["h"]), QWEN["q3"])
    assert (list(grid), digest(patches)) == (case["grid"], case["float32_sha256"])


def test_grounding_pixels_are_bit_equal():
    for name, frames in (("image", [picture(150, 97)]), ("video", [picture(75, 48, s) for s in range(7)])):
        recorded = np.load(GOLDEN / f"mllm_e2e_iv25_qwen2_{name}.npz")
        assert digest(normalized_frames(squashed_frames(frames, 128))) == str(recorded["g_pixels_sha256"])


# -- prompts ----------------------------------------------------------------------------------------------------------


def internvl_media(name: str) -> tuple[Image.Image, list[Image.Image]]:
    large = name == "iv3_qwen2_448"
    image, frame = ((1000, 600), (500, 300)) if large else ((150, 97), (75, 48))
    return picture(*image), [picture(*frame, seed) for seed in range(5)]


@pytest.mark.parametrize("name", TINY["internvl"])
def test_internvl_prompts_and_pixels(name: str):
    processor, recorded = internvl_processor(name), np.load(GOLDEN / f"mllm_{name}.npz")
    image, frames = internvl_media(name)
    assert processor.cells is not None
    size = (image.height, image.width)
    masks = np.zeros((2, *size), dtype=bool)
    masks[0, : size[0] // 2, : size[1] // 3] = True
    masks[1, size[0] // 3 :, size[1] // 2 :] = True
    regions = [region_cells(mask, size, processor.cells) for mask in masks]
    inputs = {"image": processor.vision([image]), "video": processor.vision(frames, video=True), "text": None}
    inputs["vp"] = inputs["image"]
    cases = {key.split("/")[0] for key in recorded if "/" in key and not key.startswith("edge")}
    assert {"image", "vp"} <= cases
    for case in cases:
        vision, grids = inputs[case], regions if case == "vp" else None
        ids = processor.released_prompt_ids(TINY["text"][case], vision=vision, regions=grids)
        assert ids == recorded[f"{case}/input_ids"].tolist(), case
        assert ids == processor.prompt_ids(TINY["text"][case], vision=vision, regions=grids), case
        assert processor.decode(recorded[f"{case}/new_ids"].tolist()) == str(recorded[f"{case}/text"]), case
        if vision is not None:
            pixels = normalized_tiles(vision.pixel_values)
            assert digest(pixels) == str(recorded[f"{case}/pixel_values_sha256"]), case
        if grids is not None:
            assert np.array_equal(grids, recorded["vp/prompt_masks"] > 0.5)


EDGES = {
    "base": "<image>Please segment the person on the left in this image.",
    "seg_in_prompt": "<image>Is [SEG] here? [SEG]",
    "text_with_image_word": "<image>hi",
    "past_text": "And the dog?",
}


@pytest.mark.parametrize("case", EDGES)
def test_internvl_edge_prompts(case: str):
    processor, recorded = internvl_processor("iv25_qwen2"), np.load(GOLDEN / "mllm_iv25_qwen2.npz")
    vision = processor.vision([picture(150, 97)]) if case in ("base", "seg_in_prompt") else None
    past_text = "<|user|>\nhello<|end|>\n<|assistant|>\nhi" if case == "past_text" else ""
    ids = processor.released_prompt_ids(EDGES[case], vision=vision, past_text=past_text)
    assert ids == recorded[f"edge_{case}/input_ids"].tolist()
    assert processor.decode(recorded[f"edge_{case}/new_ids"].tolist()) == str(recorded[f"edge_{case}/text"])


def test_end_to_end_prompts():
    processor = internvl_processor("iv25_qwen2")
    image, frames = internvl_media("iv25_qwen2")
    for name, vision in (("image", processor.vision([image])), ("video", processor.vision(frames, video=True))):
        recorded = np.load(GOLDEN / f"mllm_e2e_iv25_qwen2_{name}.npz")
        ids = processor.released_prompt_ids(TINY["text"][name], vision=vision)
        assert ids == recorded["input_ids"].reshape(-1).tolist()


@pytest.mark.parametrize("name", TINY["qwen"])
def test_qwen_prompts_and_pixels(name: str):
    processor, recorded = qwen_processor(name), np.load(GOLDEN / f"mllm_{name}.npz")
    small = processor.vision([picture(200, 150)])
    cases = {
        "image": (processor.vision([picture(1333, 803)]), TINY["text"]["image"]),
        "small": (small, TINY["text"]["image"]),
        "video": (processor.vision([picture(320, 180, s) for s in range(5)], video=True), TINY["text"]["video"]),
        "text": (None, TINY["text"]["text"]),
        "edge_seg_in_prompt": (small, EDGES["seg_in_prompt"]),
        "edge_two_markers": (small, "<image>a<image>b"),
    }
    assert set(cases) == {key.split("/")[0] for key in recorded}
    for case, (vision, text) in cases.items():
        ids = processor.released_prompt_ids(text, vision=vision)
        assert ids == recorded[f"{case}/input_ids"].tolist(), case
        assert processor.decode(recorded[f"{case}/new_ids"].tolist()) == str(recorded[f"{case}/text"]), case
        if vision is not None and f"{case}/image_grid_thw" in recorded:
            assert vision.image_grid_thw is not None
            assert vision.image_grid_thw.tolist() == recorded[f"{case}/image_grid_thw"].tolist(), case
            assert digest(vision.pixel_values) == str(recorded[f"{case}/pixel_values_sha256"]), case


def test_frames_are_tiles_without_thumbnails():
    frames = [picture(500, 300, s) for s in range(2)]
    squares = [frame.resize((448, 448), Image.Resampling.BICUBIC) for frame in frames]
    assert torch.equal(squashed_frames(frames, 448), torch.cat([tile_image(square, 448) for square in squares]))


# -- tokenizers -------------------------------------------------------------------------------------------------------


def internlm2_folder(folder: Path, prefix: int, added: str) -> tuple[Path, dict]:
    """A released InternLM2 tokenizer folder, its added tokens in either of the two places where they occur."""
    recorded = json.loads((GOLDEN / f"mllm_internlm2_tok_dp{prefix}.json").read_text())
    shutil.copy(GOLDEN / f"mllm_internlm2_tok_dp{prefix}.model", folder / "tokenizer.model")
    extra = {token: int(i) for i, token in recorded["added"].items() if int(i) > 2}
    config = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "additional_special_tokens": list(extra),
    }
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    if added == "added_tokens.json":
        (folder / added).write_text(json.dumps(extra))
        special = {"additional_special_tokens": list(extra), **names}
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    else:
        flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
        config |= {"added_tokens_decoder": {i: {"content": t, **flags} for i, t in recorded["added"].items()}, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder, recorded


@pytest.mark.parametrize("added", ["added_tokens.json", "added_tokens_decoder"])
@pytest.mark.parametrize("prefix", [0, 1])
def test_internlm2_tokenizer(tmp_path: Path, prefix: int, added: str):
    source, recorded = internlm2_folder(tmp_path, prefix, added)
    loaded = load_tokenizer(source)
    loaded.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in (tmp_path / "saved" / "tokenizer_config.json").read_text()
    for tokenizer in (loaded, load_tokenizer(tmp_path / "saved")):
        assert len(tokenizer) == recorded["len"]
        named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        assert named == (recorded["bos"], recorded["eos"], recorded["pad"])
        for case in recorded["cases"]:
            assert tokenizer.encode(case["text"]) == case["ids"]
            assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"][1:]
            assert tokenizer.decode(case["ids"], skip_special_tokens=False) == case["decoded"]
            assert tokenizer.decode(case["ids"][1:], skip_special_tokens=False) == case["decoded_nobos"]


def test_qwen2_vocabulary_files_give_the_ids_of_tokenizer_json(tmp_path: Path):
    """Released folders hold ``vocab.json`` and ``merges.txt``, with or without ``tokenizer.json``."""
    file = json.loads((GOLDEN / "mllm_tiny_tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(file["model"]["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in file["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (tmp_path / "added_tokens.json").write_text(json.dumps({t["content"]: t["id"] for t in file["added_tokens"]}))
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    vectors = json.loads((GOLDEN / "mllm_qwen_tok_vectors.json").read_text())["cases"]
    texts = [case["text"] for case in vectors] + list(TINY["text"].values())
    loaded, reference = load_tokenizer(tmp_path), tiny_tokenizer()
    assert [loaded.encode(text) for text in texts] == [reference.encode(text) for text in texts]
    assert add_sa2va_tokens(loaded) == TINY["seg"]


def test_added_tokens_follow_the_base_vocabulary_in_the_released_order():
    """In the released Qwen2 vocabulary ``[SEG]`` and its company come right after the last base token."""
    recorded = json.loads((GOLDEN / "mllm_qwen_tok_vectors.json").read_text())
    order = ["[SEG]", "<p>", "</p>", "<vp>", "</vp>"]
    base = json.loads((GOLDEN / "mllm_tiny_tokenizer.json").read_text())
    base["added_tokens"] = [token for token in base["added_tokens"] if token["content"] not in order]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tokenizer_object(base), eos_token="<|im_end|>")
    length = len(tokenizer)
    seg = add_sa2va_tokens(tokenizer)
    ours = [tokenizer.get_vocab()[token] - length for token in order]
    released = [recorded["added"][token] - (recorded["len"] - len(order)) for token in order]
    assert (seg, ours) == (length, released)
    assert add_sa2va_tokens(tokenizer) == seg
    assert len(tokenizer) == length + len(order)


def _tokenizer_object(file: dict):
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(file))
