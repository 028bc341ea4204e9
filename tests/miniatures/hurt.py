"""Files made wrong: of a valid one, a value is replaced, left out or nested, or the text is cut or re-encoded."""

from __future__ import annotations

import json
import pickle
import random
from typing import Any

import yaml

#: Stands for nesting that no encoder writes.
_DEEP = "@deep@"
_BOTTOMLESS = "[" * 100_000 + "]" * 100_000
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**40, 10**400, 0.5, -0.5, 1e308),
    *(float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "7", "-1", "1e999", "nan", "é" * 300, "\ud800", "\x00", "../../x", "a/b\\c", "[SEG]", "{}", "%s"),
    *([], {}, [[]], [{}], [None], {"": None}, {"size": [3, 4], "counts": "1"}, {"size": [10**9, 10**9], "counts": "1"}),
    *([[1, 2, 3, 4, 5, 6]], [float("inf")] * 8, [[float("nan")] * 8], ["x"] * 8, [10**400] * 8, [[[[[[]]]]]], _DEEP),
)


def hurt_value(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON-like value in which one place is wrong."""
    places = list(_places(value, ()))
    # A place near the root is as likely as one far down, of which there are many more.
    depth = rng.choice(sorted({len(place) for place in places}))
    place = rng.choice([place for place in places if len(place) == depth])
    return _replaced(value, place, rng)


def hurt_json(text: str, rng: random.Random, *, lines: bool = False) -> bytes:
    """A JSON file, or one of a value per line, that is wrong in one place."""
    if rng.random() < 0.2:
        return hurt_text(text, rng)
    if lines:
        rows = text.splitlines()
        at = rng.randrange(len(rows))
        rows[at] = _dumped(hurt_value(json.loads(rows[at]), rng))
        return "\n".join([*rows, ""]).encode("utf-8", "surrogatepass")
    return _dumped(hurt_value(json.loads(text), rng)).encode("utf-8", "surrogatepass")


def hurt_yaml(text: str, rng: random.Random) -> bytes:
    """A YAML file that is wrong in one place."""
    if rng.random() < 0.2:
        return hurt_text(text, rng)
    return _dumped(hurt_value(yaml.safe_load(text), rng)).encode("utf-8", "surrogatepass")


def hurt_pickle(raw: bytes, rng: random.Random) -> bytes:
    """A pickle that is wrong in one place."""
    if rng.random() < 0.3:
        changed = bytearray(raw)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(raw))] = rng.randrange(256)
        return bytes(changed)
    return pickle.dumps(hurt_value(pickle.loads(raw), rng), protocol=rng.randint(2, 5))  # our own


def hurt_text(text: str, rng: random.Random) -> bytes:
    """A text file with a word, a line or its encoding wrong."""
    raw = text.encode("utf-8", "surrogatepass")
    kind = rng.randrange(8)
    if kind == 0:
        return raw[: rng.randrange(len(raw) + 1)]
    if kind == 1:
        return text.encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp500")), "replace")
    if kind == 2:
        at = rng.randrange(len(raw) + 1)
        return raw[:at] + rng.choice((b"\x00", b"\xff\xfe", b"\xe9", b"\n", b"<", b"&", b'"', b"\t")) + raw[at:]
    if kind == 3:
        return _BOTTOMLESS.encode() if rng.random() < 0.5 else b"<a>" * 50_000
    if kind == 4:
        lines = raw.splitlines(keepends=True)
        at = rng.randrange(len(lines) + 1)
        return b"".join([*lines[:at], *lines[at + 1 :]])
    words = text.replace("<", " < ").split(" ") if kind == 5 else text.split('"') if kind == 6 else text.split("\t")
    words[rng.randrange(len(words))] = str(rng.choice(VALUES)).replace(_DEEP, _BOTTOMLESS)
    return {5: " ", 6: '"', 7: "\t"}[kind].join(words).encode("utf-8", "surrogatepass")


def _places(value: Any, place: tuple[Any, ...]) -> Any:
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:50]:
        yield from _places(inner, (*place, key))


def _replaced(value: Any, place: tuple[Any, ...], rng: random.Random) -> Any:
    if not place:
        return rng.choice(VALUES)
    key, *rest = place
    copy = dict(value) if isinstance(value, dict) else list(value)
    if not rest and rng.random() < 0.2:
        del copy[key]
    elif not rest and isinstance(copy, list) and rng.random() < 0.1:
        copy.insert(key, copy[key])
    else:
        copy[key] = _replaced(value[key], tuple(rest), rng)
    return copy


def _dumped(value: Any) -> str:
    # Numbers that are not finite are written as Python writes and reads them, and as too many digits.
    text = json.dumps(value).replace(json.dumps(_DEEP), _BOTTOMLESS)
    return text.replace("Infinity", "1e999") if "-Infinity" in text else text
