"""A checkpoint under ComfyUI's own memory management: it moves to the GPU when it is used, and off it for others."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher

from sa2va import Sa2VA
from sa2va.inference.options import MATTING
from sa2va.zoo import ZOO

_FOLDER = "sa2va"
#: SAM 2's own weights, which carry masks through videos better than the decoder of the released checkpoints.
_SAM2 = "facebook/sam2-hiera-large"
DTYPES = {"auto": None, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
DECODERS = {"the checkpoint's own": None, _SAM2: _SAM2}

folder_paths.add_model_folder_path(_FOLDER, str(Path(folder_paths.models_dir) / _FOLDER))


def names() -> list[str]:
    """What can be loaded: folders of ``models/sa2va`` first, then what would be downloaded."""
    here = sorted(_folders())
    return [*here, *(name for name in ("tiny", *(one.name for one in ZOO if one.loads)) if name not in here)]


def _folders() -> dict[str, Path]:
    """Checkpoints and adapters in the model folders by name; the first folder wins."""
    roots = [Path(root) for root in folder_paths.get_folder_paths(_FOLDER)]
    models = [path.parent for root in roots for path in sorted(root.glob("*/config.json")) if _is_ours(path)]
    adapters = [path.parent for root in roots for path in sorted(root.glob("*/adapter_config.json"))]
    return {folder.name: folder for folder in reversed([*models, *adapters])}


def _is_ours(config: Path) -> bool:
    return "sa2va" in config.read_text("utf-8").lower()


def matting() -> str:
    """The weights for soft edges: a folder of ``models/sa2va``, or else what would be downloaded."""
    folders = (Path(root) / Path(MATTING).name for root in folder_paths.get_folder_paths(_FOLDER))
    return next((str(folder) for folder in folders if folder.is_dir()), MATTING)


class Checkpoint:
    """A model of this package that is loaded when it is first used, and again after it was unloaded.

    Args:
        name: one of [`names`]. dtype, decoder: of ``DTYPES`` and ``DECODERS``.
        quantization: ``"none"``, ``"int8"`` or ``"nf4"``.
    """

    def __init__(self, name: str, *, dtype: str, quantization: str, decoder: str):
        self._name, self._dtype, self._decoder = name, DTYPES[dtype], DECODERS[decoder]
        self._quantization: Any = None if quantization == "none" else quantization
        self._model: Sa2VA | None = None
        self._patcher: ModelPatcher | None = None

    def ready(self) -> Sa2VA:
        """The model, on the device where ComfyUI computes.

        Raises:
            ValueError: there is no such checkpoint, it cannot be downloaded, or its files are damaged.
        """
        model = self._model = self._model or self._load()
        if self._patcher is not None:
            memory.load_models_gpu([self._patcher], force_full_load=True)
        return model

    def unload(self) -> None:
        """Free the memory of the weights, on the GPU and off it."""
        self._model = self._patcher = None
        gc.collect()
        memory.cleanup_models()
        memory.soft_empty_cache()

    def _load(self) -> Sa2VA:
        device = memory.get_torch_device()
        options = {"dtype": self._dtype or _dtype(device), "sam2": self._decoder}
        source = _folders().get(self._name, self._name)
        with torch.inference_mode(False):  # weights outlive the run that loads them
            if self._quantization is not None:  # such weights stay where they were made: others make room
                memory.unload_all_models()
                return Sa2VA.from_pretrained(source, device=device, quantization=self._quantization, **options)
            resting = memory.text_encoder_offload_device()
            model = Sa2VA.from_pretrained(source, device=resting, **options)
        # In a list of its own, because ComfyUI notes the device on what it moves.
        self._patcher = ModelPatcher(torch.nn.ModuleList([model.model]), device, resting)
        return model


def _dtype(device: torch.device) -> torch.dtype:
    """The one that ComfyUI would take for a model of its own."""
    if memory.should_use_bf16(device):
        return torch.bfloat16
    return torch.float16 if memory.should_use_fp16(device) else torch.float32
