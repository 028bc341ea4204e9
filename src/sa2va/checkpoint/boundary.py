"""Where the JSON of a downloaded checkpoint comes in: whatever is wrong with it is one ``ValueError`` that names the
file and, where it is known, the field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

#: Larger than any tokenizer's file, and little enough to hold in memory.
MAX_BYTES = 2**28
#: Levels of nesting; real files have fewer than ten.
MAX_DEPTH = 64
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: What the libraries raise for content that they did not expect.
_SURPRISES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    StrictDataclassError,
)


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object of finite numbers.

    Raises:
        ValueError: it is too large, not JSON, too deeply nested, or something else than an object.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; expected at most {MAX_BYTES}")
    try:
        content = json.loads(
            path.read_text(encoding="utf-8-sig"), parse_int=_integer, parse_float=_finite, parse_constant=_finite
        )
        _check_depth(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object but a {type(content).__name__}")
    return content


@contextmanager
def reading(where: str | Path) -> Iterator[None]:
    """Turn what content of a file makes go wrong in the block into a ``ValueError`` that begins with ``where``."""
    try:
        yield
    except BaseException as error:
        # tokenizers raises bare exceptions, and its panics are no Exception at all.
        bare = type(error) is Exception or type(error).__name__ == "PanicException"
        if not bare and not isinstance(error, _SURPRISES):
            raise
        if isinstance(error, ValueError) and str(error).startswith(str(where)):
            raise
        raise ValueError(f"{where}: {_reason(error)}") from error


def named_dtype(name: Any) -> torch.dtype | None:
    """The torch dtype that a config names, with or without ``torch.``; None for None.

    Raises:
        ValueError: it is not the name of one that weights are held in.
    """
    if name is None or name in _FLOATS:
        return name
    dtype = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else None
    if dtype not in _FLOATS:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATS)
        raise ValueError(f"dtype: expected one of {expected}, got {name!r}")
    return dtype


def _reason(error: BaseException) -> str:
    text = str(error)
    field = re.search(r"for field '(\w+)':\s*\w+: (?:Field '\w+' )?(.*)", text)
    if field:
        return f"{field[1]}: {field[2][:300]}"
    if isinstance(error, ValueError):
        return text.splitlines()[0][:500] if text else "unexpected content"
    first = text.splitlines()[0][:300] if text else ""
    return f"expected the content of a Sa2VA checkpoint ({type(error).__name__}: {first})"


def _integer(text: str) -> int:
    value = int(text)
    if abs(value) >= 10**38:  # transformers writes 10**30 as the length of a tokenizer without a limit
        raise ValueError(f"a number of {len(text)} digits; expected at most 38")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text}; expected finite numbers")
    return value


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, (dict, list))
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"more than {MAX_DEPTH} levels of nesting")
