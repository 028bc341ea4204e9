"""What a run saves: a complete model, its adapter, and the trained weights to resume from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sa2va.atomic import filling
from sa2va.checkpoint.adapter import write_adapter
from sa2va.checkpoint.files import write_tensors_file
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.train.checkpoints import TRAINED_FILE
from sa2va.train.config import TrainConfig
from sa2va.train.trainable import adapter_tensors, merged_tensors, trainable_tensors, whole_modules

#: The finished model's adapter, in the folder of the run.
ADAPTER_FOLDER = "adapter"


def save_run(
    folder: Path,
    model: Sa2VAModel,
    processor: Sa2VAProcessor,
    config: TrainConfig,
    tensors: Mapping[str, Tensor],
    *,
    finished: bool,
) -> None:
    """Save a run: what ``Sa2VA.from_pretrained`` loads and what resuming needs.

    A model whose base is quantised is an adapter: its own weights are gone.

    Args:
        tensors: the model's state dict, whole. finished: the end of the run, from which nothing is resumed.
    """
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    with filling(folder) as scratch:
        if config.quantization:
            _save_adapter(scratch, model, config, tensors, dtype)
        else:
            model.save_pretrained(scratch, state_dict=merged_tensors(tensors, config.trainable.lora, dtype))
            model.config.dtype = dtype  # of the file; the model in memory has two
            model.config.save_pretrained(scratch)
        if not finished:
            trained = {name: tensor.contiguous() for name, tensor in trainable_tensors(tensors, model).items()}
            write_tensors_file(scratch / TRAINED_FILE, trained)
        processor.save_pretrained(scratch)
        config.save(scratch)
    # A model put together from parts has no base on disk that an adapter could name.
    if finished and config.trainable.lora and not (config.quantization or config.sam2):
        _save_adapter(folder / ADAPTER_FOLDER, model, config, tensors, dtype)


def _save_adapter(
    folder: Path, model: Sa2VAModel, config: TrainConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    lora = config.trainable.lora
    assert lora is not None
    write_adapter(
        folder,
        adapter_tensors(tensors, model, dtype),
        base=str(Path(config.model).resolve()) if Path(config.model).exists() else config.model,
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        targets=model.config.family.lora_targets,
        whole_modules=whole_modules(model),
    )
