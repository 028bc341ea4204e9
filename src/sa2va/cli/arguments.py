"""The options that several commands share: their help, groups of them, and their texts as values."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sa2va import zoo
from sa2va.cli.console import Screen, quiet_libraries
from sa2va.processing.conversation import check_text
from sa2va.runtime import present_device

if TYPE_CHECKING:
    from sa2va.masks.mask_ops import Cleanup
    from sa2va.predictor import Sa2VA

_MODEL, _MASKS, _PICTURES, _VIDEO = "Model", "Masks", "Second looks at a picture", "Video"


class Dtype(StrEnum):
    """Number formats of the weights."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Quantize(StrEnum):
    """Quantised formats of the language model's linear layers."""

    INT8 = "int8"
    NF4 = "nf4"


class DeviceMaps(StrEnum):
    """How accelerate spreads a model over several devices."""

    AUTO = "auto"
    BALANCED = "balanced"
    BALANCED_LOW_0 = "balanced_low_0"
    SEQUENTIAL = "sequential"


class PropagationMode(StrEnum):
    """How masks are propagated from frame to frame."""

    RELEASED = "released"
    CONSISTENT = "consistent"


class Refinements(StrEnum):
    """How the masks of a picture are refined."""

    SAM = "sam"
    MATTING = "matting"


class MemoryKind(StrEnum):
    """Which frames are remembered and read."""

    RECENT = "recent"
    NEAR = "near"
    LOCAL = "local"
    DISTRACTOR_AWARE = "distractor-aware"
    TREE = "tree"


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
MaxNewTokens = Annotated[int, typer.Option(min=1, rich_help_panel=_MODEL, help="Longest answer, in tokens.")]
Threshold = Annotated[
    float, typer.Option(rich_help_panel=_MASKS, help="Probability from which a pixel belongs to an object.")
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


#: The window of ``--best``; docs/video.md has what it gained.
BEST_ASK_EVERY = 15

AskEvery = Annotated[
    str | None,
    typer.Option(
        "--ask-every",
        metavar="N|scene",
        show_default=False,
        rich_help_panel=_VIDEO,
        help="Show the language model key frames of every N frames, or of every scene between two cuts, so that what "
        "comes late or comes back is found. By default it sees key frames of the whole video, once.",
    ),
]
CheckPresence = Annotated[
    bool,
    typer.Option(
        "--check-presence",
        rich_help_panel=_MASKS,
        help="Ask for yes or no whether there is such a thing, and give no mask where the answer is no.",
    ),
]
Memory = Annotated[
    MemoryKind,
    typer.Option(
        rich_help_panel=_VIDEO,
        help="What carries masks on: recent frames (SAM 2's own), only the nearest (faster with many objects), these "
        "around the object only (faster yet, less exact), frames "
        "in which the object was told from others like it, or a tree of hypotheses (three times the work).",
    ),
]


@dataclass(frozen=True)
class OutputOptions:
    """What a command writes, and where."""

    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            show_default=False,
            rich_help_panel="Output",
            help="Folder for the results, or one file whose ending says what it is "
            "(.png .mp4 .webm .gif .json .jsonl).",
        ),
    ] = None
    save: Annotated[
        str | None,
        typer.Option(
            metavar="KINDS",
            show_default=False,
            rich_help_panel="Output",
            help="What goes into the folder, by commas. Pictures: overlay masks objects cutout json. "
            "Videos: those, and binary cutout-video jsonl cvat label-studio. \\[default: overlay,masks,json]",
        ),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel="Output", help="Replace results that are there already.")
    ] = False


@dataclass(frozen=True)
class Loading:
    """Where a model is loaded, and in what precision. Raises ValueError for a device beside a device map."""

    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda|mps", rich_help_panel=_MODEL, help="Where to compute; auto takes the best there is."
        ),
    ] = "auto"
    dtype: Annotated[
        Dtype,
        typer.Option("--dtype", rich_help_panel=_MODEL, help="Weights; auto is float32 on a CPU, half elsewhere."),
    ] = Dtype.AUTO
    quantize: Annotated[
        Quantize | None,
        typer.Option(
            "--quantize",
            show_default=False,
            rich_help_panel=_MODEL,
            help="Keep the language model's linear layers in 8 or 4 bits; `sa2va models --memory` says what that "
            "saves.",
        ),
    ] = None
    device_map: Annotated[
        DeviceMaps | None,
        typer.Option(
            show_default=False, rich_help_panel=_MODEL, help="Spread the model over all devices, instead of --device."
        ),
    ] = None

    sam2: Annotated[
        str | None,
        typer.Option(
            "--sam2",
            metavar="SAM2",
            show_default=False,
            rich_help_panel=_MODEL,
            help="SAM 2's own weights (hub id, folder, or Meta's .pt), whose decoder carries masks through videos "
            "better: facebook/sam2-hiera-large for the released checkpoints.",
        ),
    ] = None
    propagator: Annotated[
        str | None,
        typer.Option(
            "--propagator",
            metavar="MODEL",
            show_default=False,
            rich_help_panel=_MODEL,
            help="Another model that carries masks through videos, with its own image encoder (hub id, folder, or "
            "Meta's .pt): SAM 2 or 2.1, SAM 3, EdgeTAM.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.device_map is not None and self.device != "auto":
            raise ValueError(f"--device {self.device} is one device and --device-map spreads the model; give one")


@dataclass(frozen=True)
class MaskOptions:
    """How probabilities become masks. Raises ValueError for an option out of range."""

    threshold: Threshold = 0.5
    cleanup: Annotated[
        str | None,
        typer.Option(
            "--cleanup",
            metavar="STEPS",
            show_default=False,
            rich_help_panel=_MASKS,
            help="Tidy the masks, by commas: fill_holes=AREA, remove_specks=AREA, largest_component, closing=RADIUS, "
            "opening=RADIUS, dilate=RADIUS, erode=RADIUS; in pixels.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"--threshold is a probability above 0 and below 1; got {self.threshold}")
        parse_cleanup(self.cleanup)

    @property
    def keywords(self) -> dict[str, Any]:
        """The same as keyword arguments of `Sa2VA`."""
        return {"threshold": self.threshold, "cleanup": parse_cleanup(self.cleanup)}


@dataclass(frozen=True)
class PictureOptions:
    """Second looks at a picture."""

    zoom: Annotated[
        bool,
        typer.Option(
            "--zoom",
            rich_help_panel=_PICTURES,
            help="Look again inside what was found, and by tiles where nothing was found in a large picture.",
        ),
    ] = False
    instances: Annotated[
        bool,
        typer.Option(
            "--instances", rich_help_panel=_PICTURES, help='One object for each of "all the red cars", not one for all.'
        ),
    ] = False
    refine: Annotated[
        Refinements | None,
        typer.Option(
            "--refine",
            show_default=False,
            rich_help_panel=_PICTURES,
            help="Redraw masks with SAM 2's original decoder (see --sam2), or find the opacity of edges for cut-outs.",
        ),
    ] = None
    matting: Annotated[
        str,
        typer.Option(
            "--matting",
            metavar="MATTING",
            rich_help_panel=_PICTURES,
            help="VitMatte weights of --refine matting: hub id or folder.",
        ),
    ] = "hustvl/vitmatte-small-composition-1k"

    @property
    def keywords(self) -> dict[str, Any]:
        """The same as keyword arguments of `Sa2VA.segment`."""
        refine = None if self.refine is None else self.refine.value
        return {"zoom": self.zoom, "instances": self.instances, "refine": refine, "matting": self.matting}

    def check_unused(self) -> None:
        """Raise ValueError if one is asked for, where there is a video."""
        if self.zoom or self.instances or self.refine:
            raise ValueError("--zoom, --instances and --refine look at one picture again; give a picture, not a video")


@dataclass(frozen=True)
class VideoOptions:
    """Which frames are read, which of them the language model sees, and how masks are propagated."""

    key_frames: KeyFrames = "uniform"
    num_key_frames: NumKeyFrames = 5
    mode: Mode = None
    memory: Memory = MemoryKind.RECENT
    ask_every: AskEvery = None
    best: Annotated[
        bool,
        typer.Option(
            "--best",
            rich_help_panel=_VIDEO,
            help=f"What was measured to find more, for more work: --ask-every {BEST_ASK_EVERY}.",
        ),
    ] = False
    stride: Annotated[int, typer.Option(min=1, rich_help_panel=_VIDEO, help="Take every n-th frame.")] = 1
    fps: Annotated[
        float | None, typer.Option(show_default=False, rich_help_panel=_VIDEO, help="Take this many frames a second.")
    ] = None
    start: Annotated[
        str | None,
        typer.Option(
            metavar="N|SECONDS",
            show_default=False,
            rich_help_panel=_VIDEO,
            help="First frame: a number (250), or a time (10s, 2.5).",
        ),
    ] = None
    end: Annotated[
        str | None,
        typer.Option(
            metavar="N|SECONDS",
            show_default=False,
            rich_help_panel=_VIDEO,
            help="Frame to stop before, in the same way.",
        ),
    ] = None
    max_frames: Annotated[
        int | None,
        typer.Option(min=1, show_default=False, rich_help_panel=_VIDEO, help="Take at most this many frames."),
    ] = None

    @property
    def tracking(self) -> dict[str, Any]:
        """Keyword arguments of `Sa2VA.track`.

        Raises:
            ValueError: ``--key-frames`` or ``--ask-every`` that are none, or that do not go together.
        """
        frames, mode = parse_key_frames(self.key_frames), None if self.mode is None else self.mode.value
        chosen = {"key_frames": frames, "num_key_frames": self.num_key_frames, "mode": mode}
        ask_every = str(BEST_ASK_EVERY) if self.best and self.ask_every is None else self.ask_every
        asked = {} if ask_every is None else {"ask_every": parse_ask_every(ask_every, self.key_frames)}
        return chosen | {"memory": self.memory.value} | asked

    @property
    def sampling(self) -> dict[str, Any]:
        """The keyword arguments of ``open_media`` that differ from its defaults. Raises ValueError for no bounds."""
        wanted = {
            "stride": None if self.stride == 1 else self.stride,
            "fps": self.fps,
            "start": parse_bound("start", self.start),
            "end": parse_bound("end", self.end),
            "max_frames": self.max_frames,
        }
        return {name: value for name, value in wanted.items() if value is not None}


def model_name(model: str | None) -> str:
    """The folder or hub id that ``--model`` names.

    Raises:
        ValueError: none is named, or it is known not to load.
    """
    if not model:
        raise ValueError(
            "no model is named; use --model or set SA2VA_MODEL to a hub id (ByteDance/Sa2VA-4B), a name from "
            "`sa2va models`, or a folder"
        )
    return zoo.resolve(model)


def load_model(screen: Screen, name: str, loading: Loading) -> Sa2VA:
    """Load a folder or hub id.

    Raises:
        ValueError: the device is not present or does not support this, the hub does not give the checkpoint, or it is
            damaged. ImportError: a package for this is missing.
    """
    screen.note(f"loading {name}")
    with _first_imports():
        import torch

        from sa2va.model.quantization import quantization_of
        from sa2va.predictor import Sa2VA

    with quiet_libraries(screen):
        sa2va = Sa2VA.from_pretrained(
            name,
            device=None if loading.device == "auto" else checked_device(loading.device),
            dtype=None if loading.dtype is Dtype.AUTO else getattr(torch, loading.dtype),
            device_map=None if loading.device_map is None else loading.device_map.value,
            quantization=None if loading.quantize is None else loading.quantize.value,
            sam2=loading.sam2,
            propagator=loading.propagator,
        )
    weights = sa2va.model
    places = dict.fromkeys(str(place) for place in getattr(weights, "hf_device_map", {"": weights.device}).values())
    numbers = [str(weights.dtype).removeprefix("torch."), quantization_of(weights)]
    screen.note(f"on {' and '.join(places)}, {', '.join(filter(None, numbers))}")
    return sa2va


@contextmanager
def _first_imports() -> Iterator[None]:
    """Imports make half a million objects, and all stay: looking for garbage among them takes a tenth of the start."""
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor are they looked through later
        gc.enable()


def checked_device(name: str) -> str:
    """The value of ``--device``. Raises ValueError where no such device is present."""
    try:
        present_device(name)
    except ValueError as error:
        raise ValueError(f"--device: {error}") from None
    return name


def check_phrases(phrases: Sequence[str]) -> None:
    """Raise ValueError for phrases that the model would refuse, before it is loaded."""
    for phrase in phrases:
        check_text(phrase, "a phrase")
    if not all(phrase.strip() for phrase in phrases):
        raise ValueError("a phrase is empty; say what to find")


def parse_key_frames(text: str) -> str | list[int]:
    """``--key-frames`` as `Sa2VA.track` takes it. Raises ValueError for other text."""
    if text in ("uniform", "first", "compressed"):
        return text
    if re.fullmatch(r"\d+(,\d+)*", text):
        return [int(number) for number in text.split(",")]
    raise ValueError(f"--key-frames is uniform, first, compressed, or frame numbers by commas (0,10,20); got {text!r}")


def parse_ask_every(text: str, key_frames: str) -> Any:
    """``--ask-every`` as `Sa2VA.track` takes it. ValueError for other text, or where ``--key-frames`` forbids it."""
    if text != "scene" and (re.fullmatch(r"\d+", text) is None or int(text) < 2):
        raise ValueError(f"--ask-every is a number of frames of at least 2 (60), or scene for cuts; got {text!r}")
    if key_frames not in ("uniform", "first"):
        raise ValueError(
            "--ask-every and --best take key frames of every part of the video: leave out --key-frames, or give "
            f"--key-frames first; got {key_frames}"
        )
    return text if text == "scene" else int(text)


def parse_bound(name: str, text: str | None) -> int | float | None:
    """``--start`` or ``--end``: an int is a frame, a float seconds. Raises ValueError for other text."""
    if text is None:
        return None
    if re.fullmatch(r"\d+", text):
        return int(text)
    if re.fullmatch(r"\d+(\.\d*)?s|\d+\.\d*", text):
        return float(text.removesuffix("s"))
    raise ValueError(f"--{name} is a frame number (250) or a time in seconds (10s, 2.5); got {text!r}")


def parse_cleanup(text: str | None) -> Cleanup:
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


def parse_box(text: str) -> tuple[float, float, float, float]:
    """``--box``. Raises ValueError for anything but four numbers in order."""
    from sa2va.processing.regions import checked_box

    try:
        return checked_box([float(number) for number in text.split(",")])
    except ValueError:
        raise ValueError(
            f"--box is x0,y0,x1,y1 in pixels of the picture with x0 < x1 and y0 < y1 (100,50,260,300); got {text!r}"
        ) from None


def parse_kinds(
    text: str | None, known: Sequence[str], default: Sequence[str] = (), option: str = "--save"
) -> list[str]:
    """``--save``, or another option like it, as a list of kinds. Raises ValueError for an unknown one."""
    if text is None:
        return list(default)
    wanted = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [kind for kind in wanted if kind not in known]
    if unknown or not wanted:
        raise ValueError(f"{option} takes {', '.join(known)}; got {text!r}")
    return wanted
