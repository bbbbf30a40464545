"""What many tasks have in common travels once, and is never stale."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import manycore

ROWS = 1_000_000  # bytes of the table
TASKS = 64
Table = Any


class Holder:
    def __init__(self, table: Table) -> None:
        self.table = table

    def total(self, n: int) -> int:
        return int(self.table[0]) + n


def total(table: Table, n: int) -> int:
    return int(table[0]) + n


def total_of_two(n: int, table: Table, other: Table) -> int:
    assert table is other
    return int(table[-1]) + n


def change(table: Table, n: int) -> int:
    """Its own copy may be changed."""
    table[0] += 1
    return int(table[0])


def closure(table: Table) -> Callable[[int], int]:
    return lambda n: int(table[0]) + n


MAPS: dict[str, Callable[[Any, Any, Table], list[int]]] = {
    "partial": lambda pool, _, table: pool.map(functools.partial(total, table), range(TASKS), 1),
    "bound method": lambda pool, _, table: pool.map(Holder(table).total, range(TASKS), 1),
    "closure": lambda pool, _, table: pool.map(closure(table), range(TASKS), 1),
    "starmap": lambda pool, _, table: pool.starmap(total, [(table, n) for n in range(TASKS)], 1),
    "starmap, twice": lambda pool, _, table: pool.starmap(total_of_two, [(n, table, table) for n in range(TASKS)], 1),
    "starmap_async": lambda pool, _, table: pool.starmap_async(total, [(table, n) for n in range(TASKS)], 1).get(30),
    "executor": lambda _, pool, table: list(pool.map(functools.partial(total, table), range(TASKS))),
    "executor, several": lambda _, pool, table: list(pool.map(total, [table] * TASKS, range(TASKS))),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_large_constant_travels_once_and_is_never_stale(name: str) -> None:
    table = np.ones(ROWS, dtype=np.uint8)
    with manycore.Pool(2) as pool, manycore.ProcessPoolExecutor(2) as executor:
        for value in (1, 2, 3, 4):  # changed in place between the calls
            table[:] = value
            before = pool.stats().bytes_sent + executor.stats().bytes_sent
            assert MAPS[name](pool, executor, table) == [value + n for n in range(TASKS)]
            assert pool.stats().bytes_sent + executor.stats().bytes_sent - before < 1.2 * ROWS


def test_a_list_travels_once_as_well() -> None:
    table = list(range(100_000))
    with manycore.Pool(2) as pool:
        assert pool.starmap(total, [(table, n) for n in range(TASKS)], 1) == list(range(TASKS))
        assert pool.stats().bytes_sent < 1_000_000


def test_a_task_may_change_its_copy() -> None:
    table = np.zeros(ROWS, dtype=np.uint8)
    with manycore.Pool(2) as pool:
        assert pool.starmap(change, [(table, n) for n in range(20)], 1) == [1] * 20
    assert table[0] == 0


def test_what_looks_alike_is_told_apart() -> None:
    one, other = np.ones(ROWS, dtype=np.uint8), np.full(ROWS, 2, dtype=np.uint8)
    with manycore.Pool(2) as pool:
        assert pool.starmap(total, [(one, 0), (one, 0), (other, 0), (one, 0)], 1) == [1, 1, 2, 1]
        ragged: list[Any] = [(one, 0), (other,), (one, 0)]
        assert isinstance(pool.starmap(total, ragged, 1, on_error="collect")[1], manycore.Failure)
        assert pool.starmap(max, [(1, 2), (1, 3)]) == [2, 3]
        assert pool.starmap(total, [[one, 1], [one, 2]]) == [2, 3]


def test_failures_name_all_arguments() -> None:
    table = np.zeros(ROWS, dtype=np.uint8)
    with manycore.Pool(1) as pool:
        kept = pool.starmap(divmod, [(table, None), (table, table)], 1, on_error="collect")
        assert kept[0].item[0] is table
        with pytest.raises(manycore.WorkerDied, match=r"die\(<ndarray \(1000000,\) uint8>, 3\)"):
            pool.starmap(die, [(table, 3), (table, 3)], 1)


def die(_table: Table, _n: int) -> None:
    os._exit(1)


def test_what_cannot_be_pickled_fails_as_ever() -> None:
    lock = __import__("threading").Lock()
    with manycore.Pool(1) as pool, pytest.raises(manycore.TaskPicklingError, match="lock"):
        pool.starmap(total, [(lock, 1), (lock, 2)])


def test_nothing_is_kept_of_old_maps() -> None:
    """Neither in this process nor in the workers: thirty tables of 8 MB each."""
    with manycore.Pool(1) as pool:

        def held() -> int:
            gc.collect()
            (pid,) = pool.stats().pids
            return sum(_held(one) for one in (pid, os.getpid()))

        pool.starmap(total, [(np.zeros(8 << 20, dtype=np.uint8), n) for n in (1, 2)], 1)
        before = held()
        for _ in range(30):
            table = np.zeros(8 << 20, dtype=np.uint8)
            pool.starmap(total, [(table, n) for n in range(4)], 1)
            pool.map(functools.partial(total, table), range(4), 1)
            del table
        assert held() - before < 300 << 20  # two times thirty tables are 480 MB, in each process


def _held(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS:"))
