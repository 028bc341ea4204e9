"""Weights come in and go out whole: both layouts, every released size, damaged files, and building from parts."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Sam2HieraDetConfig, Sam2VideoModel, Sam2VisionConfig

from sa2va import Sa2VA, Sa2VAConfig, Sa2VAModel, Sa2VAProcessor
from sa2va.checkpoint import build
from sa2va.checkpoint.build import load_sam2
from sa2va.checkpoint.conversion import convert, reference_differs, write_tensors
from sa2va.checkpoint.files import LazyTensor, open_tensors
from sa2va.checkpoint.loading import check_tensors, expected_shapes, layers_in, released_rules, to_native, to_released
from sa2va.checkpoint.released_config import config_from_released, config_to_released, read_token_ids
from sa2va.checkpoint.weight_map import sam2_rules
from sa2va.model.configuration import sam2_config
from sa2va.processing.processor_settings import ProcessorSettings
from synthetic_checkpoint import GOLDEN, SAM2_PREFIX

MANIFESTS = sorted(path.stem.removeprefix("manifest_") for path in GOLDEN.glob("manifest_Sa2VA-*.json"))
CASES = ["iv25_qwen2", "iv25_internlm2", "iv6b_internlm2", "iv35_qwen3", "q25", "q3"]
INDEX = "model.safetensors.index.json"


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def files(folder: Path) -> dict[str, Tensor]:
    return {name: tensor.read() for name, tensor in open_tensors(folder).items()}


def assert_same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def run_python(script: str) -> str:
    """Output of a script in a fresh process, which must not warn or print to stderr."""
    result = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


# -- the ten released checkpoints --------------------------------------------------------------------------------------


def released_config(name: str) -> dict:
    real = read_json(GOLDEN / "mllm_real_configs.json")
    if name in real["internvl"]:
        body = {"architectures": ["Sa2VAChatModel"], **real["internvl"][name]}
    else:
        body = {"architectures": ["Sa2VAChatModelQwen"], **real["qwen"][name]["config"]}
    return {"model_type": "sa2va_chat", **body}


def test_all_ten_manifests_are_there():
    assert len(MANIFESTS) == 10


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_released_tensor_maps_both_ways(name: str):
    manifest = read_json(GOLDEN / f"manifest_{name}.json")
    config = config_from_released(released_config(name))

    def on_meta(shape: list[int]) -> LazyTensor:
        return LazyTensor(tuple(shape), torch.float32, lambda: torch.empty(shape, device="meta"))

    released = {tensor: on_meta(shape) for tensor, shape in manifest["tensors"].items()}
    native = to_native(released, released_rules(config))
    check_tensors(native, expected_shapes(config), where=name)
    back = to_released(native, released_rules(config))
    assert {key: tensor.shape for key, tensor in back.items()} == {key: t.shape for key, t in released.items()}


@pytest.mark.parametrize("name", MANIFESTS)
def test_released_config_survives_the_round_trip(name: str):
    config = config_from_released(released_config(name))
    written = json.loads(json.dumps(config_to_released(config)))
    assert config_from_released(written).to_dict() == config.to_dict()
    said, kept = (content.get("text_config") or content["llm_config"] for content in (released_config(name), written))
    assert (said.get("rope_scaling") or {}).items() <= (kept.get("rope_scaling") or {}).items()
    assert Sa2VAConfig.from_dict(json.loads(json.dumps(config.to_dict()))).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_reference_does_nothing_else_with_its_own_models(name: str):
    config = config_from_released(released_config(name))
    assert reference_differs(config_to_released(config), config, ProcessorSettings.of(config)) == []


def test_ids_of_the_added_tokens_follow_from_the_vocabulary():
    """The confirmed ids of the released Qwen2-based tokenizers."""
    config = config_from_released(released_config("Sa2VA-1B"))
    assert (config.seg_token_id, config.vlm_config.image_token_id) == (151674, 151667)


def test_ids_are_read_from_the_tokenizer_where_there_is_one(checkpoint: Callable[[str], Path], tmp_path: Path):
    folder = copy_of(checkpoint("iv25_qwen2"), tmp_path)
    content = read_json(folder / "tokenizer.json")
    swapped = {"[SEG]": "<p>", "<p>": "[SEG]", "<IMG_CONTEXT>": "<ref>", "<ref>": "<IMG_CONTEXT>"}
    for token in content["added_tokens"]:
        token["content"] = swapped.get(token["content"], token["content"])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    config = Sa2VAModel.from_pretrained(folder).config
    assert (config.seg_token_id, config.vlm_config.image_token_id) == (ids["[SEG]"], ids["<IMG_CONTEXT>"])
    assert (ids["[SEG]"], ids["<IMG_CONTEXT>"]) != (457, 450)


# -- loading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_every_buffer_is_computed_not_left_empty(load: Callable[[str], Sa2VAModel], case: str):
    """Loading passes through the meta device, where buffers that are not saved hold nothing."""
    loaded, fresh = load(case), Sa2VAModel(load(case).config)
    saved = loaded.state_dict().keys()
    computed = {name: buffer for name, buffer in fresh.named_buffers() if name not in saved}
    assert computed
    found = dict(loaded.named_buffers())
    for name, buffer in computed.items():
        assert torch.equal(found[name], buffer), name


@pytest.mark.parametrize(("case", "dtype"), [("iv25_internlm2", torch.bfloat16), ("q3", torch.float32)])
def test_save_and_load_is_the_same_model(
    checkpoint: Callable[[str], Path], tmp_path: Path, case: str, dtype: torch.dtype
):
    model = Sa2VAModel.from_pretrained(checkpoint(case), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    model.save_pretrained(tmp_path)
    loaded = Sa2VAModel.from_pretrained(tmp_path)
    assert_same_tensors(model.state_dict(), loaded.state_dict())
    assert_same_tensors(dict(model.named_buffers()), dict(loaded.named_buffers()))
    named = {"_name_or_path": "", "architectures": None}
    assert loaded.config.to_dict() | named == model.config.to_dict() | named
    assert not loaded.training


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_of_the_config_is_the_default(checkpoint: Callable[[str], Path], tmp_path: Path, key: str):
    folder = copy_of(checkpoint("iv25_qwen2"), tmp_path)
    edit_json(folder / "config.json", lambda config: config.update({key: "bfloat16"}))
    assert Sa2VAModel.from_pretrained(folder).dtype == torch.bfloat16
    assert Sa2VAModel.from_pretrained(folder, dtype=torch.float32).dtype == torch.float32
    convert(folder, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "back")
    assert read_json(tmp_path / "native" / "config.json")["dtype"] == "bfloat16"
    assert read_json(tmp_path / "back" / "config.json")["torch_dtype"] == "bfloat16"


def test_a_device_map_places_the_parts(checkpoint: Callable[[str], Path], load: Callable[[str], Sa2VAModel]):
    model = Sa2VAModel.from_pretrained(checkpoint("iv25_qwen2"), device_map={"": "cpu"})
    assert_same_tensors(model.state_dict(), load("iv25_qwen2").state_dict())


def test_two_decoders_load_each_in_its_place(two_decoders: Path, load: Callable[[str], Sa2VAModel], tmp_path: Path):
    model, single = Sa2VAModel.from_pretrained(two_decoders), load("iv25_qwen2")
    assert model.config.original_mask_decoder
    assert single.original_mask_decoder is None
    assert model.original_mask_decoder is not None
    tuned, original = model.sam2.mask_decoder.state_dict(), model.original_mask_decoder.state_dict()
    assert_same_tensors(tuned, single.sam2.mask_decoder.state_dict())
    assert tuned.keys() == original.keys()
    assert not torch.equal(tuned["mask_tokens.weight"], original["mask_tokens.weight"])

    model.save_pretrained(tmp_path)
    assert_same_tensors(model.state_dict(), Sa2VAModel.from_pretrained(tmp_path).state_dict())


def test_older_qwen_exports_without_the_inner_levels_load(
    checkpoint: Callable[[str], Path], load: Callable[[str], Sa2VAModel], tmp_path: Path
):
    folder = copy_of(checkpoint("q25"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    older = {
        name.replace("model.model.visual.", "model.visual.").replace("model.model.language_model.", "model.model."): t
        for name, t in weights.items()
    }
    assert older.keys() != weights.keys()
    save_file(older, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same_tensors(Sa2VAModel.from_pretrained(folder).state_dict(), load("q25").state_dict())


BOOBY_TRAP = "raise SystemExit('code of the checkpoint was run')"


# The other order is in test_released_code.py.
@pytest.mark.parametrize(
    "first_import", [pytest.param("import sa2va", marks=pytest.mark.slow), "from transformers import AutoModel"]
)
def test_automodel_loads_a_released_folder_without_its_code(
    checkpoint: Callable[[str], Path], tmp_path: Path, first_import: str
):
    folder = copy_of(checkpoint("iv25_qwen2"), tmp_path)
    (folder / "never.py").write_text(BOOBY_TRAP)
    assert read_json(folder / "config.json")["auto_map"] == {"AutoModel": "never.Followed"}
    output = run_python(
        f"{first_import}\nimport sa2va\nfrom transformers import AutoConfig, AutoModel, logging\n"
        f"logging.disable_progress_bar()\nmodel = AutoModel.from_pretrained({str(folder)!r})\n"
        f"print(type(model).__name__, type(AutoConfig.from_pretrained({str(folder)!r})).__name__)"
    )
    assert output.split() == ["Sa2VAModel", "Sa2VAConfig"]


def test_our_loader_never_follows_auto_map(checkpoint: Callable[[str], Path], tmp_path: Path):
    folder = copy_of(checkpoint("iv25_qwen2"), tmp_path)
    (folder / "never.py").write_text(BOOBY_TRAP)
    tokenizer = read_json(folder / "tokenizer_config.json") | {"auto_map": {"AutoTokenizer": ["never.Followed", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    sa2va = Sa2VA.from_pretrained(folder, trust_remote_code=True)
    assert sa2va.model.config.seg_token_id == 457


# -- damage ------------------------------------------------------------------------------------------------------------


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, edit: Callable[[dict], object]) -> None:
    content = read_json(path)
    edit(content)
    path.write_text(json.dumps(content))


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


#: What is done to a folder of one file, and what the error must say.
DAMAGE = {
    "missing tensor": (lambda f: edit_tensors(f, lambda w: w.pop("mlp1.3.bias")), r"'mlp1\.3\.bias' is missing"),
    "tensor missing of a group": (
        lambda f: edit_tensors(f, lambda w: w.pop(SAM2_PREFIX + "sam_prompt_encoder.point_embeddings.1.weight")),
        r"point_embeddings\.1\.weight' is missing",
    ),
    "unknown tensor": (
        lambda f: edit_tensors(f, lambda w: w.update({"vision_model.foo": torch.zeros(3)})),
        "unexpected tensor 'vision_model.foo'",
    ),
    "tensor of another model": (
        lambda f: edit_tensors(f, lambda w: w.update({"language_model.model.layers.9.mlp.x": torch.zeros(3)})),
        r"unexpected tensor '.*layers\.9\.mlp\.x'",
    ),
    "misshapen tensor": (
        lambda f: edit_tensors(f, lambda w: w.update({"mlp1.1.weight": torch.zeros(3, 4)})),
        r"'mlp1\.1\.weight' has shape \(3, 4\); the config expects \(64, 256\)",
    ),
    "misshapen tensor that is split": (
        lambda f: edit_tensors(f, lambda w: w.update({"vision_model.encoder.layers.0.attn.qkv.bias": torch.zeros(2)})),
        r"'vision_model\.encoder\.layers\.0\.attn\.qkv\.bias' has shape \(2,\); the config expects \(192,\)",
    ),
    "truncated file": (lambda f: cut(f / "model.safetensors", 100), r"model\.safetensors is damaged or truncated"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors is damaged or trunc"),
    "pickle only": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), r"pytorch_model\.bin is a p"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no safetensors weights"),
    "no config": (lambda f: (f / "config.json").unlink(), "it has no config.json"),
    "broken config": (lambda f: cut(f / "config.json", 3), r"config\.json is not valid JSON"),
    "config that is a list": (lambda f: (f / "config.json").write_text("[1]"), r"config\.json holds no JSON object"),
    "config without its parts": (
        lambda f: edit_json(f / "config.json", lambda c: c.pop("llm_config")),
        r"config\.json: llm_config is missing",
    ),
    "broken tokenizer": (lambda f: cut(f / "tokenizer.json", 3), r"tokenizer\.json is not valid JSON"),
    "unknown family": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(text_config=c.pop("llm_config"))),
        r"config\.json: llm_config is missing, and text_config and vision_config have model types \['qwen2', 'None'\]",
    ),
    "unknown language model": (
        lambda f: edit_json(
            f / "config.json", lambda c: c["llm_config"].update(model_type="phi3", architectures=["Phi3ForCausalLM"])
        ),
        r"llm_config is of model type and architecture \['phi3', 'Phi3ForCausalLM'\]",
    ),
    "layers without weights": (
        lambda f: edit_json(f / "config.json", lambda c: c["llm_config"].update(num_hidden_layers=10**9)),
        r"config\.json: llm_config\.num_hidden_layers is 1000000000, but the weights have at most \d+ layers",
    ),
    "blocks without weights": (
        lambda f: edit_json(
            f / "config.json",
            lambda c: c["grounding_config"]["vision_config"]["backbone_config"].update(
                blocks_per_stage=[1, 1, 10**6, 1]
            ),
        ),
        r"config\.json: grounding_config\..*blocks_per_stage is 1000000",
    ),
    "tables without end": (
        lambda f: edit_json(
            f / "config.json", lambda c: c["grounding_config"].update(memory_attention_rope_feat_sizes=[10**5, 10**5])
        ),
        r"config\.json: a model of these settings would compute \d+ bytes of tables",
    ),
    "text as a number": (
        lambda f: edit_json(f / "config.json", lambda c: c["llm_config"].update(hidden_size="64")),
        r"config\.json: llm_config: hidden_size: expected int, got str",
    ),
    "infinite number": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace("1e-06", "1e999")),
        r"config\.json is not valid JSON: the number 1e999; expected finite numbers",
    ),
    "deep nesting": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(extra=json.loads("[" * 500 + "]" * 500))),
        r"config\.json is not valid JSON: more than 64 levels",
    ),
    "deeper nesting": (
        lambda f: (f / "config.json").write_text("[" * 10**5),
        r"config\.json is not valid JSON: maximum recursion depth",
    ),
    "dtype of a wrong name": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(torch_dtype="fp16")),
        r"config\.json: dtype: expected one of float32, bfloat16, float16, float64, got 'fp16'",
    ),
    "dtype that is a number": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(dtype=16)),
        r"config\.json: dtype: expected one of .*, got 16",
    ),
    "token id that is text": (
        lambda f: edit_json(f / "tokenizer.json", lambda c: c["added_tokens"][0].update(id="7")),
        r"tokenizer\.json: token '.*': expected an id from 0, got '7'",
    ),
    "another kind of model": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(model_type="llava")),
        "model_type 'llava'; expected 'sa2va_chat'",
    ),
}
#: The same for a folder of shards.
SHARD_DAMAGE = {
    "truncated shard": (lambda f: cut(second_shard(f), 10), r"model-00002-of-\d+\.safetensors is damaged or truncated"),
    "missing shard": (lambda f: second_shard(f).unlink(), r"shard model-00002-of-\d+\.safetensors is missing"),
    "shard outside the folder": (
        lambda f: edit_json(f / INDEX, lambda c: c["weight_map"].update({"mlp1.3.bias": "../other/model.safetensors"})),
        "points outside its folder",
    ),
    "absolute shard": (
        lambda f: edit_json(f / INDEX, lambda c: c["weight_map"].update({"mlp1.3.bias": "/etc/model.safetensors"})),
        "points outside its folder",
    ),
    "tensor not in the index": (
        lambda f: edit_json(f / INDEX, lambda c: c["weight_map"].pop("mlp1.3.bias")),
        r"'mlp1\.3\.bias' is in a shard but not in the index",
    ),
    "tensor in two shards": (
        lambda f: save_file(load_file(second_shard(f)) | {"mlp1.3.bias": torch.zeros(64)}, second_shard(f)),
        r"'mlp1\.3\.bias' is in more than one shard",
    ),
    "broken index": (lambda f: cut(f / INDEX, 10), r"index\.json is not valid JSON"),
    "index that is a list": (lambda f: (f / INDEX).write_text("[1]"), r"index\.json holds no JSON object but a list"),
    "index of numbers": (
        lambda f: edit_json(f / INDEX, lambda c: c["weight_map"].update({"mlp1.3.bias": 7})),
        r"index\.json is not a safetensors ind",
    ),
    "index of a list": (
        lambda f: (f / INDEX).write_text('{"weight_map": [1]}'),
        r"index\.json is not a safetensors ind",
    ),
}


def second_shard(folder: Path) -> Path:
    return next(folder.glob("model-00002-of-*"))


@pytest.fixture(scope="module")
def sharded(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "released"
    convert(checkpoint("iv25_qwen2"), folder, to="released", max_shard_bytes=2**20)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 8
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_gives_one_clear_error(checkpoint: Callable[[str], Path], tmp_path: Path, damage: str):
    do, message = DAMAGE[damage]
    folder = copy_of(checkpoint("iv25_qwen2"), tmp_path)
    do(folder)
    for load in (Sa2VAModel.from_pretrained, Sa2VA.from_pretrained, lambda f: convert(f, tmp_path / "converted")):
        with pytest.raises(ValueError, match=message) as caught:
            load(folder)
        assert str(caught.value).count("\n") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


@pytest.mark.parametrize("damage", SHARD_DAMAGE)
def test_damaged_shards_give_one_clear_error(sharded: Path, tmp_path: Path, damage: str):
    do, message = SHARD_DAMAGE[damage]
    folder = copy_of(sharded, tmp_path)
    do(folder)
    with pytest.raises(ValueError, match=message):
        Sa2VAModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "converted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


@pytest.mark.parametrize(("count", "message"), [(1, "'0' is missing"), (2, r"'0' \(and 1 more\) is missing")])
def test_of_several_missing_tensors_one_is_named(count: int, message: str):
    with pytest.raises(ValueError, match=message):
        check_tensors({}, {str(number): (1,) for number in range(count)}, where="here")


@pytest.mark.parametrize(
    ("names", "most"),
    [
        ([f"layers.{layer}.{name}" for layer in range(12) for name in "ab"], 12),
        (["layers.900.a"], 8),  # a number makes no layers, and few are always allowed
        ([f"layers.{'9' * 5000}.a"], 8),
    ],
)
def test_layers_are_counted_by_names(names: list[str], most: int):
    assert layers_in({name: LazyTensor((1,), torch.float32, lambda: torch.zeros(1)) for name in names}) == most


@pytest.mark.parametrize(("number", "valid"), [(-1, False), (0, True), (2**31 - 1, True), (2**31, False)])
def test_ids_of_tokens_have_bounds(tmp_path: Path, number: int, valid: bool):
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<unk>": number}))
    if valid:
        assert read_token_ids(tmp_path) == {"<unk>": number}
    else:
        with pytest.raises(ValueError, match=f"token '<unk>': expected an id from 0, got {number}"):
            read_token_ids(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/at/all", "no such checkpoint folder"),
        ("./nowhere", "no such checkpoint folder"),
        ("no-such-model", "owner/name"),
    ],
)
def test_what_is_no_source_says_so(source: str, message: str):
    with pytest.raises(ValueError, match=message):
        Sa2VAModel.from_pretrained(source)


def test_a_file_is_not_a_folder(checkpoint: Callable[[str], Path]):
    with pytest.raises(ValueError, match=r"config\.json; pass its folder"):
        Sa2VAModel.from_pretrained(checkpoint("iv25_qwen2") / "config.json")


# -- conversion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_released_to_native_and_back(checkpoint: Callable[[str], Path], tmp_path: Path, case: str):
    """Names, values and dtypes: InternVL releases hold the vision tower in bfloat16, the rest in float32."""
    source = copy_of(checkpoint(case), tmp_path)
    mixed = {name: t.bfloat16() if "vision" in name or "visual" in name else t for name, t in files(source).items()}
    assert {tensor.dtype for tensor in mixed.values()} == {torch.bfloat16, torch.float32}
    save_file(mixed, source / "model.safetensors", metadata={"format": "pt"})

    assert convert(source, tmp_path / "native") == "native"
    assert convert(tmp_path / "native", tmp_path / "back", max_shard_bytes=2**20) == "released"
    assert_same_tensors(files(tmp_path / "back"), mixed)
    assert [path.name for path in (tmp_path / "native").glob("*.safetensors*")] == ["model.safetensors"]
    assert len(list((tmp_path / "back").glob("model-*-of-*.safetensors"))) > 8
    assert read_json(tmp_path / "native" / "config.json")["model_type"] == "sa2va"
    assert read_json(tmp_path / "back" / "config.json")["model_type"] == "sa2va_chat"


def test_both_layouts_hold_the_same_model(
    checkpoint: Callable[[str], Path], load: Callable[[str], Sa2VAModel], sharded: Path, tmp_path: Path
):
    convert(checkpoint("iv25_qwen2"), tmp_path / "native", max_shard_bytes=2**20)
    for folder in (tmp_path / "native", sharded):
        assert_same_tensors(Sa2VAModel.from_pretrained(folder).state_dict(), load("iv25_qwen2").state_dict())


def test_two_decoders_survive_the_round_trip(two_decoders: Path, tmp_path: Path):
    convert(two_decoders, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "back")
    assert_same_tensors(files(tmp_path / "back"), files(two_decoders))


def test_a_converted_folder_is_complete(sa2va: Sa2VA, checkpoint: Callable[[str], Path], tmp_path: Path):
    convert(checkpoint("iv25_qwen2"), tmp_path / "native")
    converted = Sa2VA.from_pretrained(tmp_path / "native")
    assert converted.chat(None, "hi", max_new_tokens=8) == sa2va.chat(None, "hi", max_new_tokens=8)


def test_files_are_as_large_as_allowed_and_numbered(tmp_path: Path):
    sixteen_bytes = LazyTensor((2, 2), torch.float32, lambda: torch.ones(2, 2))
    write_tensors(tmp_path, dict.fromkeys("cab", sixteen_bytes), max_shard_bytes=32)
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [first, second, INDEX]
    assert read_json(tmp_path / INDEX) == {
        "metadata": {"total_size": 48},
        "weight_map": {"a": first, "b": first, "c": second},
    }


def test_there_are_two_layouts(checkpoint: Callable[[str], Path], tmp_path: Path):
    with pytest.raises(ValueError, match="'native' or 'released'; got 'meta'"):
        convert(checkpoint("iv25_qwen2"), tmp_path / "out", to="meta")
    assert list(tmp_path.iterdir()) == []


def test_conversion_writes_into_nothing_that_exists(checkpoint: Callable[[str], Path], tmp_path: Path):
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(ValueError, match="not an empty folder"):
        convert(checkpoint("iv25_qwen2"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    (tmp_path / "empty").mkdir()
    assert convert(checkpoint("iv25_qwen2"), tmp_path / "empty") == "native"


def test_a_failure_while_writing_leaves_nothing(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written = []

    def full_disk(tensors, path, metadata):
        if written:
            raise OSError("No space left on device")
        written.append(path)
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr("sa2va.checkpoint.files.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        convert(checkpoint("iv25_qwen2"), tmp_path / "native", max_shard_bytes=2**20)
    assert written
    assert list(tmp_path.iterdir()) == []


# -- from parts --------------------------------------------------------------------------------------------------------


def base_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer as it was before Sa2VA added its five tokens; also saved to the folder."""
    content = read_json(GOLDEN / "mllm_tiny_tokenizer.json")
    added = {"[SEG]", "<p>", "</p>", "<vp>", "</vp>"}
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in added]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return PreTrainedTokenizerFast.from_pretrained(folder)


def transformers_layout(load: Callable[[str], Sa2VAModel], case: str, folder: Path, rows: int) -> Path:
    """A base model as transformers saves it, its vocabulary cut or padded to ``rows``."""
    vlm = Sa2VAModel.from_pretrained(None, config=load(case).config, state_dict=load(case).state_dict()).vlm
    vlm.resize_token_embeddings(rows, mean_resizing=False)
    vlm.save_pretrained(folder)
    base_tokenizer(folder)
    return folder


def internvl_layout(source: Path, folder: Path) -> Path:
    """A base model in InternVL's own layout: a released Sa2VA without what Sa2VA adds."""
    weights = load_file(source / "model.safetensors")
    kept = {name: t for name, t in weights.items() if not name.startswith(("grounding_encoder", "text_hidden_fcs"))}
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        kept[name] = kept[name][:457].clone()
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = read_json(source / "config.json")
    config = {key: config[key] for key in ("vision_config", "llm_config")} | {"model_type": "internvl_chat"}
    config["llm_config"]["vocab_size"] = 457
    (folder / "config.json").write_text(json.dumps(config))
    base_tokenizer(folder)
    return folder


def folder_of_parts(kind: str, checkpoint, load, folder: Path) -> Path:
    folder.mkdir()
    if kind == "InternVL's own layout":
        return internvl_layout(checkpoint("iv25_qwen2"), folder)
    case, rows = {"padded vocabulary": ("iv25_qwen2", 480), "Qwen3-VL": ("q3", 457)}[kind]
    return transformers_layout(load, case, folder, rows)


@pytest.mark.parametrize("kind", ["InternVL's own layout", "padded vocabulary", "Qwen3-VL"])
def test_a_model_from_parts(checkpoint, load: Callable[[str], Sa2VAModel], tmp_path: Path, kind: str):
    vlm = folder_of_parts(kind, checkpoint, load, tmp_path / "vlm")
    whole = load("q3" if kind == "Qwen3-VL" else "iv25_qwen2")
    whole.sam2.save_pretrained(tmp_path / "sam2")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(vlm)
    assert len(tokenizer) == 457

    model = Sa2VAModel.from_parts(vlm, tmp_path / "sam2", tokenizer=tokenizer)

    order = ["[SEG]", "<p>", "</p>", "<vp>", "</vp>"]
    assert tokenizer.convert_tokens_to_ids(order) == [457, 458, 459, 460, 461]
    assert len(tokenizer) == 462
    assert model.config.seg_token_id == 457
    assert model.config.vlm_config.image_token_id == whole.config.vlm_config.image_token_id
    assert model.config.template == (None if kind == "Qwen3-VL" else "qwen_chat")
    assert model.config.vlm_config.get_text_config().vocab_size == 462
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == 462
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    assert_same_tensors(model.sam2.state_dict(), whole.sam2.state_dict())
    ours, theirs = model.vlm.state_dict(), whole.vlm.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor[:457], theirs[name][:457]) for name, tensor in ours.items())
    for layer in (model.projection.linear_1, model.projection.linear_2):
        bound = layer.in_features**-0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert 0 < layer.bias.abs().max() <= bound
    assert not any(parameter.is_meta for parameter in model.parameters())

    model.save_pretrained(tmp_path / "saved")
    assert_same_tensors(Sa2VAModel.from_pretrained(tmp_path / "saved").state_dict(), model.state_dict())
    if kind != "Qwen3-VL":  # its template file is not among the parts
        answer = Sa2VA(model, Sa2VAProcessor(tokenizer, model.config)).chat(None, "hi", max_new_tokens=4)
        assert answer.raw_text


def test_loaded_parts_are_taken_as_they_are(load: Callable[[str], Sa2VAModel], tmp_path: Path):
    loaded = Sa2VAModel.from_pretrained(None, config=load("q25").config, state_dict=load("q25").state_dict())
    with pytest.raises(ValueError, match="needs tokenizer="):
        Sa2VAModel.from_parts(loaded.vlm, loaded.sam2)
    model = Sa2VAModel.from_parts(loaded.vlm, loaded.sam2, tokenizer=base_tokenizer(tmp_path))
    assert model.vlm is loaded.vlm
    assert model.sam2 is loaded.sam2
    assert model.config.family.name == "qwen2_5_vl"


# Meta's sizes are fixed and large, so a small encoder stands in for one of them.
SMALL_ENCODER = {"num_heads": 1, "blocks": (1, 1, 1, 1), "global_blocks": (), "windows": (8, 4, 4, 2)}


def meta_file(path: Path, version: str) -> Sam2VideoModel:
    """Write the ``.pt`` file that Meta would have written of a random SAM 2."""
    torch.manual_seed(0)
    model = Sam2VideoModel(sam2_config(image_size=1024, embed_dim=16, width=256, version=version, **SMALL_ENCODER))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    # One random matrix of positions, which transformers keeps twice.
    twice = (model.shared_image_embedding, model.prompt_encoder.shared_embedding)
    twice[1].positional_embedding.copy_(twice[0].positional_embedding)
    native = {
        name: LazyTensor(tuple(t.shape), t.dtype, lambda t=t: t.clone()) for name, t in model.state_dict().items()
    }
    released = to_released(native, sam2_rules(released="", native=""))
    weights = {name.replace(".g_weight", ".gamma"): tensor.read() for name, tensor in released.items()}
    assert any(name.endswith(".gamma") for name in weights)
    torch.save({"model": weights}, path)
    return model


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_meta_weights_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str):
    monkeypatch.setitem(build.META_ENCODERS, (16, 4), SMALL_ENCODER)
    model = meta_file(tmp_path / "sam2_hiera_small.pt", version)
    loaded = load_sam2(tmp_path / "sam2_hiera_small.pt")
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    assert loaded.config.enable_occlusion_spatial_embedding == (version == "2.1")
    assert loaded.config.enable_temporal_pos_encoding_for_object_pointers == (version == "2.1")


def test_a_meta_file_of_another_size_says_so(tmp_path: Path):
    meta_file(tmp_path / "sam2.pt", "2.0")
    with pytest.raises(ValueError, match="16 channels and 4 blocks is none of Meta's"):
        load_sam2(tmp_path / "sam2.pt")


def test_a_meta_file_runs_no_code(tmp_path: Path):
    torch.save({"model": {"weight": RunsCode(tmp_path / "ran")}}, tmp_path / "sam2.pt")
    with pytest.raises(ValueError, match=r"sam2\.pt is not one of Meta's SAM 2 files.*[Ww]eights.only"):
        load_sam2(tmp_path / "sam2.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{}, {"model": {}}, [1]])
def test_any_other_pt_file_is_named(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt is not one of Meta's SAM 2 files"):
        load_sam2(tmp_path / "other.pt")


class RunsCode:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_largest_size_of_meta_is_the_one_of_the_released_checkpoints():
    shapes = {
        row["name"].removeprefix(SAM2_PREFIX): row["shape"]
        for row in json.loads((GOLDEN / "manifest_sam2.json").read_text())
    }
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    large = build._meta_config(weights, Path("sam2_hiera_large.pt"))
    assert large.to_dict() == config_from_released(released_config("Sa2VA-4B")).sam2_config.to_dict()


SMALL = {"blocks_per_stage": [1, 2, 11, 2], "global_attention_blocks": [7, 10, 13]}
BASE_PLUS = {
    **{"hidden_size": 112, "embed_dim_per_stage": [112, 224, 448, 896]},
    **{"num_attention_heads": 2, "num_attention_heads_per_stage": [2, 4, 8, 16]},
    **{"blocks_per_stage": [2, 3, 16, 3], "global_attention_blocks": [12, 16, 20]},
    "window_positional_embedding_background_size": [14, 14],
}


@pytest.mark.parametrize(("published", "millions"), [({}, 38.9), (SMALL, 46.0), (BASE_PLUS, 80.8)])
def test_the_other_sizes_of_meta_are_as_published(published: dict, millions: float):
    """Against transformers, whose encoder is Hiera T unless it is told otherwise, and Meta's numbers of parameters."""
    hiera = Sam2HieraDetConfig(**published)
    trunk = "image_encoder.trunk."
    shapes = {f"{trunk}blocks.{block}.norm1.weight": (1,) for block in range(sum(hiera.blocks_per_stage))}
    shapes[f"{trunk}patch_embed.proj.weight"] = (hiera.hidden_size, 3, 7, 7)
    shapes[f"{trunk}pos_embed"] = (1, hiera.hidden_size, *hiera.window_positional_embedding_background_size)
    shapes["no_obj_embed_spatial"] = (1, 64)
    with torch.device("meta"):
        config = build._meta_config({name: torch.empty(shape) for name, shape in shapes.items()}, Path("sam2.1.pt"))
        model = Sam2VideoModel(config)
    vision = Sam2VisionConfig(backbone_config=hiera, backbone_channel_list=hiera.embed_dim_per_stage[::-1])
    assert config.vision_config.to_dict() == vision.to_dict()
    assert sum(parameter.numel() for parameter in model.parameters()) // 10**5 == 10 * millions


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc")
def test_loading_holds_the_weights_once(tmp_path: Path):
    """Peak memory against weights: within 1.2, and a constant that only shows in a model this small."""
    spec = importlib.util.spec_from_file_location("loading", GOLDEN.parents[1] / "benchmarks" / "loading.py")
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    benchmark.write_random_checkpoint(tmp_path, megabytes=150)
    peak, weights = benchmark.measure(tmp_path, "bfloat16")
    assert weights > 2**26
    assert peak < 1.2 * weights + 2**25
