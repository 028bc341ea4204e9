"""Restricted unpickling of published datasets: plain containers, numbers and text, and no code is run.

A pickle is a program for a stack machine that may call any function of any module. The machine here knows those
instructions alone that make plain values, calls nothing but the few functions below for arrays of numpy, and takes
memory and time in proportion to the file.
"""

from __future__ import annotations

import codecs
import math
import mmap
import pickletools
import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sa2va.data.annotations.layout import read_json

# A value that a file holds once can be referred to a million times. So many values may be made so for each byte of
# the file, and so many in any case; text counts as one value for each of so many characters.
_VALUES_PER_BYTE, _VALUES_FREE, _CHARACTERS = 4, 100_000, 64
#: Deepest nesting of lists, tuples and dictionaries; annotations have about six levels.
_DEEPEST = 100
_NUMBER = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")
_SCALARS = frozenset((type(None), bool, int, float, str, bytes))
_CONTAINERS = frozenset((list, tuple, set, frozenset, dict))


def load_plain(path: str | Path) -> Any:
    """The values of a pickle file, of any protocol and of Python 2 too, or of a JSON file (by its suffix).

    Args:
        path: ``*.json`` is read as JSON, anything else as a pickle.

    Returns:
        Builtin containers, numbers, str and bytes, no container in two places. Numbers of numpy come back as Python's,
        its arrays as lists.

    Raises:
        ValueError: the file asks for anything else (the message names it), or is damaged.
    """
    path = Path(path)
    if path.suffix == ".json":
        return read_json(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Machine(data).run()
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except OSError:
        raise
    except Exception as error:
        # A damaged pickle fails with whatever its instructions stumble over.
        raise ValueError(f"{path} is not a pickle file that can be read: {type(error).__name__}: {error}") from error


class _Refused(Exception):
    """The pickle asks for something that is not plain data."""


class _Function:
    """What a name in the file stands for, until it is called with arguments."""

    def __init__(self, call: Callable[..., Any]):
        self.call = call


class _Dtype:
    """A number type of numpy and its byte order."""

    def __init__(self, name: str):
        if not isinstance(name, str) or not _NUMBER.fullmatch(name):
            raise _Refused(f"it holds a numpy array or number of type {name!r}; only plain numbers are read")
        self.dtype = np.dtype(name)

    def set_state(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array of numpy: the nested list of its numbers, when the file has said what they are."""

    values: list[Any] | None = None


class _Machine:
    """Runs one pickle. data: the whole file."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.budget = _VALUES_FREE + _VALUES_PER_BYTE * len(data)

    def run(self) -> Any:
        """The value that the pickle makes."""
        while (code := self.data[self.at]) != _STOP:
            if code not in _INSTRUCTIONS:
                raise _Refused(f"byte {self.at} is no instruction that makes plain data, {code:#04x}")
            self.at += 1
            length, constant, action = _INSTRUCTIONS[code]
            argument = self.argument(length) if length else b""
            if constant:
                self.stack.append(constant(argument))
            elif action:
                action(self, argument)
        result = self.stack.pop()
        _check_plain(result)
        return result

    def argument(self, length: int) -> bytes:
        """The bytes of an instruction's argument. length: as in ``pickletools``, below 0 where the file says it."""
        if length == pickletools.UP_TO_NEWLINE:
            end = self.data.find(b"\n", self.at)
            start, self.at = self.at, end + 1
            if end < 0:
                raise _Refused("it ends in the middle")
            return self.data[start:end]
        if length < 0:
            width = _WIDTHS[length]
            length = int.from_bytes(self.data[self.at : self.at + width], "little")
            self.at += width
        start, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise _Refused("it ends in the middle")
        return self.data[start : self.at]

    def mark(self, _: bytes) -> None:
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def pop(self, _: bytes) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def make(self, kind: Callable[[list[Any]], Any], items: list[Any]) -> None:
        self.stack.append(kind(items))

    def make_tuple(self, length: int) -> None:
        items = tuple(self.stack[-length:])
        del self.stack[-length:]
        self.stack.append(items)

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        self.top(dict).update(_dictionary(items))

    def add_items(self, items: list[Any]) -> None:
        self.top(set).update(map(_key, items))

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise _Refused(f"it adds to {type(self.stack[-1]).__name__} as if it were a {kind.__name__}")
        return self.stack[-1]

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def get(self, place: int) -> None:
        self.stack.append(self.copied(self.memo[place]))

    def copied(self, value: Any) -> Any:
        """A value that was made before. Containers are copied, or a few bytes could stand for more than any memory."""
        if type(value) is _Array:
            value = value.values
        kind = type(value)
        self.spend(1 + (len(value) // _CHARACTERS if kind in (str, bytes) else 0))
        if kind is dict:
            return {self.copied(key): self.copied(item) for key, item in value.items()}
        return kind(map(self.copied, value)) if kind in _CONTAINERS else value

    def spend(self, values: int) -> None:
        self.budget -= values
        if self.budget < 0:
            raise _Refused("it stands for far more values than its size allows")

    def find(self, module: Any, name: Any) -> None:
        if (module, name) not in _KNOWN:
            raise _Refused(
                f"it asks for {module}.{name}, which is not plain data; a pickle that needs it could run any code: get "
                "the file from its publisher, or as JSON"
            )
        self.stack.append(_Function(_KNOWN[module, name]))

    def reduce(self, _: bytes) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Function or type(arguments) is not tuple:
            raise _Refused("it calls something that is no function that makes plain data")
        self.stack.append(function.call(self, *arguments))

    def build(self, _: bytes) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if type(value) is _Dtype:
            value.set_state(state)
        elif type(value) is _Array:
            _, shape, dtype, fortran, raw = state
            value.values = self.stack[-1] = self.array(raw, dtype, shape, "F" if fortran else "C")
        else:
            raise _Refused(f"it changes attributes of {type(value).__name__}, which is not plain data")

    def array(self, raw: str | bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> list[Any]:
        """The nested list of an array's numbers; of one without dimensions, a list of one."""
        self.spend(math.prod(max(length, 1) for length in shape))
        numbers = np.frombuffer(_bytes(raw), dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
        return numbers.tolist() if shape else [numbers.item()]

    def number(self, dtype: _Dtype, raw: str | bytes) -> int | float | bool:
        return np.frombuffer(_bytes(raw), dtype.dtype)[0].item()


def _key(value: Any) -> Any:
    """A key of a dictionary or item of a set: its hash is computed at once and has few others that are equal."""
    parts = value if type(value) is tuple else (value,)
    for part in parts:
        if type(part) not in _SCALARS and type(part) is not frozenset:
            raise _Refused(f"it has a {type(part).__name__} as a key")
        if type(part) is int and not -(2**63) <= part < 2**64:
            raise _Refused("it has a key of more than 64 bits")
    return value


def _dictionary(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _pairs(_: _Machine, items: Iterable[Any] = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in items}


def _encoded(_: _Machine, text: str, encoding: str = "latin1") -> bytes:
    # Python 3 writes bytes so in the protocols of Python 2.
    if encoding != "latin1":
        raise _Refused(f"it asks for _codecs.encode with {encoding!r}")
    return text.encode("latin1")


def _bytes(raw: str | bytes) -> bytes:
    return raw.encode("latin1") if isinstance(raw, str) else raw


def _integer(raw: bytes) -> int | bool:
    return raw == b"01" if raw in (b"00", b"01") else int(raw.removesuffix(b"L"))


def _quoted(raw: bytes) -> str:
    if len(raw) < 2 or raw[:1] not in (b"'", b'"') or raw[-1:] != raw[:1]:
        raise _Refused(f"it has text without quotes, {raw[:40]!r}")
    return codecs.escape_decode(raw[1:-1])[0].decode("latin1")  # type: ignore[attr-defined]


def _check_plain(value: Any) -> None:
    """Level by level, whether there is nothing but plain values, and nothing too deep for Python's own recursion."""
    level = [value]
    for _ in range(_DEEPEST):
        containers = [one for one in level if type(one) not in _SCALARS]
        strange = next((type(one).__name__ for one in containers if type(one) not in _CONTAINERS), None)
        if strange:
            raise _Refused(f"it holds a {strange.strip('_')}, which is not plain data")
        level = [inner for one in containers for inner in (one.values() if type(one) is dict else one)]
        if not level:
            return
    raise _Refused(f"its containers are nested deeper than {_DEEPEST} levels")


#: What a file may ask for, called with the machine and the file's arguments.
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    **{
        (module, kind.__name__): lambda _, items=(), kind=kind: kind(map(_key, items))
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset)
    },
    ("collections", "OrderedDict"): _pairs,
    ("_codecs", "encode"): _encoded,
    # How protocols of Python 2 write an empty bytes; with an argument it could ask for any amount of memory.
    ("__builtin__", "bytes"): lambda _: b"",
    ("numpy", "ndarray"): lambda *_: _Array(),
    ("numpy", "dtype"): lambda _, name, *__: _Dtype(name),
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", lambda *_: _Array()),
            ("multiarray", "scalar", _Machine.number),
            ("numeric", "_frombuffer", _Machine.array),
        )
    },
}

#: Instructions that push a value: what makes it of their argument.
_CONSTANTS: dict[str, Callable[[bytes], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_DICT": lambda _: {},
    "EMPTY_SET": lambda _: set(),
    "FLOAT": float,
    "BINFLOAT": lambda raw: struct.unpack(">d", raw)[0],
    "STRING": _quoted,
    "UNICODE": lambda raw: raw.decode("raw-unicode-escape"),
    **dict.fromkeys(("INT", "LONG"), _integer),
    **dict.fromkeys(("BININT", "LONG1", "LONG4"), lambda raw: int.from_bytes(raw, "little", signed=True)),
    **dict.fromkeys(("BININT1", "BININT2"), lambda raw: int.from_bytes(raw, "little")),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), lambda raw: raw.decode("latin1")),
    **dict.fromkeys(
        ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), lambda raw: raw.decode("utf-8", "surrogatepass")
    ),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), lambda raw: raw),
}

#: All others, run on the machine with their argument.
_ACTIONS: dict[str, Callable[[_Machine, bytes], Any]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "LIST": lambda machine, _: machine.make(list, machine.since_mark()),
    "TUPLE": lambda machine, _: machine.make(tuple, machine.since_mark()),
    "DICT": lambda machine, _: machine.make(_dictionary, machine.since_mark()),
    "FROZENSET": lambda machine, _: machine.make(lambda items: frozenset(map(_key, items)), machine.since_mark()),
    "TUPLE1": lambda machine, _: machine.make_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_tuple(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.add_items(machine.since_mark()),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "PUT": lambda machine, raw: machine.put(int(raw)),
    "GET": lambda machine, raw: machine.get(int(raw)),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda machine, raw: machine.put(int.from_bytes(raw, "little"))),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, raw: machine.get(int.from_bytes(raw, "little"))),
    "GLOBAL": lambda machine, raw: machine.find(raw.decode(), machine.argument(pickletools.UP_TO_NEWLINE).decode()),
    "STACK_GLOBAL": lambda machine, _: machine.find(machine.stack.pop(-2), machine.stack.pop()),
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}

#: Bytes of a length that stands in the file before its argument.
_WIDTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_STOP = ord(".")
#: By the instruction's byte: the length of its argument, and one of the two tables above.
_INSTRUCTIONS = {
    ord(one.code): (one.arg.n if one.arg else 0, _CONSTANTS.get(one.name), _ACTIONS.get(one.name))
    for one in pickletools.opcodes
    if one.name in _CONSTANTS or one.name in _ACTIONS
}
