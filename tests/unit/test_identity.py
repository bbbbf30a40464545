"""What a pool's worker is to `multiprocessing`."""

from __future__ import annotations

import multiprocessing
import os

import manycore


def described(_: object) -> tuple[str, str, int, bool]:
    current, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    return current.name, parent.name, parent.pid, parent.is_alive()


def put(task: tuple[dict[int, int], int]) -> None:
    squares, number = task
    squares[number] = number * number


def test_a_worker_knows_its_name_and_its_parent() -> None:
    with manycore.Pool(1) as pool:
        found = pool.apply(described, (None,))
    assert found == ("PoolWorker-1", multiprocessing.current_process().name, os.getpid(), True)


def test_a_managers_proxy_works_in_a_task() -> None:
    with manycore.Manager() as manager, manycore.Pool(2) as pool:
        squares = manager.dict()
        pool.map(put, [(squares, number) for number in range(5)])
        assert dict(squares) == {0: 0, 1: 1, 2: 4, 3: 9, 4: 16}


def test_an_executors_worker_has_the_key_too() -> None:
    with manycore.Manager() as manager, manycore.ProcessPoolExecutor(1) as executor:
        queue = manager.Queue()
        executor.submit(queue.put, "sent").result(timeout=30)
        assert queue.get(timeout=30) == "sent"
