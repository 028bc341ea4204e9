"""Published scores in percent, by checkpoint, for comparison.

Names are those of the zoo. Where the paper measured weights that were never released (its first models, from InternVL2)
the name says so, and never equals a checkpoint's. Sources: Sa2VA, arXiv 2501.04001 v3 (tables 6, 8, 10, 14, 18); the
README of Sa2VA-i (arXiv 2509.19082); SAMTok for one number of grounded captions.
"""

from __future__ import annotations

from collections.abc import Callable

from sa2va.zoo import ZOO, ZooModel

_SIZES = ("1B", "4B", "8B", "26B")


def _zoo(score: Callable[[ZooModel], float | None]) -> dict[str, float]:
    return {model.name: value for model in ZOO if (value := score(model)) is not None}


def _sizes(pattern: str, *values: float) -> dict[str, float]:
    return {pattern.format(size): value for size, value in zip(_SIZES, values, strict=True)}


_UNRELEASED = "Sa2VA-{} (paper, InternVL2)"

#: cIoU on the val splits.
REFCOCO = {
    "refcoco/val": _zoo(lambda model: model.refcoco),
    "refcoco+/val": _zoo(lambda model: model.refcoco_plus),
    "refcocog/val": _zoo(lambda model: model.refcocog),
}
#: J&F.
MEVIS_VALID_U = _zoo(lambda model: model.mevis)
REF_DAVIS17 = _zoo(lambda model: model.davis17)
MEVIS_VALID = {
    **_sizes("Sa2VA-{}", 47.0, 46.4, 51.5, 52.1),
    **_sizes("Sa2VA-i-{}", 52.6, 56.6, 59.5, 63.2),
    **_sizes(_UNRELEASED, 41.7, 46.2, 46.9, 46.2),
}
REF_YOUTUBE_VOS = {
    **_sizes("Sa2VA-{}", 68.0, 71.3, 72.3, 75.1),
    **_sizes("Sa2VA-i-{}", 70.3, 73.2, 73.9, 76.5),
    **_sizes(_UNRELEASED, 65.3, 70.0, 70.7, 70.1),
}
REVOS = {
    "Sa2VA-InternVL3-2B": 56.2,
    "Sa2VA-InternVL3-8B": 60.8,
    "Sa2VA-InternVL3-14B": 60.7,
    "Sa2VA-Qwen2_5-VL-3B": 52.0,
    "Sa2VA-Qwen2_5-VL-7B": 58.3,
    "Sa2VA-Qwen3-VL-4B": 56.7,
    **_sizes(_UNRELEASED, 47.6, 53.2, 57.6, 58.4),
}
REF_SAV = {"Sa2VA-8B (paper, zero-shot)": 41.3, "Sa2VA-8B (paper, trained on Ref-SAV)": 50.0}
#: AP50 on GranDf val.
GCG_VAL = {**_sizes(_UNRELEASED, 23.8, 28.2, 31.0, 33.5), "Sa2VA-8B (SAMTok)": 33.2}
#: METEOR.
REGION_CAPTION = {"Sa2VA-4B": 17.3}
