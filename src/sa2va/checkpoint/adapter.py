"""LoRA adapters in peft's format.

A folder holds ``adapter_config.json``, which names the base model, and ``adapter_model.safetensors``: the LoRA matrices
in float32, and whole the few parts that are trained in full beside them (peft's ``modules_to_save``).

Source: LoRA (arXiv 2106.09685): W + alpha / rank * B A.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sa2va.atomic import replacing
from sa2va.checkpoint.files import LazyTensor, open_shard, write_tensors_file
from sa2va.hub import resolve_folder
from sa2va.model.network import Sa2VANetwork
from sa2va.runtime import require_extra
from sa2va.untrusted import read_json_object

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
#: Kinds of adapters of the same format that are computed otherwise.
_VARIANTS = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias")


@dataclass(frozen=True)
class Adapter:
    """An open adapter.

    Attributes:
        folder: where its files are. base: the model it was trained on, folder or hub id; "" where that is not known.
        rank, alpha: of LoRA.
        tensors: unread, by name in [`Sa2VAModel`]: ``MODULE.lora_A.weight``, ``MODULE.lora_B.weight``, and whole
            parameters under their own.
    """

    folder: Path
    base: str
    rank: int
    alpha: float
    tensors: dict[str, LazyTensor]

    @property
    def modules(self) -> list[str]:
        """The modules that LoRA adapts."""
        return sorted(name.removesuffix(".lora_A.weight") for name in self.tensors if name.endswith(".lora_A.weight"))

    @property
    def whole(self) -> dict[str, LazyTensor]:
        """Parameters that replace those of the base model."""
        return {name: tensor for name, tensor in self.tensors.items() if ".lora_" not in name}


def is_adapter(folder: str | Path) -> bool:
    """Whether a local folder holds an adapter and not a whole model."""
    return (Path(folder) / CONFIG_FILE).is_file() and not (Path(folder) / "config.json").is_file()


def open_adapter(source: str | Path, **hub: Any) -> Adapter:
    """Open a folder or hub id; weights are loaded lazily.

    Raises:
        ValueError: it holds no adapter, a damaged one, or one of another kind than LoRA.
    """
    folder = resolve_folder(source, **hub)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not an adapter: it has no {name}")
    content = read_json_object(folder / CONFIG_FILE)
    wrong = [name for name in _VARIANTS if content.get(name)]
    if content.get("peft_type") != "LORA" or content.get("bias", "none") != "none" or wrong:
        raise ValueError(
            f"{folder / CONFIG_FILE} describes another kind of adapter ({content.get('peft_type')}, {wrong}); expected "
            "plain LoRA without biases"
        )
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in open_shard(folder / WEIGHTS_FILE).items()}
    rank, alpha = content.get("r"), cast(Any, content.get("lora_alpha"))
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise ValueError(f"{folder / CONFIG_FILE}: expected numbers as r and lora_alpha, got {rank!r} and {alpha!r}")
    adapter = Adapter(folder, str(content.get("base_model_name_or_path") or ""), rank, float(alpha), tensors)
    _check_pairs(adapter)
    return adapter


def adapter_base(source: str | Path, base: str | Path | None = None) -> str:
    """The base model of an adapter: ``base`` if given, else the one named in its config.

    Raises:
        ValueError: it names none, or a folder that is not there.
    """
    named = str(base or open_adapter(source).base)
    if not named or (Path(named).is_absolute() and not Path(named).is_dir()):
        raise ValueError(
            f"{source} was trained on {named or 'a model that it does not name'}, which is not there; name the model: "
            "Sa2VA.from_pretrained(MODEL, adapter=...), or sa2va merge --base MODEL"
        )
    return named


def write_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    base: str,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str,
    whole_modules: Sequence[str],
) -> None:
    """Write an adapter that [`open_adapter`] and peft read.

    Args:
        tensors: as in [`Adapter`]. base: folder or hub id of the model it belongs to.
        whole_modules: modules whose parameters the tensors hold whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors_file(folder / WEIGHTS_FILE, {_PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()})
    content = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "target_modules": targets,
        "modules_to_save": list(whole_modules),
    }
    with replacing(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def add_lora(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """The weight (out, in) with LoRA added: float32, on the weight's device."""
    return weight.float() + scale * (up.float() @ down.float()).to(weight.device)


def merged(tensors: Mapping[str, LazyTensor], adapter: Adapter) -> dict[str, LazyTensor]:
    """The tensors of the base model with the adapter merged, lazily, in the base model's dtypes.

    Raises:
        ValueError: the adapter belongs to another model; the message names the first tensor that does not fit.
    """
    result = dict(tensors)
    for name, tensor in adapter.whole.items():
        _check_fit(adapter, name, tensor.shape, _shape(tensors.get(name)))
        result[name] = _computed(tensors[name], tensor.read)
    for module in adapter.modules:
        down, up = (adapter.tensors[f"{module}.lora_{side}.weight"] for side in "AB")
        name = f"{module}.weight"
        _check_fit(adapter, name, (up.shape[0], down.shape[1]), _shape(tensors.get(name)))
        result[name] = _computed(tensors[name], partial(_sum, tensors[name], down, up, adapter.alpha / adapter.rank))
    return result


def attach(model: Sa2VANetwork, adapter: Adapter) -> None:
    """Attach an adapter to a loaded base model without changing its weights, which may be quantised.

    Raises:
        ValueError: the adapter belongs to another model. ImportError: peft is missing.
    """
    peft = require_extra("peft", "train")
    modules = dict(model.named_modules())
    for module in adapter.modules:
        up, down = (adapter.tensors[f"{module}.lora_{side}.weight"] for side in "BA")
        linear: Any = modules.get(module)
        shape = None if linear is None else (linear.out_features, linear.in_features)
        _check_fit(adapter, module, (up.shape[0], down.shape[1]), shape)
    settings = peft.LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=adapter.modules)
    peft.inject_adapter_in_model(settings, model)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in adapter.tensors.items():
            place = re.sub(r"\.lora_([AB])\.weight$", r".lora_\1.default.weight", name)
            _check_fit(adapter, name, tensor.shape, _shape(own.get(place)))
            own[place].copy_(tensor.read())
            own[place].requires_grad_(False)


def _sum(weight: LazyTensor, down: LazyTensor, up: LazyTensor, scale: float) -> Tensor:
    return add_lora(weight.read(), down.read(), up.read(), scale)


def _computed(like: LazyTensor, read: Callable[[], Tensor]) -> LazyTensor:
    return LazyTensor(like.shape, like.dtype, lambda: read().to(like.dtype))


def _shape(tensor: Any) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _check_fit(adapter: Adapter, name: str, theirs: Sequence[int], ours: Sequence[int] | None) -> None:
    if ours is None or tuple(ours) != tuple(theirs):
        raise ValueError(
            f"{adapter.folder} does not fit this model: {name!r} is {tuple(theirs)} there and "
            f"{'missing' if ours is None else tuple(ours)} here; load the model it was trained on: "
            f"{adapter.base or 'its config does not say which'}"
        )


def _check_pairs(adapter: Adapter) -> None:
    for name, tensor in adapter.tensors.items():
        other = re.sub(r"\.lora_([AB])\.", lambda found: f".lora_{'BA'['AB'.index(found[1])]}.", name)
        rank = tensor.shape[0 if ".lora_A." in name else -1] if other != name else adapter.rank
        if other not in adapter.tensors or rank != adapter.rank:
            raise ValueError(
                f"{adapter.folder / WEIGHTS_FILE}: {name!r} has rank {rank} where {adapter.rank} is expected, or its "
                f"other half {other!r} is missing; the file is damaged"
            )
