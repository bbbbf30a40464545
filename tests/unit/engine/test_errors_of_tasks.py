"""What a failed task says: its own type, where it ran, with what, and why; in the same words through both faces."""

from __future__ import annotations

import asyncio
import linecache
import multiprocessing.pool
import os
import pickle
import threading
import time
import traceback
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
        copy = pickle.loads(pickle.dumps(caught.value))
        for error in (caught.value, copy):  # with the names of `multiprocessing.pool.MaybeEncodingError`
            assert "give_back_a_lock" in error.value
            assert "lock" in error.exc
            assert str(error) == str(caught.value)


class NotAgain:
    """Can be pickled, and not be rebuilt."""

    def __init__(self, padding: int = 0) -> None:
        self.padding = bytes(padding)

    def __reduce__(self) -> Any:
        return int, ("no number", 10, self.padding)


def give_what_cannot_be_rebuilt(_: int, unit: str = "m") -> Any:
    return NotAgain()


@every_way
def test_what_cannot_be_rebuilt_is_named(face: Any, run: Run) -> None:
    with face(1, name="named") as pool:
        for _ in range(3):  # the first call, and those that are collected a shorter way
            with pytest.raises(manycore.ResultPicklingError) as result:
                run(pool, give_what_cannot_be_rebuilt, 3, "km")
            assert "give_what_cannot_be_rebuilt(3, 'km') on worker 0 of pool 'named'" in str(result.value)
        with pytest.raises(manycore.TaskPicklingError) as argument:
            run(pool, abs, NotAgain())
        assert "abs(<NotAgain>) on worker 0 of pool 'named'" in str(argument.value)


def test_long_arguments_are_not_kept_to_be_named() -> None:
    with manycore.Pool(1) as pool, pytest.raises(manycore.TaskPicklingError, match=r"abs\(\.\.\.\) on worker 0"):
        pool.apply(abs, (NotAgain(100_000),))


def stop(n: int) -> int:
    if n == 2:
        raise StopIteration(n)
    if n == 3:
        raise StopAsyncIteration
    return n


WALKS: dict[str, Callable[[Any, Any], Any]] = {
    "imap": lambda pool, _: pool.imap(stop, range(5)),
    "imap_unordered": lambda pool, _: pool.imap_unordered(stop, range(5)),
    "executor": lambda _, executor: executor.map(stop, range(5)),
    "executor, lazily": lambda _, executor: executor.map(stop, range(5), buffersize=2),
    "function": lambda *_: manycore.imap(stop, range(5), workers=1),
}


@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
def test_what_means_an_iterators_end_is_no_end(walk: Callable[[Any, Any], Any]) -> None:
    with manycore.Pool(1) as pool, manycore.ProcessPoolExecutor(1) as executor:
        results = walk(pool, executor)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(RuntimeError, match=r"item 2 \(2\) raised StopIteration") as caught:
            next(results)
        assert isinstance(caught.value.__cause__, StopIteration)
        assert isinstance(caught.value.__cause__.__cause__, manycore.errors.RemoteTraceback)


def test_nor_is_it_an_asynchronous_ones() -> None:
    async def walk(results: Any, met: list[str]) -> None:
        while True:
            try:
                async for value in results:
                    met += [str(value)]
                return
            except RuntimeError as error:
                met.append(type(error.__cause__).__name__)
                if len(met) > 9:
                    return

    with manycore.Pool(1) as pool, manycore.ProcessPoolExecutor(1) as executor:
        for results in (pool.imap(stop, range(5)), executor.map(stop, range(5), chunksize=1)):
            met: list[str] = []
            asyncio.run(walk(results, met))
            assert met == ["0", "1", "StopIteration", "StopAsyncIteration", "4"]


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


def test_a_traceback_shows_lines_that_only_the_parent_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a notebook's cell, of what was typed at a prompt."""
    source = "def outer(n):\n    return inner(n)\n\ndef inner(n):\n    return 1 // n\n"
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<cell 1>", "exec"), cell)
    monkeypatch.setitem(linecache.cache, "<cell 1>", (len(source), None, source.splitlines(keepends=True), "<cell 1>"))
    with manycore.Pool(1) as pool, pytest.raises(ZeroDivisionError) as caught:
        pool.apply(cell["outer"], (0,))
    lines = [line.strip() for line in str(caught.value.__cause__).splitlines()]
    for place, line in (("2, in outer", "return inner(n)"), ("5, in inner", "return 1 // n")):
        assert lines[lines.index(f'File "<cell 1>", line {place}') + 1] == line
    assert lines.count("return 1 // n") == 1


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


def test_notebooks_and_pytest_are_told_which_frames_say_nothing() -> None:
    with manycore.Pool(1) as pool:
        maps: list[Callable[[], object]] = [
            lambda: manycore.map(refuse, [1]),
            lambda: pool.map(refuse, [1]),
            lambda: list(pool.imap(refuse, [1])),
        ]
        for use in maps:
            with pytest.raises(Odd) as caught:
                use()
            frames = [frame for frame, _ in traceback.walk_tb(caught.tb) if "__tracebackhide__" not in frame.f_locals]
            assert not [frame for frame in frames if frame.f_code.co_name in {"gather", "add_results", "give", "get"}]


def test_a_wait_that_was_too_short_says_how_long_it_was() -> None:
    with manycore.Pool(1) as pool:
        with pytest.raises(multiprocessing.TimeoutError, match=r"^no result within 0\.01 s; the call goes on$"):
            pool.apply_async(time.sleep, (60,)).get(0.01)
        with pytest.raises(multiprocessing.TimeoutError, match=r"^no result within 0\.01 s$"):
            pool.imap(abs, [1]).next(0.01)  # the one worker sleeps
