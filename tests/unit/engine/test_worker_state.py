"""What a worker keeps, what a task can ask, how a worker ends, and what a pool says of itself."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import manycore
from manycore._engine import workforce
from manycore._engine.here import CurrentTask

Face = Callable[..., Any]


@contextmanager
def pool_of(workers: int, initializer: Any, initargs: tuple[Any, ...], **more: Any) -> Iterator[Any]:
    """A pool that is closed and joined."""
    if "recycle" in more:
        more["maxtasksperchild"] = more.pop("recycle")
    pool = manycore.Pool(workers, initializer, initargs, **more)
    try:
        yield lambda function, items: pool.map(function, items, 1)
        pool.close()
        pool.join()
    finally:
        pool.terminate()


@contextmanager
def executor_of(workers: int, initializer: Any, initargs: tuple[Any, ...], **more: Any) -> Iterator[Any]:
    """An executor that is shut down."""
    if "recycle" in more:
        more["max_tasks_per_child"] = more.pop("recycle")
    with manycore.ProcessPoolExecutor(workers, None, initializer, initargs, **more) as executor:
        yield lambda function, items: [
            future.result() for future in [executor.submit(function, item) for item in items]
        ]


both_faces = pytest.mark.parametrize("face", [pool_of, executor_of])


def open_ledger(path: Path) -> Path:
    """An initializer; what it returns is the worker's state."""
    path.with_name(f"{os.getpid()}.started").touch()
    return path


def close_ledger(path: Path) -> None:
    path.with_name(f"{os.getpid()}.ended").touch()


def ledger(folder: Path, kind: str) -> set[int]:
    return {int(path.stem) for path in folder.glob(f"*.{kind}")}


def state(_: int) -> tuple[int, Any]:
    worker = manycore.current_worker()
    assert worker is not None
    return os.getpid(), worker.state


@both_faces
def test_what_the_initializer_returned_is_the_workers_state(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "x"
    with face(2, open_ledger, (path,)) as run:
        seen = run(state, range(20))
    assert {found for _, found in seen} == {path}
    assert {pid for pid, _ in seen} <= ledger(tmp_path, "started")


@both_faces
def test_finalizers_run_when_workers_end_in_order(face: Face, tmp_path: Path) -> None:
    with face(2, open_ledger, (tmp_path / "x",), finalizer=close_ledger) as run:
        run(state, range(20))
    assert ledger(tmp_path, "ended") == ledger(tmp_path, "started") != set()


@both_faces
def test_finalizers_run_when_workers_are_recycled(face: Face, tmp_path: Path) -> None:
    with face(2, open_ledger, (tmp_path / "x",), finalizer=close_ledger, recycle=2) as run:
        run(state, range(11))
    assert len(ledger(tmp_path, "started")) >= 6
    assert ledger(tmp_path, "ended") == ledger(tmp_path, "started")


def test_map_and_imap_have_all_three(tmp_path: Path) -> None:
    three: dict[str, Any] = {"initializer": open_ledger, "initargs": (tmp_path / "x",), "finalizer": close_ledger}
    assert {path for _, path in manycore.map(state, range(8), workers=2, **three)} == {tmp_path / "x"}
    assert {path for _, path in manycore.imap(state, range(8), workers=2, **three)} == {tmp_path / "x"}
    assert ledger(tmp_path, "ended") == ledger(tmp_path, "started")


def test_a_with_block_that_leaves_nothing_undone_ends_in_order(tmp_path: Path) -> None:
    with manycore.Pool(2, open_ledger, (tmp_path / "x",), finalizer=close_ledger) as pool:
        pool.map(state, range(20))
    assert ledger(tmp_path, "ended") == ledger(tmp_path, "started")


def test_a_with_block_that_leaves_work_undone_kills(tmp_path: Path) -> None:
    with manycore.Pool(1, open_ledger, (tmp_path / "x",), finalizer=close_ledger) as pool:
        pool.map(state, range(2))
        result = pool.apply_async(time.sleep, (60,))
    assert ledger(tmp_path, "ended") == set()
    with pytest.raises(manycore.PoolClosed):
        result.get(10)


@both_faces
def test_a_killed_worker_runs_no_finalizer_and_the_others_do(face: Face, tmp_path: Path) -> None:
    with face(1, open_ledger, (tmp_path / "x",), finalizer=close_ledger) as run:
        with pytest.raises(manycore.WorkerDied):
            run(lambda _: os.kill(os.getpid(), signal.SIGKILL), [0])
        run(state, [0])
    started, ended = ledger(tmp_path, "started"), ledger(tmp_path, "ended")
    assert (len(started), len(ended)) == (2, 1)
    assert ended < started


def sleep_on(_: object) -> None:
    time.sleep(600)


def hold_the_interpreter(_: object) -> None:
    all(itertools.repeat(True))


def block_signals(_: object) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    threading.Event().wait()


@both_faces
@pytest.mark.parametrize("finalizer", [sleep_on, hold_the_interpreter])
def test_a_finalizer_has_a_bounded_time(face: Face, finalizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workforce, "FINALIZER_SECONDS", 0.2)
    started = time.monotonic()
    with face(2, None, (), finalizer=finalizer) as run:
        run(state, range(4))
    assert time.monotonic() - started < workforce.STOP_GRACE


def test_a_recycled_workers_finalizer_has_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workforce, "FINALIZER_SECONDS", 0.2)
    with manycore.Pool(1, finalizer=sleep_on, maxtasksperchild=1) as pool:
        assert [pool.apply(abs, (-n,)) for n in range(4)] == [0, 1, 2, 3]
        assert pool.stats().workers_died == 0  # they had said that they leave


def test_a_finalizer_that_fights_its_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workforce, "FINALIZER_SECONDS", 0.1)
    monkeypatch.setattr(workforce, "STOP_GRACE", 0.2)
    with manycore.Pool(2, finalizer=block_signals) as pool:
        pool.apply(abs, (1,))
        pool.close()
        started = time.monotonic()
        pool.join()
    assert time.monotonic() - started < 5


def test_a_finalizer_that_raises_harms_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    with manycore.Pool(1, lambda: 0, finalizer=lambda zero: 1 // zero) as pool:
        assert pool.apply(abs, (-1,)) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_finalizer_must_be_callable() -> None:
    with pytest.raises(TypeError, match="finalizer"):
        manycore.Pool(1, finalizer=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="finalizer"):
        manycore.ProcessPoolExecutor(1, finalizer=3)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ the task


def me(_: object = None) -> CurrentTask | None:
    return manycore.current_task()


def grandchild(_: object = None) -> tuple[bool, bool]:
    """What a process that a task forks is told: (worker is None, task is None)."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, bytes([manycore.current_worker() is None, manycore.current_task() is None]))
        os._exit(0)
    os.waitpid(pid, 0)
    worker, task = os.read(read, 2)
    return bool(worker), bool(task)


@both_faces
def test_a_task_knows_itself(face: Face) -> None:
    with face(2, None, ()) as run:
        tasks = run(me, range(6))
        assert all((task.name, task.function, task.attempt, task.deadline) == ("me", "me", 1, None) for task in tasks)
        assert len({task.id for task in tasks}) == 6
        assert run(lambda _: manycore.current_task(), [0])[0].function.endswith("<lambda>")
        assert run(grandchild, [0]) == [(True, True)]
    assert manycore.current_task() is None
    assert manycore.current_worker() is None


def test_there_is_no_task_in_an_initializer() -> None:
    def initializer() -> CurrentTask | None:
        return manycore.current_task()

    with manycore.Pool(1, initializer) as pool:
        assert pool.apply(state, (0,))[1] is None


def attempt(path: Path) -> int:
    """Fails the first two times, and dies the first one of them."""
    task = manycore.current_task()
    assert task is not None
    with path.open("a") as file:
        file.write(f"{task.attempt}\n")
    if task.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if task.attempt == 2:
        raise ValueError("again")
    return task.attempt


def test_a_task_knows_how_often_it_has_begun(tmp_path: Path) -> None:
    path = tmp_path / "attempts"
    with manycore.Pool(1) as pool:
        assert pool.map(attempt, [path], retries=3) == [3]
        assert pool.stats().retries == 2
    assert path.read_text().split() == ["1", "2", "3"]


# --------------------------------------------------------------------------------------- the snapshot


def test_a_pools_snapshot_is_whole() -> None:
    with manycore.Pool(2, name="figures") as pool:
        pool.map(abs, range(-100, 0))
        with pytest.raises(ZeroDivisionError):
            pool.apply(divmod, (1, 0))
        with pytest.raises(manycore.WorkerDied):
            pool.apply(os._exit, (3,))
        before = pool.stats()
        assert (before.name, before.items_done, before.items_failed, before.workers_died) == ("figures", 100, 2, 1)
        assert (before.tasks_pending, before.retries, before.workers_started) == (0, 0, 3)
        pool.apply(len, (b"x" * 1_000_000,))
        pool.apply(bytes, (1_000_000,))
        after = pool.stats()
        assert 1_000_000 <= after.bytes_sent - before.bytes_sent < 1_010_000
        assert 1_000_000 <= after.bytes_received - before.bytes_received < 1_010_000
        with pytest.raises(AttributeError):
            after.items_done = 0  # type: ignore[misc]
        running = pool.apply_async(time.sleep, (60,))
        while not running.running():
            time.sleep(0.001)
        assert (pool.stats().workers_busy, pool.stats().tasks_pending) == (1, 1)


def _fail() -> None:
    raise LookupError("the settings are missing")


def test_who_enters_a_pool_that_is_broken_already_is_told_why() -> None:
    pool = manycore.Pool(1, _fail)
    pool.apply_async(abs, (1,)).wait()
    with pytest.raises(manycore.PoolBroken, match="the settings are missing") as raised, pool:
        pass
    assert raised.value.__cause__ is not None
