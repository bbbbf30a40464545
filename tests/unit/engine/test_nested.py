"""Pools in tasks, in threads and in forks; and how many threads all of them may have together."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

import manycore

FACES = [manycore.Pool, manycore.ProcessPoolExecutor]
both_faces = pytest.mark.parametrize("face", FACES)


def inner(n: int) -> int:
    with manycore.Pool(2) as pool:
        return sum(pool.map(abs, range(-n, 0)))


def inner_of_executors(n: int) -> int:
    with manycore.ProcessPoolExecutor(2) as executor:
        return sum(executor.map(abs, range(-n, 0)))


def innermost(depth: int) -> int:
    return 1 if depth == 0 else 1 + manycore.map(innermost, [depth - 1])[0]


def test_a_pool_in_a_task() -> None:
    with manycore.Pool(2) as pool:
        assert pool.map(inner, [10, 20, 30]) == [55, 210, 465]
        assert pool.map(inner_of_executors, [10]) == [55]
    with manycore.ProcessPoolExecutor(1) as executor:
        assert executor.submit(inner, 10).result() == 55
    assert manycore.map(innermost, [2]) == [3]


@pytest.mark.parametrize("how", ["one", "all"])
def test_a_fork_cancels_nothing(how: str) -> None:
    """The calls are its parent's, who waits for them."""
    gate = manycore.Event()
    with manycore.ProcessPoolExecutor(1) as executor:
        executor.submit(gate.wait)
        futures = [executor.submit(abs, -n) for n in range(50)]
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                if how == "all":
                    executor.kill_workers()
                code = int(any(future.cancel(running=True) for future in futures))
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        gate.set()
        try:
            assert [future.result(30) for future in futures] == list(range(50))
        except BaseException:
            executor.kill_workers()
            raise


def inner_of_the_standard(n: int) -> int:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return sum(pool.map(abs, range(-n, 0)))


@pytest.mark.parametrize("method", ["zygote", "fork"])  # "spawn" would leave a resource tracker here
def test_a_standard_pool_in_a_task(method: str) -> None:
    with manycore.Pool(1, context=manycore.get_context(method)) as pool:
        assert pool.apply(inner_of_the_standard, (10,)) == 55


def innermost_forever(depth: int) -> int:
    return manycore.map(innermost_forever, [depth + 1], workers=1)[0]


def test_pools_in_pools_have_an_end() -> None:
    """What makes one for ever gets an error, and not the whole machine."""
    with pytest.raises(RuntimeError, match=r"^10 pools one inside another, and one more was asked for"):
        manycore.map(innermost_forever, [0], workers=1)


IMPORTED = """
import manycore
from busy.parts import Square, double

process = manycore.Process(target=double, args=(2,))
process.start()
process.join()
squares = [square.side for square in manycore.map(Square, range(3), workers=2)]
codes = [process.exitcode, *manycore.map(double, range(3), workers=1)]
"""
PARTS = """
class Square:
    def __init__(self, side):
        self.side = side

def double(n):
    return 2 * n
"""
IMPORTER = """
import busy
assert (busy.squares, busy.codes) == ([0, 1, 2], [0, 0, 2, 4])
import manycore
assert {type(square) for square in manycore.map(busy.Square, range(3), workers=2)} == {busy.parts.Square}
"""


def test_a_module_that_starts_processes_when_it_is_imported(tmp_path: Path) -> None:
    """Its workers do not import it: that would begin all over again in them, and in their workers."""
    package = tmp_path / "busy"
    package.mkdir()
    (package / "__init__.py").write_text(IMPORTED, encoding="utf-8")
    (package / "parts.py").write_text(PARTS, encoding="utf-8")
    command = [sys.executable, "-c", IMPORTER]
    subprocess.run(command, cwd=tmp_path, timeout=50, stdin=subprocess.DEVNULL, check=True)


@both_faces
def test_a_pool_does_not_travel(face: Any) -> None:
    """Neither as an argument, nor as a function's own: at once, and saying what to do."""
    with face(1) as pool:
        submit = pool.submit
        with pytest.raises(NotImplementedError, match=r"cannot be .* pickled; .* makes a pool of its own"):
            pickle.dumps(pool)
        started = time.monotonic()
        for function, args in ((_use, (pool,)), (functools.partial(_use, pool), ()), (lambda: pool.stats(), ())):
            with pytest.raises((manycore.TaskPicklingError, NotImplementedError), match="pool"):
                submit(function, *args).result()
        assert time.monotonic() - started < 5
        assert submit(abs, -1).result() == 1
        if face is manycore.Pool:
            pool.terminate()


def _use(pool: Any) -> int:
    result: int = pool.submit(abs, -1).result()
    return result


@both_faces
def test_a_fork_of_this_process_has_no_pool(face: Any) -> None:
    """An inherited pool: an error at once, never a wait."""
    with face(1) as pool:
        assert pool.submit(abs, -1).result() == 1
        pending = pool.submit(time.sleep, 0.05)

        def child() -> None:
            with pytest.raises(manycore.PoolClosed, match="forked"):
                pool.submit(abs, -2)
            with pytest.raises(manycore.PoolClosed):
                list(pool.map(abs, [1]))
            if face is manycore.Pool:
                pool.close()
                pool.join()
                pool.terminate()
            else:
                pool.shutdown()

        pid = os.fork()
        if pid == 0:
            try:
                child()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert pending.result() is None
        assert pool.submit(abs, -3).result() == 3
        process = manycore.get_context("fork").Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == 0


VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def limits(_: int = 0) -> tuple[str | None, ...]:
    return tuple(os.environ.get(name) for name in VARIABLES)


def limits_below(workers: int) -> tuple[int, tuple[str | None, ...]]:
    """The share of this worker, and what the workers of a pool of its own are given."""
    worker = manycore.current_worker()
    assert worker is not None
    with manycore.Pool(workers) as pool:
        return worker.cores, pool.apply(limits)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manycore._launch.cpu_count", lambda: 8)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("eight_cores")
def test_workers_share_the_cores_between_them() -> None:
    for workers, share in ((1, "8"), (2, "4"), (3, "2"), (16, "1")):
        with manycore.Pool(workers) as pool:
            assert pool.apply(limits) == (share,) * 3
    with manycore.ProcessPoolExecutor(4) as executor:
        assert executor.submit(limits).result() == ("2",) * 3
    assert limits() == (None,) * 3


@pytest.mark.usefixtures("eight_cores")
def test_it_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with manycore.Pool(2, blas_threads=3) as pool:
        assert pool.apply(limits) == ("3",) * 3
    with manycore.Pool(2, blas_threads=0) as pool:
        assert pool.apply(limits) == (None,) * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with manycore.ProcessPoolExecutor(2) as executor:
        assert executor.submit(limits).result() == ("5", "4", "4")


@pytest.mark.usefixtures("eight_cores")
def test_workers_of_workers_share_what_those_have() -> None:
    with manycore.Pool(2) as pool:
        assert pool.apply(limits_below, (2,)) == (4, ("2",) * 3)
        assert pool.apply(limits_below, (4,)) == (4, ("1",) * 3)


def threads_of_numpy(_: int = 0) -> tuple[int, int]:
    """Before and after a product that is large enough for threads: how many this process has."""
    import numpy as np

    before = len(os.listdir("/proc/self/task"))
    matrix = np.ones((400, 400))
    assert float((matrix @ matrix)[0, 0]) == 400
    return before, len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("preload", [False, True])
def test_numpy_keeps_to_it(preload: bool) -> None:
    """Also one that was loaded before: in a program of its own, since a zygote keeps what it has imported."""
    if preload:
        pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")
    program = f"""
import sys
sys.path.insert(0, {os.getcwd()!r})
import manycore
from tests.unit.engine.test_nested import limits_of_libraries, threads_of_numpy
with manycore.Pool(1, blas_threads=1, preload={["numpy"] if preload else []!r}) as pool:
    print(pool.apply(threads_of_numpy)[1], *pool.apply(limits_of_libraries))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    threads, *allowed = done.stdout.split()
    assert set(allowed) <= {"1"}
    if not preload:
        assert threads == "1"


def limits_of_libraries(_: int = 0) -> list[int]:
    try:
        import threadpoolctl
    except ImportError:
        return []
    return [library["num_threads"] for library in threadpoolctl.threadpool_info()]


# ------------------------------------------------------------------------------------- many threads


@both_faces
@pytest.mark.parametrize("end", ["orderly", "cancelling", "violent"])
def test_a_pool_shared_by_many_threads(face: Any, end: str, rng: Random) -> None:
    """Eight of them submit, cancel, map and ask while a ninth ends the pool: every future ends, nothing hangs."""
    for _ in range(4):
        pool = face(2)
        futures: list[Any] = []
        problems: list[BaseException] = []
        ready = threading.Barrier(9)
        seeds = [rng.random() for _ in range(8)]

        def work(
            seed: float, pool: Any = pool, futures: Any = futures, problems: Any = problems, ready: Any = ready
        ) -> None:
            choose = Random(seed)
            ready.wait()
            try:
                while True:
                    choice = choose.randrange(6)
                    if choice < 3:
                        futures.append(pool.submit(abs, -choose.randrange(1000)))
                    elif choice == 3 and futures:
                        choose.choice(futures).cancel()
                    elif choice == 4:
                        assert list(pool.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
                    else:
                        pool.stats()
            except (manycore.PoolClosed, manycore.PoolBroken):
                pass
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        ready.wait()
        while len(futures) < 200:
            time.sleep(0.001)
        if face is manycore.Pool:
            if end == "orderly":
                pool.close()
                pool.join()
            else:
                pool.terminate()
        elif end == "violent":
            pool.terminate_workers()
        else:
            pool.shutdown(cancel_futures=end == "cancelling")
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
        assert problems == []
        ends = Counter(_end_of(future) for future in futures)
        assert set(ends) <= {
            "result",
            "cancelled",
            "PoolClosed" if face is manycore.Pool or end != "violent" else "PoolBroken",
        }
        if end == "orderly":
            assert ends["PoolClosed"] == 0


def _end_of(future: Any) -> str:
    if future.cancelled():
        return "cancelled"
    error = future.exception(timeout=10)
    return "result" if error is None else type(error).__name__
