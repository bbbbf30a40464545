"""Semaphores, recursive locks and atomics against models of them, over random sequences of operations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manycore.sharedctypes import Atomic
from manycore.synchronize import BoundedSemaphore, RLock, Semaphore


@given(
    value=st.integers(0, 6) | st.integers(998, 1003),
    bounded=st.booleans(),
    acquires=st.lists(st.booleans(), max_size=40),
)
def test_a_semaphore_counts(value: int, bounded: bool, acquires: list[bool]) -> None:
    sem, free = (BoundedSemaphore if bounded else Semaphore)(value), value
    for acquire in acquires:
        if acquire:
            assert sem.acquire(False) is (free > 0)
            free -= free > 0
        elif bounded and free == value:
            with pytest.raises(ValueError, match="too many"):
                sem.release()
        else:
            sem.release()
            free += 1
        assert sem.get_value() == free


@given(acquires=st.lists(st.booleans(), max_size=40))
def test_a_recursive_lock_counts(acquires: list[bool]) -> None:
    lock, depth = RLock(), 0
    for acquire in acquires:
        if acquire:
            assert lock.acquire(False)
            depth += 1
        elif depth == 0:
            with pytest.raises(AssertionError):
                lock.release()
        else:
            lock.release()
            depth -= 1
        assert lock._count() == depth
        assert lock.locked() is (depth > 0)


NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)


def wrapped(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


@given(
    start=NUMBERS,
    steps=st.lists(st.tuples(st.sampled_from(["add", "max", "min", "exchange", "compare_exchange"]), NUMBERS)),
)
def test_an_atomic_integer_is_64_bits(start: int, steps: list[tuple[str, int]]) -> None:
    atomic, value = Atomic(start), start
    for name, number in steps:
        if name == "exchange":
            assert atomic.exchange(number) == value
            value = number
        elif name == "compare_exchange":
            assert atomic.compare_exchange(number, 5) is (number == value)
            value = 5 if number == value else value
        else:
            value = (
                wrapped(value + number)
                if name == "add"
                else max(value, number)
                if name == "max"
                else min(value, number)
            )
            assert getattr(atomic, name)(number) == value
        assert atomic.load() == value
