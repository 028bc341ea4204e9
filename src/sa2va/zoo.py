"""The published checkpoints: base models, sizes, and the scores their authors published.

Nothing here is measured by this package. Sizes and scores come from the Sa2VA paper (arXiv 2501.04001 v3, tables 8 and
14, which agree with the model cards) and, for Sa2VA-i, from its README; file sizes from the hub's metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

LICENSE_NOTE = "The weights have licences of their own: see each model card before you use them."
PAPER = "arXiv 2501.04001 v3, table {table}"
SA2VA_I = "Sa2VA-i README"


@dataclass(frozen=True)
class ZooModel:
    """A published checkpoint.

    Attributes:
        hub_id: name on the Hugging Face hub.
        base: vision-language model it was trained from. vision: that model's picture encoder.
        size: parameters in 10^9, SAM 2 included; None where it was not published.
        disk: size of its files in 10^9 bytes; None where it was not published.
        refcoco, refcoco_plus, refcocog: cIoU on the val splits, percent.
        mevis: J&F on MeViS val_u, percent. davis17: J&F on Ref-DAVIS17, percent.
        source: who printed the scores; "" where there are none.
        loads: whether this package reads it.
        note: what sets it apart.
    """

    hub_id: str
    base: str
    vision: str
    size: float | None
    disk: float | None
    refcoco: float | None = None
    refcoco_plus: float | None = None
    refcocog: float | None = None
    mevis: float | None = None
    davis17: float | None = None
    source: str = ""
    loads: bool = True
    note: str = ""

    @property
    def name(self) -> str:
        """The hub id without its owner."""
        return self.hub_id.split("/")[1]

    @property
    def record(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return {"name": self.name, **asdict(self), "license": "see the model card"}


def _released(
    name: str, base: str, vision: str, size: float, disk: float, scores: Sequence[float], table: int
) -> ZooModel:
    return ZooModel(f"ByteDance/{name}", base, vision, size, disk, *scores, source=PAPER.format(table=table))


_VIT_300M, _VIT_6B = "InternViT-300M", "InternViT-6B"
_QWEN25_VIT, _QWEN3_VIT = "Qwen2.5-VL ViT", "Qwen3-VL ViT"

RELEASED: tuple[ZooModel, ...] = (
    _released("Sa2VA-1B", "InternVL2.5-1B", _VIT_300M, 1.2, 7.6, (79.6, 73.6, 77.7, 53.4, 69.5), 8),
    _released("Sa2VA-4B", "InternVL2.5-4B", _VIT_300M, 3.9, 15.2, (82.4, 77.6, 79.7, 55.9, 73.7), 8),
    _released("Sa2VA-8B", "InternVL2.5-8B", _VIT_300M, 8.3, 32.7, (82.6, 78.0, 80.3, 58.9, 75.9), 8),
    _released("Sa2VA-26B", "InternVL2.5-26B", _VIT_6B, 25.8, 92.0, (82.9, 79.3, 81.2, 61.8, 78.6), 8),
    _released("Sa2VA-InternVL3-2B", "InternVL3-2B", _VIT_300M, 2.3, 8.7, (81.4, 75.7, 80.3, 53.9, 74.5), 14),
    _released("Sa2VA-InternVL3-8B", "InternVL3-8B", _VIT_300M, 8.2, 32.1, (83.3, 78.9, 81.8, 56.4, 76.3), 14),
    _released("Sa2VA-InternVL3-14B", "InternVL3-14B", _VIT_300M, 15.4, 60.9, (83.6, 79.9, 83.6, 59.2, 76.6), 14),
    _released("Sa2VA-Qwen2_5-VL-3B", "Qwen2.5-VL-3B", _QWEN25_VIT, 4.3, 17.2, (79.6, 74.0, 77.1, 51.6, 73.4), 14),
    _released("Sa2VA-Qwen2_5-VL-7B", "Qwen2.5-VL-7B", _QWEN25_VIT, 8.5, 34.1, (82.4, 77.5, 81.5, 56.4, 79.4), 14),
    _released("Sa2VA-Qwen3-VL-4B", "Qwen3-VL-4B", _QWEN3_VIT, 5.1, 20.2, (81.7, 77.4, 80.0, 57.1, 75.9), 14),
)
"""The ten checkpoints whose every tensor is accounted for in this package's tests."""


def _consistent(size: str, base: str, vision: str, davis17: float) -> ZooModel:
    note = "Sa2VA weights with SAM 2's original decoder beside the tuned one; follows objects in mode consistent"
    return ZooModel(f"kumuji/Sa2VA-i-{size}", base, vision, None, None, davis17=davis17, source=SA2VA_I, note=note)


OTHERS: tuple[ZooModel, ...] = (
    _consistent("1B", "InternVL2.5-1B", _VIT_300M, 73.6),
    _consistent("4B", "InternVL2.5-4B", _VIT_300M, 78.6),
    _consistent("8B", "InternVL2.5-8B", _VIT_300M, 79.1),
    _consistent("26B", "InternVL2.5-26B", _VIT_6B, 81.2),
    ZooModel("ByteDance/Sa2VA-Qwen3-VL-2B", "Qwen3-VL-2B", _QWEN3_VIT, 2.7, 10.7, note="no scores published"),
    ZooModel(
        "HarborYuan/Sa2VA-Qwen3-VL-4B-SAM3", "Qwen3-VL-4B", _QWEN3_VIT, 5.3, 21.2, loads=False, note="SAM 3 for masks"
    ),
    ZooModel(
        "HarborYuan/Sa2VA-LLaVA-1.5-7B",
        "LLaVA-1.5-7B",
        "CLIP ViT-L",
        7.3,
        29.2,
        loads=False,
        note="LLaVA language half",
    ),
    ZooModel("QuanzhuNiu/SaSaSa2VA-4B", "InternVL2.5-4B", _VIT_300M, None, None, note="with --key-frames compressed"),
    ZooModel("QuanzhuNiu/SaSaSa2VA-26B", "InternVL2.5-26B", _VIT_6B, None, None, note="with --key-frames compressed"),
)
"""Other published checkpoints of the family; ``loads`` says which of them this package reads."""

ZOO: tuple[ZooModel, ...] = RELEASED + OTHERS


#: The checkpoint that comes with the package, by the name ``"tiny"``: it learnt a drawn world and needs no download.
TINY = Path(__file__).parent / "assets" / "tiny"


def resolve(name: str) -> str:
    """Resolve ``"tiny"`` to its folder, and a zoo name without owner to its hub id; other names are unchanged.

    Raises:
        ValueError: the model is known, but cannot be loaded.
    """
    if name.lower() == TINY.name and not (Path(name) / "config.json").is_file():
        return str(TINY)
    if Path(name).exists():
        return name
    for model in ZOO:
        if name.lower() in (model.name.lower(), model.hub_id.lower()):
            if not model.loads:
                raise ValueError(f"{model.hub_id} cannot be loaded yet ({model.note}); `sa2va models` lists what can")
            return model.hub_id
    return name


def did_you_mean(name: str) -> str:
    """A suggestion for a misspelt zoo name, as the end of a message; "" if none is close."""
    known = {TINY.name: TINY.name}
    for model in ZOO:
        if model.loads:
            known |= {model.name.lower(): model.hub_id, model.hub_id.lower(): model.hub_id}
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.75)
    return f"; did you mean {known[near[0]]}?" if near and known[near[0]] != name else ""
