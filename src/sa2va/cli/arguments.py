"""The options several commands have, with their help, and how their texts become values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sa2va.processing.conversation import check_text

if TYPE_CHECKING:
    from sa2va.masks.mask_ops import Cleanup

_MODEL, _MASKS, _VIDEO = "Model", "Masks", "Video"


class Dtype(StrEnum):
    """Number formats of the weights."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Quantize(StrEnum):
    """Number formats of the language model's linear layers."""

    INT8 = "int8"
    NF4 = "nf4"


class DeviceMaps(StrEnum):
    """Ways to spread a model over several devices."""

    AUTO = "auto"
    BALANCED = "balanced"
    BALANCED_LOW_0 = "balanced_low_0"
    SEQUENTIAL = "sequential"


class PropagationMode(StrEnum):
    """How masks are carried from frame to frame."""

    RELEASED = "released"
    CONSISTENT = "consistent"


Source = Annotated[
    str, typer.Argument(metavar="SOURCE", show_default=False, help="Picture, video file, or folder of frames.")
]
Phrases = Annotated[
    list[str],
    typer.Argument(
        metavar="PHRASE", show_default=False, help='What to find: "the red car". With a ? it is asked as a question.'
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar="SA2VA_MODEL",
        metavar="MODEL",
        rich_help_panel=_MODEL,
        help="Hub id, name from `sa2va models`, or folder.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|mps", rich_help_panel=_MODEL, help="Where to compute; auto takes the best there is."
    ),
]
Precision = Annotated[
    Dtype,
    typer.Option("--dtype", rich_help_panel=_MODEL, help="Weights; auto is float32 on a CPU, half elsewhere."),
]
Quantization = Annotated[
    Quantize | None,
    typer.Option(
        "--quantize",
        show_default=False,
        rich_help_panel=_MODEL,
        help="Keep the language model's linear layers in 8 or 4 bits; `sa2va models --memory` says what that saves.",
    ),
]
DeviceMap = Annotated[
    DeviceMaps | None,
    typer.Option(
        show_default=False, rich_help_panel=_MODEL, help="Spread the model over all devices, instead of --device."
    ),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, rich_help_panel=_MODEL, help="Longest answer, in tokens.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="OUT",
        show_default=False,
        rich_help_panel="Output",
        help="Folder for the results, or one file whose ending says what it is (.png .mp4 .webm .gif .json .jsonl).",
    ),
]
Save = Annotated[
    str | None,
    typer.Option(
        metavar="KINDS",
        show_default=False,
        rich_help_panel="Output",
        help="What goes into the folder, by commas. Pictures: overlay masks objects cutout json. "
        "Videos: those, and binary cutout-video jsonl. \\[default: overlay,masks,json]",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", rich_help_panel="Output", help="Replace results that are there already.")
]
Threshold = Annotated[
    float, typer.Option(rich_help_panel=_MASKS, help="Probability from which a pixel belongs to an object.")
]
Tidy = Annotated[
    str | None,
    typer.Option(
        "--cleanup",
        metavar="STEPS",
        show_default=False,
        rich_help_panel=_MASKS,
        help="Tidy the masks, by commas: fill_holes=AREA, remove_specks=AREA, largest_component, closing=RADIUS, "
        "opening=RADIUS, dilate=RADIUS, erode=RADIUS; in pixels.",
    ),
]
KeyFrames = Annotated[
    str,
    typer.Option(
        metavar="uniform|first|compressed|0,10,20",
        rich_help_panel=_VIDEO,
        help="Frames that the language model sees: spread evenly, the first ones, these; or a hundred in small "
        "pictures, for models trained that way.",
    ),
]
NumKeyFrames = Annotated[int, typer.Option(min=1, rich_help_panel=_VIDEO, help="How many, for uniform and first.")]
Mode = Annotated[
    PropagationMode | None,
    typer.Option(
        show_default=False,
        rich_help_panel=_VIDEO,
        help="How masks are carried on; by default, what the model was made for.",
    ),
]
Stride = Annotated[int, typer.Option(min=1, rich_help_panel=_VIDEO, help="Take every n-th frame.")]
Fps = Annotated[
    float | None, typer.Option(show_default=False, rich_help_panel=_VIDEO, help="Take this many frames a second.")
]
Start = Annotated[
    str | None,
    typer.Option(
        metavar="N|SECONDS",
        show_default=False,
        rich_help_panel=_VIDEO,
        help="First frame: a number (250), or a time (10s, 2.5).",
    ),
]
End = Annotated[
    str | None,
    typer.Option(
        metavar="N|SECONDS", show_default=False, rich_help_panel=_VIDEO, help="Frame to stop before, in the same way."
    ),
]
MaxFrames = Annotated[
    int | None, typer.Option(min=1, show_default=False, rich_help_panel=_VIDEO, help="Take at most this many frames.")
]


@dataclass(frozen=True)
class Loading:
    """Where a model is computed and in what numbers: ``--device --dtype --quantize --device-map``."""

    device: str = "auto"
    dtype: Dtype = Dtype.AUTO
    quantize: Quantize | None = None
    device_map: DeviceMaps | None = None

    def __post_init__(self) -> None:
        if self.device_map is not None and self.device != "auto":
            raise ValueError(f"--device {self.device} is one device and --device-map spreads the model; give one")


def check_phrases(phrases: Sequence[str]) -> None:
    """Refuse what the model would refuse, before it is loaded. Raises ValueError."""
    for phrase in phrases:
        check_text(phrase, "a phrase")
    if not all(phrase.strip() for phrase in phrases):
        raise ValueError("a phrase is empty; say what to find")


def mask_options(threshold: float, tidy: str | None) -> dict[str, Any]:
    """``--threshold`` and ``--cleanup`` as keyword arguments of [`Sa2VA`]. Raises ValueError for others."""
    if not 0 < threshold < 1:
        raise ValueError(f"--threshold is a probability above 0 and below 1; got {threshold}")
    return {"threshold": threshold, "cleanup": cleanup(tidy)}


def key_frames(text: str) -> str | list[int]:
    """``--key-frames`` as [`Sa2VA.track`] takes it. Raises ValueError for other text."""
    if text in ("uniform", "first", "compressed"):
        return text
    if re.fullmatch(r"\d+(,\d+)*", text):
        return [int(number) for number in text.split(",")]
    raise ValueError(f"--key-frames is uniform, first, compressed, or frame numbers by commas (0,10,20); got {text!r}")


def bound(name: str, text: str | None) -> int | float | None:
    """``--start`` or ``--end``: an int is a frame, a float seconds. Raises ValueError for other text."""
    if text is None:
        return None
    if re.fullmatch(r"\d+", text):
        return int(text)
    if re.fullmatch(r"\d+(\.\d*)?s|\d+\.\d*", text):
        return float(text.removesuffix("s"))
    raise ValueError(f"--{name} is a frame number (250) or a time in seconds (10s, 2.5); got {text!r}")


def cleanup(text: str | None) -> Cleanup:
    """``--cleanup``. Raises ValueError for a step that is not one, or a size that is no number."""
    from sa2va.masks.mask_ops import Cleanup

    kinds = {field.name: type(field.default) for field in fields(Cleanup)}
    steps: dict[str, Any] = {}
    for step in (text or "").split(","):
        name, given, size = step.strip().partition("=")
        if not name:
            continue
        if name not in kinds or bool(given) == (kinds[name] is bool):
            wanted = ", ".join(name if kind is bool else f"{name}=NUMBER" for name, kind in kinds.items())
            raise ValueError(f"--cleanup takes {wanted}; got {step.strip()!r}")
        try:
            steps[name] = True if kinds[name] is bool else float(size) if "." in size else int(size)
        except ValueError:
            raise ValueError(f"--cleanup {name}= needs a number of pixels; got {size!r}") from None
    return Cleanup(**steps)


def box(text: str) -> tuple[float, float, float, float]:
    """``--box``. Raises ValueError for anything but four numbers in order."""
    from sa2va.processing.regions import checked_box

    try:
        return checked_box([float(number) for number in text.split(",")])
    except ValueError:
        raise ValueError(
            f"--box is x0,y0,x1,y1 in pixels of the picture with x0 < x1 and y0 < y1 (100,50,260,300); got {text!r}"
        ) from None


def sampling(
    stride: int, fps: float | None, start: str | None, end: str | None, max_frames: int | None
) -> dict[str, Any]:
    """The keyword arguments of ``open_media`` that differ from its defaults."""
    wanted = {
        "stride": None if stride == 1 else stride,
        "fps": fps,
        "start": bound("start", start),
        "end": bound("end", end),
        "max_frames": max_frames,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def kinds(text: str | None, known: Sequence[str], default: Sequence[str]) -> list[str]:
    """``--save`` as a list of kinds. Raises ValueError for an unknown one."""
    if text is None:
        return list(default)
    wanted = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [kind for kind in wanted if kind not in known]
    if unknown or not wanted:
        raise ValueError(f"--save takes {', '.join(known)}; got {text!r}")
    return wanted
