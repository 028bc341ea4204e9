"""The ready configurations for many GPUs, and DeepSpeed's sharding against one process, with batches of text alone."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rectangles import Rectangles
from sa2va import Sa2VA, Sa2VAModel
from sa2va.data.collate import CompanionCollator, has_companion
from sa2va.data.encode import encode_sample
from sa2va.train.config import SourceOptions, TrainConfig
from sa2va.train.losses import LossOptions
from sa2va.train.parsing import plain, read_settings
from sa2va.train.run import prepare, train
from sa2va.train.trainable import LoraOptions, TrainableOptions
from sa2va.train.trainer import counts_of

TESTS = Path(__file__).parents[1]
EXAMPLES = TESTS.parent / "examples" / "training"


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "one_gpu"])
def test_a_ready_configuration_is_a_configuration(name: str):
    config = TrainConfig.from_file(EXAMPLES / f"{name}.yaml", ["steps=3"])
    assert (config.fsdp, config.quantization) == (name == "fsdp2", "nf4" if name == "one_gpu" else None)
    assert config.batch_size * config.accumulation == 32 and config.learning_rate == 4e-5


@pytest.mark.parametrize("stage", [2, 3])
def test_a_ready_deepspeed_file_leaves_to_the_run_what_the_run_knows(stage: int):
    settings = read_settings(EXAMPLES / f"zero{stage}.json")
    assert settings["zero_optimization"]["stage"] == stage
    for name in ("gradient_clipping", "gradient_accumulation_steps", "train_micro_batch_size_per_gpu"):
        assert settings[name] == "auto"


def test_the_slurm_script_is_a_script():
    assert subprocess.run(["bash", "-n", str(EXAMPLES / "slurm.sh")], capture_output=True).returncode == 0


# -- companions --------------------------------------------------------------------------------------------------------


def test_a_companion_runs_every_part_and_counts_nothing(sa2va: Sa2VA):
    """Of text alone the answers' loss stays what it was; SAM 2 runs, and no frame is counted."""
    text = [encode_sample(Rectangles(text_every=1)[index], sa2va.processor) for index in range(2)]
    picture = [encode_sample(Rectangles()[0], sa2va.processor)]
    collate = CompanionCollator.of(sa2va.processor)
    plain_batch, batch = collate.collator(text), collate(text)
    assert has_companion(batch) and not has_companion(collate(picture)) and not has_companion(plain_batch)
    assert len(batch.input_ids) == 3 and int(counts_of(batch).frames) == 0
    assert torch.equal(counts_of(batch).tokens, counts_of(plain_batch).tokens)
    with torch.no_grad():
        with_it, without = (sa2va.model(each, labelled_only=True) for each in (batch, plain_batch))
    torch.testing.assert_close(with_it.logits, without.logits, atol=1e-4, rtol=1e-4)
    assert with_it.masks is not None and without.masks is None


# -- DeepSpeed ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", [2, 3])
def test_sharded_processes_learn_what_one_learns(checkpoint: Callable[[str], Path], tmp_path: Path, stage: int, capfd):
    """Two processes, one of which has nothing but text in the last step."""
    deepspeed = json.loads((EXAMPLES / f"zero{stage}.json").read_text())
    if stage == 3:
        deepspeed["zero_optimization"]["stage3_param_persistence_threshold"] = 1000
    (tmp_path / "zero.json").write_text(json.dumps(deepspeed))
    one = TrainConfig(
        report_to=(),
        model=str(checkpoint("iv25_qwen2")),
        output=str(tmp_path / "one"),
        data=(SourceOptions("rectangles:Rectangles", {"count": 24, "text_every": 4}),),
        trainable=TrainableOptions(lora=LoraOptions(rank=4, alpha=8, dropout=0.0)),
        loss=LossOptions(points=500),
        steps=3,
        batch_size=1,
        accumulation=2,
        learning_rate=1e-3,
        precision="fp32",
        workers=0,
        save_every=3,
    )
    two = replace(one, accumulation=1, output=str(tmp_path / "two"), deepspeed=str(tmp_path / "zero.json"))
    (tmp_path / "two.json").write_text(json.dumps(plain(two)))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d"]
    places = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *launcher, str(TESTS / "training_run.py"), str(tmp_path / "two.json")],
        env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=2400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = prepare(one)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters() if p.requires_grad}
    train(run, progress=False)
    ours, theirs = (load_file(tmp_path / name / "checkpoint-3" / "trained.safetensors") for name in ("one", "two"))
    moved = sum((ours[name] - before[name]).square().sum() for name in ours).sqrt()
    apart = sum((ours[name] - theirs[name]).square().sum() for name in ours).sqrt()
    assert apart < 5e-3 * moved
    assert Sa2VAModel.from_pretrained(tmp_path / "two").dtype == torch.float32
