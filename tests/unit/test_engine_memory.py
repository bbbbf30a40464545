"""What large values leave behind in a pool's shared memory: nothing, once they are dropped."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import numpy as np
import pytest

import manycore
from manycore._memory.arena import Arena

MIB = 1 << 20


def shared_bytes(pid: int) -> int:
    """Shared memory that the process has mapped and touched."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssShmem:"))


def _has_given_back(pid: int) -> bool:
    return shared_bytes(pid) < 24 * MIB


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether it becomes true; the arena rests a second before it gives memory back."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def back(value: Any) -> Any:
    return value


@pytest.mark.timeout(120)
def test_arrays_sent_and_dropped_leave_no_memory_and_no_descriptors(rng: Random) -> None:
    data = np.arange(4 * MIB, dtype=np.uint8)
    with manycore.Pool(2) as pool:
        pool.map(back, [data[:100_000]] * 4)
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        kept: list[Any] = []
        for _ in range(150):
            size = rng.randrange(4 * MIB)
            result = pool.apply(back, (data[:size],))
            assert np.array_equal(result, data[:size])
            kept.append(result)
            del kept[:-3]
        workers = pool.stats().pids
        assert shared_bytes(workers[0]) < 200 * MIB
        kept.clear()
        del result
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
        for pid in (os.getpid(), *workers):
            assert eventually(partial(_has_given_back, pid)), f"{pid}: {shared_bytes(pid)}"


def test_an_arena_rests_when_nothing_is_put() -> None:
    arena = Arena(64 * MIB)
    assert arena.tend(0) is None
    (ref,) = arena.put([bytes(20 * MIB)])
    again = arena.tend(100)
    assert again is not None
    assert again > 100
    assert arena.tend(again - 1) == again
    assert arena.stats().resident_bytes >= 20 * MIB
    later = arena.tend(again)  # the block is out: nothing to give back yet
    assert later is not None
    assert arena.release(ref)
    assert arena.stats().resident_bytes >= 20 * MIB
    assert arena.tend(later) is None
    assert arena.stats().resident_bytes <= 4 * MIB
    (ref,) = arena.put([b"x"])
    assert arena.tend(later) is not None


def make_shared(value: int) -> Any:
    array = manycore.SharedArray(3, np.int64, values=value)
    return {"array": array, "big": np.full(100_000, value) if value % 2 else None}


@pytest.mark.parametrize("max_tasks", [None, 1])
def test_shared_memory_that_a_task_made_outlives_its_worker(max_tasks: int | None) -> None:
    with manycore.ProcessPoolExecutor(2, max_tasks_per_child=max_tasks) as executor:
        futures = [executor.submit(make_shared, value) for value in range(6)]
    for value, future in enumerate(futures):  # the workers have ended, nothing was unpickled yet
        result = future.result()
        assert type(result["array"]) is manycore.SharedArray
        assert list(result["array"]) == [value] * 3
        assert result["big"] is None or result["big"][99_999] == value


def test_results_that_are_never_looked_at_hold_nothing() -> None:
    with manycore.ProcessPoolExecutor(1) as executor:
        executor.submit(make_shared, 1).result()
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        futures = [executor.submit(make_shared, value) for value in range(20)]
        while not all(future.done() for future in futures):
            futures[-1].exception()
        del futures
        gc.collect()
        executor.submit(int).result()
        assert len(os.listdir("/proc/self/fd")) <= before
