"""Process-level choices in one place: optional imports, device, dtype, and the package's logger."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("sa2va")
logger.addHandler(logging.NullHandler())


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional module; if it is missing, the error says how to install it.

    Args:
        module: importable name, e.g. ``"supervision"``.
        extra: the extra of this package that brings it, e.g. ``"vision"``.

    Raises:
        ImportError: the module is missing; the message carries the ``pip install`` line.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this needs the package {module!r}, which is not installed; install it with: pip install 'sa2va[{extra}]'"
        ) from error


def import_object(place: str, what: str) -> Any:
    """Import the object named by ``"package.module:name"``.

    Args:
        what: it is called in errors, e.g. ``"data source"``.

    Raises:
        ValueError: the text is not of this form, or there is no such module or name.
    """
    module, colon, name = place.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{what} {place!r} is not of the form 'package.module:name'")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} {place!r} cannot be imported: {error}") from error


def in_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook."""
    shell = sys.modules.get("IPython")
    return shell is not None and "IPKernelApp" in getattr(shell.get_ipython(), "config", {})


@contextmanager
def no_weight_bar() -> Iterator[None]:
    """Suppress transformers' progress bar while weights are loaded.

    Downloads, whose bars it would take along, come before.
    """
    from transformers.utils import logging as library

    shown = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bar()


def default_device() -> torch.device:
    """The best available device: CUDA, then Apple MPS, then CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def present_device(name: str | int | torch.device) -> torch.device:
    """A device of this machine, by name or GPU number.

    Raises:
        ValueError: torch knows no such device, or does not see one here.
    """
    import torch

    try:
        device = torch.device(f"cuda:{name}" if isinstance(name, int) else name)
    except (RuntimeError, TypeError):
        raise ValueError(f"a device is cpu, cuda (or cuda:1), or mps; got {name!r}") from None
    present = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        there = [kind for kind in ("cpu", "cuda", "mps") if present[kind]]
        raise ValueError(f"device {name}: torch {torch.__version__} sees only {', '.join(there)}; try `sa2va doctor`")
    return device


def fast_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; a CPU without them takes many times as long as for float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        ask = getattr(torch.cpu, "get_capabilities", dict)  # older torch cannot say
        return any(present for name, present in ask().items() if "bf16" in name)
    return True


def default_dtype(device: torch.device) -> torch.dtype:
    """float32 on CPU; bfloat16 on an accelerator that computes in it, float16 on one that does not."""
    import torch

    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if fast_bfloat16(device) else torch.float16
