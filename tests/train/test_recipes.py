"""The recipes, value by value against what was published, and what a preset finds out by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from rectangles import Rectangles
from sa2va import Sa2VAModel
from sa2va.data.check import kind_of_data
from sa2va.train.autodetect import family_of_model, is_base_model, language_width
from sa2va.train.config import SOURCES, SourceOptions, TrainConfig
from sa2va.train.initial_model import load_start
from sa2va.train.presets import PRESETS, preset, recipes_and_overrides
from sa2va.train.recipes import RECIPES, pretraining
from sa2va.train.run import prepare
from sa2va.train.summary import changes
from sa2va.train.trainable import LoraOptions, TrainableOptions
from sa2va.zoo import RELEASED, TINY

# checkpoint, base, chat template, samples per GPU, micro-batches, GPUs (? unknown), LoRA rank, mixture
TABLE = """
1B              OpenGVLab/InternVL2_5-1B       qwen_chat       2  4  ?   128  first
4B              OpenGVLab/InternVL2_5-4B       phi3_chat       2  4  ?   128  first
8B              OpenGVLab/InternVL2_5-8B       internlm2_chat  2  4  ?   128  first
26B             OpenGVLab/InternVL2_5-26B      internlm2_chat  2  4  ?   128  first
InternVL3-2B    OpenGVLab/InternVL3-2B         qwen_chat       2  8  16  128  second
InternVL3-8B    OpenGVLab/InternVL3-8B         qwen_chat       2  4  32  256  second
InternVL3-14B   OpenGVLab/InternVL3-14B        qwen_chat       1  8  32  256  third
Qwen2_5-VL-3B   Qwen/Qwen2.5-VL-3B-Instruct    -               2  8  16  128  fourth
Qwen2_5-VL-7B   Qwen/Qwen2.5-VL-7B-Instruct    -               1  8  32  128  fourth
Qwen3-VL-4B     Qwen/Qwen3-VL-4B-Instruct      -               1  8  16  128  fourth
"""
# source, and how often an epoch shows it in the first .. fourth mixture (. for not at all)
SHOWN = """
refcoco                   4   5   5    5
refcoco+                  4   5   5    5
refcocog                  4   4   4    4
llava                     1   1   1    1
revos                     10  10  10   10
mevis                     4   4   4    4
ref-ytvos                 4   4   4    4
ref-sav                   4   4   4    4
video-chat                1   1   1    1
gcg-refcocog              1   5   10   10
gcg-grandf                10  50  100  100
gcg-flickr                1   5   10   10
gcg-openpsg               1   5   10   10
osprey-conversation       1   1   1    .
osprey-description        1   1   1    .
osprey-parts              1   .   .    .
osprey-short              1   .   .    .
osprey-positive-negative  1   .   .    .
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]


def shown(mixture: str) -> dict[str, float]:
    column = 1 + ["first", "second", "third", "fourth"].index(mixture)
    rows = [line.split() for line in SHOWN.strip().splitlines()]
    return {row[0]: float(row[column]) for row in rows if row[column] != "."}


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which presets change nothing of the recipe."""
    monkeypatch.setattr("sa2va.train.presets.default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr("os.cpu_count", lambda: 64)


def test_there_is_a_recipe_for_each_released_checkpoint():
    names = {model.name for model in RELEASED}
    assert {f"Sa2VA-{row[0]}" for row in ROWS} == set(RECIPES) == names
    assert {name.lower() for name in names} <= PRESETS.keys()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_recipe_is_the_published_one(row: list[str], on_gpu: None):
    name, base, template, batch_size, accumulation, gpus, rank, mixture = row
    config = preset(f"Sa2VA-{name}", ["data=D"])
    recipe = RECIPES[f"Sa2VA-{name}"]
    assert (config.model, config.sam2) == (base, "facebook/sam2-hiera-large")
    assert config.template == (None if template == "-" else template)
    assert (config.batch_size, config.accumulation) == (int(batch_size), int(accumulation))
    assert recipe.gpus == (None if gpus == "?" else int(gpus))
    assert config.trainable == TrainableOptions(None, LoraOptions(int(rank), 2 * int(rank), 0.05))
    views = {source.kind: source.options.get("views", 1) * source.repeats for source in config.data}
    assert views == shown(mixture)
    check_shared(config)
    # The reference counts micro-batches.
    assert (config.workers, config.save_every * config.accumulation) == {
        "first": (4, 2000 if name == "8B" else 1000)
    }.get(mixture, (16, 2000))  # fmt: skip
    text_only = {s.kind: s.options.get("text_only", True) for s in config.data}["llava"]
    assert text_only == (mixture != "fourth")


def check_shared(config: TrainConfig) -> None:
    """What all released configurations have in common."""
    assert (config.learning_rate, config.betas, config.weight_decay, config.decay) == (4e-5, (0.9, 0.999), 0.05, "all")
    assert (config.clip_norm, config.warmup, config.epochs, config.steps) == (1.0, 0.05, 1.0, None)
    assert (config.keep, config.log_every, config.precision, config.stage) == (2, 10, "bf16", "joint")
    assert (config.encode.max_length, config.encode.key_frames, config.prompted_frames) == (8192, 5, None)
    weights = config.loss.weights
    assert (weights.text, weights.bce, weights.dice, weights.focal, weights.iou, weights.presence) == (
        1,
        2,
        0.5,
        0,
        0,
        0,
    )
    assert (config.loss.points, config.loss.oversample, config.loss.importance) == (12544, 3.0, 0.75)
    assert (config.checkpoint_activations, config.lr_scale) == (True, {})


def test_gpus_make_the_published_batch():
    sizes = {r.batch_size * r.accumulation * r.gpus for r in RECIPES.values() if r.gpus}
    assert sizes == {256, 128}
    assert RECIPES["Sa2VA-Qwen3-VL-4B"].batch_size * RECIPES["Sa2VA-Qwen3-VL-4B"].accumulation * 16 == 128


def test_clips_and_pictures_do_not_share_a_batch():
    groups = {source.kind: source.group for source in pretraining("Sa2VA-4B", "D").data}
    clips = {kind for kind, group in groups.items() if group == "video"}
    assert clips == {"revos", "mevis", "ref-ytvos", "ref-sav", "video-chat"}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_short_name_is_a_source_that_takes_these_options(kind: str, tmp_path: Path):
    """It exists, it takes the options of the recipes, and says which files an empty folder lacks."""
    place, _ = SOURCES[kind]
    module, _, name = place.partition(":")
    assert callable(getattr(import_module(module), name))
    used = [source for recipe in RECIPES for source in pretraining(recipe, str(tmp_path)).data if source.kind == kind]
    for source in used[:1] or [SourceOptions(kind, {"root": str(tmp_path)})]:
        if kind != "synthetic":
            with pytest.raises(ValueError, match=str(tmp_path)):
                source.open()


def test_fine_tuning(on_gpu: None, tmp_path: Path):
    pictures = preset("finetune", ["model=ByteDance/Sa2VA-InternVL3-2B", "data=D"])
    assert pictures.data == (SourceOptions("annotations", {"root": "D", "views": 100}),)
    assert (pictures.batch_size, pictures.accumulation, pictures.save_every) == (2, 16, 125)
    qwen = preset("finetune", ["model=Sa2VA-Qwen2_5-VL-3B", "data=D"])
    assert (qwen.batch_size, qwen.accumulation, qwen.save_every) == (1, 4, 500)
    assert replace(qwen, model=pictures.model, batch_size=2, accumulation=16, save_every=125) == pictures
    check_shared(pictures)
    assert pictures.trainable == TrainableOptions(None, LoraOptions(128, 256, 0.05)) and pictures.sam2 is None
    clips = preset("finetune", ["model=Sa2VA-4B", "data=D", "kind=video-json"])
    assert (clips.batch_size, clips.accumulation, clips.data[0].options["views"]) == (1, 32, 100)


@pytest.mark.parametrize(("width", "narrow"), [(192, True), (256, True), (264, False), (896, False)])
def test_a_base_too_narrow_for_lora_is_trained_in_all_its_parts(tmp_path: Path, width: int, narrow: bool):
    content = json.loads((TINY / "config.json").read_text())
    content["vlm_config"]["text_config"]["hidden_size"] = width
    (tmp_path / "config.json").write_text(json.dumps(content))
    chosen = preset("finetune", [f"model={tmp_path}", "data=D"])
    assert chosen.trainable == (TrainableOptions(("all",), lora=None) if narrow else TrainableOptions())
    assert (chosen.learning_rate == 4e-5) != narrow


def test_tiny_is_trained_in_all_its_parts_unless_other_words_are_given():
    tiny = preset("finetune", ["model=tiny", "data=D"])
    assert tiny.trainable == TrainableOptions(("all",), lora=None)
    assert tiny == replace(preset("finetune", [f"model={TINY}", "data=D"]), model="tiny")
    said = ["trainable.lora.rank=8", "trainable.lora.alpha=16", "learning_rate=2e-4", "weight_decay=0.1"]
    other = preset("finetune", ["model=tiny", "data=D", *said, "trainable.parts=null"])
    assert other.trainable == TrainableOptions(None, LoraOptions(8, 16)) and other.weight_decay == 0.1
    assert (other.learning_rate, other.batch_size) == (2e-4, tiny.batch_size)


@pytest.mark.parametrize("case", ["iv25_qwen2", "iv25_internlm2", "q25", "q3"])
def test_the_width_is_read_from_the_model(checkpoint: Callable[[str], Path], case: str):
    config = Sa2VAModel.from_pretrained(checkpoint(case)).config
    assert language_width(str(checkpoint(case))) == config.get_text_config().hidden_size
    assert language_width("Sa2VA-4B") is None


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("annotations.json", [], "annotations"),
        ("annotations.json", {"images": [], "annotations": []}, "coco"),
        ("chat.jsonl", {}, "chat"),
        ("phrases.json", {}, "mask-folder"),
        ("meta_expressions.json", {"videos": {}}, "video-json"),
    ],
)
def test_own_data_are_recognised(tmp_path: Path, name: str, content: object, kind: str):
    (tmp_path / "ref_seg" / "refcoco").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"one of .*annotations\.json, .*chat.* holds refcoco: take one with kind="):
        kind_of_data(str(tmp_path))
    (tmp_path / name).write_text(json.dumps(content))
    assert kind_of_data(str(tmp_path)) == kind


def test_the_family_is_read_from_the_model(checkpoint: Callable[[str], Path]):
    cases = {"iv25_qwen2": "internvl", "iv25_internlm2": "internvl", "q25": "qwen", "q3": "qwen"}
    assert {case: family_of_model(str(checkpoint(case))) for case in cases} == cases
    assert (family_of_model("Sa2VA-4B"), family_of_model("ByteDance/Sa2VA-Qwen3-VL-4B")) == ("internvl", "qwen")


def test_what_is_overridden_is_listed():
    words = [
        "model=M",
        "data=D",
        "loss.weights.dice=1",
        "trainable.lora.rank=8",
        "data.0.repeats=3",
        "output=elsewhere",
    ]
    (recipe,), overrides = recipes_and_overrides("finetune", words)
    (table,) = changes(recipe, recipe.with_overrides(overrides), "finetune")
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    lines = [line.split("│") for line in capture.get().splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert ["loss.weights.dice", "0.5", "1.0"] in cells
    assert ["trainable.lora.rank", "128", "8"] in cells
    assert ["data.0.repeats", "1.0", "3.0"] in cells
    assert len(cells) == 3
    assert changes(recipe, replace(recipe, model="other", output="other"), "finetune") == []


# -- where a run starts ------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(checkpoint, load: Callable[[str], Sa2VAModel], tmp_path: Path) -> TrainConfig:
    """A base InternVL without the tokens of Sa2VA, and SAM 2, each in a folder of its own."""
    whole = Sa2VAModel.from_pretrained(checkpoint("iv25_qwen2"))
    tokenizer = json.loads((checkpoint("iv25_qwen2") / "tokenizer.json").read_text())
    added = {"[SEG]", "<p>", "</p>", "<vp>", "</vp>"}
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] not in added]
    whole.vlm.resize_token_embeddings(457, mean_resizing=False)
    whole.vlm.save_pretrained(tmp_path / "vlm")
    whole.sam2.save_pretrained(tmp_path / "sam2")
    (tmp_path / "vlm" / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (tmp_path / "vlm" / "tokenizer_config.json").write_text(json.dumps(settings))
    assert len(PreTrainedTokenizerFast.from_pretrained(tmp_path / "vlm")) == 457
    return TrainConfig(
        model=str(tmp_path / "vlm"),
        sam2=str(tmp_path / "sam2"),
        template="internlm2_chat",
        output=str(tmp_path / "run"),
        data=(SourceOptions("rectangles:Rectangles", {"count": 4}),),
        precision="fp32",
        workers=0,
    )


def test_a_run_starts_from_parts(parts: TrainConfig):
    assert is_base_model(parts.model)
    run = prepare(parts)
    assert run.model.config.template == "internlm2_chat" and run.processor.seg_token_id == 457
    again, _ = load_start(parts)
    assert torch.equal(run.model.projection.linear_1.weight, again.projection.linear_1.weight)
    assert {probe.id for probe in run.probes} == {Rectangles()[index].id for index in range(4)}


def test_a_start_that_does_not_fit_says_how_it_would(parts: TrainConfig, checkpoint: Callable[[str], Path]):
    with pytest.raises(ValueError, match="without SAM 2; set sam2="):
        load_start(replace(parts, sam2=None))
    whole = str(checkpoint("iv25_qwen2"))
    with pytest.raises(ValueError, match=r"no base vision-language model.*set sam2=null"):
        load_start(replace(parts, model=whole))
    released, ours = (preset("sa2va-4b", ["data=D", *words]) for words in ([], [f"model={whole}"]))
    assert released.sam2 and not ours.sam2 and not ours.template
    assert preset("sa2va-4b", ["data=D", f"model={parts.model}", "sam2=S"]).template == "phi3_chat"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["precision=fp32"], "needs LoRA and precision=bf16"),
        (["precision=bf16", "trainable.lora=null"], "needs LoRA"),
        (["precision=bf16", "fsdp=true"], "leave out sam2, fsdp and deepspeed"),
    ],
)
def test_four_bits_say_what_they_need(
    checkpoint: Callable[[str], Path], tmp_path: Path, words: list[str], message: str
):
    data = (SourceOptions("rectangles:Rectangles", {}),)
    config = TrainConfig(model=str(checkpoint("q25")), output=str(tmp_path / "run"), data=data, quantization="nf4")
    with pytest.raises(ValueError, match=message):
        prepare(config.with_overrides(words))


def test_four_bits_on_a_device_that_cannot_is_refused_before_anything_loads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sa2va.train.run.default_device", lambda: torch.device("mps"))
    data = (SourceOptions("rectangles:Rectangles", {}),)
    config = TrainConfig(model="nowhere", output="run", data=data, quantization="nf4")
    with pytest.raises(ValueError, match="for CUDA and CPU, and the device is mps; leave quantization out"):
        prepare(config)
