"""Pickle files of published data sets, read without the power to run code: plain containers, numbers and text only."""

from __future__ import annotations

import collections
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from sa2va.data.formats.layout import read_json

_NUMBER = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


def load_plain(path: str | Path) -> Any:
    """The values of a pickle file, of any protocol and of Python 2 too, or of a JSON file (by its suffix).

    Args:
        path: ``*.json`` is read as JSON, anything else as a pickle.

    Returns:
        Builtin containers, numbers, str and bytes. Numbers of numpy come back as Python's, its arrays as lists.

    Raises:
        ValueError: the file asks for anything else (the message names it), or is damaged.
    """
    path = Path(path)
    if path.suffix == ".json":
        return read_json(path)
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file, encoding="latin1").load()
        except _Refused as error:
            raise ValueError(f"{path}: {error}") from None
        except Exception as error:
            # A damaged pickle fails with whatever its opcodes stumble over.
            raise ValueError(
                f"{path} is not a pickle file that can be read: {type(error).__name__}: {error}"
            ) from error


class _Refused(Exception):
    """The pickle asks for something that is not plain data."""


class _Dtype:
    """Stands in for numpy's dtype while a pickle is read: a plain number type and its byte order."""

    def __init__(self, name: str, *_: object):
        if not isinstance(name, str) or not _NUMBER.fullmatch(name):
            raise _Refused(f"it holds a numpy array or number of type {name!r}; only plain numbers are read")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(list):
    """Stands in for a numpy array while a pickle is read, and is its nested list afterwards."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        numbers = np.frombuffer(_bytes(raw), dtype.dtype).reshape(shape, order="F" if fortran else "C")
        self[:] = numbers.tolist()


def _array(*_: object) -> _Array:
    return _Array()


def _number(dtype: _Dtype, raw: str | bytes) -> int | float | bool:
    return np.frombuffer(_bytes(raw), dtype.dtype)[0].item()


def _from_buffer(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(raw)))
    return array


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    # Python 3 writes bytes so in the protocols of Python 2.
    if encoding != "latin1":
        raise _Refused(f"it asks for _codecs.encode with {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    # How protocols of Python 2 write an empty bytes; with an argument it could ask for any amount of memory.
    return b""


def _bytes(raw: str | bytes) -> bytes:
    return raw.encode("latin1") if isinstance(raw, str) else raw


_ALLOWED: dict[tuple[str, str], Any] = {
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (set, frozenset)},
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    **{
        (f"numpy.{core}.multiarray", name): value
        for core in ("core", "_core")
        for name, value in (("_reconstruct", _array), ("scalar", _number))
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(
                f"it asks for {module}.{name}, which is not plain data; a pickle that needs it could run any code: get "
                "the file from its publisher, or as JSON"
            ) from None
