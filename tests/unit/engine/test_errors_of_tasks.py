"""What a failed task says: its own type, where it ran, with what, and why; in the same words through both faces."""

from __future__ import annotations

import multiprocessing.pool
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

import manycore


class Odd(ValueError):
    """An exception of the program's own."""


def refuse(n: int, unit: str = "m") -> int:
    raise Odd(n, unit)


def give_back_a_lock(_: int) -> Any:
    return {"kept": [threading.Lock()]}


def die(_: int) -> None:
    os._exit(3)


def call_pool(pool: Any, function: Any, *args: Any) -> Any:
    return pool.apply(function, args)


def map_pool(pool: Any, function: Any, *args: Any) -> Any:
    return pool.starmap(function, [args])


def submit(executor: Any, function: Any, *args: Any) -> Any:
    return executor.submit(function, *args).result()


def map_executor(executor: Any, function: Any, *args: Any) -> Any:
    return list(executor.map(function, *[[value] for value in args]))


WAYS = [
    (manycore.Pool, call_pool),
    (manycore.Pool, map_pool),
    (manycore.ProcessPoolExecutor, submit),
    (manycore.ProcessPoolExecutor, map_executor),
]
Run = Callable[..., Any]
every_way = pytest.mark.parametrize(("face", "run"), WAYS, ids=["apply", "starmap", "submit", "executor.map"])


@every_way
def test_a_failure_names_worker_task_and_arguments(face: Any, run: Run) -> None:
    with face(1, name="named") as pool:
        with pytest.raises(Odd) as caught:
            run(pool, refuse, 7, "x" * 200)
        assert caught.value.args == (7, "x" * 200)
        cause = caught.value.__cause__
        assert isinstance(cause, manycore.pool.RemoteTraceback)
        where, _, text = cause.text.partition("\n")
        assert "refuse(7, 'xxx" in where
        assert where.endswith("on worker 0 of pool 'named'")
        assert len(where) < 250
        assert text.startswith("Traceback (most recent call last):")
        assert "raise Odd(n, unit)" in text


@every_way
def test_what_cannot_be_pickled_is_named(face: Any, run: Run) -> None:
    with face(1, name="named") as pool:
        with pytest.raises(manycore.TaskPicklingError, match=r"\['inner'\]\[0\].*lock"):
            run(pool, len, {"inner": [threading.Lock()]})
        with pytest.raises(manycore.ResultPicklingError, match=r"give_back_a_lock.*\['kept'\]\[0\].*lock") as caught:
            run(pool, give_back_a_lock, 1)
        assert caught.value.__cause__ is not None


@pytest.mark.parametrize("chunksize", [None, 50])
def test_of_many_items_the_culprit_is_named(chunksize: int | None) -> None:
    items: list[Any] = [[n] for n in range(300)]
    items[170].append(threading.Lock())
    with manycore.Pool(1) as pool:
        for run, where in ((pool.map, r"^items\[170\]\[1\]: "), (pool.starmap, r"^items\[170\]\[1\]: ")):
            with pytest.raises(manycore.TaskPicklingError, match=where):
                run(repr, items, chunksize)


@every_way
def test_a_death_has_its_certificate(face: Any, run: Run) -> None:
    with face(1, name="named") as pool:
        with pytest.raises(manycore.WorkerDied, match=r"worker 0 of pool 'named' \(pid \d+\) died.*die\(5\)") as caught:
            run(pool, die, 5)
        assert caught.value.certificate.exitcode == 3
        assert run(pool, abs, -1) in (1, [1])


# ------------------------------------------------------------------------ what other libraries look at


def test_the_modules_names() -> None:
    for name in multiprocessing.pool.__all__:
        assert getattr(manycore.pool, name) is not None
    with manycore.pool.ThreadPool(2) as threads:
        assert threads.map(abs, [-1, -2]) == [1, 2]


def test_what_dask_and_tqdm_ask_for() -> None:
    """Dask: `pool._processes`, `pool.submit` or an executor's `_max_workers`; tqdm: `executor.map(..., chunksize=)`."""
    with manycore.Pool(3) as pool, manycore.ProcessPoolExecutor(max_workers=3) as executor:
        assert (pool._processes, executor._max_workers) == (3, 3)
        assert list(executor.map(abs, [-1, -2], chunksize=2)) == [1, 2]
        assert executor.submit(abs, -1).result() == 1
        assert isinstance(executor, __import__("concurrent.futures").futures.Executor)
