"""How the ten released checkpoints were trained: base model, batch, LoRA and data mixture, one row each.

Source: the released training configurations (InternVL3, Qwen2.5-VL, Qwen3-VL) and, for the four older checkpoints, the
configurations of the first release; Sa2VA-26B had none of its own and is given those of its neighbours. What all rows
share (AdamW at 4e-5, two losses, LoRA dropout, ...) are the defaults of [`TrainConfig`], the encoding those of
[`sa2va.data.encode.EncodeOptions`]. All this is the reference's recipe.

What annotations are put into is not: the wordings of requests, and of the answer that nothing is there, are our own
([`sa2va.processing.requests.TrainingRequests`]), sentences of the same kinds as the reference's lists. The answers
with ``[SEG]``, the form of grounded captions and how regions are named and announced are the reference's, since the
models write and read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sa2va.train.config import SourceOptions, TrainConfig
from sa2va.train.trainable import LoraOptions, TrainableOptions

#: SAM 2.0 with Hiera-L, which every released checkpoint was built on.
RELEASED_SAM2 = "facebook/sam2-hiera-large"
#: Clips are longer than pictures, so the two do not share a batch.
_CLIPS = {"revos", "mevis", "ref-ytvos", "ref-sav", "video-chat"}
#: Sources whose samples ask for so many objects at most.
_OBJECTS = {"refcoco", "refcoco+", "refcocog", "revos", "mevis", "ref-ytvos", "ref-sav"}
OBJECTS = 5

Mixture = Mapping[str, float]

#: How often an epoch shows each sample of a source, by its short name.
INTERNVL3: Mixture = {
    "refcoco": 5,
    "refcoco+": 5,
    "refcocog": 4,
    "llava": 1,
    "revos": 10,
    "mevis": 4,
    "ref-ytvos": 4,
    "ref-sav": 4,
    "video-chat": 1,
    "gcg-refcocog": 5,
    "gcg-grandf": 50,
    "gcg-flickr": 5,
    "gcg-openpsg": 5,
    "osprey-conversation": 1,
    "osprey-description": 1,
}
INTERNVL3_14B: Mixture = INTERNVL3 | {"gcg-refcocog": 10, "gcg-grandf": 100, "gcg-flickr": 10, "gcg-openpsg": 10}
#: Qwen families read no marked regions.
QWEN: Mixture = {kind: repeats for kind, repeats in INTERNVL3_14B.items() if not kind.startswith("osprey")}
FIRST_RELEASE: Mixture = {
    "refcoco": 4,
    "refcoco+": 4,
    "refcocog": 4,
    "llava": 1,
    "mevis": 4,
    "revos": 10,
    "ref-ytvos": 4,
    "video-chat": 1,
    "ref-sav": 4,
    "gcg-openpsg": 1,
    "gcg-grandf": 10,
    "gcg-flickr": 1,
    "gcg-refcocog": 1,
    "osprey-conversation": 1,
    "osprey-description": 1,
    "osprey-parts": 1,
    "osprey-short": 1,
    "osprey-positive-negative": 1,
}


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint was trained.

    Attributes:
        base: hub id of the vision-language model it started from. mixture: its data.
        batch_size: samples per GPU and micro-batch. accumulation: micro-batches per step.
        gpus: how many it was trained on; None where that was not published.
        lora: of the language model. template: chat template of an InternVL.
        workers: as in [`TrainConfig`]. save_every: micro-batches between two checkpoints, as was published.
        options: of single sources, beside their folder.
    """

    base: str
    mixture: Mixture
    batch_size: int
    accumulation: int
    gpus: int | None
    lora: LoraOptions = field(default_factory=LoraOptions)
    template: str | None = None
    workers: int = 16
    save_every: int = 2000
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _first(base: str, template: str, save_every: int = 1000) -> Recipe:
    return Recipe(f"OpenGVLab/{base}", FIRST_RELEASE, 2, 4, None, template=template, workers=4, save_every=save_every)


def _internvl3(size: str, batch_size: int, accumulation: int, gpus: int, rank: int, mixture: Mixture) -> Recipe:
    lora = LoraOptions(rank, 2 * rank)
    return Recipe(f"OpenGVLab/InternVL3-{size}", mixture, batch_size, accumulation, gpus, lora, "qwen_chat")


def _qwen(base: str, batch_size: int, accumulation: int, gpus: int) -> Recipe:
    without_text = {"llava": {"text_only": False}}
    return Recipe(f"Qwen/{base}-Instruct", QWEN, batch_size, accumulation, gpus, options=without_text)


#: By the name of the released checkpoint.
RECIPES: dict[str, Recipe] = {
    "Sa2VA-1B": _first("InternVL2_5-1B", "qwen_chat"),
    "Sa2VA-4B": _first("InternVL2_5-4B", "phi3_chat"),
    "Sa2VA-8B": _first("InternVL2_5-8B", "internlm2_chat", save_every=2000),
    "Sa2VA-26B": _first("InternVL2_5-26B", "internlm2_chat"),
    "Sa2VA-InternVL3-2B": _internvl3("2B", 2, 8, 16, 128, INTERNVL3),
    "Sa2VA-InternVL3-8B": _internvl3("8B", 2, 4, 32, 256, INTERNVL3),
    "Sa2VA-InternVL3-14B": _internvl3("14B", 1, 8, 32, 256, INTERNVL3_14B),
    "Sa2VA-Qwen2_5-VL-3B": _qwen("Qwen2.5-VL-3B", 2, 8, 16),
    "Sa2VA-Qwen2_5-VL-7B": _qwen("Qwen2.5-VL-7B", 1, 8, 32),
    "Sa2VA-Qwen3-VL-4B": _qwen("Qwen3-VL-4B", 1, 8, 16),
}


def pretraining(
    name: str, data: str, output: str | None = None, model: str | None = None, sam2: str | None = None
) -> TrainConfig:
    """Train as a released checkpoint was trained, on the same mixture.

    Args:
        name: of the checkpoint. data: folder with all data sets, each in the place it is released in.
        output: folder of the run; None names it after the checkpoint.
        model: what to start from. None takes the recipe's base model and joins it with ``sam2``; a Sa2VA checkpoint
            goes on from there.
        sam2: SAM 2 for a base model: folder, hub id or Meta's ``.pt`` file; None takes the released one.

    Raises:
        ValueError: no released checkpoint has this name.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe is named {name!r}; take one of {sorted(RECIPES)}")
    recipe = RECIPES[name]
    base = model is None or sam2 is not None
    return TrainConfig(
        model=model or recipe.base,
        output=output or f"runs/{name.lower()}",
        data=tuple(_source(recipe, kind, repeats, data) for kind, repeats in recipe.mixture.items()),
        sam2=(sam2 or RELEASED_SAM2) if base else None,
        template=recipe.template if base else None,
        trainable=TrainableOptions(lora=recipe.lora),
        batch_size=recipe.batch_size,
        accumulation=recipe.accumulation,
        workers=recipe.workers,
        save_every=recipe.save_every // recipe.accumulation,
    )


def _source(recipe: Recipe, kind: str, repeats: float, root: str) -> SourceOptions:
    """One source. Each repeat draws new phrases and frames, as upstream does."""
    options: dict[str, Any] = {"root": root, **recipe.options.get(kind, {})}
    if kind in _OBJECTS:
        options["phrases"] = OBJECTS
    if repeats > 1:
        options, repeats = {**options, "views": round(repeats)}, 1
    return SourceOptions(kind, options, repeats, "video" if kind in _CLIPS else "picture")
