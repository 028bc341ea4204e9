"""Building an untrained Sa2VA from its parts: a base vision-language model, and SAM 2 from Meta or from
transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    InternVLForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Sam2VideoConfig,
    Sam2VideoModel,
)

from sa2va.checkpoint import weight_map
from sa2va.checkpoint.configs import build_config, check_counts
from sa2va.checkpoint.files import LazyTensor, open_tensors, read_config
from sa2va.checkpoint.loading import check_tensors, layers_in, shapes_of, to_native, with_tied_head
from sa2va.checkpoint.released_config import internvl_config, says_tied
from sa2va.hub import resolve_folder
from sa2va.model.configuration import Sa2VAConfig, sam2_config
from sa2va.model.families import INTERNVL, family_of
from sa2va.model.network import Sa2VANetwork
from sa2va.processing.tokenizer import add_sa2va_tokens, load_tokenizer

Model = TypeVar("Model", bound="Sa2VANetwork")

#: What ``config.json`` says of SAM 2, of its video and its picture class: the weights are the same.
SAM2_TYPES = ("sam2_video", "sam2")
_FIRST_LAYER = "image_encoder.trunk.patch_embed.proj.weight"
#: Meta's four encoders, by (channels of the first stage, number of blocks): Hiera T, S, B+ and L.
META_ENCODERS: dict[tuple[int, int], dict[str, Any]] = {
    (96, 12): {"num_heads": 1, "blocks": (1, 2, 7, 2), "global_blocks": (5, 7, 9), "windows": (8, 4, 14, 7)},
    (96, 16): {"num_heads": 1, "blocks": (1, 2, 11, 2), "global_blocks": (7, 10, 13), "windows": (8, 4, 14, 7)},
    (112, 24): {"num_heads": 2, "blocks": (2, 3, 16, 3), "global_blocks": (12, 16, 20), "windows": (8, 4, 14, 7)},
    (144, 48): {"num_heads": 2, "blocks": (2, 6, 36, 4), "global_blocks": (23, 33, 43), "windows": (8, 4, 16, 8)},
}


def build_from_parts(
    model_class: type[Model],
    vlm: str | Path | PreTrainedModel,
    sam2: str | Path | Sam2VideoModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: str | None = None,
) -> Model:
    """See [`Sa2VAModel.from_parts`]."""
    if isinstance(vlm, PreTrainedModel):
        if tokenizer is None:
            raise ValueError("a loaded vision-language model needs tokenizer=, whose vocabulary gets the added tokens")
        language = vlm
    else:
        tokenizer = tokenizer or load_tokenizer(vlm)
        language = load_vlm(vlm)
    segmenter: Any = sam2 if isinstance(sam2, Sam2VideoModel) else load_sam2(sam2)
    family = family_of(language.config.model_type)
    seg_token_id = add_sa2va_tokens(tokenizer)
    _resize_embeddings(language, len(tokenizer))
    language.config.image_token_id = tokenizer.convert_tokens_to_ids(family.image_token)
    config = Sa2VAConfig(
        vlm_config=language.config,
        sam2_config=segmenter.config,
        seg_token_id=seg_token_id,
        template=(template or "qwen_chat") if family is INTERNVL else None,
    )
    with torch.device("meta"):
        model = model_class(config)
    model.vlm, model.sam2 = language, segmenter.to(language.dtype)
    model.projection.to_empty(device=language.device)
    for layer in (model.projection.linear_1, model.projection.linear_2):
        layer.reset_parameters()
    model.projection.to(language.dtype)
    return model.eval()


def load_vlm(source: str | Path) -> PreTrainedModel:
    """A base vision-language model, from transformers' layout or from InternVL's own; never through remote code."""
    folder = resolve_folder(source)
    content = read_config(folder)
    if content.get("model_type") != "internvl_chat":
        return AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=False)
    tensors = open_tensors(folder)
    check_counts(content, layers_in(tensors), "")
    config = internvl_config(content)
    table = weight_map.internvl_rules(config.text_config)
    if says_tied(content):
        tensors = with_tied_head(tensors, table)
    tensors = {name.removeprefix("vlm."): tensor for name, tensor in to_native(tensors, table).items()}
    return fill(InternVLForConditionalGeneration, config, tensors, where=str(folder))


def load_sam2(source: str | Path) -> Sam2VideoModel:
    """SAM 2 from Meta's ``.pt`` file (read with ``weights_only``), or from a folder or hub id in transformers'
    layout.

    Raises:
        ValueError: the file is not one of Meta's four SAM 2 sizes, or tensors are missing or left over.
    """
    config, tensors = open_sam2(source)
    return fill(Sam2VideoModel, config, tensors, where=str(source))


def open_sam2(source: str | Path, **hub: Any) -> tuple[Sam2VideoConfig, dict[str, LazyTensor]]:
    """SAM 2's config and tensors, unread, from what [`load_sam2`] takes.

    Raises:
        ValueError: as there.
    """
    if Path(source).suffix == ".pt":
        config, tensors = _open_meta(Path(source))
    else:
        folder = resolve_folder(source, **hub)
        content, tensors = read_config(folder), dict(open_tensors(folder))
        kind = content.get("model_type")
        if kind not in SAM2_TYPES:
            raise ValueError(
                f"{source} has model_type {kind!r}, which is no SAM 2; a model that only carries masks is given as "
                "propagator= (--propagator)"
            )
        check_counts(content, layers_in(tensors), "")
        config = build_config(Sam2VideoConfig, content, "config.json")
    check_tensors(tensors, shapes_of(Sam2VideoModel, config), where=str(source))
    return config, tensors


def _open_meta(path: Path) -> tuple[Sam2VideoConfig, dict[str, LazyTensor]]:
    weights = _read_meta(path)
    # Sa2VA's exports say g_weight where Meta says gamma.
    renamed = {name.replace(".gamma", ".g_weight"): tensor for name, tensor in weights.items()}
    lazy = {
        name: LazyTensor(tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor)
        for name, tensor in renamed.items()
    }
    return _meta_config(renamed, path), to_native(lazy, weight_map.sam2_rules(released="", native=""))


def _read_meta(path: Path) -> Mapping[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not one of Meta's SAM 2 files, read with weights only: {reason}") from error
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or _FIRST_LAYER not in weights:
        raise ValueError(f"{path} is not one of Meta's SAM 2 files: it has no tensor {_FIRST_LAYER!r} under 'model'")
    return weights


def _meta_config(weights: Mapping[str, Tensor], path: Path) -> Sam2VideoConfig:
    channels = weights[_FIRST_LAYER].shape[0]
    blocks = len({name.split(".")[3] for name in weights if name.startswith("image_encoder.trunk.blocks.")})
    if (channels, blocks) not in META_ENCODERS:
        raise ValueError(f"{path}: an encoder of {channels} channels and {blocks} blocks is none of Meta's SAM 2 sizes")
    return sam2_config(
        image_size=1024,
        embed_dim=channels,
        width=256,
        background=weights["image_encoder.trunk.pos_embed"].shape[-1],
        version="2.1" if "no_obj_embed_spatial" in weights else "2.0",
        **META_ENCODERS[channels, blocks],
    )


def fill(model_class: type[Any], config: Any, tensors: Mapping[str, LazyTensor], *, where: str) -> Any:
    """A model with exactly these tensors, through transformers' own loader.

    Raises:
        ValueError: a tensor is missing, left over or misshapen.
    """
    check_tensors(tensors, shapes_of(model_class, config), where=where)
    dtype = next(iter(tensors.values())).dtype
    return model_class.from_pretrained(None, config=config, state_dict=dict(tensors), dtype=dtype)


def _resize_embeddings(language: Any, size: int) -> None:
    """Exactly as many rows as the tokenizer has tokens (padded vocabularies shrink), and a head of its own."""
    language.config.tie_word_embeddings = False
    head, embeddings = language.get_output_embeddings(), language.get_input_embeddings()
    if head.weight is embeddings.weight:
        head.weight = nn.Parameter(embeddings.weight.detach().clone())
    language.resize_token_embeddings(size, mean_resizing=False)
