"""Untrusted files: whatever Python raises on malformed values becomes a ValueError that names the place.

JSON, YAML and XML say nothing about types, so that any code that reads them meets text where it wants a number, a list
where it wants an object, numbers beyond every range and values nested a thousand levels deep.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: What values of a wrong kind raise. ``OverflowError`` is an ``ArithmeticError``, of ``int(float("inf"))`` for one.
STUMBLES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
#: What libraries raise, besides, for content that they did not expect.
_SURPRISES = (*STUMBLES, MemoryError, NotImplementedError, RuntimeError)
#: Of a JSON file: larger than any tokenizer's, and little enough to hold in memory.
MAX_BYTES = 2**28
#: Levels of nesting of a JSON file; real ones have fewer than ten.
MAX_DEPTH = 64
#: YAML may refer to a value again and again; so many are far more than any configuration has.
_MOST_VALUES, _DEEPEST = 100_000, 100
#: Of another's message, which may quote a whole file.
_MOST_CHARACTERS = 500
#: What a configuration of transformers says to a value of another type than its field.
_WRONG_FIELD = re.compile(r"for field '(\w+)':\s*\w+: (?:Field '\w+' )?(.*)")


@contextmanager
def reading(where: object, what: str = "") -> Iterator[None]:
    """Content of a file is read inside, here or by a library; whatever it raises names the place and what was expected.

    Args:
        where: the file, and the entry or field in it. what: e.g. ``"images with id, file_name, height and width"``;
            left out where inner messages say it.

    Raises:
        ValueError: of such an error. One that names the place already, or is of this package's own class, as
            ``MissingData``, comes through as it is.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, _SURPRISES) and not _of_a_library(error):
            raise
        own = isinstance(error, ValueError) and type(error).__module__.startswith("sa2va.")
        if own or (type(error) is ValueError and str(error).startswith(str(where))):
            raise
        raise ValueError(f"{where}: {f'expected {what}; ' * bool(what)}{stumbled(error)}") from error


def _of_a_library(error: BaseException) -> bool:
    """Whether an error is one of the odd ones of libraries that read checkpoints."""
    # tokenizers raises bare exceptions, and its panics are no Exception at all; huggingface_hub finds fields of a wrong
    # type.
    named = type(error).__name__ == "PanicException" or type(error).__module__.startswith("huggingface_hub.")
    return named or type(error) is Exception


def stumbled(error: BaseException) -> str:
    """An error as a reader of data would say it."""
    text = str(error)[:_MOST_CHARACTERS]
    if isinstance(error, RecursionError):
        return "values are nested too deeply"
    if isinstance(error, KeyError):
        return f"{text} is missing or unknown"
    if field := _WRONG_FIELD.search(text):
        return f"{field[1]}: {field[2]}"
    return text if isinstance(error, ValueError) and text else f"unexpected content ({type(error).__name__}: {text})"


def parse_json(text: str | bytes) -> Any:
    """The values of JSON text, in UTF-8, 16 or 32. ValueError for anything else, or what is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(stumbled(error)) from error


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


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping of plain values. ValueError naming it for anything else, or far too much."""
    import yaml

    try:
        raw = path.read_bytes()
        depth = 0
        for event in yaml.parse(raw, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise ValueError("values are nested too deeply")
        content = yaml.safe_load(raw)
        _check_amount(content)
    except (yaml.YAMLError, *STUMBLES) as error:
        raise ValueError(f"{path} is not YAML that can be read: {stumbled(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold settings as 'name: value', got {type(content).__name__}")
    return content


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON file, by its name, or a YAML file, that holds a mapping. ValueError naming it for anything else."""
    if path.suffix != ".json":
        return read_yaml(path)
    with reading(path):
        content = parse_json(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold settings as 'name: value', got {type(content).__name__}")
    return content


def _check_amount(content: Any) -> None:
    """ValueError where values that are written out once for each place they stand in would be too many."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > _MOST_VALUES:
            raise ValueError(f"it stands for more than {_MOST_VALUES} values")
        if isinstance(value, dict | list | tuple | set):
            waiting += value.values() if isinstance(value, dict) else value


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
