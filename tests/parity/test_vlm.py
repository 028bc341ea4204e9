"""The language half against numbers recorded from the released code: ids, hidden states, logits, ``[SEG]`` states.

States are read while the answer is written, step by step. That is the only way that also fits dynamic RoPE, whose
angles depend on how long the text was when a token was read.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sa2va import Sa2VA, Sa2VAModel
from sa2va.model.generation import Generated, GenerationOptions
from sa2va.processing.processor import VisionInputs
from sa2va.processing.regions import region_cells
from synthetic_checkpoint import GOLDEN, picture

TINY = json.loads((GOLDEN / "mllm_tiny_configs.json").read_text())
CASES = [*TINY["internvl"], *TINY["qwen"]]
#: Largest difference, relative to the largest recorded value.
TOLERANCE = 1e-5


@cache
def recorded(case: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"mllm_{case}.npz"))


def requests() -> list[tuple[str, str]]:
    """Every (checkpoint, request) that was recorded with its hidden states."""
    found = {(case, key.split("/")[0]) for case in CASES for key in recorded(case) if key.endswith("/hidden_rows")}
    return sorted(found)


def media(case: str, request: str) -> dict:
    """The pictures of a request, as keyword arguments of ``predict_forward``."""
    if case in TINY["qwen"]:
        sizes = {"image": (1333, 803), "small": (200, 150), "frame": (320, 180)}
    else:
        sizes = {"image": (1000, 600), "frame": (500, 300)} if case.endswith("448") else {"image": (150, 97)}
    if request == "text":
        return {}
    if request == "video":
        frame = sizes.get("frame", (75, 48))
        return {"video": [Image.fromarray(picture(*frame, seed)) for seed in range(6)]}
    width, height = sizes.get(request, sizes["image"])
    given: dict = {"image": Image.fromarray(picture(width, height))}
    if request == "vp":
        masks = np.zeros((2, height, width), dtype=bool)
        masks[0, : height // 2, : width // 3] = True
        masks[1, height // 3 :, width // 2 :] = True
        given["mask_prompts"] = [masks]
    return given


def look(sa2va: Sa2VA, given: dict) -> tuple[VisionInputs | None, list[np.ndarray] | None]:
    """Pixels and region grids of what ``media`` gives."""
    images = [given["image"]] if "image" in given else given.get("video", [])[:5]
    vision = sa2va.processor.vision(images, video="video" in given) if images else None
    regions = None
    if "mask_prompts" in given:
        cells = sa2va.processor.cells or 0
        regions = [region_cells(mask, mask.shape, cells) for mask in given["mask_prompts"][0]]
    return vision, regions


def text_of(request: str) -> str:
    return TINY["text"]["image" if request == "small" else request]


class Steps:
    """What passes through the last layer while an answer is written: lists of (1, L, D) and (1, V) tensors."""

    def __init__(self) -> None:
        self.embedded: list[Tensor] = []
        self.raw: list[Tensor] = []
        self.normed: list[Tensor] = []
        self.logits: list[Tensor] = []


@contextmanager
def listening(model: Sa2VAModel) -> Iterator[Steps]:
    steps, language_model = Steps(), model.vlm.model.language_model

    def keep_input(_, args, kwargs):
        steps.embedded.append(kwargs["inputs_embeds"])

    def keep_norm(_, args, output):
        steps.raw.append(args[0])
        steps.normed.append(output)

    handles = [
        language_model.register_forward_pre_hook(keep_input, with_kwargs=True),
        language_model.norm.register_forward_hook(keep_norm),
        model.vlm.lm_head.register_forward_hook(lambda _, args, output: steps.logits.append(output.flatten(0, -2))),
    ]
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()


def write(sa2va: Sa2VA, ids: list[int], vision: VisionInputs | None, regions=None, new_tokens: int = 24) -> Generated:
    visual = None
    if vision is not None:
        layout = {} if regions is None else {"regions": (torch.from_numpy(np.stack(regions)),)}
        with torch.no_grad():
            visual = sa2va.model.encode_images(vision.pixel_values, vision.image_grid_thw, **layout)
    options = GenerationOptions(max_new_tokens=new_tokens)
    (answer,) = sa2va.model.generate([ids], visual, options=options, is_finished=sa2va.processor.is_finished)
    return answer


def worst(found: Tensor, expected: np.ndarray) -> float:
    """Largest difference relative to the largest value; 0 where there is nothing."""
    assert found.shape == expected.shape
    return float((found - torch.from_numpy(expected)).abs().max() / np.abs(expected).max()) if expected.size else 0.0


@pytest.mark.parametrize(("case", "request_name"), requests())
def test_every_step_of_an_answer(open_sa2va: Callable[[str], Sa2VA], case: str, request_name: str, record_property):
    sa2va, expected = open_sa2va(case), recorded(case)
    expected = {key.split("/")[1]: value for key, value in expected.items() if key.startswith(f"{request_name}/")}
    vision, regions = look(sa2va, media(case, request_name))
    ids = sa2va.processor.released_prompt_ids(text_of(request_name), vision=vision, regions=regions)
    assert ids == expected["input_ids"].tolist()

    with listening(sa2va.model) as steps:
        answer = write(sa2va, ids, vision, regions)
    assert answer.token_ids == expected["new_ids"].tolist()

    rows = torch.from_numpy(expected["hidden_rows"]).long()
    errors = {"logits": worst(torch.cat(steps.logits), expected["logits_steps"])}
    normed, raw = (torch.cat(states, dim=1)[0, rows] for states in (steps.normed, steps.raw))
    for key, states in (("hidden", normed), ("post", normed), ("pre", raw)):
        if key in expected:
            errors[key] = worst(states, expected[key])
    if "inputs_embeds" in expected:
        of_prompt = rows[rows < len(ids)]
        errors["inputs_embeds"] = worst(steps.embedded[0][0, of_prompt], expected["inputs_embeds"])
    if "seg_hidden" in expected:  # text alone records none: it gives no masks
        counted = [answer.prompt_seg_states] if sa2va.model.config.family.prompt_seg_counts else []
        states = torch.cat([*counted, answer.seg_states])
        errors["seg_hidden"] = worst(states, expected["seg_hidden"])
        # The recorded projection was 256 wide; ours has the first 128 of its rows.
        errors["seg_emb"] = worst(sa2va.model.projection(states).detach(), expected["seg_emb"][:, :128])
    for key, error in errors.items():
        record_property(key, f"{error:.1e}")
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize(("case", "request_name"), requests())
def test_predict_forward(open_sa2va: Callable[[str], Sa2VA], case: str, request_name: str):
    expected, given = recorded(case), media(case, request_name)
    result = open_sa2va(case).predict_forward(text=text_of(request_name), max_new_tokens=24, **given)
    assert set(result) == {"prediction", "prediction_masks", "past_text"}
    assert result["prediction"] == str(expected[f"{request_name}/text"])
    assert len(result["prediction_masks"]) == int(expected[f"{request_name}/n_masks"])
    pictures = given.get("video") or [given.get("image")]
    for mask in result["prediction_masks"]:
        assert mask.dtype == bool
        assert mask.shape == (len(pictures), pictures[0].height, pictures[0].width)


#: Arguments of each recorded edge case beside its picture.
IMAGE_TEXT = TINY["text"]["image"]
SEG_TEXT = "<image>Is [SEG] here? [SEG]"
PAST = "<|user|>\nhello<|end|>\n<|assistant|>\nhi"
INTERNVL_EDGES = {
    "edge_base": {"text": IMAGE_TEXT},
    "edge_one_token": {"text": IMAGE_TEXT, "max_new_tokens": 1},
    "edge_seg_last": {"text": IMAGE_TEXT, "max_new_tokens": 3},
    "edge_seg_then_one": {"text": IMAGE_TEXT, "max_new_tokens": 4},
    "edge_stop_word": {"text": IMAGE_TEXT, "stop": "at"},
    "edge_stop_seg": {"text": IMAGE_TEXT, "stop": "[SEG]"},
    "edge_seg_in_prompt": {"text": SEG_TEXT},
    "edge_past_text": {"text": "And the dog?", "past_text": PAST, "image": None},
    "edge_text_with_image_word": {"text": "<image>hi", "image": None},
}
QWEN_EDGES = {
    "edge_seg_in_prompt": {"text": SEG_TEXT, "max_new_tokens": 6},
    "edge_two_markers": {"text": "<image>a<image>b", "max_new_tokens": 6},
}
EDGES = [
    *(("iv25_qwen2", edge, given) for edge, given in INTERNVL_EDGES.items()),
    *((case, edge, given) for case in TINY["qwen"] for edge, given in QWEN_EDGES.items()),
]


def test_no_recorded_edge_case_is_left_out():
    listed = {(case, edge) for case, edge, _ in EDGES}
    found = {(case, key.split("/")[0]) for case in CASES for key in recorded(case) if key.startswith("edge")}
    assert listed == found


@pytest.mark.parametrize(("case", "edge", "given"), EDGES, ids=[f"{case}-{edge}" for case, edge, _ in EDGES])
def test_edge_case(open_sa2va: Callable[[str], Sa2VA], case: str, edge: str, given: dict):
    sa2va, expected = open_sa2va(case), recorded(case)
    given = {"max_new_tokens": 24, **media(case, "small" if case in TINY["qwen"] else "image"), **given}
    if stop := given.pop("stop", None):
        processor = copy.copy(sa2va.processor)
        processor.stop_words = (stop,)
        sa2va = Sa2VA(sa2va.model, processor)
    result = sa2va.predict_forward(**given)
    assert result["prediction"] == str(expected[f"{edge}/text"])
    assert len(result["prediction_masks"]) == int(expected[f"{edge}/n_masks"])

    vision = sa2va.processor.vision([given["image"]]) if given["image"] else None
    ids = sa2va.processor.released_prompt_ids(given["text"], vision=vision, past_text=given.get("past_text", ""))
    assert ids == expected[f"{edge}/input_ids"].tolist()
    answer = write(sa2va, ids, vision, new_tokens=given["max_new_tokens"])
    assert answer.token_ids == expected[f"{edge}/new_ids"].tolist()
    if f"{edge}/seg_hidden" in expected:
        counted = [answer.prompt_seg_states] if sa2va.model.config.family.prompt_seg_counts else []
        states = torch.cat([*counted, answer.seg_states])
        assert worst(states, expected[f"{edge}/seg_hidden"]) < TOLERANCE
        assert worst(sa2va.model.projection(states).detach(), expected[f"{edge}/seg_emb"][:, :128]) < TOLERANCE


def test_weights_follow_the_rule_of_the_fixtures():
    import hashlib

    from synthetic_checkpoint import weight

    for name, row in TINY["weight_check"].items():
        values = weight(name, row["shape"])
        assert hashlib.sha256(values.tobytes()).hexdigest() == row["sha256"], name
        np.testing.assert_array_equal(values.reshape(-1)[:3], np.float32(row["first"]))
