"""``sa2va doctor``: what is installed, what the machine has, and whether the packaged model works here."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal, cast

import typer
from rich.table import Table
from rich.text import Text

from sa2va import __version__, zoo
from sa2va.cli.console import Screen, command, quiet_libraries

if TYPE_CHECKING:
    import numpy as np

    from sa2va.predictor import Sa2VA
    from sa2va.results.answer import Answer

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
_SIDE = 128


@command
def doctor(screen: Screen) -> None:
    """Check this installation: versions, devices, memory, codecs, a tiny model.

    Paste its output into bug reports. The exit code is 1 when a check fails.
    """
    facts = {
        "versions": _versions(),
        "extras": _extras(),
        "devices": _devices(),
        "memory": _memory(),
        "codecs": _codecs(),
    }
    for title, rows in facts.items():
        screen.result(_table(title, rows))
    checks = []
    with quiet_libraries(screen):
        for name, check in CHECKS.items():
            started, error = perf_counter(), None
            try:
                check()
            except Exception as problem:  # of whatever kind: the other checks are run all the same
                error = f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
            checks.append({"name": name, "seconds": perf_counter() - started, "error": error})
            mark = Text("FAILED", "bold red") if error else Text("ok", "green")
            after = f": {error}" if error else ""
            screen.result(Text.assemble(mark, f"  {name} ({checks[-1]['seconds']:.1f} s)", after))
    good = all(check["error"] is None for check in checks)
    if screen.json:
        screen.emit({**facts, "checks": checks, "ok": good})
    if not good:
        screen.fail("the self-check failed; run `sa2va doctor --debug` for the libraries' own messages")
        raise typer.Exit(1)


def _table(title: str, rows: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), title=title)
    table.title_justify, table.title_style = "left", "bold"
    for name, value in rows.items():
        table.add_row(f"  {name}", Text(value))  # not as markup, which takes [extra] for a style
    return table


def _versions() -> dict[str, str]:
    """Python, the system, this package and its dependencies."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    about = {"sa2va": __version__, "python": _python(), "system": system}
    return about | {name: _version(name) or "MISSING" for name in _CORE}


def _python() -> str:
    version, torch = sys.version.split()[0], find_spec("torch")
    if sys.dont_write_bytecode and torch and torch.origin and not Path(cache_from_source(torch.origin)).exists():
        return f"{version}; compiles all libraries anew at each start, for seconds: unset PYTHONDONTWRITEBYTECODE"
    return version


def _extras() -> dict[str, str]:
    """Optional packages: the version, or how to install one."""
    return {name: _version(name) or f"not installed (pip install 'sa2va[{extra}]')" for name, extra in _EXTRAS.items()}


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    """The devices that torch sees, and the default."""
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


def _memory() -> dict[str, str]:
    """Free main memory, and free space on the disk where downloaded weights go."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        ram = f"{_gib(os.sysconf('SC_AVPHYS_PAGES') * page)} free of {_gib(os.sysconf('SC_PHYS_PAGES') * page)}"
    except (AttributeError, ValueError, OSError):
        ram = "unknown on this system"
    return {"main": ram, "downloads": f"{_gib(shutil.disk_usage(place).free)} free in {folder}"}


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _codecs() -> dict[str, str]:
    """The FFmpeg inside PyAV, and those of its codecs that read and write video here."""
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


@cache
def _tiny() -> Sa2VA:
    from sa2va.predictor import Sa2VA

    return Sa2VA.from_pretrained(zoo.TINY, device="cpu")


def _red_circle(x: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture that tiny understands, uint8 (H, W, 3), and where its circle is, bool (H, W)."""
    import numpy as np

    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    circle = (columns - x) ** 2 + (rows - 60) ** 2 <= 20**2
    return np.where(circle[..., None], (220, 30, 30), (210, 210, 210)).astype(np.uint8), circle


def _forward() -> None:
    """Text logits and mask logits of one training sample."""
    import torch

    from sa2va.data.collate import Collator
    from sa2va.data.encode import encode_sample
    from sa2va.data.sample import Sample
    from sa2va.model.families import SEG_TOKEN
    from sa2va.results.history import Turn

    model, processor = _tiny().model, _tiny().processor
    pixels, circle = _red_circle(44)
    sample = Sample("self-check", (pixels,), (Turn("the red circle", SEG_TOKEN),), (circle[None],))
    batch = Collator.of(processor)([encode_sample(sample, processor)])
    with torch.inference_mode():
        output = model(batch)
    expected = (*batch.input_ids.shape, model.config.get_text_config().vocab_size)
    _expect(output.logits.shape == expected, f"text logits have shape {tuple(output.logits.shape)}, not {expected}")
    _expect(output.masks is not None and bool(output.masks.logits.isfinite().all()), "mask logits are not finite")


def _generate() -> None:
    """An answer with a mask where the object is."""
    pixels, circle = _red_circle(44)
    answer = cast("Answer", _tiny().segment(pixels, "the red circle", max_new_tokens=16))
    _expect(len(answer.segments) == 1, f"{len(answer.segments)} objects instead of 1 in {answer.text!r}")
    mask = answer.masks[0]
    _expect((mask & circle).sum() > 0.5 * (mask | circle).sum(), "the mask is not where the object is")


def _track() -> None:
    """A mask from a box, carried to a second frame by the memory."""
    from sa2va.inference.tracker import VideoTracker

    tracker = VideoTracker(_tiny().model)
    tracker.add(box=(24, 40, 65, 81))
    for x in (44, 50):
        frame = tracker.step(_red_circle(x)[0])
        _expect(len(frame.segments) == 1, f"{len(frame.segments)} objects instead of 1")
        _expect(frame.segments[0].mask.array.shape == (_SIDE, _SIDE), "the mask has another size than the frame")


def _save_and_load() -> None:
    """Weights written as safetensors and read back, equal."""
    from sa2va.modeling_sa2va import Sa2VAModel

    model = _tiny().model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_original_format=False)
        again = Sa2VAModel.from_pretrained(folder).state_dict()
    different = [name for name, tensor in model.state_dict().items() if not tensor.equal(again[name])]
    _expect(not different, f"{len(different)} tensors changed, first {different[:1]}")


def _video() -> None:
    """A playable file written and decoded again."""
    import numpy as np

    from sa2va.media.open import open_media
    from sa2va.writers import VideoEncoder

    size = 48, 64
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.mp4"
        file = VideoEncoder(path, size=size, fps=10)
        for level in (0, 128, 255):
            file.write(np.full((*size, 3), level, np.uint8))
        file.close()
        with open_media(path) as video:
            means = [frame.pixels.mean() for frame in video]
    _expect(len(means) == 3 and means[0] < 20 < means[1] < 200 < means[2], f"frames came back as {means}")


def _expect(condition: bool, problem: str) -> None:
    if not condition:
        raise RuntimeError(problem)


CHECKS: dict[str, Callable[[], None]] = {
    "forward pass: text and masks": _forward,
    "generation": _generate,
    "tracking": _track,
    "save and load": _save_and_load,
    "video file": _video,
}
"""The checks by name; one raises when it fails."""
