"""Pickles that were made to harm: they are refused, or read, in time and memory that follow from their size."""

from __future__ import annotations

import pickle
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa2va.data.annotations.unpickle import load_plain


def doubled(levels: int, start: bytes = b"(K\x01t\x94") -> bytes:
    """A value that holds itself of one level below twice: 2**levels values in three bytes each."""
    return b"\x80\x04" + start + b"".join(b"h%ch%c\x86\x94" % (level, level) for level in range(levels))


def doubled_lists(levels: int) -> bytes:
    steps = (b"](h%ch%ce\x94" % (level, level) for level in range(levels))
    return b"\x80\x04]K\x01a\x94" + b"".join(steps) + b"."


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


BUILT = {
    f"BUILD on {module}.{name}": b"\x80\x04"
    + named(module, name)
    + b"N}"
    + text("__defaults__")
    + text("x")
    + b"\x85s\x86b."
    for module, name in [
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),
        ("collections", "OrderedDict"),
        ("builtins", "set"),
    ]
}
ATTACKS = {
    "a tuple of 2**26 as a key": doubled(26) + b"}h%cK\x01s." % 26,
    "a list of 2**30": doubled_lists(30),
    "a tuple of 2**60": doubled(60) + b".",
    "a set of a tuple of 2**26": doubled(26) + b"\x8fh%c(h%c\x90." % (26, 26),
    "a frozen set of tuples": b"\x80\x04(" + doubled(26)[2:] + b"\x91.",
    "text of 2**60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc.",
    "bytes of 2**31 - 1": b"\x80\x04B" + struct.pack("<I", 2**31 - 1) + b"abc.",
    "a bytearray of 2**50": b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b"abc.",
    "a number of 2**31 - 1 bytes": b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "a number of -1 bytes": b"\x80\x04\x8b" + struct.pack("<i", -1) + b"abc.",
    "lists in lists": b"\x80\x04" + b"]" * 20_000 + b"a" * 19_999 + b".",
    "tuples in tuples": b"\x80\x04)" + b"\x85" * 20_000 + b".",
    "a dictionary as a key": b"\x80\x04}}K\x01s.",
    "a list that holds itself": b"\x80\x04]\x94" + b"h\x00a" * 40 + b".",
    "an empty array of many rows": pickle.dumps(np.zeros((1, 0))).replace(b"K\x01K\x00", b"J\x00\xca\x9a;K\x00"),
    "an array again and again": pickle.dumps(np.zeros(20_000, np.uint8))[:-1]
    + b"0]"
    + b"("
    + b"h\x09" * 30_000
    + b"e.",
    "a function itself": b"\x80\x04" + named("_codecs", "encode") + b".",
    "a type of numbers itself": b"\x80\x04" + named("numpy", "dtype") + text("i4") + b"\x85R.",
    "an extension": b"\x80\x02\x82\x01.",
    "an object with an id of its own": b"\x80\x04K\x01Q.",
    "a new object": b"\x80\x04" + named("collections", "OrderedDict") + b")\x81.",
    "a number called": b"\x80\x04K\x01K\x01\x85R.",
    "adding to a number": b"\x80\x04K\x01K\x02a.",
    "setting in a list": b"\x80\x04]K\x01K\x02s.",
    "nothing on the stack": b"\x80\x04R.",
    "no mark": b"\x80\x04K\x01t.",
    "what was never kept": b"\x80\x04h\x07.",
    "text that is not closed": b"S'abc\n.",
    **BUILT,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_refused_at_once(name: str, tmp_path: Path):
    path = tmp_path / "refs.p"
    path.write_bytes(ATTACKS[name])
    before = time.process_time()
    with pytest.raises(ValueError, match=r"refs\.p"):
        load_plain(path)
    assert time.process_time() - before < 5


def test_nothing_of_ours_is_changed(tmp_path: Path):
    good = tmp_path / "numbers.p"
    good.write_bytes(pickle.dumps({"n": np.int64(7), "m": np.arange(3), "raw": b"\xff"}, protocol=2))
    before = load_plain(good)
    for name, raw in BUILT.items():
        (tmp_path / "x.p").write_bytes(raw)
        with pytest.raises(ValueError, match="not plain data"):
            load_plain(tmp_path / "x.p")
        assert load_plain(good) == before == {"n": 7, "m": [0, 1, 2], "raw": b"\xff"}, name


def test_a_high_place_in_the_memo_costs_nothing(tmp_path: Path):
    path = tmp_path / "memo.p"
    path.write_bytes(b"Np30000000\n.")
    tracemalloc.start()
    try:
        assert load_plain(path) is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("protocol", range(6))
def test_what_is_shared_comes_back_in_each_place(tmp_path: Path, protocol: int):
    size, numbers = [480, 640], np.arange(4)
    masks = [{"size": size, "counts": b"abc", "numbers": numbers} for _ in range(2000)]
    (tmp_path / "masks.p").write_bytes(pickle.dumps({"0": masks, "1": masks, ("a", 1): [None]}, protocol=protocol))
    one = {"size": [480, 640], "counts": b"abc", "numbers": [0, 1, 2, 3]}
    assert load_plain(tmp_path / "masks.p") == {"0": [one] * 2000, "1": [one] * 2000, ("a", 1): [None]}


@given(st.data(), st.integers(0, 5))
def test_no_change_of_a_byte_gives_anything_but_values_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, protocol: int
):
    value = {
        "a": [1, 2.5, None, True],
        "b": ("x", b"y"),
        "c": {3},
        "d": np.arange(6.0).reshape(2, 3),
        "e": np.float32(2),
    }
    raw = bytearray(pickle.dumps(value, protocol=protocol))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("pickle") / "values.p"
    path.write_bytes(raw)
    try:
        repr(load_plain(path))
    except ValueError as error:
        assert "values.p" in str(error)
