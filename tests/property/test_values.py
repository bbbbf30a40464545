"""Values survive every way between processes: a pool's arguments and results, a queue, a pipe; and every size."""

from __future__ import annotations

import array
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import manycore
from manycore._memory.available import available_bytes
from tests.property.test_codec import Record, arrays, leaves, same, values

GIB = 1 << 30
SIZES = (0, 1, 4095, 4096, 4097, 65535, 65536, 65537)
HUGE = (GIB, 2 * GIB + 4097)  # the second is past what 31 bits count

Way = Callable[[Any], Any]


def back(value: Any) -> Any:
    return value


def shape_of(value: list[Any]) -> list[tuple[int, int]]:
    """Which places hold one object."""
    return [(i, j) for i, one in enumerate(value) for j, other in enumerate(value) if one is other]


@pytest.fixture(scope="module", params=["pool", "executor", "queue", "pipe"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    """Takes a value to another process (or through the kernel) and back."""
    if request.param == "pool":
        with manycore.Pool(1) as pool:
            yield lambda value: pool.apply(back, (value,))
    elif request.param == "executor":
        with manycore.ProcessPoolExecutor(1) as executor:
            yield lambda value: executor.submit(back, value).result()
    elif request.param == "queue":
        queue = manycore.Queue()

        def through_queue(value: Any) -> Any:
            queue.put(value)
            return queue.get(timeout=60)

        yield through_queue
    else:
        here, there = manycore.Pipe()

        def through_pipe(value: Any) -> Any:
            sender = threading.Thread(target=here.send, args=(value,), daemon=True)
            sender.start()
            try:
                return there.recv()
            finally:
                sender.join()

        yield through_pipe
        here.close()
        there.close()


quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(values)
@quick
def test_values_survive(way: Way, value: Any) -> None:
    assert same(way(value), value)


@given(arrays())
@quick
def test_arrays_survive(way: Way, value: Any) -> None:
    result = way(value)
    assert same(result, value)
    assert result.flags.aligned == value.flags.aligned or value.size == 0


@given(st.lists(leaves, min_size=1, max_size=3), st.lists(st.integers(0, 2), max_size=6))
@quick
def test_what_was_shared_stays_shared(way: Way, parts: list[Any], choices: list[int]) -> None:
    boxed = [Record(part) for part in parts]
    value = [boxed[choice % len(parts)] for choice in choices]
    first, second, result = way((boxed, boxed, value))
    assert first is second
    assert shape_of(result) == shape_of(value)
    for choice, one in zip(choices, result, strict=True):
        assert one is first[choice % len(parts)]


@pytest.mark.parametrize("size", SIZES)
def test_every_size_of_every_kind(way: Way, size: int) -> None:
    data = os.urandom(size)
    flat = np.frombuffer(data, np.uint8)
    written = flat.copy()
    for value in (
        data, bytearray(data), memoryview(data), memoryview(bytearray(data)), array.array("B", data), flat, written,
        data.hex(), written[::-1], np.asfortranarray(np.stack([written, written])), [data, data], (written, written),
        np.frombuffer(data[: size // 8 * 8], np.dtype([("a", "<i4"), ("b", "S4")])), written.view("V1"),
    ):  # fmt: skip
        result = way(value)
        assert same(result, value), type(value)
        if isinstance(value, (list, tuple)):
            assert result[0] is result[1]
        if isinstance(value, np.ndarray) and value.flags.writeable and size:
            result[...] = np.zeros(1, result.dtype)  # it is the receiver's own
    assert bytes(written) == data


def ends(value: Any) -> tuple[int, int, int, str]:
    """What is told of a value that is not to come back."""
    return len(value), int(value[0]), int(value[-1]), type(value).__name__


def make_huge(size: int) -> Any:
    result = np.zeros(size, np.uint8)
    result[0], result[-1] = 3, 4
    return result


def require_bytes(count: int) -> None:
    if available_bytes() < count:
        pytest.skip(f"needs {count >> 30} GiB of memory")


@pytest.mark.parametrize("size", HUGE)
@pytest.mark.timeout(300)
def test_huge_arrays_in_and_out_of_a_pool(size: int) -> None:
    require_bytes(5 * size)
    value = np.zeros(size, np.uint8)
    value[0], value[-1] = 1, 2
    with manycore.Pool(1) as pool:
        assert pool.apply(ends, (value,)) == (size, 1, 2, "ndarray")
        del value
        result = pool.apply(make_huge, (size,))
        assert ends(result) == (size, 3, 4, "ndarray")
        assert result.flags.writeable
        assert not result[1:-1].any()


@pytest.mark.skipif("MANYCORE_HUGE" not in os.environ, reason="MANYCORE_HUGE=1 sends 1 GiB and more every way")
@pytest.mark.parametrize("kind", ["bytes", "bytearray", "ndarray", "list"])
@pytest.mark.parametrize("size", HUGE)
@pytest.mark.timeout(600)
def test_huge_values_survive(way: Way, size: int, kind: str) -> None:
    require_bytes(6 * size)
    pattern = np.arange(size // 8, dtype=np.uint64).view(np.uint8)
    pattern = np.concatenate([pattern, np.full(size - pattern.size, 7, np.uint8)])
    value: Any
    if kind == "bytes":
        value = pattern.tobytes()
    elif kind == "bytearray":
        value = bytearray(pattern)
    elif kind == "list":
        value = [pattern, pattern, "end"]
    else:
        value = pattern
    result = way(value)
    assert type(result) is type(value)
    if kind == "list":
        assert result[0] is result[1]
        assert np.array_equal(result[0], pattern)
    else:
        assert np.array_equal(np.frombuffer(result, np.uint8), pattern)


def test_arrow_tables_survive(way: Way) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = arrow.table(
        {
            "numbers": np.arange(200_000, dtype=np.float64),
            "text": arrow.array([None, "a", "ü"] * 66_666 + ["b", "c"]),
            "lists": arrow.array([[1, 2], [], None, [3]] * 50_000),
            "categories": arrow.array(["x", "y"] * 100_000).dictionary_encode(),
        }
    )
    for value in (table, table.slice(100, 1000), table.column("text"), table.schema, table.to_batches()[0], table[:0]):
        result = way(value)
        assert type(result) is type(value)
        assert result.equals(value)
    pair = way((table, table))
    assert pair[0] is pair[1]
