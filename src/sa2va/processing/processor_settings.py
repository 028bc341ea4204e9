"""What a processor needs to know about its model: in memory, in ``processor_config.json``, and from released files."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from sa2va.model.config_overlay import OWN_KEY, overlaid
from sa2va.model.configuration import Sa2VAConfig
from sa2va.model.families import FAMILIES
from sa2va.processing.tokenizer import read_json
from sa2va.untrusted import reading

_CONFIG_FILE, _OURS = "processor_config.json", "Sa2VAProcessor"
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_NORMALIZATION = {"qwen2_5_vl": _CLIP, "qwen3_vl": _HALF}


@dataclass(frozen=True)
class QwenPixels:
    """How a Qwen family cuts a picture into patches.

    Attributes:
        patch: side of a patch, pixels. merge: patches per visual token and side. frames: equal time steps per patch.
        mean, std: normalisation of values 0..1.
        min_pixels, max_pixels: limits of the resized picture's area.
    """

    patch: int
    merge: int
    frames: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min_pixels: int = 512 * 28 * 28
    max_pixels: int = 2048 * 28 * 28

    def __post_init__(self) -> None:
        """Raises ValueError for a setting of a wrong type or out of range."""
        for name in ("patch", "merge", "frames", "min_pixels", "max_pixels"):
            value = getattr(self, name)
            most = 2**26 if name.endswith("_pixels") else 256
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name}: expected a whole number from 1 to {most}, got {value!r}")
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels: expected at most max_pixels {self.max_pixels}, got {self.min_pixels}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            numbers = isinstance(values, tuple) and all(type(value) in (int, float) for value in values)
            if not numbers or len(values) != 3 or (name == "std" and 0 in values):
                raise ValueError(f"{name}: expected three numbers, of std none 0, got {values!r}")


@dataclass(frozen=True)
class ProcessorSettings:
    """What a processor needs to know about its model; all of it follows from a [`Sa2VAConfig`].

    Attributes:
        family: ``"internvl"``, ``"qwen2_5_vl"`` or ``"qwen3_vl"``.
        grounding_side: side of SAM 2's square input, in pixels.
        template: chat template of an InternVL family.
        tile_side: side of a tile in pixels (InternVL).
        tokens_per_tile: visual tokens of a tile (InternVL).
        max_tiles: largest number of tiles of an image, not counting the thumbnail (InternVL).
        patches: how images become patches (Qwen).

    Raises:
        ValueError: a setting of a wrong type or out of range.
    """

    family: str
    grounding_side: int
    template: str | None = None
    tile_side: int | None = None
    tokens_per_tile: int | None = None
    max_tiles: int = 12
    patches: QwenPixels | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family: expected one of {sorted(FAMILIES)}, got {self.family!r}")
        limits = {"grounding_side": (32, 4096), "max_tiles": (1, 64)}
        if self.patches is None:
            limits |= {"tile_side": (1, 4096), "tokens_per_tile": (1, 2**16)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name}: expected a whole number from {least} to {most}, got {value!r}")
        if not isinstance(self.template, str | None):
            raise ValueError(f"template: expected the name of a chat template, got {self.template!r}")

    @classmethod
    def of(cls, config: Sa2VAConfig) -> ProcessorSettings:
        """The settings that follow from a model's configuration."""
        vlm: Any = config.vlm_config
        sam2: Any = config.sam2_config
        vision, grounding_side = vlm.vision_config, sam2.image_size
        if config.family.tiled:
            if config.template is None:
                raise ValueError("expected config.template to name a chat template for an InternVL model, got None")
            side, patch = vision.image_size[0], vision.patch_size[0]
            tokens = int(side // patch * vlm.downsample_ratio) ** 2
            return cls(config.family.name, grounding_side, config.template, side, tokens, config.max_tiles)
        mean, std = _NORMALIZATION[config.family.name]
        patches = QwenPixels(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size, mean, std)
        return cls(config.family.name, grounding_side, patches=patches)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ProcessorSettings:
        """The settings whose ``dataclasses.asdict`` was written as JSON.

        Raises:
            ValueError: a setting is unknown, missing, of a wrong type or out of range.
        """
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown setting {min(unknown)!r}; it was written by a newer release")
        patches: dict[str, Any] | None = values.get("patches")
        if patches is None:
            return cls(**values)
        # JSON has no tuples.
        lists = {key: tuple(value) for key, value in patches.items() if isinstance(value, list)}
        return cls(**{**values, "patches": QwenPixels(**{**patches, **lists})})

    @classmethod
    def read(cls, folder: str | os.PathLike[str], config: Sa2VAConfig | None = None) -> ProcessorSettings:
        """The settings of a local folder: those that were saved there, or those that follow from its model.

        Args:
            config: the model's; read only where no settings of ours were saved.

        Raises:
            ValueError: a file holds something else, or there is no config where one is needed.
        """
        saved = read_json(folder, _CONFIG_FILE)
        if saved.pop("processor_class", None) == _OURS:
            with reading(f"{folder}: {_CONFIG_FILE}"):
                return cls.from_json(saved)
        if config is None:
            raise ValueError(f"{folder} holds no {_CONFIG_FILE} of {_OURS}: pass the model's config")
        with reading(f"{folder}: config.json"):
            settings = cls.of(config)
        # transformers 5 writes the picture processor's settings into the file of the whole processor.
        pixels = saved.get("image_processor") or read_json(folder, "preprocessor_config.json")
        with reading(f"{folder}: preprocessor_config.json"):
            if settings.patches and "image_mean" in pixels:
                mean, std = tuple(pixels["image_mean"]), tuple(pixels["image_std"])
                settings = replace(settings, patches=replace(settings.patches, mean=mean, std=std))
        with reading(f"{folder}: config.json: {OWN_KEY}"):
            own = (read_json(folder, "config.json").get(OWN_KEY) or {}).get("processor")
            return cls.from_json(overlaid(asdict(settings), own)) if own else settings

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``processor_config.json``."""
        settings = {"processor_class": _OURS, **asdict(self)}
        (Path(folder) / _CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
