"""What a LoRA run leaves: an adapter that answers as the merged model does, and a folder for the reference's code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rectangles import Rectangles
from sa2va import Sa2VA, Sa2VAModel
from sa2va.checkpoint.adapter import is_adapter, open_adapter, write_adapter
from sa2va.checkpoint.conversion import convert
from sa2va.cli.convert import convert as convert_command
from sa2va.cli.merge import merge as merge_command
from sa2va.data.collate import Collator
from sa2va.data.encode import encode_sample
from sa2va.model.types import Batch
from sa2va.train.config import SourceOptions, TrainConfig
from sa2va.train.losses import LossOptions
from sa2va.train.run import prepare, train
from sa2va.train.trainable import LoraOptions, TrainableOptions


def tuned(model: Path, folder: Path, **changes: object) -> Path:
    """A short run whose every trained weight moves."""
    settings = TrainConfig(
        report_to=(),
        model=str(model),
        output=str(folder),
        data=(SourceOptions("rectangles:Rectangles", {"count": 8}),),
        trainable=TrainableOptions(lora=LoraOptions(rank=4, alpha=8, dropout=0.1)),
        loss=LossOptions(points=None),
        steps=3,
        accumulation=1,
        learning_rate=1e-2,
        precision="fp32",
        checkpoint_activations=False,
        workers=0,
        save_every=100,
    )
    output = train(prepare(replace(settings, **changes)), progress=False)
    assert output is not None
    return output


@pytest.fixture(scope="module")
def run(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned(checkpoint("iv25_qwen2"), tmp_path_factory.mktemp("tuned") / "run")


def batch_of(sa2va: Sa2VA) -> Batch:
    samples = [encode_sample(Rectangles()[index], sa2va.processor) for index in (0, 1, 2)]
    return Collator.of(sa2va.processor)(samples)


def outputs(sa2va: Sa2VA) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        output = sa2va.model(batch_of(sa2va))
    return output.logits, output.masks.logits


def test_an_adapter_answers_as_the_merged_model_does(
    run: Path, checkpoint, sa2va: Sa2VA, tmp_path: Path, record_property
):
    """Beside the weights or in them, by name of the base or by the adapter's own knowledge of it."""
    convert(run / "adapter", tmp_path / "merged")
    merged = outputs(Sa2VA.from_pretrained(tmp_path / "merged"))
    worst = 0.0
    for apart in (
        Sa2VA.from_pretrained(run / "adapter"),
        Sa2VA.from_pretrained(checkpoint("iv25_qwen2"), adapter=run / "adapter"),
    ):
        assert any("lora_A" in name for name, _ in apart.model.named_parameters())
        for ours, theirs in zip(outputs(apart), merged, strict=True):
            worst = max(worst, (((ours - theirs).abs().max() / theirs.abs().max()).item()))
    record_property("merge error", f"{worst:.1e}")
    assert worst < 1e-5
    assert not torch.allclose(outputs(sa2va)[0], merged[0], atol=0.1)


def test_merging_gives_the_model_that_the_run_left(run: Path, tmp_path: Path):
    convert(run / "adapter", tmp_path / "merged")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "merged", run))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_an_adapter_is_small_and_in_the_format_of_peft(run: Path, checkpoint, tmp_path: Path):
    """peft itself loads it onto the base model and computes the same."""
    peft = pytest.importorskip("peft")
    base = Sa2VA.from_pretrained(checkpoint("iv25_qwen2"))
    names = set(load_file(run / "adapter" / "adapter_model.safetensors"))
    assert all(name.startswith("base_model.model.") for name in names)
    assert not any("vision_encoder" in name or "vision_tower" in name for name in names)
    wrapped = peft.PeftModel.from_pretrained(base.model, str(run / "adapter"))
    with torch.no_grad():
        theirs = wrapped.base_model.model(batch_of(base))
    ours = outputs(Sa2VA.from_pretrained(run))
    torch.testing.assert_close(theirs.logits, ours[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs.masks.logits, ours[1], atol=1e-3, rtol=1e-4)


def test_an_adapter_of_another_model_is_refused(run: Path, checkpoint, tmp_path: Path):
    other = checkpoint("q25")
    for attempt in (
        lambda: Sa2VA.from_pretrained(other, adapter=run / "adapter"),
        lambda: convert(run / "adapter", tmp_path / "out", base=other),
    ):
        with pytest.raises(ValueError, match=r"does not fit this model: '.*' is \(.*\) there and missing here"):
            attempt()
    assert not (tmp_path / "out").exists()


def copied(run: Path, folder: Path, **changes: object) -> Path:
    folder.mkdir()
    content = json.loads((run / "adapter" / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(content | changes))
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": "/gone/away"}, "trained on /gone/away, which is not there; name the model"),
        ({"base_model_name_or_path": None}, "a model that it does not name"),
        ({"use_dora": True}, r"another kind of adapter \(LORA, \['use_dora'\]\)"),
        ({"peft_type": "IA3"}, "expected plain LoRA"),
        ({"r": 8}, "rank 4 where 8 is expected"),
    ],
)
def test_what_is_wrong_with_an_adapter_is_said(run: Path, tmp_path: Path, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Sa2VA.from_pretrained(copied(run, tmp_path / "adapter", **changes))


def test_half_an_adapter_is_damaged(run: Path, tmp_path: Path):
    folder = copied(run, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="its other half"):
        open_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="it has no adapter_model"):
        open_adapter(folder)
    assert is_adapter(folder) and not is_adapter(run)


def test_an_adapter_has_a_rank_of_at_least_one(tmp_path: Path):
    for rank in (1, 0):
        pair = {"linear.lora_A.weight": torch.ones(rank, 4), "linear.lora_B.weight": torch.ones(3, rank)}
        described = {"base": "", "alpha": 2.0, "dropout": 0.0, "targets": "linear", "whole_modules": ()}
        write_adapter(tmp_path / str(rank), pair, rank=rank, **described)
    assert open_adapter(tmp_path / "1").modules == ["linear"]
    with pytest.raises(ValueError, match="expected numbers as r and lora_alpha, got 0 and"):
        open_adapter(tmp_path / "0")


def test_the_commands(run: Path, checkpoint, tmp_path: Path):
    app = typer.Typer()
    app.command("merge")(merge_command)
    app.command("convert")(convert_command)
    runner = CliRunner()
    result = runner.invoke(app, ["merge", str(run / "adapter"), str(tmp_path / "merged"), "--quiet"])
    assert result.exit_code == 0, result.output
    result = runner.invoke(
        app, ["convert", str(run / "adapter"), str(tmp_path / "released"), "--to", "released", "--dtypes", "released"]
    )
    assert result.exit_code == 0, result.output
    ours, theirs = (Sa2VAModel.from_pretrained(tmp_path / name, dtype="float32") for name in ("merged", "released"))
    rounded = {n for n, p in ours.state_dict().items() if not torch.equal(p, theirs.state_dict()[n])}
    assert all(name.startswith("vlm.model.vision_tower.") for name in rounded)
    result = runner.invoke(app, ["merge", str(run), str(tmp_path / "again")])
    assert result.exit_code == 2 and "is no adapter" in result.stderr
    result = runner.invoke(app, ["merge", str(run / "adapter"), str(tmp_path / "again"), "--base", str(tmp_path)])
    assert result.exit_code == 2 and "no config.json" in result.stderr


# -- for users of the reference's code ---------------------------------------------------------------------------------


def test_released_dtypes(run: Path, tmp_path: Path):
    """bfloat16 for InternVL's vision tower, float32 for all else, as in the files of the released checkpoints."""
    convert(run, tmp_path / "out", "released", dtypes="released")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    towers = {t.dtype for name, t in tensors.items() if name.startswith("vision_model.")}
    others = {t.dtype for name, t in tensors.items() if not name.startswith("vision_model.")}
    assert (towers, others) == ({torch.bfloat16}, {torch.float32})
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.parametrize(
    "case",
    [
        "iv25_qwen2",
        pytest.param("iv25_internlm2", marks=pytest.mark.slow),
        pytest.param("q25", marks=pytest.mark.slow),
        pytest.param("q3", marks=pytest.mark.slow),
    ],
)
def test_a_trained_model_in_the_released_layout(checkpoint, case: str, tmp_path: Path):
    """Names, shapes and config fields of what it started from, and the files that the reference's loaders ask for."""
    start = checkpoint(case)
    output = tuned(start, tmp_path / "run", steps=1)
    convert(output, tmp_path / "out", "released")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", start))
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert {name: t.dtype for name, t in ours.items()} == {name: t.dtype for name, t in theirs.items()}
    config, before = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", start))
    for key in ("model_type", "architectures", "template"):
        assert config[key] == before[key]
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= files
    tokenizer = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert not {"backend", "extra_special_tokens", "is_local"} & tokenizer.keys()
    assert "processor_config.json" not in files
    if case.startswith("q"):
        pixels = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
        assert {"processor_class", "image_processor_type", "image_mean", "size", "patch_size"} <= pixels.keys()
        assert {"video_preprocessor_config.json", "chat_template.jinja"} <= files
    again = Sa2VAModel.from_pretrained(tmp_path / "out").state_dict()
    own = Sa2VAModel.from_pretrained(output).state_dict()
    assert all(torch.equal(again[name], own[name]) for name in own)


@pytest.mark.slow
def test_a_base_in_four_bits_trains_and_leaves_an_adapter_for_the_whole_one(checkpoint, tmp_path: Path):
    base = checkpoint("iv25_qwen2")
    config = TrainConfig(
        report_to=(),
        model=str(base),
        output=str(tmp_path / "run"),
        data=(SourceOptions("rectangles:Rectangles", {"count": 8}),),
        trainable=TrainableOptions(lora=LoraOptions(rank=4, alpha=8)),
        quantization="nf4",
        steps=3,
        accumulation=1,
        learning_rate=1e-2,
        workers=0,
    )
    run = prepare(config)
    stored = {name for name, weight in run.model.named_parameters() if weight.dtype == torch.uint8}
    assert stored and all(".language_model.layers." in name and "lora" not in name for name in stored)
    train(run, progress=False)
    assert is_adapter(tmp_path / "run")
    learnt = outputs(Sa2VA.from_pretrained(tmp_path / "run"))
    untrained = outputs(Sa2VA.from_pretrained(base))
    assert not torch.allclose(learnt[0], untrained[0], atol=0.1)
    assert not torch.allclose(learnt[1], untrained[1], atol=0.1)
