"""Opening a checkpoint of either layout: its config, and every tensor of ours as a promise, checked before one byte
is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sa2va.checkpoint import weight_map
from sa2va.checkpoint.configs import build_config, check_counts, named_dtype
from sa2va.checkpoint.files import LazyTensor, open_tensors, read_config
from sa2va.checkpoint.released_config import config_from_released, is_released, read_token_ids, says_tied, set_token_ids
from sa2va.hub import resolve_folder
from sa2va.model.configuration import Sa2VAConfig
from sa2va.model.families import INTERNVL
from sa2va.model.network import Sa2VANetwork
from sa2va.untrusted import reading

TWO_DECODERS = "sam_mask_decoder_modified."
_HEAD, _EMBEDDINGS = "vlm.lm_head.weight", "vlm.model.language_model.embed_tokens.weight"
#: Tables that models compute for themselves, such as those of positions: far more than any real model's.
_MAX_BUFFER_BYTES = 2**28
#: Small parts are as deep as this whatever the size of the model.
_FEWEST_LAYERS = 8


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint.

    Attributes:
        folder: where its files are. released: whether it is in the reference's layout.
        config: of the model it holds. tensors: by native name, unread. dtype: of the weights by default.
    """

    folder: Path
    released: bool
    config: Sa2VAConfig
    tensors: dict[str, LazyTensor]
    dtype: torch.dtype


def open_checkpoint(source: str | Path, config: Sa2VAConfig | None = None, **hub_kwargs: Any) -> Checkpoint:
    """Open a folder or hub id, in the released layout or ours.

    Raises:
        ValueError: what is wrong, and in which file or tensor.
    """
    folder = resolve_folder(source, **hub_kwargs)
    content = read_config(folder)
    if content.get("quantization_config"):
        raise ValueError(
            f"{folder / 'config.json'} says that its weights are quantised already; load the checkpoint it was made "
            'from, with quantization="int8" or "nf4"'
        )
    tensors = open_tensors(folder)
    released = is_released(content)
    if not config:
        check_counts(content, layers_in(tensors), "")
    if released:
        config = config or config_from_released(content)
        set_token_ids(config, read_token_ids(folder))
        config.original_mask_decoder = any(TWO_DECODERS in name for name in tensors)
        table = released_rules(config)
        if config.family is not INTERNVL:
            tensors = {weight_map.modern_qwen_name(name): tensor for name, tensor in tensors.items()}
        if says_tied(content):
            tensors = with_tied_head(tensors, table)
        check_tensors(tensors, _released_shapes(config, table), where=str(folder))
        tensors = to_native(tensors, table)
    elif content.get("model_type") == Sa2VAConfig.model_type:
        config = config or build_config(Sa2VAConfig, content, "config.json")
        check_tensors(tensors, expected_shapes(config), where=str(folder))
    else:
        raise ValueError(
            f"{folder / 'config.json'} has model_type {content.get('model_type')!r}; expected 'sa2va_chat' (released "
            "checkpoints) or 'sa2va'. A base vision-language model becomes one with Sa2VAModel.from_parts"
        )
    return Checkpoint(folder, released, config, tensors, named_dtype(config.dtype) or torch.float32)


def layers_in(tensors: Mapping[str, LazyTensor]) -> int:
    """The most layers of one kind that these tensors can make up."""
    numbers = [int(part) for name in tensors for part in name.split(".") if part.isdecimal() and len(part) < 10]
    return max(_FEWEST_LAYERS, min(max(numbers, default=0) + 1, len(tensors)))


def with_tied_head(tensors: Mapping[str, LazyTensor], table: Sequence[weight_map.Rule]) -> dict[str, LazyTensor]:
    """The tensors with a head, where transformers left it out because it is the embeddings."""
    head, embeddings = (weight_map.plan_to_released(table, [name])[0][0].released[0] for name in (_HEAD, _EMBEDDINGS))
    return {head: tensors[embeddings], **tensors} if embeddings in tensors else dict(tensors)


def _released_shapes(config: Sa2VAConfig, table: Sequence[weight_map.Rule]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a released checkpoint of this config."""
    native = {
        name: LazyTensor(shape, torch.float32, partial(torch.empty, shape, device="meta"))
        for name, shape in expected_shapes(config).items()
    }
    return {name: tensor.shape for name, tensor in to_released(native, table).items()}


def released_rules(config: Sa2VAConfig) -> list[weight_map.Rule]:
    """The name tables of one released checkpoint."""
    text = config.vlm_config.get_text_config()
    vlm = weight_map.internvl_rules(text) if config.family is INTERNVL else weight_map.QWEN_RULES
    sam2 = weight_map.sam2_rules(two_decoders=config.original_mask_decoder)
    return [*sam2, *weight_map.PROJECTION_RULES, *vlm]


def to_native(tensors: Mapping[str, LazyTensor], table: Sequence[weight_map.Rule]) -> dict[str, LazyTensor]:
    """Released tensors under native names, still unread.

    Raises:
        ValueError: a name no rule knows, or a group of which one is missing.
    """
    moves, unknown = weight_map.plan_to_native(table, tensors)
    if unknown:
        raise ValueError(
            f"unexpected tensor {unknown[0]!r}{_more(unknown)}; this is not a tensor of a Sa2VA checkpoint"
        )
    return _moved(tensors, ((move.released, move.native, move.op.to_native) for move in moves))


def to_released(tensors: Mapping[str, LazyTensor], table: Sequence[weight_map.Rule]) -> dict[str, LazyTensor]:
    """Native tensors under released names, still unread; the inverse of [`to_native`]."""
    moves, unknown = weight_map.plan_to_released(table, tensors)
    if unknown:
        raise ValueError(f"tensor {unknown[0]!r}{_more(unknown)} has no place in the released layout")
    return _moved(tensors, ((move.native, move.released, move.op.to_released) for move in moves))


def expected_shapes(config: Sa2VAConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor a model of this config holds, without allocating it."""
    return shapes_of(Sa2VANetwork, config)


def shapes_of(model_class: Callable[[Any], nn.Module], config: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model.

    Raises:
        ValueError: no model can be built from the config, or one that computes huge tables.
    """
    with reading("config.json"), torch.device("meta"):
        model = model_class(config)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        tables = sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in shapes)
        if tables > _MAX_BUFFER_BYTES:
            raise ValueError(f"a model of these settings would compute {tables} bytes of tables; expected far fewer")
    return shapes


def check_tensors(tensors: Mapping[str, LazyTensor], expected: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """Every expected tensor is there once, in its shape, and nothing else.

    Raises:
        ValueError: names the first tensor that is missing, left over or misshapen.
    """
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing:
        raise ValueError(f"{where}: tensor {missing[0]!r}{_more(missing)} is missing")
    if extra:
        raise ValueError(f"{where}: unexpected tensor {extra[0]!r}{_more(extra)}; the config describes another model")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{where}: tensor {name!r} has shape {tensors[name].shape}; the config expects {shape}")


def _moved(tensors: Mapping[str, LazyTensor], moves: Iterable[tuple]) -> dict[str, LazyTensor]:
    result: dict[str, LazyTensor] = {}
    for sources, targets, op in moves:
        absent = [name for name in sources if name not in tensors]
        if absent:
            raise ValueError(f"tensor {absent[0]!r} is missing; it belongs with {sources[0]!r}")
        parts = [tensors[name] for name in sources]
        try:
            shapes = [tuple(t.shape) for t in op([torch.empty(part.shape, device="meta") for part in parts])]
        except RuntimeError as error:
            raise ValueError(
                f"tensor {sources[0]!r} has shape {parts[0].shape}, which does not fit the config"
            ) from error
        for position, (name, shape) in enumerate(zip(targets, shapes, strict=True)):
            result[name] = LazyTensor(shape, parts[0].dtype, _reader(op, parts, position))
    return result


def _reader(op, parts: list[LazyTensor], position: int):
    def read() -> Tensor:
        return op([part.read() for part in parts])[position].contiguous()

    return read


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
