"""Convert a checkpoint to the other layout, shard by shard, all or nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sa2va.atomic import check_target, naming
from sa2va.checkpoint.adapter import adapter_base, is_adapter, merged, open_adapter
from sa2va.checkpoint.files import INDEX_FILE, SINGLE_FILE, LazyTensor, write_tensors_file
from sa2va.checkpoint.loading import Checkpoint, open_checkpoint, released_rules, to_released
from sa2va.checkpoint.original_decoder import with_original_decoder
from sa2va.checkpoint.released_config import config_to_released
from sa2va.checkpoint.tokenizer_files import copy_companions
from sa2va.hub import HUB_OPTIONS
from sa2va.model.config_overlay import OWN_KEY, difference, paths_of
from sa2va.model.configuration import Sa2VAConfig
from sa2va.model.families import INTERNVL
from sa2va.processing.processor_settings import ProcessorSettings, QwenPixels

Layout = Literal["native", "released"]
Dtypes = Literal["kept", "released"]
MAX_SHARD_BYTES = 5 * 2**30
_SCRATCH = ".converting-"
#: Constants of the reference's code, which it does not read from ``config.json``.
_REFERENCE_TILES, _REFERENCE_TILE_SIDE = 12, 448


def convert(
    source: str | Path,
    destination: str | Path,
    to: Layout | None = None,
    *,
    dtypes: Dtypes = "kept",
    base: str | Path | None = None,
    sam2: str | Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    note: Callable[[str], None] = lambda _: None,
    **hub: Any,
) -> Layout:
    """Convert a checkpoint to the other layout, or merge an adapter into its base model and write that.

    Args:
        source: folder or hub id in either layout, or the folder of an adapter.
        destination: folder to create; must not exist or be empty.
        to: ``"native"``, ``"released"``, or None for the one the source is not in (``"native"`` for an adapter).
        dtypes: ``"kept"``: tensors keep theirs; ``"released"``: those of the released files (see [`released_dtype`]).
        base: of an adapter, instead of the one it names.
        sam2: SAM 2's own weights, whose decoder and memory the result keeps beside the fine-tuned decoder, see
            [`sa2va.checkpoint.original_decoder`].
        max_shard_bytes: upper limit on the size of one file, unless one tensor alone is larger.
        note: takes lines for the user: what the reference will do otherwise than this model, and what a conversion
            that was killed has left beside the destination.

    Returns:
        the layout written.

    Raises:
        ValueError: the source is damaged or incomplete, or the destination holds something or is the source; nothing is
            written then.
    """
    if to not in (None, "native", "released"):
        raise ValueError(f"a checkpoint is written as 'native' or 'released'; got {to!r}")
    if dtypes not in ("kept", "released"):
        raise ValueError(f"dtypes are 'kept' or 'released'; got {dtypes!r}")
    destination = Path(destination)
    check_target(destination, source, base)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} exists and is not an empty folder; choose another destination")
    options = {key: hub[key] for key in HUB_OPTIONS if key in hub}
    checkpoint, default = _open(source, base, options)
    if sam2 is not None:
        checkpoint = with_original_decoder(checkpoint, sam2, **options)
    layout: Layout = to or default
    tensors, config = checkpoint.tensors, checkpoint.config
    if dtypes == "released":
        tensors = {name: _cast(tensor, released_dtype(name, config)) for name, tensor in tensors.items()}
        config.dtype = torch.float32
    settings = ProcessorSettings.read(checkpoint.folder, config)
    if layout == "released":
        tensors, content = to_released(tensors, released_rules(config)), config_to_released(config)
        if own := difference(asdict(ProcessorSettings.of(config)), asdict(settings)):
            content.setdefault(OWN_KEY, {})["processor"] = own
        for line in reference_differs(content, config, settings):
            note(line)
    else:
        content = config.to_dict() | {"architectures": ["Sa2VAModel"]}
    destination.parent.mkdir(parents=True, exist_ok=True)
    for left in sorted(destination.parent.glob(f"{_SCRATCH}*")):
        note(f"{left} is of another conversion; unless one is running now, it was killed: remove the folder")
    # Written beside its final place and renamed at the end, so that a failure or a kill leaves no half folder behind.
    with naming(destination), tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=destination.parent) as scratch:
        folder = Path(scratch) / "checkpoint"
        folder.mkdir()
        copy_companions(checkpoint.folder, folder, config, settings, layout)
        (folder / "config.json").write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
        write_tensors(folder, tensors, max_shard_bytes)
        if destination.exists():
            destination.rmdir()
        folder.rename(destination)
    return layout


def reference_differs(content: Mapping[str, Any], config: Sa2VAConfig, settings: ProcessorSettings) -> list[str]:
    """What the reference's code does differently with a released ``config.json``, one line each.

    Args:
        content: the file. settings: of the model's processor.
    """
    lines = []
    if settings.patches is None and settings.max_tiles != _REFERENCE_TILES:
        lines.append(
            f"the reference cuts pictures into up to {_REFERENCE_TILES} tiles, this model into {settings.max_tiles}"
        )
    if settings.tile_side not in (None, _REFERENCE_TILE_SIDE):
        lines.append(
            f"the reference's tiles have {_REFERENCE_TILE_SIDE} pixels a side, this model's {settings.tile_side}"
        )
    pixels = settings.patches
    if pixels and (pixels.min_pixels, pixels.max_pixels) != (QwenPixels.min_pixels, QwenPixels.max_pixels):
        lines.append(
            f"the reference shows pictures of {QwenPixels.min_pixels} to {QwenPixels.max_pixels} pixels, this model "
            f"{pixels.min_pixels} to {pixels.max_pixels}"
        )
    if "grounding_config" in content:
        lines.append("the reference builds SAM 2 Hiera-L at 1024 pixels only; it cannot load this model's SAM 2")
    if config.original_mask_decoder:
        lines.append("only the code of Sa2VA-i reads both mask decoders")
    told = {"max_tiles", "tile_side", "patches.min_pixels", "patches.max_pixels"}
    own = paths_of(content.get(OWN_KEY, {}))
    others = [f"{name} = {value!r}" for name, value in own.items() if name.split(".", 1)[1] not in told]
    return lines + [f"the reference does not know {other}" for other in others]


def released_dtype(name: str, config: Sa2VAConfig) -> torch.dtype:
    """The dtype of a native tensor in the released files: bfloat16 for InternVL's vision tower, else float32."""
    is_tower = config.family is INTERNVL and name.startswith("vlm.model.vision_tower.")
    return torch.bfloat16 if is_tower else torch.float32


def _open(source: str | Path, base: str | Path | None, hub: dict[str, Any]) -> tuple[Checkpoint, Layout]:
    """A checkpoint, or an adapter's base with the adapter in it; and the layout it is written in by default."""
    if is_adapter(source):
        adapter = open_adapter(source)
        checkpoint = open_checkpoint(adapter_base(source, base), **hub)
        return replace(checkpoint, tensors=merged(checkpoint.tensors, adapter)), "native"
    if base is not None:
        raise ValueError(f"{source} is no adapter, so it has no base model; leave out base={base}")
    checkpoint = open_checkpoint(source, **hub)
    return checkpoint, "native" if checkpoint.released else "released"


def _cast(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    return LazyTensor(tensor.shape, dtype, lambda: tensor.read().to(dtype)) if tensor.is_floating_point() else tensor


def write_tensors(folder: Path, tensors: Mapping[str, LazyTensor], max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write tensors as safetensors shards with an index, one shard in memory at a time."""
    shards = list(_group(tensors, max_shard_bytes))
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        name = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors_file(folder / name, {key: tensors[key].read() for key in names})
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
