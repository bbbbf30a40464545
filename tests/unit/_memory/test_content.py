"""Large globals: sent again when they have changed in place, and only then."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import manycore
from manycore._memory import codec, content
from manycore._native.codec import fingerprint

np = pytest.importorskip("numpy")


class Held:
    def __init__(self) -> None:
        self.arrays = {"left": np.zeros((300, 300)), "right": np.zeros(9)}


def change(value: Any) -> None:
    """In one place, the smallest there is."""
    if isinstance(value, Held):
        value.arrays["right"][8] = 5
    elif isinstance(value, dict):
        value[77_777] = -1
    elif isinstance(value, list):
        value[-1][0] = 5
    elif isinstance(value, bytearray):
        value[50_000] ^= 1
    else:
        value[tuple(length - 1 for length in value.shape)] = 5


VALUES: dict[str, Callable[[], Any]] = {
    "array": lambda: np.zeros((100, 1000)),
    "columns": lambda: np.zeros((1000, 100)).T,
    "every second": lambda: np.zeros((100, 4000))[:, ::2],
    "objects": lambda: np.full(40_000, "text", dtype=object),
    "object": Held,
    "dict": lambda: dict.fromkeys(range(100_000), 0),
    "list": lambda: [[number] for number in range(50_000)],
    "bytearray": lambda: bytearray(100_000),
}


def function_that_reads(table: Any) -> Callable[[], Any]:
    space: dict[str, Any] = {"__name__": "__main__", "table": table}
    exec("def read():\n    return table", space)
    read: Callable[[], Any] = space["read"]
    return read


@pytest.mark.parametrize("kind", VALUES)
def test_what_has_changed_in_place_is_pickled_again_and_nothing_else_is(kind: str) -> None:
    table = VALUES[kind]()
    read = function_that_reads(table)
    data = codec.dump_function(read)
    assert codec.dump_function(read) is data
    change(table)
    changed = codec.dump_function(read)
    assert changed != data
    assert codec.dump_function(read) is changed


@pytest.mark.parametrize("face", [manycore.Pool, manycore.ProcessPoolExecutor])
def test_a_task_reads_a_large_global_as_it_is(face: Any) -> None:
    table = np.zeros(100_000)
    space: dict[str, Any] = {"__name__": "__main__", "table": table}
    exec("def total(_):\n    return float(table.sum())", space)
    total = space["total"]
    with face(2) as pool:
        for number in range(5):
            table[number * 1000] = 1
            assert list(pool.map(total, range(4))) == [number + 1] * 4
            call = pool.apply_async(total, (0,)).get if face is manycore.Pool else pool.submit(total, 0).result
            assert call() == number + 1


def test_a_global_that_can_no_longer_be_pickled_is_named() -> None:
    table: list[Any] = [*range(100_000)]
    read = function_that_reads(table)
    codec.dump_function(read)
    table.append(number for number in table)
    with pytest.raises(manycore.TaskPicklingError, match="table"):
        codec.dump_function(read)


def test_who_pays_for_looking_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_TELL_SECONDS", 1e-9)
    read = function_that_reads(np.zeros(20_000))
    with manycore.Pool(1) as pool, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            pool.apply(read)
    (one,) = caught
    assert one.category is manycore.ManycoreWarning
    assert "'table'" in str(one.message)
    assert one.filename == __file__


@given(st.binary(min_size=1, max_size=400), st.data())
def test_no_changed_bit_is_overlooked(data: bytes, draw: st.DataObject) -> None:
    place = draw.draw(st.integers(0, 8 * len(data) - 1))
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    assert fingerprint(data) == fingerprint(bytearray(data))
    assert fingerprint(changed) != fingerprint(data)
    assert fingerprint(data + b"\0") != fingerprint(data)


@given(st.lists(st.binary(max_size=200), min_size=2, max_size=50, unique=True))
def test_different_bytes_have_different_fingerprints(values: list[bytes]) -> None:
    assert len(set(map(fingerprint, values))) == len(values)
