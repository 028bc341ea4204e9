"""Configuration from YAML, JSON and ``key=value`` words to frozen dataclasses, strictly: what is unknown or of a wrong
type is an error that says where it stands, what was expected, and what is probably meant."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from sa2va.untrusted import STUMBLES, read_mapping

T = TypeVar("T")


def read_settings(path: str | Path) -> dict[str, Any]:
    """The content of a YAML or JSON file that holds one mapping.

    Raises:
        ValueError: the file is missing, unreadable, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"configuration {path} does not exist; expected a .yaml or .json file, or the name of a preset"
        )
    return read_mapping(path)


def override(values: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Settings with ``key=value`` words applied, e.g. ``loss.weights.dice=1`` or ``data.0.repeats=2``.

    A name in place of a number means every entry of a list: ``data.repeats=2`` is for all sources. Values are read as
    YAML, so ``null``, ``true``, ``3`` and ``[a, b]`` mean what they look like.

    Raises:
        ValueError: a word is not of that form, or its key leads nowhere.
    """
    result = json.loads(json.dumps(values))
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ValueError(f"override {word!r} must look like key=value, e.g. learning_rate=1e-4")
        _set(result, key.split("."), _read_value(text), word)
    return result


def build(kind: type[T] | Any, values: Any, where: str = "") -> T:
    """A dataclass of plain values: nested dataclasses from mappings, tuples from lists, choices checked.

    Raises:
        ValueError: a name no field has, a missing value, or a value of another type; the message names its place.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'the configuration'} must be a mapping of names to values, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"expected one of {sorted(fields)}"
            raise ValueError(f"unknown setting {_join(where, name)!r}; {meant}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ValueError(f"setting {_join(where, name)!r} is missing; add {_join(where, name)}=...")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], value, _join(where, name)) for name, value in values.items()})


def plain(value: Any) -> Any:
    """A dataclass as JSON-ready values, the inverse of [`build`]."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def _value(hint: Any, value: Any, where: str) -> Any:
    """The value as its type hint wants it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _value(inner, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} must be one of {list(arguments)}, got {value!r}")
        return value
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a mapping, got {value!r}")
        return {str(key): _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    return build(hint, value, where) if dataclasses.is_dataclass(hint) else _scalar(hint, value, where)


def _tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str) and arguments == (str, Ellipsis):
        value = [value]  # report_to=tensorboard
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} must be a list, got {value!r}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_value(arguments[0], item, f"{where}.{index}") for index, item in enumerate(value))
    if len(value) != len(arguments):
        raise ValueError(f"{where} must be a list of {len(arguments)} values, got {value!r}")
    return tuple(
        _value(argument, item, f"{where}.{index}")
        for index, (argument, item) in enumerate(zip(arguments, value, strict=True))
    )


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, str | int) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-4 (without a point) as text.
        with suppress(ValueError, OverflowError):
            value = float(value)
    if type(value) is not hint or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{where} must be {_TYPE_NAMES.get(hint, hint.__name__)}, got {value!r}")
    return value


_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _read_value(text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else ""
    except (yaml.YAMLError, *STUMBLES):
        return text


def _set(values: Any, keys: list[str], value: Any, word: str) -> None:
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(values, list) and not key.isdigit() and values and all(isinstance(one, dict) for one in values):
            for one in values:
                _set(one, keys[depth:], value, word)
            return
        if isinstance(values, list):
            if not key.isdigit() or int(key) >= len(values):
                raise ValueError(f"override {word!r}: {key!r} is not a place in a list of {len(values)}; count from 0")
            place: Any = int(key)
        elif isinstance(values, dict):
            place = key
            if not last and values.get(place) is None:
                values[place] = {}
        else:
            raise ValueError(f"override {word!r}: {'.'.join(keys[:depth])!r} has no settings inside")
        if last:
            values[place] = value
        else:
            values = values[place]


def _join(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)
