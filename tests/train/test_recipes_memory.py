"""The memory estimate against the measured peak of a training step of the ``tiny`` model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sa2va.data.mixture import EncodedDataset
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.tiny.random_model import tiny_model, tiny_tokenizer
from sa2va.train.config import SourceOptions, TrainConfig
from sa2va.train.estimate import estimate_memory
from sa2va.train.run import TrainingRun, encoder, prepare
from sa2va.train.trainable import LoraOptions, TrainableOptions
from sa2va.train.trainer import Sa2VATrainer


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and remembers the most."""

    def __init__(self, tensors: list[torch.Tensor]):
        super().__init__()
        self.now = self.most = 0
        self._alive: set[int] = set()
        for tensor in tensors:
            self._count(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive:
            self._alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    model.save_pretrained(folder)
    Sa2VAProcessor(tokenizer, model.config).save_pretrained(folder)
    return folder


def peak_of(run: TrainingRun) -> int:
    """Most bytes alive during two steps, the second of which has optimizer state from the start."""
    dataset = EncodedDataset(run.parts, encoder(run.config, run.processor), seed=0)
    trainer = Sa2VATrainer(run.model, run.processor, run.config, dataset, save=False)
    with Peak(list(run.model.state_dict().values())) as peak:
        trainer.train()
    return peak.most


FULL = TrainableOptions(parts=("all",), lora=None)
LORA = TrainableOptions(lora=LoraOptions(rank=16, alpha=32))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("LoRA", {"trainable": LORA}),
        pytest.param(
            "LoRA, activations kept",
            {"trainable": LORA, "checkpoint_activations": False},
            marks=pytest.mark.slow,
        ),
        pytest.param("everything", {"trainable": FULL}, marks=pytest.mark.slow),
    ],
)
def test_the_estimate_is_near_the_measured_peak(
    name: str, changes: dict, start: Path, tmp_path: Path, record_property: Callable[[str, object], None], capfd
):
    options = {"split": "train", "tasks": {"segment": 1.0}, "length": 64}
    config = TrainConfig(
        report_to=(),
        model=str(start),
        output=str(tmp_path / "run"),
        data=(SourceOptions("synthetic", options),),
        steps=2,
        batch_size=4,
        accumulation=1,
        precision="fp32",
        workers=0,
    )
    run = prepare(replace(config, **changes))
    estimate = estimate_memory(run.model, run.plan, run.probes, run.config)
    measured = peak_of(run)
    record_property(name, f"{estimate.total / 1e6:.0f} MB estimated, {measured / 1e6:.0f} MB measured")
    assert 0.5 < estimate.total / measured < 2, (estimate, measured)
