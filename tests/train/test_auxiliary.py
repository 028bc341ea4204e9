"""Auxiliary losses: the example of the docs trains, says what it does, and leaves nothing in what is saved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rectangles import Rectangles
from sa2va import Sa2VA
from sa2va.data.collate import Collator
from sa2va.data.mixture import EncodedDataset
from sa2va.train.auxiliary import AuxiliaryOptions
from sa2va.train.checkpointing import changed_settings
from sa2va.train.config import SourceOptions, TrainConfig
from sa2va.train.losses import LossOptions, LossWeights
from sa2va.train.parsing import plain
from sa2va.train.run import encoder, prepare, train
from sa2va.train.trainable import LoraOptions, TrainableOptions
from sa2va.train.trainer import Sa2VATrainer

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture
def area(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuxiliaryOptions:
    """The file of the docs, where a run finds it."""
    block = re.search(r"^```python\n(# object_area\.py\n.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    (tmp_path / "object_area.py").write_text(block[1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "object_area", raising=False)
    return AuxiliaryOptions("object_area:ObjectArea", {"area": 0.25})


@pytest.fixture
def tune(checkpoint: Callable[[str], Path], tmp_path: Path, read_once: None) -> TrainConfig:
    return TrainConfig(
        model=str(checkpoint("iv25_qwen2")),
        output=str(tmp_path / "run"),
        data=(SourceOptions("rectangles:Rectangles", {"count": 8, "text_every": 4}),),
        trainable=TrainableOptions(lora=LoraOptions(rank=4, alpha=8, dropout=0.0)),
        loss=LossOptions(points=500),
        steps=2,
        batch_size=2,
        accumulation=1,
        precision="fp32",
        checkpoint_activations=False,
        workers=0,
        log_every=1,
        save_every=1,
        report_to=(),
    )


def names_in(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


def test_the_example_of_the_docs_trains_and_leaves_no_head_behind(
    tune: TrainConfig, area: AuxiliaryOptions, capfd: pytest.CaptureFixture[str]
):
    run = prepare(replace(tune, auxiliary=(area,)))
    assert [(row.how, row.trained > 0) for row in run.plan if row.part == "auxiliary"] == [("full", True)]
    before = {name: p.detach().clone() for name, p in run.model.named_parameters() if "auxiliary." in name}
    train(run, progress=False)
    capfd.readouterr()
    output = Path(tune.output)
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    for row in (row for row in history if "loss" in row):
        assert 0 < row["area"] < 1
        total = row["text"] + 2 * row["bce"] + 0.5 * row["dice"] + 0.25 * row["area"]
        assert row["loss"] == pytest.approx(total, rel=1e-3)
    assert all(not torch.equal(tensor, run.model.get_parameter(name)) for name, tensor in before.items())
    assert before.keys() <= names_in(output / "checkpoint-1" / "trained.safetensors")  # a run that is resumed has them
    for path in (output / "model.safetensors", *(output / "adapter").glob("*.safetensors")):
        assert not any("auxiliary" in name for name in names_in(path)), path
    assert "auxiliary" not in (output / "adapter" / "adapter_config.json").read_text()
    Sa2VA.from_pretrained(output)
    Sa2VA.from_pretrained(output / "adapter")


def test_targets_come_to_the_loss_and_masks_that_no_loss_needs_are_not_drawn(tune: TrainConfig, area: AuxiliaryOptions):
    config = replace(tune, auxiliary=(area,), loss=LossOptions(LossWeights(text=0, bce=0, dice=0)))
    run = prepare(config)
    encode = encoder(config, run.processor)
    dataset = EncodedDataset(run.parts, encode, seed=0)
    trainer = Sa2VATrainer(run.model, run.processor, config, dataset, auxiliary=run.auxiliary)
    source, rng = Rectangles(text_every=4), torch.Generator()
    batch = Collator.of(run.processor)([encode(source[index], rng) for index in (1, 2)])
    shares = [torch.tensor([mask.mean() for mask in source[index].masks]).float() for index in (1, 2)]
    torch.testing.assert_close(list(batch.to("cpu").extras["ObjectArea"]), shares)
    loss, output = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert output.masks is None and output.seg_states is not None
    says = run.auxiliary[0].heads(output.seg_states)[:, 0].sigmoid()
    assert loss.item() == pytest.approx(0.25 * (says - torch.cat(shares)).abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([{"loss": "nowhere:Loss", "weights": {"area": 1}}], "auxiliary loss 'nowhere:Loss' cannot be imported"),
        ([{"loss": "area", "weights": {"area": 1}}], r"'area' is not of the form 'package\.module:name'"),
        ([{"loss": "rectangles:Rectangles", "weights": {"area": 1}}], r"subclass of .*AuxiliaryLoss"),
        ([{"loss": "object_area:ObjectArea", "weights": {"aria": 1}}], r"has the losses \['area'\].*got {'aria': 1.0}"),
        ([{"loss": "object_area:ObjectArea"}], "give weights above 0"),
        ([{"loss": "object_area:ObjectArea", "weights": {"area": 1}}] * 2, r"several losses are called \['area'\]"),
    ],
)
def test_what_is_no_loss_says_why(tune: TrainConfig, area: AuxiliaryOptions, options: list, message: str):
    with pytest.raises(ValueError, match=message):
        tune.with_overrides([f"auxiliary={json.dumps(options)}"]).check()


def test_the_segmenter_has_no_text_to_learn_from(tune: TrainConfig, area: AuxiliaryOptions):
    parts = TrainableOptions(("mask_decoder",), lora=None)
    with pytest.raises(ValueError, match="does not run the language model, which a loss in auxiliary needs"):
        replace(tune, stage="segmenter", trainable=parts, auxiliary=(area,)).check()


def test_a_configuration_from_before_there_were_auxiliary_losses(tune: TrainConfig, tmp_path: Path):
    settings = plain(tune)
    del settings["auxiliary"]
    settings["loss"]["weights"] |= {"attention": 0.0, "mentions": 0.0, "words": 0.0, "recall": 0.0}
    path = tmp_path / "train_config.json"
    path.write_text(json.dumps(settings))
    assert TrainConfig.from_file(path) == tune
    assert changed_settings(tune, tmp_path) == {}
    settings["loss"]["weights"]["attention"] = 0.5
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"\['attention'\] in loss\.weights; these are auxiliary losses now"):
        TrainConfig.from_file(path)
