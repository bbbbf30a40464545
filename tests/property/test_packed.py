"""Packed messages: what `pack` takes comes back equal, its own objects shared as they were; damage is an error."""

from __future__ import annotations

import copyreg
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manycore._memory import codec
from manycore._native.codec import pack, unpack
from tests.property.test_codec import same

CHARS = "dfli?BbhHILqQegDFG"
I64 = st.integers(-(2**63), 2**63 - 1)

arrays = st.sampled_from(CHARS).flatmap(
    lambda char: hnp.arrays(np.dtype(char), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
leaves = st.none() | st.booleans() | I64 | st.floats() | st.text(max_size=20) | st.binary(max_size=20) | arrays
keys = st.none() | st.booleans() | I64 | st.text(max_size=5) | st.tuples(I64, st.text(max_size=5))


def nested(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(parts, max_size=4) | st.lists(parts, max_size=4).map(tuple) | st.dictionaries(keys, parts, max_size=4)
    )


values = st.recursive(leaves, nested, max_leaves=12)


@given(values)
@settings(max_examples=400)
def test_a_packed_value_comes_back(value: Any) -> None:
    data = pack(value)
    if data is None:  # the codec still carries it
        data = codec.dumps(value)
    assert same(value, codec.loads(data))
    assert same(value, codec.loads(memoryview(bytearray(data))))


@given(st.lists(st.text(min_size=1) | st.binary(min_size=2) | arrays, min_size=1, max_size=8), st.data())
def test_one_object_stays_one(pool: list[Any], data: st.DataObject) -> None:
    chosen = [pool[data.draw(st.integers(0, len(pool) - 1))] for _ in range(data.draw(st.integers(1, 12)))]
    message = pack((chosen, {"k": chosen[0]}))
    assert message is not None
    back, named = unpack(message)
    assert named["k"] is back[0]
    for one, made in zip(chosen, back, strict=True):
        assert same(one, made)
        for other, also in zip(chosen, back, strict=True):
            if isinstance(one, np.ndarray) or isinstance(other, np.ndarray) or one != other:
                assert (one is other) == (made is also)
            elif one is other:
                assert made is also


@given(values, st.data())
@settings(max_examples=300)
def test_a_damaged_message_is_an_error_and_no_crash(value: Any, data: st.DataObject) -> None:
    message = pack(value)
    if message is None:
        return
    with pytest.raises(EOFError):
        unpack(message[: data.draw(st.integers(1, len(message) - 1))])
    torn = bytearray(message)
    for _ in range(3):
        torn[data.draw(st.integers(1, len(torn) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpack(torn)
    except (EOFError, ValueError, MemoryError, TypeError):  # ValueError also for bytes that are no UTF-8
        pass


def test_what_is_not_packed() -> None:
    shared = [1]
    cycle: list[Any] = []
    cycle.append(cycle)
    structured = np.zeros(3, [("x", "i4")])
    refused: list[Any] = [
        2**63,
        1j,
        "\ud800",
        {1},
        (shared, shared),
        cycle,
        list(range(200)),
        b"x" * 65536,
        np.zeros(65536, "u1"),
        np.arange(6).reshape(2, 3).T,
        np.arange(6)[::2],
        np.zeros(3, ">i4"),
        np.zeros(3, "M8[s]"),
        np.array(["a"]),
        np.array([object()]),
        structured,
        np.zeros(3).view(np.recarray),
        np.float64(1.0),
        [[[[[[[[[[]]]]]]]]]],
        np.zeros((1,) * 9),
    ]
    for value in refused:
        assert pack(value) is None, value
    assert pack((1, "a")) is not None
    assert pack((1, "a"), arrays_only=True) is None
    assert pack((1, np.arange(3)), arrays_only=True) is not None


def test_registered_reducers_of_arrays_are_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, np.ndarray, lambda array: (list, (array.tolist(),)))
    assert pack(np.arange(3)) is None
    assert codec.loads(codec.dumps(np.arange(3))) == [0, 1, 2]


def test_arrays_have_memory_of_their_own() -> None:
    array = np.arange(8)
    array.flags.writeable = False
    message = bytearray(pack((array, np.arange(3.0))) or b"")
    frozen, free = unpack(message)
    message[:] = bytes(len(message))
    assert frozen.tolist() == list(range(8))
    assert not frozen.flags.writeable
    assert free.flags.owndata
    free[0] = 7.0
