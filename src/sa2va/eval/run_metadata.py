"""``run.json`` of an evaluation: model, settings and software, so that a run never mixes two of them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sa2va import __version__
from sa2va.atomic import replacing
from sa2va.eval.predict import Settings
from sa2va.hub import resolve_folder
from sa2va.model.quantization import quantization_of
from sa2va.untrusted import STUMBLES, parse_json
from sa2va.zoo import TINY

if TYPE_CHECKING:
    from sa2va.predictor import Sa2VA

HEADER = "run.json"
_PACKAGES = ("torch", "transformers", "numpy", "pillow", "av", "pycocotools")
#: What may differ when a run goes on: the same weights give the same answers from any folder, on any card of a kind.
_MAY_DIFFER = ("model", "device_name")
_PROBES = 8  # values per tensor that the fingerprint reads


@dataclass(frozen=True)
class RunHeader:
    """What answered, JSON-ready.

    Attributes:
        model: folder or hub id. revision: commit of the hub, "" for a folder.
        config: SHA-256 of the model's configuration. weights: fingerprint of the weights, see [`fingerprint`].
        dtype, device, device_name: e.g. ``"bfloat16"``, ``"cuda"``, ``"NVIDIA H100 80GB HBM3"``.
        mode: how masks were carried through clips, after the checkpoint's own choice was made.
        settings: fields of ``Settings``. versions: of this package, Python and the libraries.
        quantization: of the language model, ``"int8"`` or ``"nf4"``; ``""`` for none.
    """

    model: str
    revision: str
    config: str
    weights: str
    dtype: str
    device: str
    device_name: str
    mode: str
    settings: dict[str, Any]
    versions: dict[str, str]
    quantization: str = ""

    @classmethod
    def of(cls, sa2va: Sa2VA, model: str, settings: Settings) -> RunHeader:
        """The header of a loaded model.

        Args:
            model: the name it was loaded by.
        """
        weights = sa2va.model
        device = weights.device
        original = weights.original_mask_decoder is not None
        return cls(
            model=TINY.name if model == str(TINY) else model,
            revision=hub_revision(model),
            config=_digest(weights.config.to_json_string(use_diff=False)),
            weights=fingerprint(weights),
            dtype=str(weights.dtype).removeprefix("torch."),
            device=device.type,
            device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            mode=settings.mode or ("consistent" if original else "released"),
            settings=json.loads(json.dumps(settings.record)),
            versions=_versions(),
            quantization=quantization_of(weights),
        )

    def settle(self, out: Path) -> None:
        """Put the header into a folder, or make sure that it agrees with the one there.

        Raises:
            ValueError: the folder holds a run of something else; the message says what differs.
        """
        path = out / HEADER
        if not path.exists():
            out.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
            return
        theirs, ours = asdict(read_header(out)), asdict(self)
        for name in ("quantization", "dtype", *ours):  # which change the weights, too
            if name not in _MAY_DIFFER and theirs[name] != ours[name]:
                before, now = _difference(theirs[name], ours[name])
                raise ValueError(
                    f"{out} holds a run with another {name}: it was {before}, now it is {now}; go on with the same "
                    "model and options, or choose another -o"
                )


def read_header(out: Path) -> RunHeader:
    """The header of a folder. Raises ValueError when there is none, or it is something else."""
    path = out / HEADER
    if not path.is_file():
        raise ValueError(f"{out} holds no evaluation ({HEADER} is missing); run `sa2va eval MODEL BENCH... -o {out}`")
    try:
        return RunHeader(**parse_json(path.read_bytes()))
    except STUMBLES as error:
        raise ValueError(f"{path} is not the header of an evaluation: {error}") from error


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 over the name, shape and a few values of every tensor: training changes it, loading again does not.

    Tensors that are kept on disk enter with name and shape alone.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta and tensor.numel():
            flat = tensor.detach().reshape(-1)
            probes = flat[:: max(1, len(flat) // _PROBES)][:_PROBES]
            digest.update(probes.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def hub_revision(model: str) -> str:
    """The commit of a hub id that is in the cache; "" for a folder."""
    if os.path.exists(model):
        return ""
    try:
        folder = resolve_folder(model, local_files_only=True)
    except (ValueError, OSError):  # not from the hub's cache
        return ""
    return folder.name if folder.parent.name == "snapshots" else ""


def _digest(text: str) -> str:
    content = json.loads(text)
    # Where the model was loaded from and by whom is not what it is.
    for name in ("_name_or_path", "transformers_version", "dtype", "quantization_config"):
        content.pop(name, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"sa2va": __version__, "python": sys.version.split()[0], **packages}


def _difference(theirs: Any, ours: Any) -> tuple[Any, Any]:
    """Two values, or the first entries in which two dictionaries differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in sorted({*theirs, *ours}):
            if theirs.get(name) != ours.get(name):
                return f"{name}={theirs.get(name)}", f"{name}={ours.get(name)}"
    return theirs, ours
