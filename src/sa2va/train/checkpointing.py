"""What a run leaves on disk: whole models that load, adapters, and checkpoints that it goes on from.

A process may die while it writes. Trainer writes ``trainer_state.json`` after all else of a process, so a checkpoint is
complete when that can be read and every process has left its random state.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sa2va.atomic import filling
from sa2va.checkpoint.adapter import write_adapter
from sa2va.checkpoint.files import write_tensors_file
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.train.config import CONFIG_FILE, TrainConfig, read_config
from sa2va.train.parsing import plain
from sa2va.train.trainable import adapter_tensors, merged_tensors, trainable_tensors, whole_modules
from sa2va.untrusted import parse_json

#: The finished model's adapter, in the folder of the run.
ADAPTER_FOLDER = "adapter"
#: Exactly what was trained, before LoRA is merged and dtypes are changed.
TRAINED_FILE = "trained.safetensors"

_STATE_FILE = "trainer_state.json"
_PREFIX = "checkpoint-"


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


def checkpoint_folder(output: str | Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(output) / f"{_PREFIX}{step}"


def last_checkpoint(output: str | Path, processes: int) -> Path | None:
    """The complete checkpoint of the highest step, or None.

    Args:
        output: folder of the run. processes: that trained; each leaves its own random state.
    """
    complete = [path for path in _checkpoints(output) if is_complete(path, processes)]
    return max(complete, key=lambda path: int(path.name.removeprefix(_PREFIX)), default=None)


def other_processes(output: str | Path, processes: int) -> int | None:
    """How many processes a run's checkpoints were made by, where that is surely not this many."""
    for folder in _checkpoints(output):
        ranks = len(list(folder.glob("rng_state_*.pth")))
        made_by = 1 if (folder / "rng_state.pth").is_file() else ranks
        # Fewer states than processes may also be those of a checkpoint that was never finished. A single process names
        # its state differently.
        if made_by and (made_by > processes or made_by == 1 < processes) and is_complete(folder, made_by):
            return made_by
    return None


def remove_incomplete(output: str | Path) -> list[Path]:
    """Delete the checkpoints that a killed run had not finished to write, or to delete; which they were."""
    found = [
        folder for folder in _checkpoints(output) if not is_complete(folder, len(list(folder.glob("rng_state_*"))) or 1)
    ]
    for folder in found:
        shutil.rmtree(folder)
    return found


def changed_settings(config: TrainConfig, checkpoint: Path) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from those a checkpoint was made with: name to (then, now)."""
    path = checkpoint / CONFIG_FILE
    then = {"auxiliary": [], **read_config(path)} if path.is_file() else {}
    now = plain(config)
    free = {"output", "resume", "log_every", "save_every", "keep", "report_to", "workers"}
    return {name: (then.get(name), now[name]) for name in now if name not in free and then.get(name) != now[name]}


def is_complete(folder: Path, processes: int) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        parse_json((folder / _STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    states = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    return all((folder / name).is_file() for name in (TRAINED_FILE, *states))


def _checkpoints(output: str | Path) -> list[Path]:
    return [path for path in Path(output).glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
