"""The model a run starts from: a Sa2VA checkpoint, a base model joined with SAM 2, or a 4-bit base."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from sa2va.hub import TEXT_PATTERNS, resolve_folder
from sa2va.model.configuration import Sa2VAConfig, set_grounding_side
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.processing.tokenizer import load_tokenizer
from sa2va.runtime import default_device, import_object
from sa2va.train.autodetect import is_base_model
from sa2va.train.config import TrainConfig

#: Models of random weights, by what ``model`` calls them: ``"package.module:factory"``, where the factory takes the
#: seed and the grounding side (None for its own) and returns the model and its tokenizer.
RANDOM_MODELS = {"random-tiny": "sa2va.tiny.random_model:random_tiny"}


def load_start(config: TrainConfig) -> tuple[Sa2VAModel, Sa2VAProcessor]:
    """The model and processor of a run, nothing frozen yet.

    Raises:
        ValueError: ``model`` is a base model without ``sam2``, or no base model with it. ImportError: bitsandbytes is
            missing.
    """
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    if config.model in RANDOM_MODELS:
        factory = import_object(RANDOM_MODELS[config.model], "model")
        model, tokenizer = factory(config.seed, config.grounding_side)
        return model.to(dtype), Sa2VAProcessor(tokenizer, model.config)
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
    options: dict[str, Any] = {}
    if config.quantization:
        options |= {"quantization": config.quantization, "device_map": {"": default_device()}}
    if config.grounding_side:
        options["config"] = Sa2VAConfig.from_pretrained(resolve_folder(config.model, TEXT_PATTERNS))
        set_grounding_side(options["config"].sam2_config, config.grounding_side)
    model = Sa2VAModel.from_pretrained(config.model, dtype=dtype, **options)
    processor = Sa2VAProcessor.from_pretrained(config.model, model.config)
    if config.grounding_side:
        settings = replace(processor.settings, grounding_side=config.grounding_side)
        processor = Sa2VAProcessor(processor.tokenizer, settings)
    return model, processor
