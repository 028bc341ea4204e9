"""What is trained: parts of the model by name, LoRA in the language model, and the weights to save.

A model is trained in place: LoRA layers are injected, never wrapped around it, so that its forward pass, its names and
its saving stay its own. Trained parameters are float32; frozen ones keep the dtype they were loaded in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from sa2va.checkpoint.adapter import add_lora
from sa2va.model.families import INTERNVL, Family
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.runtime import require_extra

Part = Literal[
    "vision",
    "projector",
    "language",
    "embeddings",
    "head",
    "projection",
    "image_encoder",
    "prompt_encoder",
    "mask_decoder",
    "original_mask_decoder",
    "memory",
    "auxiliary",
]
#: How parameter names of each part begin; the first match counts, and what is left of SAM 2 is its memory.
_PREFIXES: tuple[tuple[Part, tuple[str, ...]], ...] = (
    (
        "projector",
        ("vlm.model.multi_modal_projector.", "vlm.model.visual.merger.", "vlm.model.visual.deepstack_merger_list."),
    ),
    ("vision", ("vlm.model.vision_tower.", "vlm.model.visual.")),
    ("embeddings", ("vlm.model.language_model.embed_tokens.",)),
    ("language", ("vlm.model.language_model.",)),
    ("head", ("vlm.lm_head.",)),
    ("projection", ("projection.",)),
    ("image_encoder", ("sam2.vision_encoder.",)),
    ("prompt_encoder", ("sam2.prompt_encoder.", "sam2.no_memory_embedding")),
    ("mask_decoder", ("sam2.mask_decoder.",)),
    ("original_mask_decoder", ("original_mask_decoder.",)),
    ("memory", ("sam2.",)),
    ("auxiliary", ("auxiliary.",)),
)
PARTS: tuple[Part, ...] = get_args(Part)
#: The parts that read and write text; a batch with text always runs them.
LANGUAGE_PARTS: tuple[Part, ...] = ("language", "embeddings", "head")


@dataclass(frozen=True)
class LoraOptions:
    """LoRA (arXiv 2106.09685) on every linear layer of the language model; the defaults are the released recipe.

    Attributes:
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
        dropout: on its input.
    """

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05


@dataclass(frozen=True)
class TrainableOptions:
    """What is trained.

    Attributes:
        parts: parts of the model to train in full: ``"vision"``, ``"projector"``, ``"language"``, ``"embeddings"``,
            ``"head"``, ``"projection"``, ``"image_encoder"``, ``"prompt_encoder"``, ``"mask_decoder"``,
            ``"original_mask_decoder"``, ``"memory"``, or ``("all",)``, which with LoRA leaves ``"language"`` out. None
            takes the released recipe of the family.
        lora: LoRA on the language model, which stays frozen itself; None for none.
    """

    parts: tuple[str, ...] | None = None
    lora: LoraOptions | None = field(default_factory=LoraOptions)


@dataclass(frozen=True)
class PlanRow:
    """One part in the plan.

    Attributes:
        part: its name. how: it is trained. total, trained: parameters.
    """

    part: Part
    how: Literal["full", "lora", "frozen"]
    total: int
    trained: int


def lora_share(width: int, rank: int = LoraOptions.rank) -> float:
    """Parameters of LoRA on a square matrix, as a share of those of the matrix: from 1 on it saves nothing.

    Args:
        width: rows of the matrix, which the language model's are as wide as it is. rank: of the update.
    """
    return 2 * rank / width


def released_parts(family: Family) -> tuple[Part, ...]:
    """What the released recipe trains in full: the projector only in InternVL families."""
    parts: tuple[Part, ...] = ("embeddings", "head", "projection", "mask_decoder")
    return ("projector", *parts) if family is INTERNVL else parts


def part_of(name: str) -> Part:
    """The part a parameter belongs to, by its name."""
    for part, prefixes in _PREFIXES:
        if name.startswith(prefixes):
            return part
    raise ValueError(f"parameter {name!r} belongs to no known part of the model")


def chosen_parts(options: TrainableOptions, model: Sa2VAModel) -> tuple[Part, ...]:
    """The parts trained in full.

    Raises:
        ValueError: a part that does not exist or that this model lacks, or LoRA beside full training.
    """
    present = tuple(dict.fromkeys(part_of(name) for name, _ in model.named_parameters()))
    if options.parts is None:
        return released_parts(model.config.family)
    parts = options.parts
    if parts == ("all",):
        parts = tuple(part for part in present if not (options.lora and part == "language"))
    wrong = [part for part in parts if part not in present]
    if wrong:
        raise ValueError(f"trainable.parts names {wrong}, which this model does not have; it has {list(present)}")
    if options.lora and "language" in parts:
        raise ValueError(
            'trainable.parts holds "language" while trainable.lora is set; LoRA keeps the language model frozen: take '
            '"language" out of the parts, or set trainable.lora=null'
        )
    if not parts and not options.lora:
        raise ValueError(f"nothing is trained: name some of {list(present)} in trainable.parts, or set trainable.lora")
    return tuple(part for part in PARTS if part in parts)


def make_trainable(model: Sa2VAModel, options: TrainableOptions) -> list[PlanRow]:
    """Inject LoRA, freeze and unfreeze parameters, and turn trained ones to float32.

    Returns:
        what is trained, part by part.
    """
    parts: tuple[Part, ...] = (*chosen_parts(options, model), "auxiliary")
    if options.lora:
        _inject_lora(model, options.lora)
    for name, parameter in model.named_parameters():
        trained = _is_lora(name) or part_of(name) in parts
        if parameter.is_floating_point():  # a weight in four bits is bytes, and never trained
            parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.float()
    return [_row(model, part, parts) for part in PARTS if any(part_of(n) == part for n, _ in model.named_parameters())]


def checkpoint_activations(model: Sa2VAModel) -> None:
    """Recompute the activations of each layer in the backward pass instead of keeping them.

    Only where there is a backward pass: in the language model, and in parts with trained parameters.
    """
    recompute = partial(checkpoint, use_reentrant=False)
    for name, module in model.named_modules():
        if not isinstance(module, GradientCheckpointingLayer):
            continue
        if name.startswith("vlm.model.language_model.") or any(p.requires_grad for p in module.parameters()):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = recompute  # type: ignore[assignment]


def compile_layers(model: Sa2VAModel) -> None:
    """Compile the layers of the vision tower and of the language model one by one: what lies between products of
    matrices is fused, which is most of the time of a small model on CPU."""
    vlm: Any = model.vlm.model
    tower: Any = getattr(vlm, "vision_tower", None)
    layers = [*vlm.language_model.layers, *(tower.encoder.layer if tower is not None else vlm.visual.blocks)]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)


def trainable_tensors(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Of a state dict, what training changes."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in tensors.items() if name in trained}


def merged_tensors(tensors: Mapping[str, Tensor], options: LoraOptions | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """A state dict as the plain model has it: LoRA added to the weights, under their own names, in one dtype."""
    merged: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if _is_lora(name) or part_of(name) == "auxiliary":
            continue
        stem = name.removesuffix(".base_layer.weight")
        if stem != name and options is not None:
            down, up = (tensors[f"{stem}.lora_{side}.default.weight"] for side in "AB")
            tensor = add_lora(tensor, down, up, options.alpha / options.rank)
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged


def adapter_tensors(tensors: Mapping[str, Tensor], model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of a state dict, what an adapter keeps: LoRA in float32 under peft's names, the rest of what is trained whole."""
    return {
        name.replace(".default.weight", ".weight"): tensor.float() if _is_lora(name) else tensor.to(dtype)
        for name, tensor in trainable_tensors(tensors, model).items()
        if part_of(name) != "auxiliary"
    }


def whole_modules(model: nn.Module) -> list[str]:
    """The modules trained in full, as peft's ``modules_to_save`` names them."""
    trained = [name for part, name, _ in trained_parameters(model) if not _is_lora(name) and part != "auxiliary"]
    found = (prefix for name in trained for prefix in dict(_PREFIXES)[part_of(name)] if name.startswith(prefix))
    modules = [prefix[:-1] for prefix in dict.fromkeys(found) if prefix.endswith(".") and prefix != "sam2."]
    # peft matches the ends of names, and many names end like one without a dot.
    inner = {name: [f"{name}.{child}" for child, _ in model.get_submodule(name).named_children()] for name in modules}
    return [each for name in modules for each in ([name] if "." in name else inner[name])]


class _Zero(torch.autograd.Function):
    """Zero, as a function of parameters, whose gradient to each is exactly zero even if a parameter is not finite."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.like = [(parameter.shape, parameter.dtype, parameter.device) for parameter in parameters]
        return parameters[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor, ...]:
        return tuple(torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.like)


def zero_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """A zero that keeps parameters in the graph, so that every process of a distributed run has all gradients."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _Zero.apply(*trained) if trained else torch.zeros(())


def trained_parameters(model: nn.Module) -> list[tuple[Part, str, nn.Parameter]]:
    """Every parameter that is trained, with its part and its name."""
    named = model.named_parameters()
    return [(part_of(name), name, parameter) for name, parameter in named if parameter.requires_grad]


def parameters_of(model: nn.Module, *, text: bool) -> list[nn.Parameter]:
    """Trained parameters that a batch may leave out: all, or without those that any text runs."""
    return [parameter for part, _, parameter in trained_parameters(model) if not (text and part in LANGUAGE_PARTS)]


def _inject_lora(model: Sa2VAModel, options: LoraOptions) -> None:
    peft = require_extra("peft", "train")
    settings = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=model.config.family.lora_targets,
    )
    peft.inject_adapter_in_model(settings, model)
    if getattr(model, "hf_quantizer", None):
        model._hf_peft_config_loaded = True  # Trainer refuses a quantised model unless this says that LoRA is in it


def _is_lora(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _row(model: Sa2VAModel, part: Part, parts: tuple[Part, ...]) -> PlanRow:
    mine = [(name, parameter) for name, parameter in model.named_parameters() if part_of(name) == part]
    lora = any(_is_lora(name) for name, _ in mine)
    return PlanRow(
        part,
        "lora" if lora else "full" if part in parts else "frozen",
        sum(parameter.numel() for _, parameter in mine),
        sum(parameter.numel() for _, parameter in mine if parameter.requires_grad),
    )
