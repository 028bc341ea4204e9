"""What ``sa2va doctor`` reports about the machine and its packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Literal

from sa2va import __version__

_CORE = (
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "pillow",
    "av",
    "pycocotools",
    "sentencepiece",
    "typer",
    "rich",
)
_EXTRAS = {"supervision": "vision", "accelerate": "multi-gpu"}
_ENCODERS = ("libx264", "libvpx-vp9", "gif", "aac", "libopus")
_DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "aac")


def versions() -> dict[str, str]:
    """Python, the system, this package and what it stands on."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    about = {"sa2va": __version__, "python": sys.version.split()[0], "system": system}
    return about | {name: _version(name) or "MISSING" for name in _CORE}


def extras() -> dict[str, str]:
    """Optional packages: the version, or how to get one."""
    return {name: _version(name) or f"not installed (pip install 'sa2va[{extra}]')" for name, extra in _EXTRAS.items()}


def devices() -> dict[str, str]:
    """What torch can compute on, and which of it is taken by default."""
    import torch

    from sa2va.runtime import default_device, default_dtype

    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used"}
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        capability = f"compute {card.major}.{card.minor}"
        found[f"cuda:{number}"] = f"{card.name}, {capability}, {_gib(free)} free of {_gib(total)}"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    best = default_device()
    return found | {"default": f"{best}, {str(default_dtype(best)).removeprefix('torch.')}"}


def memory() -> dict[str, str]:
    """Free main memory, and room on the disk where downloaded weights go."""
    import shutil

    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        ram = f"{_gib(os.sysconf('SC_AVPHYS_PAGES') * page)} free of {_gib(os.sysconf('SC_PHYS_PAGES') * page)}"
    except (AttributeError, ValueError, OSError):
        ram = "unknown on this system"
    return {"main": ram, "downloads": f"{_gib(shutil.disk_usage(place).free)} free in {cache}"}


def codecs() -> dict[str, str]:
    """The FFmpeg inside PyAV, and what of it is used for reading and writing video."""
    import av
    from av.codec import codecs_available

    ffmpeg = ", ".join(f"{name} {'.'.join(map(str, number))}" for name, number in av.library_versions.items())
    return {
        "ffmpeg": ffmpeg,
        "encoders": ", ".join(f"{name} {'yes' if _can(name, 'w') else 'NO'}" for name in _ENCODERS),
        "decoders": ", ".join(f"{name} {'yes' if _can(name, 'r') else 'NO'}" for name in _DECODERS),
    } | ({} if codecs_available else {"problem": "PyAV offers no codecs at all"})


def _can(name: str, mode: Literal["r", "w"]) -> bool:
    import av

    try:
        av.Codec(name, mode)
    except ValueError:  # av.codec.UnknownCodecError
        return False
    return True


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
