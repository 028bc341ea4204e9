"""Training: what is trained, what a step is, and that neither a kill nor a second process changes it."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import typer
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from rectangles import Rectangles
from sa2va import Sa2VA, Sa2VAModel
from sa2va.atomic import sole_writer
from sa2va.cli.train import train as command
from sa2va.data.collate import Collator
from sa2va.data.encode import EncodeOptions, encode_clicks, encode_sample
from sa2va.data.mixture import EncodedDataset
from sa2va.data.sample import Sample
from sa2va.model.types import Batch
from sa2va.train.checkpointing import changed_settings, last_checkpoint
from sa2va.train.config import SourceOptions, TrainConfig
from sa2va.train.estimate import estimate_memory
from sa2va.train.losses import LossOptions, LossWeights
from sa2va.train.parsing import plain
from sa2va.train.presets import finetune, preset
from sa2va.train.run import TrainingRun, encoder, prepare, train
from sa2va.train.summary import overview
from sa2va.train.trainable import (
    PARTS,
    LoraOptions,
    TrainableOptions,
    checkpoint_activations,
    make_trainable,
    part_of,
)
from sa2va.train.trainer import Sa2VATrainer, learning_rate_factor

HERE = Path(__file__).parents[1]
SMALL_LORA = LoraOptions(rank=4, alpha=8, dropout=0.0)
EVERYTHING = TrainableOptions(parts=("all",), lora=None)


def config(model: Path, folder: Path, **changes: object) -> TrainConfig:
    """A run of seconds on the small checkpoint of the fixtures."""
    base = TrainConfig(
        model=str(model),
        output=str(folder),
        data=(SourceOptions("rectangles:Rectangles", {"count": 24, "text_every": 4}),),
        trainable=TrainableOptions(lora=SMALL_LORA),
        loss=LossOptions(points=500),
        steps=3,
        batch_size=2,
        accumulation=2,
        learning_rate=1e-3,
        precision="fp32",
        checkpoint_activations=False,
        workers=0,
        log_every=1,
        save_every=2,
        report_to=(),
    )
    return replace(base, **changes)


@pytest.fixture
def tune(checkpoint: Callable[[str], Path], tmp_path: Path, read_once: None) -> Callable[..., TrainConfig]:
    return partial(config, checkpoint("iv25_qwen2"), tmp_path / "run")


@pytest.fixture
def quiet(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Keeps progress bars out of the report."""
    yield
    capfd.readouterr()


def trainer_of(run: TrainingRun) -> Sa2VATrainer:
    dataset = EncodedDataset(run.parts, encoder(run.config, run.processor), seed=0)
    return Sa2VATrainer(run.model, run.processor, run.config, dataset)


def batch_of(run: TrainingRun, *indices: int, frames: int = 1, text_every: int = 0) -> Batch:
    source = Rectangles(frames=frames, text_every=text_every)
    return Collator.of(run.processor)([encode_sample(source[index], run.processor) for index in indices])


def losses_of(folder: Path) -> list[dict]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [row for row in history if "loss" in row]


# -- what is trained ---------------------------------------------------------------------------------------------------

RELEASED = {
    "iv25_qwen2": {"projector", "language", "embeddings", "head", "projection", "mask_decoder"},
    "q25": {"language", "embeddings", "head", "projection", "mask_decoder"},
    "q3": {"language", "embeddings", "head", "projection", "mask_decoder"},
}


@pytest.mark.parametrize("case", RELEASED)
def test_the_released_recipe_per_family(load: Callable[[str], Sa2VAModel], case: str):
    model = deepcopy(load(case)).bfloat16()
    plan = make_trainable(model, TrainableOptions(lora=SMALL_LORA))
    assert {row.part for row in plan if row.trained} == RELEASED[case]
    assert {row.part: row.how for row in plan}["language"] == "lora"
    text = model.config.get_text_config()
    adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert len(adapted) == 7 * text.num_hidden_layers and all("language_model.layers" in name for name in adapted)
    for name, parameter in model.named_parameters():
        trained = part_of(name) in RELEASED[case] and (part_of(name) != "language" or "lora" in name)
        assert parameter.requires_grad == trained, name
        assert parameter.dtype == (torch.float32 if trained else torch.bfloat16), name
    assert sum(row.total for row in plan) == sum(parameter.numel() for parameter in model.parameters())


def test_all_parts_beside_lora_are_all_but_the_language_model(load: Callable[[str], Sa2VAModel]):
    plan = make_trainable(deepcopy(load("iv25_qwen2")), TrainableOptions(("all",), lora=SMALL_LORA))
    assert {row.part: row.how for row in plan} == {row.part: "full" for row in plan} | {"language": "lora"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TrainableOptions(parts=("decoder",)), r"names \['decoder'\].*it has \['vision', 'projector'"),
        (TrainableOptions(parts=("language",)), "LoRA keeps the language model frozen"),
        (TrainableOptions(parts=(), lora=None), "nothing is trained"),
    ],
)
def test_impossible_plans_say_why(load: Callable[[str], Sa2VAModel], options: TrainableOptions, message: str):
    with pytest.raises(ValueError, match=message):
        make_trainable(deepcopy(load("iv25_qwen2")), options)


def test_every_parameter_belongs_to_a_part(two_decoders: Path):
    model = Sa2VAModel.from_pretrained(two_decoders)
    assert {part_of(name) for name, _ in model.named_parameters()} == set(PARTS) - {"auxiliary"}


# -- one step ----------------------------------------------------------------------------------------------------------


def gradients(trainer: Sa2VATrainer, batch: Batch) -> dict[str, Tensor | None]:
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_text_alone_leaves_every_parameter_in_the_graph_with_no_gradient(tune: Callable[..., TrainConfig]):
    trainer = trainer_of(prepare(tune(trainable=EVERYTHING, prompted_frames=1)))
    for index, batch in enumerate((batch_of(trainer, 0, 1, text_every=1), batch_of(trainer, 0, 1, frames=3))):
        for name, gradient in gradients(trainer, batch).items():
            assert gradient is not None, name
            if index == 0 and part_of(name) not in ("language", "embeddings", "head"):
                assert not gradient.any(), name
    reached = {part_of(name) for name, gradient in gradients(trainer, batch).items() if gradient.any()}
    assert reached == set(PARTS) - {"original_mask_decoder", "auxiliary"}


def test_what_is_not_finite_and_not_used_does_not_spread(tune: Callable[..., TrainConfig]):
    trainer = trainer_of(prepare(tune()))
    with torch.no_grad():
        trainer.model.projection.linear_1.bias.fill_(math.inf)
    loss = trainer.compute_loss(trainer.model, batch_of(trainer, 0, text_every=1))
    assert torch.isfinite(loss)


def test_clicks_train_the_segmenter_alone(tune: Callable[..., TrainConfig]):
    parts = TrainableOptions(parts=("image_encoder", "prompt_encoder", "mask_decoder", "memory"), lora=None)
    weights = LossWeights(text=0, bce=0, dice=1, focal=20, iou=1, presence=1)
    run = prepare(
        tune(
            stage="segmenter",
            trainable=parts,
            loss=LossOptions(weights=weights, points=None, candidate="best"),
            prompted_frames=1,
            data=(SourceOptions("rectangles:Rectangles", {"frames": 3}),),
        )
    )
    trainer = trainer_of(run)
    batch = Collator.of(run.processor)([trainer.dataset[visit] for visit in list(trainer._get_train_sampler())[:2]])
    assert batch.points is not None and batch.input_ids.shape == (2, 0)
    found = gradients(trainer, batch)
    reached = {part_of(name) for name, gradient in found.items() if gradient is not None and gradient.any()}
    assert reached == {"image_encoder", "prompt_encoder", "mask_decoder", "memory"}


@pytest.mark.parametrize(("policy", "shown", "tracked"), [("uniform", [0, 2], [1]), ("first", [0, 1], [2])])
def test_the_frames_that_the_policy_chooses_are_prompted(
    tune: Callable[..., TrainConfig], policy: str, shown: list[int], tracked: list[int]
):
    encode = EncodeOptions(key_frame_policy=policy)
    trainer = trainer_of(prepare(tune(prompted_frames=2, encode=encode, precision="fp32")))
    batch = batch_of(trainer, 0, frames=3)
    trainer.model.eval()
    with torch.no_grad():
        _, carried = trainer.compute_loss(trainer.model, batch, return_outputs=True)
        drawn = trainer.model(batch)
    carried, drawn = (output.masks.logits.unflatten(0, (-1, 3)) for output in (carried, drawn))
    torch.testing.assert_close(carried[:, shown], drawn[:, shown], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(carried[:, tracked], drawn[:, tracked], atol=1e-2)


def test_a_click_moves_the_mask(sa2va: Sa2VA):
    import numpy as np

    encoded = encode_clicks(Rectangles(frames=2)[1], sa2va.processor, np.random.default_rng(0))
    batch = Collator.of(sa2va.processor)([encoded])
    elsewhere = replace(batch, points=batch.points.flip(-1))
    with torch.no_grad():
        here, there = sa2va.model(batch).masks, sa2va.model(elsewhere).masks
        through_memory = sa2va.model(batch, prompted=lambda count: [0]).masks
    assert len(here.best) == 2 * 2 and not torch.equal(here.logits, there.logits)
    first = [0, 2]  # pairs are ordered by object, then by frame
    torch.testing.assert_close(through_memory.logits[first], here.logits[first], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(through_memory.logits[[1, 3]], here.logits[[1, 3]], atol=1e-2)


def test_recomputed_activations_give_the_same_gradients(tune: Callable[..., TrainConfig]):
    trainer = trainer_of(prepare(tune(trainable=EVERYTHING)))
    batch = batch_of(trainer, 0, 1)
    trainer.model.train()
    torch.manual_seed(0)
    kept = {name: gradient.clone() for name, gradient in gradients(trainer, batch).items()}
    checkpoint_activations(trainer.model)
    trainer._micro_batch = 0
    torch.manual_seed(0)
    for name, gradient in gradients(trainer, batch).items():
        torch.testing.assert_close(gradient, kept[name], atol=1e-5, rtol=1e-4)


def test_averages_over_a_step_do_not_depend_on_its_micro_batches(tune: Callable[..., TrainConfig], quiet: None):
    loss = LossOptions(points=None, average="step")
    runs = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        output = Path(tune().output) / str(batch_size)
        run = prepare(tune(output=str(output), batch_size=batch_size, accumulation=accumulation, loss=loss, steps=2))
        train(run)
        runs.append(losses_of(output))
    for large, small in zip(*runs, strict=True):
        for name in ("loss", "text", "bce", "dice", "grad_norm"):
            assert small[name] == pytest.approx(large[name], rel=2e-3), name


def test_the_schedule():
    factor = partial(learning_rate_factor, steps=100, warmup=5)
    assert factor(0) == pytest.approx(1e-5)
    assert factor(1) == pytest.approx(1e-5 + (1 - 1e-5) / 5)
    assert factor(5) == 1
    assert factor(5 + 95 / 2) == pytest.approx(0.5)
    assert factor(100) == pytest.approx(0)


def test_groups_have_their_own_rate_and_decay(tune: Callable[..., TrainConfig]):
    run = prepare(tune(lr_scale={"mask_decoder": 0.1}, decay="matrices"))
    groups = trainer_of(run).create_optimizer().param_groups
    rates = {round(group["lr"] / 1e-3, 6) for group in groups}
    assert rates == {1.0, 0.1} and {group["weight_decay"] for group in groups} == {0.05, 0.0}
    flat = [p for group in groups if not group["weight_decay"] for p in group["params"]]
    assert flat and all(p.ndim == 1 for p in flat)
    released = trainer_of(prepare(tune())).create_optimizer().param_groups
    assert [group["weight_decay"] for group in released] == [0.05]


# -- whole runs --------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model_that_loads_and_answers(tune: Callable[..., TrainConfig], quiet: None):
    """LoRA is merged on the way out, old checkpoints go, and the settings lie beside the weights."""
    settings = tune(steps=3, save_every=1, accumulation=1, checkpoint_activations=True)
    run = prepare(settings)
    output = train(run)
    assert output is not None
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert TrainConfig.from_file(output / "train_config.json") == settings
    history = losses_of(output)
    assert [row["step"] for row in history] == [1, 2, 3]
    assert {"text", "bce", "dice", "grad_norm", "learning_rate"} <= history[0].keys()
    assert history[-1]["text"] < history[0]["text"]

    trained, loaded = run.model.eval(), Sa2VA.from_pretrained(output, device="cpu")
    batch = batch_of(run, 0, 1)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(batch).logits, trained(batch).logits, atol=1e-4, rtol=1e-4)
    assert loaded.segment(Rectangles()[0].picture(0), "the red one", max_new_tokens=4).raw_text
    assert "use_cache" not in json.loads((output / "config.json").read_text())


def test_bfloat16_trains_float32_masters(tune: Callable[..., TrainConfig], quiet: None):
    settings = tune(precision="bf16", steps=2, accumulation=1)
    output = train(prepare(settings))
    assert output is not None
    saved = load_file(output / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    exact = load_file(output / "checkpoint-2" / "trained.safetensors")
    assert {tensor.dtype for tensor in exact.values()} == {torch.float32}
    assert Sa2VAModel.from_pretrained(output).dtype == torch.bfloat16
    assert all(math.isfinite(row["loss"]) for row in losses_of(output))


def test_a_dry_run_leaves_nothing(tune: Callable[..., TrainConfig], quiet: None):
    run = prepare(tune(steps=1000))
    before = sorted(HERE.parent.iterdir())
    assert train(run, dry_run=True) is None
    assert not Path(run.config.output).exists() and sorted(HERE.parent.iterdir()) == before


def test_a_run_that_is_over_is_not_repeated(tune: Callable[..., TrainConfig], quiet: None):
    notes: list[str] = []
    output = train(prepare(tune(steps=2, accumulation=1)))
    assert output is not None
    weights = load_file(output / "model.safetensors")
    train(prepare(tune(steps=2, accumulation=1, learning_rate=1.0)), note=notes.append)
    again = load_file(output / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert any("checkpoint-2" in line for line in notes) and any("learning_rate was 0.001" in line for line in notes)
    with pytest.raises(ValueError, match="resume=true"):
        train(prepare(tune(resume=False)))


def test_a_signal_ends_a_run_after_the_step_in_hand_which_is_saved(
    tune: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, quiet: None
):
    settings, notes = tune(steps=3, accumulation=1, save_every=1000), []
    run, handler = prepare(settings), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        real, shown = Rectangles.__getitem__, iter(range(100))

        def interrupted(source: Rectangles, index: int) -> Sample:
            if next(shown) == settings.batch_size * settings.accumulation + 1:  # in the second step
                signal.raise_signal(signal.SIGTERM)
            return real(source, index)

        patched.setattr(Rectangles, "__getitem__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(run, note=notes.append)
    checkpoint = last_checkpoint(settings.output, 1)
    assert checkpoint is not None and 1 <= int(checkpoint.name.removeprefix("checkpoint-")) <= 2
    assert any(str(checkpoint) in note for note in notes)
    assert not (Path(settings.output) / "model.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) is handler
    train(prepare(settings))
    assert (Path(settings.output) / "model.safetensors").is_file()


def test_a_full_disk_leaves_no_half_checkpoint_and_the_run_goes_on_when_there_is_room(
    tune: Callable[..., TrainConfig], no_room: Callable[[int], AbstractContextManager[None]], quiet: None
):
    settings, notes = tune(trainable=EVERYTHING, steps=2, save_every=1, batch_size=1, accumulation=1), []
    output = train(prepare(replace(settings, steps=1)))
    assert output is not None
    size = (output / "checkpoint-1" / "optimizer.pt").stat().st_size
    with pytest.raises(OSError, match="File too large") as caught, no_room(size - 1):
        train(prepare(settings), note=notes.append)
    assert caught.value.filename == str(output / "checkpoint-2" / "optimizer.pt")  # which torch does not tell
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-1"]
    assert "checkpoint-1 is whole" in notes[-1]
    train(prepare(settings))
    assert last_checkpoint(output, 1) == output / "checkpoint-2"


def test_what_a_killed_run_left_of_a_checkpoint_is_deleted(tune: Callable[..., TrainConfig], quiet: None):
    settings, notes = tune(steps=1, save_every=1), []
    output = Path(settings.output)
    train(prepare(settings))
    for half, name in ((0, "optimizer.pt"), (7, "trainer_state.json")):  # half deleted, half written
        (output / f"checkpoint-{half}").mkdir()
        (output / f"checkpoint-{half}" / name).write_text("{}")
    train(prepare(replace(settings, steps=2)), note=notes.append)
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert sum("was not whole" in note for note in notes) == 2


def test_a_second_run_in_a_folder_is_refused(tune: Callable[..., TrainConfig]):
    run = prepare(tune())
    output = Path(run.config.output)
    output.mkdir()
    with sole_writer(output), pytest.raises(ValueError, match=f"another process is writing to {output}"):
        train(run)
    assert not list(output.iterdir())


def test_curves_go_to_tensorboard_unless_told_otherwise(tune: Callable[..., TrainConfig], quiet: None):
    assert tune(report_to=None).trackers == ("tensorboard",)
    assert tune().with_overrides(["report_to=tensorboard"]).trackers == ("tensorboard",)
    assert tune().with_overrides(["report_to=[]"]).trackers == ()
    train(prepare(tune(report_to=None, steps=1, accumulation=1)))
    assert list(Path(tune().output).rglob("events.out.tfevents.*"))


def test_what_is_held_out_is_not_trained_on_and_its_losses_are_logged(
    tune: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, quiet: None
):
    monkeypatch.setattr(Rectangles, "key", lambda source, index: f"picture {index % 12}", raising=False)
    run = prepare(tune(validation=0.3, steps=2, accumulation=1, save_every=1))
    (kept,), (held,) = ([part.source for part in side] for side in (run.parts, run.validation))
    ids = [{int(source[index].id.split("-")[-1]) % 12 for index in range(len(source))} for source in (kept, held)]
    assert ids[0] | ids[1] == set(range(12)) and not ids[0] & ids[1] and len(held) == len(ids[1])
    train(run)
    history = json.loads((Path(run.config.output) / "trainer_state.json").read_text())["log_history"]
    logged = [row for row in history if "eval_loss" in row]
    assert [row["step"] for row in logged] == [1, 2]
    assert all(math.isfinite(row["eval_bce"]) and row["eval_loss"] > 0 for row in logged)
    with pytest.raises(ValueError, match="validation must be between"):
        tune(validation=1.0).check()


def test_validation_changes_nothing_of_what_is_learnt(
    tune: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, quiet: None
):
    monkeypatch.setattr(Rectangles, "key", lambda source, index: str(index), raising=False)
    weights = []
    for every in (1, 1000):
        run = tune(validation=0.3, steps=2, accumulation=1, save_every=every, output=f"{tune().output}-{every}")
        train(prepare(run))
        weights.append(load_file(Path(f"{tune().output}-{every}") / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_loss_that_is_not_a_number_stops_the_run(tune: Callable[..., TrainConfig], quiet: None):
    run = prepare(tune())
    with torch.no_grad():
        run.model.vlm.lm_head.weight.fill_(math.nan)
    with pytest.raises(ValueError, match=r"the loss is nan at step 1.*lower learning_rate"):
        train(run)


def test_too_little_memory_says_what_takes_less(
    tune: Callable[..., TrainConfig], quiet: None, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.\nSee the documentation")

    monkeypatch.setattr(Sa2VATrainer, "compute_loss", full)
    with pytest.raises(ValueError, match=r"too little memory \(Tried to allocate 2.00 GiB.\); set batch_size=1"):
        train(prepare(tune()))


def test_each_log_says_how_far_the_run_is(tune: Callable[..., TrainConfig], capfd: pytest.CaptureFixture[str]):
    """Whole lines without a bar where nobody looks."""
    train(prepare(tune(steps=2, accumulation=1)), progress=True)
    lines = [line for line in capfd.readouterr().err.splitlines() if "samples/s" in line]
    assert [line.split(":")[0] for line in lines] == ["step 1 of 2", "step 2 of 2"]
    assert "dice" in lines[0] and lines[1].endswith("00:00 left") and "%" not in "".join(lines)


def test_overview_and_memory(tune: Callable[..., TrainConfig]):
    run = prepare(tune())
    console = Console(width=120, record=True, file=io.StringIO())
    for part in overview(run, processes=2):
        console.print(part)
    text = console.export_text()
    assert "3 steps of 8 samples (2 x 2 x 2 processes)" in text
    assert "mask_decoder" in text and "1,651,621" in text and "rectangles:Rectangles" in text
    width = run.model.config.get_text_config().hidden_size
    assert f"LoRA: its rank of 4 has {8 / width:.0%} of the parameters" in " ".join(text.split())
    estimate = estimate_memory(run.model, run.plan, run.probes, run.config)
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    assert (estimate.gradients, estimate.optimizer) == (4 * trained, 8 * trained)


def test_the_overview_says_why_nothing_is_trained_by_lora(tune: Callable[..., TrainConfig]):
    run = prepare(tune(trainable=EVERYTHING))
    width = run.model.config.get_text_config().hidden_size
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(overview(run)[0])
    said = f"no LoRA: a rank of 128 would have {256 / width:.0%} of the parameters of a matrix {width} wide"
    assert said in " ".join(console.export_text().split())


def test_the_estimate_of_activations_is_near_what_is_kept(tune: Callable[..., TrainConfig]):
    for trainable in (TrainableOptions(lora=SMALL_LORA), EVERYTHING):
        run = prepare(tune(trainable=trainable, loss=LossOptions(points=None), batch_size=4))
        trainer = trainer_of(run)
        weights, kept = {p.data_ptr() for p in run.model.parameters()}, {}

        def keep(tensor: Tensor, weights: set = weights, kept: dict = kept) -> Tensor:
            if tensor.data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = trainer.compute_loss(run.model, batch_of(run, 2, 5, 8, 11))
        estimate = estimate_memory(run.model, run.plan, run.probes, run.config).activations
        assert 0.5 < estimate / sum(kept.values()) < 2, loss


# -- processes ---------------------------------------------------------------------------------------------------------


TWO_PROCESSES = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d")


def start(settings: TrainConfig, folder: Path, *launcher: str) -> subprocess.Popen[str]:
    path = folder / f"{Path(settings.output).name}.json"
    path.write_text(json.dumps(plain(settings)))
    return launch(*launcher, str(HERE / "training_run.py"), str(path))


def launch(*arguments: str) -> subprocess.Popen[str]:
    places = [str(HERE), str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=2400)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tune: Callable[..., TrainConfig], tmp_path: Path):
    """Bit for bit, with dropout, random points and a data loader worker."""
    dropout = TrainableOptions(lora=replace(SMALL_LORA, dropout=0.2))
    settings = tune(steps=6, trainable=dropout, workers=1)
    whole = replace(settings, output=str(tmp_path / "whole"))
    uninterrupted = start(whole, tmp_path)
    killed = start(settings, tmp_path)
    while last_checkpoint(settings.output, 1) is None:
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (Path(settings.output) / "model.safetensors").exists()
    # what a kill in the middle of writing leaves
    broken = Path(settings.output) / "checkpoint-5"
    broken.mkdir(exist_ok=True)
    (broken / "trainer_state.json").write_text('{"global_step": 5, "log_h')

    assert "going on from" in finish(start(settings, tmp_path))
    finish(uninterrupted)
    one, other = (load_file(Path(run.output) / "checkpoint-6" / "trained.safetensors") for run in (whole, settings))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("average", ["micro_batch", "step"])
def test_two_processes_learn_what_one_learns(
    tune: Callable[..., TrainConfig], average: str, tmp_path: Path, quiet: None, record_property
):
    """The same micro-batches, shared out; some hold only text. What remains is the order of sums."""
    loss = LossOptions(points=500, average=average)
    one = tune(steps=3, accumulation=2, batch_size=1, loss=loss, output=str(tmp_path / "one"))
    two = replace(one, accumulation=1, output=str(tmp_path / "two"))
    processes = start(two, tmp_path, *TWO_PROCESSES)
    start_weights = prepare(one)
    before = {n: p.detach().clone() for n, p in start_weights.model.named_parameters() if p.requires_grad}
    train(start_weights)
    assert finish(processes).count("finished") == 2
    for alone, shared in zip(*(losses_of(Path(run.output)) for run in (one, two)), strict=True):
        for name in ("loss", "text", "bce", "dice", "grad_norm"):
            assert shared.get(name) == pytest.approx(alone.get(name), rel=1e-3), name
    learnt, also = (load_file(Path(run.output) / "checkpoint-3" / "trained.safetensors") for run in (one, two))
    moved = math.sqrt(sum((learnt[n] - before[n]).square().sum().item() for n in learnt))
    apart = math.sqrt(sum((learnt[n] - also[n]).square().sum().item() for n in learnt))
    record_property("two processes", f"{apart / moved:.1e} of the way learnt")
    # AdamW makes steps of full size of gradients that are nothing but rounding errors, so single weights may differ.
    assert apart < 5e-3 * moved


@pytest.mark.slow
def test_a_process_with_text_alone_joins_a_sharded_step(checkpoint: Callable[[str], Path]):
    output = finish(launch(*TWO_PROCESSES, str(HERE / "sharded_step.py"), str(checkpoint("iv25_qwen2"))))
    (line,) = (line for line in output.splitlines() if line.startswith("worst gradient error"))
    assert float(line.split()[-1]) < 1e-4


# -- configuration -----------------------------------------------------------------------------------------------------


def test_settings_come_from_files_and_words(tune: Callable[..., TrainConfig], tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(plain(tune())))
    words = ["learning_rate=2e-4", "loss.weights.dice=1", "data.0.repeats=2", "trainable.lora=null", "betas=[0.8, 0.9]"]
    read = TrainConfig.from_file(path, words)
    assert (read.learning_rate, read.loss.weights.dice, read.data[0].repeats) == (2e-4, 1.0, 2.0)
    assert read.trainable.lora is None and read.betas == (0.8, 0.9)
    assert replace(tune(), learning_rate=2e-4) == tune().with_overrides(["learning_rate=2e-4"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("learning_rat=1", "unknown setting 'learning_rat'; did you mean 'learning_rate'"),
        ("loss.weights.dise=1", "'loss.weights.dise'; did you mean 'dice'"),
        ("steps=many", "steps must be a whole number, got 'many'"),
        ("stage=both", r"stage must be one of \['joint', 'segmenter'\]"),
        ("data.3.repeats=1", "not a place in a list of 1"),
        ("betas=[1]", "betas must be a list of 2"),
        ("steps", "must look like key=value"),
        ("steps.more=1", "'steps' has no settings inside"),
    ],
)
def test_mistyped_settings_say_where(tune: Callable[..., TrainConfig], word: str, message: str):
    with pytest.raises(ValueError, match=message):
        tune().with_overrides([word])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("batch_size=0", "batch_size must be at least 1, got 0"),
        ("loss.importance=1.5", "loss.importance must be between 0 and 1"),
        ("data=[]", "data is empty"),
        ("data.0.kind=nothing", "unknown data source 'nothing'; take one of"),
        ("data.0.kind=nothing:at_all", "cannot be imported"),
        ("data.0.options={sides: 4}", "does not take options"),
        ("data.0.repeats=0.001", "that is none"),
        ("stage=segmenter", "does not run the language model"),
        ("fsdp=true", "fsdp shards the model over several accelerators"),
        ("lr_scale={everything: 2}", "lr_scale gives a factor"),
        ("encode.max_length=16", "none of its first samples can be trained on"),
        ("report_to=[no_such_tracker]", r"pip install 'sa2va\[train\]'"),
        ("output=README.md", "is a file"),
        ("loss.weights={text: 0, bce: 0, dice: 0}", "all loss weights are 0"),
        ("model=nowhere", "nowhere"),
    ],
)
def test_what_cannot_work_is_found_before_the_first_step(
    tune: Callable[..., TrainConfig], word: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(HERE.parent)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((ValueError, ImportError, OSError), match=message):
        prepare(tune().with_overrides([word]))


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_does_not_train_through_the_memory(tune: Callable[..., TrainConfig], tmp_path: Path, stage: int):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    with pytest.raises(ValueError, match=f"ZeRO stage {stage}.*take stage 1 or fsdp=true"):
        tune(deepspeed=str(path), prompted_frames=1).check()


def test_what_is_followed_is_drawn_in_all_frames(tune: Callable[..., TrainConfig]):
    with pytest.raises(ValueError, match=r"set encode\.drawn_frames=null"):
        tune(encode=EncodeOptions(drawn_frames=2), prompted_frames=1).check()
    parts = TrainableOptions(("mask_decoder",), lora=None)
    with pytest.raises(ValueError, match=r'"segmenter" takes the frames .* set encode\.drawn_frames=null'):
        tune(encode=EncodeOptions(drawn_frames=2), stage="segmenter", trainable=parts).check()


@pytest.mark.parametrize("sharding", [{"fsdp": True}, {"deepspeed": "zero.json"}])
def test_muon_refuses_what_shards_its_matrices(tune: Callable[..., TrainConfig], sharding: dict[str, object]):
    with pytest.raises(ValueError, match="muon needs whole matrices"):
        tune(optimizer="muon", **sharding).check()


def test_only_complete_checkpoints_count(tune: Callable[..., TrainConfig], tmp_path: Path):
    def write(step: int, *files: str) -> None:
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in files:
            (tmp_path / f"checkpoint-{step}" / name).write_text("{}")

    assert last_checkpoint(tmp_path, 1) is None
    write(9, "trained.safetensors", "rng_state.pth", "trainer_state.json")
    write(10, "trained.safetensors", "rng_state.pth")
    write(11, "trained.safetensors", "rng_state_0.pth", "trainer_state.json")
    assert last_checkpoint(tmp_path, 1) == tmp_path / "checkpoint-9"
    assert last_checkpoint(tmp_path, 2) is None
    tune().save(tmp_path / "checkpoint-9")
    assert changed_settings(tune(seed=3, output="elsewhere"), tmp_path / "checkpoint-9") == {"seed": (0, 3)}


def test_a_run_of_other_processes_is_not_begun_anew(tune: Callable[..., TrainConfig]):
    folder = Path(tune().output) / "checkpoint-9"
    folder.mkdir(parents=True)
    for name in ("trained.safetensors", "rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"):
        (folder / name).write_text("{}")
    with pytest.raises(ValueError, match="checkpoints of 2 processes and this run has 1; start it with 2"):
        train(prepare(tune()), progress=False)


def test_the_command(tune: Callable[..., TrainConfig], tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(plain(tune())))
    app = typer.Typer()
    app.command()(command)
    runner = CliRunner()
    result = runner.invoke(app, [str(path), "accumulation=1", "--dry-run", "--quiet"])
    assert result.exit_code == 0, result.output
    assert "mask_decoder" in result.stdout and "3 steps of 2 samples" in result.stdout
    assert not Path(tune().output).exists()
    result = runner.invoke(app, [str(path), "acumulation=1"])
    assert result.exit_code == 2 and "did you mean 'accumulation'" in result.stderr


def test_the_finetune_recipe():
    recipe = preset("finetune", ["model=M", "data=D", "loss.weights.dice=1"])
    assert replace(finetune("M", "D"), loss=recipe.loss) == recipe and recipe.loss.weights.dice == 1
    assert recipe.data == (SourceOptions("annotations", {"root": "D", "views": 100}),)
    assert (recipe.batch_size, recipe.accumulation, recipe.learning_rate, recipe.weight_decay) == (2, 16, 4e-5, 0.05)
    assert recipe.trainable == TrainableOptions(lora=LoraOptions(128, 256, 0.05))
    assert recipe.loss.points == 12544 and (recipe.loss.weights.bce, LossWeights().dice) == (2.0, 0.5)
    assert preset("finetune", ["model=M", "data=D", "family=qwen"]).accumulation == 4
    with pytest.raises(ValueError, match="needs data; add data="):
        preset("finetune", ["model=M"])
    with pytest.raises(ValueError, match=r"unknown preset 'tuna'; take one of \['finetune'"):
        preset("tuna", [])


@pytest.mark.parametrize(
    "case", ["q3", pytest.param("q25", marks=pytest.mark.slow), pytest.param("iv25_internlm2", marks=pytest.mark.slow)]
)
def test_every_family_trains(checkpoint: Callable[[str], Path], case: str, tmp_path: Path, quiet: None):
    settings = config(checkpoint(case), tmp_path / "run", steps=None, epochs=0.25)  # six samples, three micro-batches
    output = train(prepare(settings))
    assert output is not None and len(losses_of(output)) == 2
    assert Sa2VAModel.from_pretrained(output).config.family.name
    assert all(math.isfinite(row["loss"]) for row in losses_of(output))
