"""What differs between the vision-language families, one frozen row each.

Everything else in the package is written once for all of them. A family is recognised by the ``model_type`` of the
vision-language config, never by a path or a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What the model writes where it points at something.
SEG_TOKEN = "[SEG]"
#: Label of a position that is not learnt, as torch's cross-entropy has it.
IGNORED_LABEL = -100
#: The tokens Sa2VA adds to a base tokenizer, in the released order: their ids follow each other.
ADDED_TOKENS = (SEG_TOKEN, "<p>", "</p>", "<vp>", "</vp>")


@dataclass(frozen=True)
class Family:
    """One vision-language family.

    Attributes:
        name: ``model_type`` of the transformers config.
        model_class: name of the transformers class that computes it.
        image_start, image_token, image_end: tokens around and at the places of image features.
        seg_state: which hidden state of the last layer feeds the mask prompt: ``"normed"`` is after the final norm,
            ``"raw"`` before it (Qwen3-VL was trained on a transformers release that exposed the raw one).
        visual_prompts: whether ``<vp>`` regions can be described.
        tiled: whether pictures are cut into tiles; the vision towers of others take pictures of any size.
        prompt_seg_counts: the released remote code also turns a ``[SEG]`` of the prompt into a mask.
        released_architecture: ``architectures[0]`` of a released ``config.json``.
        lora_targets: regular expression over module names of the language model that LoRA adapts.
    """

    name: str
    model_class: str
    image_start: str
    image_token: str
    image_end: str
    seg_state: Literal["normed", "raw"]
    visual_prompts: bool
    tiled: bool
    prompt_seg_counts: bool
    released_architecture: str
    lora_targets: str


_LANGUAGE_LINEARS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"

INTERNVL = Family(
    name="internvl",
    model_class="InternVLForConditionalGeneration",
    image_start="<img>",
    image_token="<IMG_CONTEXT>",
    image_end="</img>",
    seg_state="normed",
    visual_prompts=True,
    tiled=True,
    prompt_seg_counts=False,
    released_architecture="Sa2VAChatModel",
    lora_targets=_LANGUAGE_LINEARS,
)
QWEN2_5_VL = Family(
    name="qwen2_5_vl",
    model_class="Qwen2_5_VLForConditionalGeneration",
    image_start="<|vision_start|>",
    image_token="<|image_pad|>",
    image_end="<|vision_end|>",
    seg_state="normed",
    visual_prompts=False,
    tiled=False,
    prompt_seg_counts=True,
    released_architecture="Sa2VAChatModelQwen",
    lora_targets=_LANGUAGE_LINEARS,
)
QWEN3_VL = Family(
    name="qwen3_vl",
    model_class="Qwen3VLForConditionalGeneration",
    image_start="<|vision_start|>",
    image_token="<|image_pad|>",
    image_end="<|vision_end|>",
    seg_state="raw",
    visual_prompts=False,
    tiled=False,
    prompt_seg_counts=True,
    released_architecture="Sa2VAChatModelQwen",
    lora_targets=_LANGUAGE_LINEARS,
)

FAMILIES: dict[str, Family] = {family.name: family for family in (INTERNVL, QWEN2_5_VL, QWEN3_VL)}


def family_of(model_type: str) -> Family:
    """The family of a vision-language config's ``model_type``.

    Raises:
        ValueError: no family has this model type.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"unknown vision-language model type {model_type!r}; expected one of {sorted(FAMILIES)}")
    return FAMILIES[model_type]
