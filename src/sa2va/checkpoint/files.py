"""Folders of safetensors shards, read by header first: names, shapes and damage are known before any weight is
touched."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sa2va.atomic import replacing
from sa2va.untrusted import read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when it is indexed, in the way transformers' loader materialises its own slices.

    Attributes:
        shape, dtype: known without reading.
        read: returns the tensor.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def __getitem__(self, index: Any) -> Tensor:
        return self.read()[index]

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> torch.dtype:
        return self.dtype

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed ``config.json`` of a folder.

    Raises:
        ValueError: the file is missing or is not JSON.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json")
    return read_json_object(path)


def write_tensors_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file, whole or not at all, with the permissions of any other new file."""
    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata={"format": "pt"})


def open_tensors(folder: Path) -> dict[str, LazyTensor]:
    """Every tensor of a folder of safetensors shards, by name, unread.

    Raises:
        ValueError: no safetensors there, a pickle instead, a missing, truncated or contradictory shard.
    """
    tensors: dict[str, LazyTensor] = {}
    for shard in _shards(folder):
        for name, tensor in open_shard(shard).items():
            if name in tensors:
                raise ValueError(f"tensor {name!r} is in more than one shard of {folder}")
            tensors[name] = tensor
    _check_index(folder, tensors)
    return tensors


def open_shard(path: Path) -> dict[str, LazyTensor]:
    """Every tensor of one safetensors file, by name, unread.

    Raises:
        ValueError: the file is not a whole safetensors file.
    """
    header, start = _read_header(path)

    def lazy(entry: Mapping[str, Any]) -> LazyTensor:
        shape, dtype, (begin, end) = tuple(entry["shape"]), _DTYPES[entry["dtype"]], entry["data_offsets"]

        def read() -> Tensor:
            if begin == end:  # nothing to map
                return torch.empty(shape, dtype=dtype)
            # Each tensor has a mapping of its own: views of one for all would be pickled and saved together.
            data = np.memmap(path, np.uint8, "c", offset=start + begin, shape=(end - begin,))
            return torch.from_numpy(data).view(dtype).reshape(shape)

        return LazyTensor(shape, dtype, read)

    unknown = {entry["dtype"] for entry in header.values()} - set(_DTYPES)
    if unknown:
        raise ValueError(f"{path} holds tensors of unsupported dtypes {sorted(unknown)}")
    return {name: lazy(entry) for name, entry in header.items()}


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        shards = [folder / name for name in sorted(set(_weight_map(index).values()))]
        for shard in shards:
            # A shard's name comes from a downloaded file: it must not lead out of the folder.
            if shard.parent != folder or "\0" in shard.name:
                raise ValueError(f"{index} points outside its folder: {shard.name}")
            if not shard.is_file():
                raise ValueError(f"shard {shard.name} is missing from {folder}; download it again")
        return shards
    if (folder / SINGLE_FILE).is_file():  # beside it may lie what a training run goes on from
        return [folder / SINGLE_FILE]
    shards = sorted(folder.glob("*.safetensors"))
    if shards:
        return shards
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise ValueError(
            f"{folder / pickles[0]} is a pickle, which can run code when it is read; only safetensors are loaded. "
            "Use the safetensors files of this checkpoint"
        )
    raise ValueError(f"{folder} holds no safetensors weights")


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index} is not a safetensors index: expected weight_map, an object of names of files")
    return weight_map


def _check_index(folder: Path, tensors: Mapping[str, LazyTensor]) -> None:
    index = folder / INDEX_FILE
    if not index.is_file():
        return
    listed = set(_weight_map(index))
    if different := listed ^ set(tensors):
        name = min(different)
        where = "listed in the index but in no shard" if name in listed else "in a shard but not in the index"
        raise ValueError(f"tensor {name!r} is {where} of {folder}; download the checkpoint again")


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """What a file says of each tensor, and where its data start."""
    try:
        with safe_open(path, framework="pt"):  # checks the header and that all bytes are there
            pass
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            start = file.tell()
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or truncated ({error}); download it again") from error
    header.pop("__metadata__", None)
    return header, start
