"""Rewriting a checkpoint in the other layout, one shard at a time, and all or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from sa2va.checkpoint.files import INDEX_FILE, SINGLE_FILE, LazyTensor
from sa2va.checkpoint.loading import HUB_OPTIONS, open_checkpoint, released_rules, to_released
from sa2va.checkpoint.released import config_to_released

Layout = Literal["native", "released"]
MAX_SHARD_BYTES = 5 * 2**30
#: What a converted folder takes over as it is: tokenizer and processor files.
_COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
    "*processor_config.json",
    "generation_config.json",
)


def convert(
    source: str | Path,
    destination: str | Path,
    to: Layout | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    **hub: Any,
) -> Layout:
    """Write a checkpoint in the other layout; tensors keep their values and dtypes.

    Args:
        source: folder or hub id in either layout.
        destination: folder to create; must not exist or be empty.
        to: ``"native"``, ``"released"``, or None for the one the source is not in.
        max_shard_bytes: upper limit on the size of one file, unless one tensor alone is larger.

    Returns:
        the layout written.

    Raises:
        ValueError: the source is damaged or incomplete, or the destination holds something; nothing is written then.
    """
    if to not in (None, "native", "released"):
        raise ValueError(f"a checkpoint is written as 'native' or 'released'; got {to!r}")
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} exists and is not an empty folder; choose another destination")
    checkpoint = open_checkpoint(source, **{key: hub[key] for key in HUB_OPTIONS if key in hub})
    layout: Layout = to or ("native" if checkpoint.released else "released")
    tensors, config = checkpoint.tensors, checkpoint.config
    if layout == "released":
        tensors, content = to_released(tensors, released_rules(config)), config_to_released(config)
    else:
        content = config.to_dict() | {"architectures": ["Sa2VAModel"]}
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its final place and renamed at the end, so that a failure or a kill leaves no half folder behind.
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=destination.parent) as scratch:
        folder = Path(scratch) / "checkpoint"
        folder.mkdir()
        _copy_companions(checkpoint.folder, folder)
        (folder / "config.json").write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
        write_tensors(folder, tensors, max_shard_bytes)
        if destination.exists():
            destination.rmdir()
        folder.rename(destination)
    return layout


def write_tensors(folder: Path, tensors: Mapping[str, LazyTensor], max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write tensors as safetensors shards with an index, holding one shard in memory at a time."""
    shards = list(_group(tensors, max_shard_bytes))
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        name = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({key: tensors[key].read() for key in names}, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, name)
    if len(shards) > 1:
        total = sum(_bytes(tensor) for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _group(tensors: Mapping[str, LazyTensor], limit: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, tensor in sorted(tensors.items()):
        if names and size + _bytes(tensor) > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += _bytes(tensor)
    yield names


def _bytes(tensor: LazyTensor) -> int:
    count = 1
    for side in tensor.shape:
        count *= side
    return count * tensor.dtype.itemsize


def _copy_companions(source: Path, destination: Path) -> None:
    for pattern in _COMPANIONS:
        for path in source.glob(pattern):
            shutil.copy(path, destination / path.name)
