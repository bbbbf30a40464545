"""Tasks that fork, and whose child returns as well: the child is no worker."""

from __future__ import annotations

import atexit
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import manycore

SOON = 30.0

ENDS: dict[str, tuple[Callable[[], Any], int]] = {  # what the child does, and its exit code
    "returns": (lambda: 1, 0),
    "returns much": (lambda: bytes(1_000_000), 0),
    "returns what is pickled": (lambda: {1: [2]}, 0),
    "raises": (lambda: 1 // 0, 1),
    "exits": (lambda: sys.exit(7), 7),
    "exits with a message": (lambda: sys.exit("over"), 1),
    "prints": (lambda: print("a child's line, without its end", end=""), 0),
}


def forks(end: str, *_: object) -> Any:
    """Fork; the child comes to its end as `end` says, and the worker returns the child's exit code."""
    pid = os.fork()
    if pid == 0:
        return ENDS[end][0]()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def forks_and_goes_on(n: int) -> int:
    os.fork()
    return n


def pool(workers: int, method: str | None = None, **more: Any) -> Any:
    return manycore.Pool(workers, context=method and manycore.get_context(method), **more)


def executor(workers: int, method: str | None = None, **more: Any) -> Any:
    return manycore.ProcessPoolExecutor(workers, method and manycore.get_context(method), **more)


both_faces = pytest.mark.parametrize("make", [pool, executor])


@both_faces
@pytest.mark.parametrize("method", [None, "fork"])
def test_the_child_ends_where_its_task_does(
    make: Callable[..., Any], method: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = [code for _, code in ENDS.values()]
    with make(2, method) as workers:
        for _ in range(2):  # the second call of a function takes another way through the worker
            assert [workers.submit(forks, end).result(SOON) for end in ENDS] == wanted
        assert [workers.options(timeout=SOON).submit(forks, end).result(SOON) for end in ENDS] == wanted
        assert list(workers.map(forks, ENDS)) == wanted
        assert list(workers.map(abs, range(2000))) == list(range(2000))
        assert workers.stats().workers_died == 0
    out, err = capfd.readouterr()
    assert out.count("a child's line") == err.count("ZeroDivisionError: ") == err.count("over\n") == 4


@both_faces
def test_many_children_at_once(make: Callable[..., Any]) -> None:
    with make(2) as workers:
        for _ in range(3):
            assert list(workers.map(forks_and_goes_on, range(40))) == list(range(40))
            futures = [workers.submit(forks_and_goes_on, n) for n in range(10)]
            assert [future.result(SOON) for future in futures] == list(range(10))
        assert workers.stats().items_done == 150


def note(path: Path, what: str) -> None:
    with path.open("a") as file:
        file.write(f"{what} {os.getpid()}\n")


def begin(path: Path) -> Path:
    atexit.register(note, path, "atexit")
    os.fork()
    return path


def end(path: Path) -> None:
    note(path, "finalizer")
    os.fork()


@both_faces
def test_initializers_and_finalizers_may_fork_too(make: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with make(2, initializer=begin, initargs=(path,), finalizer=end) as workers:
        pids = {workers.submit(os.getpid).result(SOON) for _ in range(10)}
        assert workers.submit(forks, "returns").result(SOON) == 0
        pids.update(workers.stats().pids)
        assert len(pids) == 2
        if make is pool:
            workers.close()
            workers.join()
    wanted = {f"{what} {pid}": 1 for what in ("finalizer", "atexit") for pid in pids}
    assert Counter(path.read_text().splitlines()) == wanted


def starts_processes(_: object) -> tuple[int | None, int, int]:
    process = manycore.get_context("fork").Process(target=abs, args=(-1,))
    process.start()
    process.join()
    with manycore.Pool(1, context=manycore.get_context("fork")) as inner:
        inside = inner.apply(forks, ("raises",))
        return process.exitcode, inside, inner.apply(abs, (-3,))


def test_processes_and_pools_that_a_task_forks_are_not_concerned() -> None:
    with manycore.Pool(2) as outer:
        assert outer.map(starts_processes, range(2), 1) == [(0, 1, 3)] * 2
