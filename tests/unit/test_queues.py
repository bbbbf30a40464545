"""Queues between processes: the standard meaning, and what the standard library lacks."""

from __future__ import annotations

import logging.config
import multiprocessing
import multiprocessing.queues
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import manycore
from manycore import errors, queues, select

FORK = multiprocessing.get_context("fork")


def started(target: Callable[..., Any], *args: Any) -> Any:
    """A running child."""
    process = FORK.Process(target=target, args=args)
    process.start()
    return process


def joined(process: Any) -> None:
    process.join(30)
    assert process.exitcode == 0


def test_items_come_out_as_they_went_in() -> None:
    many = queues.Queue()
    items = [None, 0, "a", b"", b"x" * 100_000, bytearray(5), (1, [2, {"k": 3}]), {1, 2}, "y" * 200_000, print]
    for item in items:
        many.put(item)
    assert many.qsize() == len(items)
    assert [many.get() for _ in items] == items
    assert many.empty()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 32_735, 32_736, 32_744, 32_752, 65_535, 65_536, 1_000_003])
def test_sizes_around_blocks(size: int) -> None:
    many = queues.Queue()
    item = os.urandom(size)
    for _ in range(3):
        many.put(item)
        many.put((item, size))
    for _ in range(3):
        assert many.get() == item
        assert many.get() == (item, size)


def test_arrays_arrive_writable() -> None:
    many = queues.Queue()
    for size in (10, 100_000):
        array = np.arange(size)
        many.put([array, array])
        one, other = many.get()
        np.testing.assert_array_equal(one, array)
        assert one is other
        one += 1


def test_put_takes_the_item_as_it_is_now() -> None:
    many = queues.Queue()
    item = [1]
    many.put(item)
    item.append(2)
    assert many.get() == [1]


def test_what_cannot_be_pickled_raises_in_put() -> None:
    many = queues.Queue()
    with pytest.raises(errors.TaskPicklingError, match=r"item\['a'\]\[1\]: cannot pickle '_thread.lock' object"):
        many.put({"a": [0, threading.Lock()]})
    assert many.empty()
    assert many.put_many([1, 2]) == 2
    with pytest.raises(errors.TaskPicklingError):
        many.put_many([3, threading.Lock()])
    assert many.get_many() == [1, 2]


def test_bounds_and_timeouts() -> None:
    few = queues.Queue(2)
    few.put(1)
    few.put(2)
    assert few.full()
    began = time.monotonic()
    with pytest.raises(queue.Full):
        few.put(3, timeout=0.1)
    assert 0.1 <= time.monotonic() - began < 5
    with pytest.raises(queue.Full):
        few.put_nowait(3)
    assert few.put_many([3, 4], block=False) == 0
    assert few.get() == 1
    assert few.put_many([3, 4], timeout=0.01) == 1
    assert few.get_many(1) == [2]
    assert few.get_many() == [3]
    began = time.monotonic()
    with pytest.raises(queue.Empty):
        few.get(timeout=0.1)
    assert 0.1 <= time.monotonic() - began < 5
    with pytest.raises(queue.Empty):
        few.get_nowait()
    with pytest.raises(queue.Empty):
        few.get_many(timeout=0)
    with pytest.raises(ValueError, match="nan"):
        few.get(timeout=float("nan"))


def _echo(requests: Any, answers: Any) -> None:
    for item in requests:
        answers.put(item)
    answers.shutdown()


@pytest.mark.parametrize("maxsize", [0, 1, 3])
def test_between_processes(maxsize: int) -> None:
    requests, answers = queues.Queue(maxsize), queues.Queue(maxsize)
    process = started(_echo, requests, answers)
    for index in range(300):
        requests.put(index)
        assert answers.get(timeout=30) == index
    requests.shutdown()
    joined(process)
    with pytest.raises(queues.ShutDown):
        answers.get()


def test_a_waiting_get_is_woken() -> None:
    many: Any = queues.Queue()
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(many.get(timeout=30)))
    thread.start()
    process = started(many.put, "x")
    thread.join(30)
    joined(process)
    assert got == ["x"]


def test_shutdown() -> None:
    many = queues.Queue()
    many.put(1)
    many.shutdown()
    with pytest.raises(queues.ShutDown):
        many.put(2)
    assert list(many) == [1]
    with pytest.raises(queues.ShutDown):
        many.get_nowait()

    dropped = queues.JoinableQueue()
    dropped.put_many(range(100_000))
    dropped.shutdown(immediate=True)
    with pytest.raises(queues.ShutDown):
        dropped.get()
    dropped.join()

    waiting: Any = queues.Queue()
    seen: list[BaseException] = []

    def wait() -> None:
        try:
            waiting.get()
        except queues.ShutDown as error:
            seen.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.shutdown()
    thread.join(30)
    assert len(seen) == 1


def test_tasks() -> None:
    many: Any = queues.JoinableQueue()
    with pytest.raises(ValueError, match="too many"):
        many.task_done()
    many.put_many([1, 2])
    done: list[bool] = []

    def wait() -> None:
        many.join()
        done.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    for _ in range(2):
        many.get()
        assert not done
        many.task_done()
    thread.join(30)
    assert done == [True]


def _take(many: Any, count: int, taken: Any) -> None:
    for _ in range(count):
        many.get()
    taken.put(None)
    signal.pause()


def test_tasks_in_the_hands_of_the_dead_are_counted_back() -> None:
    many: Any = queues.JoinableQueue()
    taken: Any = queues.Queue()
    many.put_many(range(5))
    many.get()
    process = started(_take, many, 3, taken)
    taken.get()
    lost: list[BaseException] = []

    def wait() -> None:
        try:
            many.join()
        except errors.TasksLost as error:
            lost.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert many.get() == 4
    many.task_done()
    assert not lost  # there is one more that is dealt with
    many.task_done()
    thread.join(30)
    assert [(error.count, str(error)[:8]) for error in lost if isinstance(error, errors.TasksLost)] == [(3, "3 of the")]
    many.join()  # told once
    many.put(5)
    many.get()
    many.task_done()
    many.join()
    many.task_done()  # of one that was thought lost
    many.task_done()
    many.task_done()
    with pytest.raises(ValueError, match="too many"):
        many.task_done()


def test_closing() -> None:
    many = queues.Queue()
    with pytest.raises(AssertionError):
        many.join_thread()
    many.close()
    many.join_thread()
    many.cancel_join_thread()
    for use in (lambda: many.put(1), many.get, lambda: many.put_many([]), many.get_many):
        with pytest.raises(ValueError, match="is closed"):
            use()
    assert many.empty()
    used = queues.Queue()
    used.put(1)
    used.close()
    with pytest.raises(OSError, match="is closed"):
        used.empty()
    simple = queues.SimpleQueue()
    with simple:
        simple.put(1)
        assert not simple.empty()
        assert simple.get() == 1
    with pytest.raises(OSError, match="is closed"):
        simple.empty()


def test_sent_to_processes_that_run() -> None:
    requests, answers = queues.Queue(), queues.Queue()
    process = started(_echo, requests, answers)
    third = queues.Queue(5)
    third.put("in the third")
    requests.put(third)  # through a queue
    assert answers.get(timeout=30) is third
    requests.put((lambda q: q.put("from there"), third))
    function, same = answers.get(timeout=30)
    function(same)
    assert third.get_many() == ["in the third", "from there"]
    requests.shutdown()
    joined(process)
    with manycore.Pool(1) as pool:  # as a task's argument
        pool.apply(_put, (third, "from a pool"))
    assert third.get() == "from a pool"


def _put(many: Any, item: Any) -> None:
    many.put(item)


def test_a_child_that_puts_much_and_exits_can_be_joined() -> None:
    many = queues.Queue()
    content = os.urandom(1_000_000)
    process = started(many.put_many, [content] * 30)
    joined(process)
    assert all(many.get() == content for _ in range(30))


def test_memory_is_used_again() -> None:
    many = queues.Queue()
    for _ in range(200):
        for _ in range(5):
            many.put(bytes(100_000))
        for _ in range(5):
            many.get()
    assert many._memory_bytes() <= 2 * 1024 * 1024


def test_memory_comes_back() -> None:
    many = queues.Queue()

    def held() -> int:
        return os.stat(many._fd).st_blocks * 512

    content = os.urandom(1_000_000)
    for _ in range(2):
        many.put_many([content] * 150)
        assert held() > 140_000_000
        for _ in range(150):
            assert many.get() == content
        assert held() < 96 << 20


def test_no_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int) -> None:
        raise OSError(28, f"no {size} bytes")

    monkeypatch.setattr(queues, "require_bytes", refuse)
    many = queues.Queue()
    with pytest.raises(OSError, match="no 16777216 bytes"):
        for _ in range(100):
            many.put(bytes(1_000_000))
    assert 10 < many.qsize() < 100
    assert len(many.get_many()) < 100
    many.put(1)


def test_types_that_programs_ask_for() -> None:
    assert isinstance(queues.Queue(), multiprocessing.queues.Queue)
    assert isinstance(queues.SimpleQueue(), multiprocessing.queues.SimpleQueue)
    assert issubclass(queues.JoinableQueue, queues.Queue)
    assert repr(queues.Queue[int]) == "manycore.queues.Queue[int]"  # type: ignore[misc]
    for method in ("fork", "spawn", "zygote"):
        assert type(manycore.get_context(method).Queue(3)) is queues.Queue
    many: Any = queues.Queue()
    handler: dict[str, Any] = {"class": "logging.handlers.QueueHandler", "queue": many}
    if sys.version_info >= (3, 12):  # it makes a listener as well, and asks whom that is for
        handler |= {"queue": {"()": lambda: many}, "handlers": ["null"]}
    logging.config.dictConfig({"version": 1, "handlers": {"null": {"class": "logging.NullHandler"}, "q": handler}})


def test_bad_arguments() -> None:
    with pytest.raises(TypeError):
        queues.Queue("3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max"):
        queues.Queue().get_many(0)
    unmade: Any = queues.Queue.__new__(queues.Queue)
    assert "without memory" in repr(unmade)
    for use in (unmade.get, unmade.qsize, unmade.shutdown, lambda: unmade.put(1), lambda: select(unmade, timeout=0)):
        with pytest.raises(RuntimeError, match="was not called"):
            use()


def _count(many: Any, results: Any) -> None:
    results.put(list(many))


def _number(many: Any, who: int, count: int) -> None:
    for index in range(count):
        many.put((who, index))


@pytest.mark.parametrize("maxsize", [0, 10])
def test_many_producers_and_consumers(maxsize: int) -> None:
    count = 5_000
    many, results = queues.Queue(maxsize), queues.Queue()
    consumers = [started(_count, many, results) for _ in range(3)]
    producers = [started(_number, many, who, count) for who in range(3)]
    for process in producers:
        joined(process)
    many.shutdown()
    lists: list[list[tuple[int, int]]] = [results.get(timeout=30) for _ in consumers]
    for process in consumers:
        joined(process)
    for taken in lists:  # in order per producer, as each consumer sees it
        for who in range(3):
            own = [index for producer, index in taken if producer == who]
            assert own == sorted(own)
    assert sorted(item for taken in lists for item in taken) == [(w, i) for w in range(3) for i in range(count)]


@pytest.fixture
def waiters() -> Iterator[list[threading.Thread]]:
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_every_waiter_gets_its_item(waiters: list[threading.Thread]) -> None:
    many: Any = queues.Queue()
    got: list[int] = []
    for _ in range(8):
        thread = threading.Thread(target=lambda: got.append(many.get(timeout=30)))
        thread.start()
        waiters.append(thread)
    many.put_many(range(8))
    for thread in waiters:
        thread.join(30)
    assert sorted(got) == list(range(8))
