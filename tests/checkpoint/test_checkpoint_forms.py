"""Every form in which transformers 4.49 to 5 and the reference write a fine-tune loads as the same model; and what
decides its answers survives a conversion."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sa2va import Sa2VA, Sa2VAConfig, Sa2VAModel
from sa2va.atomic import filling
from sa2va.checkpoint.conversion import convert
from sa2va.checkpoint.loading import open_checkpoint
from sa2va.checkpoint.released_config import config_from_released
from sa2va.model.config_overlay import difference, overlaid
from sa2va.processing.processor_settings import ProcessorSettings, QwenPixels
from synthetic_checkpoint import GOLDEN, picture

QWEN = ["q25", "q3"]
INTERNVL = ["iv25_qwen2", "iv25_internlm2", "iv6b_internlm2", "iv35_qwen3"]
CASES = INTERNVL + QWEN
CONVERTED = ("iv25_qwen2", "q25")
REFERENCE = json.loads((GOLDEN / "config_qwen2_5_exports.json").read_text())


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


def language(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("text_config") or config["llm_config"]


# -- config.json -------------------------------------------------------------------------------------------------------


def no_architectures(config: dict[str, Any]) -> None:
    config.pop("architectures")
    if "llm_config" in config:
        language(config).pop("architectures")


def architectures_of_the_base(config: dict[str, Any]) -> None:
    language(config)["architectures"] = config["architectures"]
    config["architectures"] = ["TheBaseForConditionalGeneration"]


def no_model_type_of_the_language_model(config: dict[str, Any]) -> None:
    if "llm_config" in config:
        language(config).pop("model_type")


def rope_of_transformers_5(config: dict[str, Any]) -> None:
    text = language(config)
    scaling = dict(text.pop("rope_scaling", None) or {})
    kind = scaling.pop("type", "default")
    scaling.setdefault("rope_type", "default" if kind == "mrope" else kind)
    text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), **scaling}
    if "text_config" in config:
        config["vision_config"]["rope_parameters"] = {"rope_type": "axial", "rope_theta": 10000.0}


def rope_with_both_kinds(config: dict[str, Any]) -> None:
    scaling = language(config).get("rope_scaling")
    if scaling:
        scaling["rope_type"] = scaling["type"] = scaling.get("rope_type") or scaling["type"]


def dtype_in_each_part(config: dict[str, Any]) -> None:
    language(config)["torch_dtype"] = config["vision_config"]["dtype"] = "bfloat16"
    config["dtype"] = "float32"


def tied_in_the_language_model_only(config: dict[str, Any]) -> None:
    language(config)["tie_word_embeddings"] = True
    config["tie_word_embeddings"] = False


def defaults_of_internvl_in_words(config: dict[str, Any]) -> None:
    if "llm_config" in config:
        config |= {"downsample_ratio": 0.5, "select_layer": -1}


FORMS = [
    no_architectures,
    architectures_of_the_base,
    no_model_type_of_the_language_model,
    rope_of_transformers_5,
    rope_with_both_kinds,
    dtype_in_each_part,
    tied_in_the_language_model_only,
    defaults_of_internvl_in_words,
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("case", CASES)
def test_every_form_of_a_config_is_the_same_config(checkpoint: Callable[[str], Path], case: str, form):
    content = read(checkpoint(case) / "config.json") | {"torch_dtype": "float32"}
    same = config_from_released(content).to_dict()
    form(content)
    assert config_from_released(content).to_dict() == same


@pytest.mark.parametrize("vision", ["{}", "{}_vision"])
@pytest.mark.parametrize("text", ["nested", "nested and flat", "flat"])
@pytest.mark.parametrize("case", QWEN)
def test_the_language_model_of_a_qwen_export_is_found_at_any_level(
    checkpoint: Callable[[str], Path], case: str, text: str, vision: str
):
    content = read(checkpoint(case) / "config.json")
    same = config_from_released(content).to_dict()
    family = content["text_config"]["model_type"].removesuffix("_text")
    content["vision_config"]["model_type"] = vision.format(family)
    inner = {key: value for key, value in content["text_config"].items() if key != "model_type"}
    if text == "flat":
        content = inner | {key: value for key, value in content.items() if key != "text_config"}
    if text == "nested and flat":  # where both are, the outer one is a copy of the base model's
        content = inner | {"vocab_size": 151936} | content
    found = config_from_released(content).to_dict()
    for config in (found, same):  # of no effect outside the language model
        for token in ("bos_token_id", "eos_token_id"):
            config["vlm_config"].pop(token, None)
    assert found == same


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda case: Path(shutil.copytree(checkpoint(case), tmp_path / "copy"))


def assert_loads_as(folder: Path, model: Sa2VAModel, **changed: torch.Tensor) -> None:
    found = open_checkpoint(folder)
    expected = model.state_dict() | changed
    assert found.tensors.keys() == expected.keys()
    for name, tensor in found.tensors.items():
        assert torch.equal(tensor.read(), expected[name]), name


@pytest.mark.parametrize("form", ["converted", "saved"])
def test_the_reference_s_own_exports_of_qwen2_5_load(folder, load: Callable[[str], Sa2VAModel], form: str):
    path = folder("q25")
    own = {"grounding_config": read(path / "config.json")["grounding_config"]}
    write(path / "config.json", REFERENCE[form] | own)
    assert_loads_as(path, load("q25"))
    assert open_checkpoint(path).config.family.name == "qwen2_5_vl"


#: How names of the Qwen families begin, by the release that wrote them: (vision tower, language model, head).
PREFIXES = {
    "transformers 4.49": ("model.visual.", "model.model.", "model.lm_head."),
    "transformers 5": ("model.visual.", "model.model.language_model.", "model.lm_head."),
    "without the wrapper": ("visual.", "model.", "lm_head."),
    "without the wrapper, newer": ("model.visual.", "model.language_model.", "lm_head."),
    "language model whole": ("visual.", "language_model.model.", "language_model.lm_head."),
}


@pytest.mark.parametrize("prefixes", PREFIXES)
@pytest.mark.parametrize("case", QWEN)
def test_names_of_every_release_load(folder, load: Callable[[str], Sa2VAModel], case: str, prefixes: str):
    path = folder(case)
    vision, text, head = PREFIXES[prefixes]
    pairs = {"model.model.visual.": vision, "model.model.language_model.": text, "model.lm_head.": head}
    renamed = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        old = next((old for old in pairs if name.startswith(old)), "")
        renamed[pairs.get(old, "") + name.removeprefix(old)] = tensor
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    assert_loads_as(path, load(case))


HEADS = ("language_model.lm_head.weight", "language_model.output.weight", "model.lm_head.weight")


@pytest.mark.parametrize("case", ["iv25_qwen2", "iv25_internlm2", "q25", "q3"])
def test_a_tied_head_that_was_left_out_is_the_embeddings(folder, load: Callable[[str], Sa2VAModel], case: str):
    path = folder(case)
    weights = load_file(path / "model.safetensors")
    [head] = [name for name in weights if name in HEADS]
    del weights[head]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"tensor '{head}' is missing"):
        open_checkpoint(path)

    content = read(path / "config.json")
    language(content)["tie_word_embeddings"] = True
    write(path / "config.json", content)
    embeddings = load(case).state_dict()["vlm.model.language_model.embed_tokens.weight"]
    assert_loads_as(path, load(case), **{"vlm.lm_head.weight": embeddings})


# -- conversion --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for case in CONVERTED:
        folders[case] = tmp_path_factory.mktemp(case) / "native"
        convert(checkpoint(case), folders[case], "native")
    return folders


def settings(**changed: Any) -> Callable[[Path], None]:
    """Change settings of the processor."""

    def change(folder: Path) -> None:
        content = read(folder / "processor_config.json")
        for key, value in changed.items():
            part = content if key in content else content["patches"]
            assert part[key] != value
            part[key] = value
        write(folder / "processor_config.json", content)

    return change


def config(path: str, value: Any) -> Callable[[Path], None]:
    """Change a setting of the model."""

    def change(folder: Path) -> None:
        content = read(folder / "config.json")
        *parts, key = path.split(".")
        place = content
        for part in parts:
            place = place[part]
        assert place[key] != value
        place[key] = value
        write(folder / "config.json", content)
        if key in ("max_tiles", "template"):
            settings(**{key: value})(folder)

    return change


#: A change, the family it is of, and what the user is told the reference does otherwise.
SETTINGS = {
    "template": ("iv25_qwen2", config("template", "qwen_chat"), None),
    "max_tiles": ("iv25_qwen2", config("max_tiles", 2), "up to 12 tiles, this model into 2"),
    "max_tiles of the processor": ("iv25_qwen2", settings(max_tiles=1), "up to 12 tiles, this model into 1"),
    "sam2_config": (
        "iv25_qwen2",
        config("sam2_config.sigmoid_bias_for_mem_enc", -3.0),
        "cannot load this model's SAM 2",
    ),
    "dtype": ("iv25_qwen2", config("dtype", "bfloat16"), None),
    "vlm_config": (
        "iv25_qwen2",
        config("vlm_config.vision_config.layer_norm_eps", 0.1),
        None,
    ),
    "vlm_config without a word": (
        "iv25_qwen2",
        config("vlm_config.vision_feature_select_strategy", "full"),
        "does not know config.vlm_config.vision_feature_select_strategy = 'full'",
    ),
    "min_pixels": (
        "q25",
        settings(min_pixels=100 * 28 * 28, max_pixels=110 * 28 * 28),
        "this model 78400 to 86240",
    ),
    "mean": ("q25", settings(mean=[0.1, 0.2, 0.3]), None),
    "std": ("q25", settings(std=[0.1, 0.2, 0.3]), None),
}
#: Told by the tokenizer, the weights or another setting, or only ever one value.
TOLD = {"seg_token_id", "original_mask_decoder", "tie_word_embeddings", "family", "grounding_side", "tile_side"}
TOLD |= {"tokens_per_tile", "patches", "patch", "merge", "frames", "max_pixels"}


def test_every_setting_is_converted_in_a_test():
    own = {field.name for kind in (ProcessorSettings, QwenPixels) for field in fields(kind)}
    own |= Sa2VAConfig.__annotations__.keys() - {"model_type", "sub_configs_defaults"}
    assert own - TOLD == {name.split(" ")[0] for name in SETTINGS} - {"dtype"}


#: Settings that can be changed together, by family; one of the model's wins over the same one of its processor.
TOGETHER = [
    *([name for name in SETTINGS if SETTINGS[name][0] == case and "processor" not in name] for case in CONVERTED),
    ["max_tiles of the processor"],
]


@pytest.mark.parametrize("names", TOGETHER, ids=lambda names: names[0])
def test_a_conversion_keeps_every_setting(native: dict[str, Path], tmp_path: Path, names: list[str]):
    source = Path(shutil.copytree(native[SETTINGS[names[0]][0]], tmp_path / "source"))
    for name in names:
        SETTINGS[name][1](source)
    notes: list[str] = []
    convert(source, tmp_path / "released", "released", note=notes.append)
    convert(tmp_path / "released", tmp_path / "back", "native")
    for name in names:
        told = SETTINGS[name][2]
        assert told is None or any(told in note for note in notes), name
    assert not any("does not know" in note and "pixels" in note for note in notes)  # told in words of their own
    assert not (tmp_path / "released" / "processor_config.json").exists()
    assert read(tmp_path / "back" / "processor_config.json") == read(source / "processor_config.json")
    unnamed = {"architectures": None, "_name_or_path": ""}
    first = open_checkpoint(source).config.to_dict() | unnamed
    for folder in (tmp_path / "released", tmp_path / "back"):
        assert open_checkpoint(folder).config.to_dict() | unnamed == first


@pytest.mark.parametrize("names", [["max_tiles", "template"], ["min_pixels", "mean"]], ids=["InternVL", "Qwen"])
def test_answers_are_the_same_before_and_after_a_conversion(
    native: dict[str, Path], open_sa2va: Callable[[str], Sa2VA], tmp_path: Path, names: list[str]
):
    case = SETTINGS[names[0]][0]
    source = Path(shutil.copytree(native[case], tmp_path / "source"))
    for name in names:
        SETTINGS[name][1](source)
    convert(source, tmp_path / "released", "released")
    image = Image.fromarray(picture(150, 97))

    def ask(sa2va: Sa2VA) -> tuple[str, list[np.ndarray]]:
        answer = sa2va.chat(image, "Please segment the cloud.", max_new_tokens=12)
        return answer.raw_text, [segment.mask for segment in answer.segments]

    before, after = (ask(Sa2VA.from_pretrained(folder)) for folder in (source, tmp_path / "released"))
    assert before[0] == after[0] != ask(open_sa2va(case))[0]
    assert len(before[1]) == len(after[1])
    assert all(np.array_equal(one, other) for one, other in zip(before[1], after[1], strict=True))


def test_a_conversion_names_what_another_has_left(checkpoint: Callable[[str], Path], tmp_path: Path):
    (tmp_path / ".converting-abc").mkdir()
    notes: list[str] = []
    convert(checkpoint("iv25_qwen2"), tmp_path / "native", note=notes.append)
    assert [note for note in notes if str(tmp_path / ".converting-abc") in note]


@pytest.mark.parametrize(
    ("said", "own"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {}),
        ({"a": 0, "b": {"c": 2, "d": 0}}, {"a": 1, "b": {"d": 3}}),
        ({"a": 1, "b": None}, {"b": {"c": 2, "d": 3}}),
    ],
)
def test_what_differs_is_laid_over(said: dict[str, Any], own: dict[str, Any]):
    meant = {"a": 1, "b": {"c": 2, "d": 3}}
    assert difference(said, meant) == own
    assert overlaid(said, own) == meant


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_weights_are_as_readable_as_any_other_file(sa2va: Sa2VA, native: dict[str, Path], tmp_path: Path, umask: int):
    before = os.umask(umask)
    try:
        convert(native["iv25_qwen2"], tmp_path / "released", max_shard_bytes=2**20)
        sa2va.model.save_pretrained(tmp_path / "saved")
    finally:
        os.umask(before)
    weights = [path for name in ("released", "saved") for path in (tmp_path / name).glob("*.safetensors")]
    assert len(weights) > 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in weights} == {0o666 & ~umask}


def test_what_a_killed_save_has_left_is_removed_by_the_next(tmp_path: Path):
    (tmp_path / ".filling-killed").mkdir()
    (tmp_path / ".filling-killed" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(OSError, match="disk"), filling(tmp_path) as scratch:
        (scratch / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []
    with filling(tmp_path) as scratch:
        (scratch / "model.safetensors").write_bytes(b"whole")
        assert not (tmp_path / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
