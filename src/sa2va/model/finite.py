"""Detect NaN and infinity before they reach a result, where they would look like "nothing found"."""

from __future__ import annotations

import torch
from torch import nn


def not_finite(part: str, dtype: torch.dtype, module: nn.Module | None = None) -> FloatingPointError:
    """The error for a part of the model that computed NaN or infinity.

    Args:
        part: what to call it. dtype: what it computed in.
        module: where to look for damaged weights, which are named then.
    """
    name = str(dtype).removeprefix("torch.")
    found = None if module is None else _damaged(module)
    if found is not None:
        cause = f"the weights {found} hold them, so the checkpoint is damaged: get it again, or take an earlier one"
    elif dtype == torch.float16:
        cause = "float16 overflows early; load the model with dtype='bfloat16' or dtype='float32'"
    else:
        cause = "the weights are damaged, or far too large: get the checkpoint again, or take an earlier one"
    return FloatingPointError(f"{part} computed NaN or infinity in {name}: {cause}")


def _damaged(module: nn.Module) -> str | None:
    """The name of the first weights that hold NaN or infinity; those on no device (offloaded) are passed over."""
    with torch.inference_mode():
        for name, weight in module.named_parameters():
            if not weight.is_meta and not bool(weight.isfinite().all()):
                return name
    return None
