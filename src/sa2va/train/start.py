"""What a run starts from: a Sa2VA checkpoint, a base model joined with SAM 2, or a base in four bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from sa2va.model.config import Sa2VAConfig, set_grounding_side
from sa2va.model.sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.processing.tokenizer import load_tokenizer
from sa2va.runtime import default_device, require_extra
from sa2va.train.config import TrainConfig
from sa2va.train.detect import is_base_model
from sa2va.train.tiny import GROUNDING_SIDE, RANDOM_TINY, tiny_model, tiny_tokenizer

#: Everything but the linear layers of the language model stays as it is: small, trained, or not made for four bits.
_UNQUANTISED = (
    "vlm.lm_head",
    "vlm.model.vision_tower",
    "vlm.model.visual",
    "vlm.model.multi_modal_projector",
    "projection",
    "sam2",
    "original_mask_decoder",
)


def load_start(config: TrainConfig) -> tuple[Sa2VAModel, Sa2VAProcessor]:
    """The model and processor of a run, nothing frozen yet.

    Raises:
        ValueError: ``model`` is a base model without ``sam2``, or no base model with it. ImportError: bitsandbytes is
            missing.
    """
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    if config.model == RANDOM_TINY:
        tokenizer = tiny_tokenizer()
        model = tiny_model(tokenizer, config.seed, config.grounding_side or GROUNDING_SIDE)
        return model.to(dtype), Sa2VAProcessor(tokenizer, model.config)  # type: ignore[arg-type]
    base = is_base_model(config.model)
    if base != bool(config.sam2):
        raise ValueError(
            f"model {config.model} is "
            + (
                "a vision-language model without SAM 2; set sam2=facebook/sam2-hiera-large (or a folder) to join them"
                if base
                else f"no base vision-language model that sam2={config.sam2} could be joined with; set sam2=null"
            )
        )
    if config.sam2:
        tokenizer = load_tokenizer(config.model)
        torch.manual_seed(config.seed)  # the projection starts from random numbers
        model = Sa2VAModel.from_parts(config.model, config.sam2, tokenizer=tokenizer, template=config.template)
        return model.to(dtype), Sa2VAProcessor(tokenizer, model.config)  # type: ignore[arg-type]
    options: dict[str, Any] = quantised_base() if config.quantization else {}
    if config.grounding_side:
        options["config"] = Sa2VAConfig.from_pretrained(config.model)
        set_grounding_side(options["config"].sam2_config, config.grounding_side)
    model = Sa2VAModel.from_pretrained(config.model, dtype=dtype, **options)
    processor = Sa2VAProcessor.from_pretrained(config.model, model.config)
    if config.grounding_side:
        settings = replace(processor.settings, grounding_side=config.grounding_side)
        processor = Sa2VAProcessor(processor.tokenizer, settings)
    return model, processor


def check_quantization(config: TrainConfig) -> None:
    """Find out before loading whether this machine can train on a base in four bits.

    Raises:
        ValueError: bitsandbytes does not know the device. ImportError: bitsandbytes is missing.
    """
    if not config.quantization:
        return
    device = default_device()
    if device.type not in ("cuda", "cpu"):
        raise ValueError(
            f'quantization "{config.quantization}" runs on CUDA and CPU, and this machine has {device.type}; '
            "set quantization=null, or take a smaller model"
        )
    require_extra("bitsandbytes", "quant")


def quantised_base() -> dict[str, Any]:
    """How the base is loaded in four bits (NF4 with double quantisation; QLoRA, arXiv 2305.14314, section 3)."""
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(_UNQUANTISED),
    )
    return {"quantization_config": settings, "device_map": {"": default_device()}}
