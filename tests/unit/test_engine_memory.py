"""What large values leave behind in a pool's shared memory: nothing, once they are dropped."""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import numpy as np
import pytest

import manycore
from manycore._memory.arena import Arena

MIB = 1 << 20
FULL = "MANYCORE_FULL" in os.environ  # the whole numbers that the library promises, in some minutes
ARRAYS, MOST_BYTES = (10_000, 64 * MIB) if FULL else (400, 8 * MIB)
SMALL, LARGE = (1_000_000, 10_000) if FULL else (30_000, 300)


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


def resident_shared_bytes(pids: list[int]) -> int:
    """Memory in shared files that these processes map, each file counted once however many map it."""
    files: dict[str, int] = {}
    for pid in pids:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                if os.readlink(f"/proc/{pid}/fd/{fd}").startswith("/memfd:"):
                    status = os.stat(f"/proc/{pid}/fd/{fd}")
                    files[f"{status.st_dev}:{status.st_ino}"] = status.st_blocks * 512
            except OSError:
                continue
    return sum(files.values())


@pytest.mark.timeout(1500 if FULL else 120)
def test_memory_is_bounded_by_what_lives_and_a_documented_reserve(rng: Random) -> None:
    data = np.zeros(MOST_BYTES, dtype=np.uint8)
    data[::4096] = 1
    with manycore.Pool(2) as pool:
        pool.map(back, [0] * 4)
        pids = [os.getpid(), *pool.stats().pids]
        before = resident_shared_bytes(pids)
        live, most_live, most_held = [], 0, 0
        for number in range(ARRAYS):
            size = rng.randrange(1, MOST_BYTES)
            both_ways = number % 4 == 0
            live.append((size, both_ways, pool.apply_async(back if both_ways else len, (data[:size],))))
            most_live = max(most_live, sum(2 * size for size, _, _ in live))
            if len(live) > 2:
                size, both_ways, result = live.pop(0)
                answer = result.get(timeout=60)
                assert len(answer) == size if both_ways else answer == size
                del result, answer
            if number % 50 == 0:
                most_held = max(most_held, resident_shared_bytes(pids) - before)
        for _, _, result in live:
            result.get(timeout=60)
        live.clear()
        del result
        gc.collect()
        reserve = (1 + 2) * 512 * MIB  # each arena's, at most: the parent's and one a worker (the guide says so)
        print(f"live at most {most_live / MIB:.0f} MiB, held at most {most_held / MIB:.0f} MiB")
        assert most_held <= most_live + reserve
        assert eventually(lambda: resident_shared_bytes(pids) - before <= 3 * 5 * MIB)
        print(f"at rest {(resident_shared_bytes(pids) - before) / MIB:.1f} MiB")


def descriptors(pids: list[int]) -> list[int]:
    gc.collect()
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]


@pytest.mark.timeout(1500 if FULL else 120)
@pytest.mark.parametrize("way", ["pool", "queue", "pipe"])
def test_no_descriptor_is_lost_by_any_number_of_messages(way: str) -> None:
    small, large = b"x" * 50, bytes(100_000)
    if way == "pool":
        with manycore.Pool(2) as pool:
            for _ in range(2):
                pool.map(back, [large] * 20)
            pids = [os.getpid(), *pool.stats().pids]
            before = descriptors(pids)
            for _ in pool.imap_unordered(back, (small for _ in range(SMALL)), 100):
                pass
            for _ in pool.imap_unordered(back, (large for _ in range(LARGE))):
                pass
            assert descriptors(pids) == before
        return
    here, there = manycore.Pipe()
    echo = manycore.Process(target=pass_on, args=(there,))
    queue: Any = manycore.Queue()
    pids = [os.getpid()]
    if way == "pipe":
        echo.start()
        pids.append(echo.pid or 0)
    before = []
    for message, count in ((large, 1), (small, SMALL), (large, LARGE)):  # the first large one opens its way
        for _ in range(count):
            if way == "pipe":
                here.send(message)
                assert len(here.recv()) == len(message)
            else:
                queue.put(message)
                assert len(queue.get()) == len(message)
            before = before or descriptors(pids)
    assert descriptors(pids) == before
    if way == "pipe":
        here.send(None)
        echo.join(30)
    here.close()
    there.close()


def pass_on(connection: Any) -> None:
    """Sends back what it gets, until it gets None."""
    while (message := connection.recv()) is not None:
        connection.send(message)


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


@pytest.mark.parametrize("face", [manycore.Pool, manycore.ProcessPoolExecutor])
def test_the_last_large_result_is_kept_by_nobody(face: Any) -> None:
    """Neither here nor, with its memory, in the worker's arena until the next one comes."""
    with face(1) as pool:
        result = pool.submit(np.ones, 4 * MIB, np.uint8).result()
        kept = weakref.ref(result)
        del result
        assert eventually(lambda: kept() is None, 5.0)
