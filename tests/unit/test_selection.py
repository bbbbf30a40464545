"""`select`: whatever can be waited for, in one call."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

import manycore
from manycore import queues, select
from manycore._memory import bells

FORK = multiprocessing.get_context("fork")


def started(target: Callable[..., Any], *args: Any) -> Any:
    """A running child."""
    process = FORK.Process(target=target, args=args)
    process.start()
    return process


def joined(process: Any, code: int = 0) -> None:
    process.join(30)
    assert process.exitcode == code


def test_what_is_ready_already() -> None:
    empty, full, done = queues.Queue(), queues.SimpleQueue(), manycore.Event()
    assert select(empty, full, done, timeout=0) == []
    full.put(1)
    assert select(empty, full, done) == [full]
    done.set()
    assert set(select(empty, full, done)) == {full, done}
    empty.shutdown()
    assert select(empty) == [empty]


def test_the_order_turns() -> None:
    many = [queues.Queue() for _ in range(3)]
    for each in many:
        each.put(1)
    firsts = Counter(many.index(select(*many)[0]) for _ in range(30))
    assert firsts == {0: 10, 1: 10, 2: 10}


def test_bad_sources() -> None:
    with pytest.raises(ValueError, match="something"):
        select()
    with pytest.raises(TypeError, match="cannot wait for 'a'"):
        select("a")
    with pytest.raises(ValueError, match="nan"):
        select(queues.Queue(), timeout=float("nan"))
    closed = queues.Queue()
    closed.close()
    with pytest.raises(ValueError, match="is closed"):
        select(closed)


def test_the_timeout_bounds_the_call() -> None:
    empty, event = queues.Queue(), manycore.Event()
    reader, writer = os.pipe()
    for sources in ((empty,), (event,), (reader,), (Future[None](),), (empty, event, reader)):
        began = time.monotonic()
        assert select(*sources, timeout=0.1) == []
        assert 0.1 <= time.monotonic() - began < 5
    os.close(reader)
    os.close(writer)


def after(ready: Any, act: Callable[[], object]) -> None:
    """In a child: acts once the parent has said that it waits, or is about to."""
    ready.get()
    act()


@pytest.fixture
def wakers() -> Iterator[list[tuple[str, Any, Callable[[], object]]]]:
    queue, event = queues.Queue(), manycore.Event()
    simple = queues.SimpleQueue()
    ended = queues.Queue()
    receiver, sender = manycore.Pipe()
    one, other = socket.socketpair()

    def pulse() -> None:
        event.set()
        event.clear()

    yield [
        ("queue", queue, lambda: queue.put(1)),
        ("simple", simple, lambda: simple.put(1)),
        ("shut down", ended, ended.shutdown),
        ("event", event, pulse),
        ("connection", receiver, lambda: sender.send(1)),
        ("socket", one, lambda: other.send(b"x")),
    ]
    for end in (receiver, sender, one, other):
        end.close()


@pytest.mark.parametrize("which", range(6))
def test_woken_by_another_process(which: int, wakers: list[tuple[str, Any, Callable[[], object]]]) -> None:
    _, source, act = wakers[which]
    for _ in range(5 if which == 3 else 1):
        ready = queues.SimpleQueue()
        process = started(after, ready, act)
        found: list[Any] = []
        thread = threading.Thread(target=lambda found=found: found.extend(select(*(each for _, each, _ in wakers))))
        thread.start()
        ready.put(None)
        thread.join(30)
        assert found == [source]
        joined(process)


def test_futures_and_processes() -> None:
    never, queue = Future[int](), queues.Queue()
    with ThreadPoolExecutor() as threads, manycore.ProcessPoolExecutor(1) as workers, manycore.Pool(1) as pool:
        gate = threading.Event()
        held = threads.submit(gate.wait, 30)
        for _ in range(20):
            assert select(never, held, queue, timeout=0.001) == []
        assert len(held._done_callbacks) == 1  # type: ignore[attr-defined]
        threading.Timer(0.05, gate.set).start()
        assert select(never, held, queue) == [held]
        theirs = workers.submit(abs, -1)
        assert select(never, theirs) == [theirs]
        result = pool.apply_async(abs, (-1,))
        assert select(never, result) == [result]
    process = manycore.Process(target=os.getpid)
    process.start()
    assert select(never, process, queue) == [process]
    process.join()


def test_many_wait_for_the_same() -> None:
    queue, stop = queues.Queue(), manycore.Event()
    taken: list[int] = []

    def work() -> None:
        while True:
            if queue in select(queue, stop):
                try:
                    taken.append(queue.get_nowait())
                except queues.Empty:
                    continue
            else:
                return

    threads = [threading.Thread(target=work) for _ in range(2 * 12)]  # more than have bells
    for thread in threads:
        thread.start()
    processes = [started(queue.put_many, lot) for lot in (range(500), range(500, 1000))]
    for process in processes:
        joined(process)
    while not queue.empty():
        select(stop, timeout=0.01)
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(taken) == list(range(1000))


def _watch_for_ever(ready: Any, queue: Any) -> None:
    threading.Timer(0.01, lambda: ready.put(None)).start()
    select(queue)


def test_a_selector_that_dies_is_nothing_to_the_others() -> None:
    queue, ready = queues.Queue(), queues.Queue()
    for _ in range(15):  # more than there are slots
        process = started(_watch_for_ever, ready, queue)
        ready.get()
        os.kill(process.pid, signal.SIGKILL)
        joined(process, -signal.SIGKILL)
    slots = [queue._watch(False, 0, 0) for _ in range(12)]
    assert sorted(slots) == list(range(12))
    for slot in slots:
        queue._unwatch(False, slot)
    queue.put(1)
    assert select(queue) == [queue]


def test_bells_are_used_again() -> None:
    queue = queues.Queue()
    select(queue, timeout=0.001)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        select(queue, timeout=0.001)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert 1 <= len(bells._idle) <= 4


def test_nothing_is_written_to_a_strangers_file(tmp_path: Any) -> None:
    """A slot that names a descriptor which has become something else: nobody is rung, nothing is harmed."""
    queue = queues.Queue()
    bell = bells.Bell()
    slot = queue._watch(False, bell.number, bell.inode)
    queue._arm(False, slot)
    victim = os.open(tmp_path / "victim", os.O_RDWR | os.O_CREAT)
    os.dup2(victim, bell.number)
    queue.put(1)
    joined(started(queue.put, 2))
    assert os.fstat(victim).st_size == 0
    queue._unwatch(False, slot)
    bell.discard()
    os.close(victim)


def test_the_reading_end_is_a_pipe_for_the_standard_library() -> None:
    from multiprocessing.connection import wait

    queue: Any = queues.Queue()
    other: Any = queues.SimpleQueue()
    assert wait([queue._reader, other._reader], timeout=0) == []
    queue.put(1)
    assert wait([queue._reader, other._reader]) == [queue._reader]
    assert queue._reader.recv() == 1
    assert not queue._reader.poll()
    process = started(other.put, 2)
    assert wait([queue._reader, other._reader], timeout=30) == [other._reader]
    assert other._reader.poll(0)
    assert other._reader.recv() == 2
    joined(process)
    assert wait([queue._reader, other._reader], timeout=0) == []


def test_a_ring_that_comes_late_is_no_item() -> None:
    """Who put an item may be held up before it rings, and the item be taken meanwhile."""
    from multiprocessing.connection import wait

    queue: Any = queues.SimpleQueue()
    assert wait([queue._reader], timeout=0) == []
    queue._reader._bell.ring()
    assert queue._reader.recv() is None  # and does not wait
    queue.put(1)
    assert wait([queue._reader], timeout=30) == [queue._reader]
    assert queue._reader.recv() == 1
    thread = threading.Timer(0.05, queue.put, [2])
    thread.start()
    assert queue._reader.recv() == 2  # who has not polled waits
    thread.join()


@pytest.mark.parametrize("method", ["zygote", "fork"])
def test_the_standard_librarys_pools_run_on_our_contexts(method: str) -> None:
    import concurrent.futures
    import multiprocessing.pool

    context = manycore.get_context(method)
    assert type(context.SimpleQueue()) is queues.SimpleQueue
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        assert list(executor.map(abs, range(-50, 0))) == list(range(50, 0, -1))
    with multiprocessing.pool.Pool(2, context=context) as pool:
        assert pool.map(abs, range(-50, 0)) == list(range(50, 0, -1))
    with multiprocessing.pool.Pool(2, context=context) as pool:
        pool.map_async(time.sleep, [0.01] * 200, chunksize=1)  # ended with work in its queue


# asyncio


def test_aget_and_aput() -> None:
    async def main() -> None:
        few = queues.Queue(3)

        async def produce(who: int) -> None:
            for index in range(200):
                await few.aput((who, index))

        async def consume() -> list[tuple[int, int]]:
            return [await few.aget() for _ in range(200)]

        results = await asyncio.gather(consume(), consume(), produce(0), produce(1))
        got = [*(results[0] or ()), *(results[1] or ())]
        assert sorted(got) == [(who, index) for who in range(2) for index in range(200)]

    asyncio.run(main())


def test_aget_from_other_processes() -> None:
    there, back = queues.Queue(), queues.Queue()

    def echo() -> None:
        for item in there:
            back.put(item)

    process = started(echo)

    async def main() -> None:
        for index in range(50):
            there.put(index)
            assert await asyncio.wait_for(back.aget(), 30) == index
        there.shutdown()
        with pytest.raises(queues.ShutDown):
            waiting = asyncio.ensure_future(back.aget())
            await asyncio.sleep(0)
            back.shutdown()
            await asyncio.wait_for(waiting, 30)

    asyncio.run(main())
    joined(process)


def test_a_cancelled_aget_has_taken_nothing() -> None:
    """Cancelled at every point between the put and the end, with another who waits: no item and no wake-up is lost."""

    async def main() -> None:
        queue = queues.Queue()
        for steps in range(8):
            first, second = asyncio.ensure_future(queue.aget()), asyncio.ensure_future(queue.aget())
            await asyncio.sleep(0.001)
            queue.put("item")
            for _ in range(steps):
                await asyncio.sleep(0)
            cancelled = first.cancel()
            if cancelled:
                assert await asyncio.wait_for(second, 10) == "item"
            else:
                assert await first == "item"
                second.cancel()
            await asyncio.wait([first, second])
            assert queue.empty()

    asyncio.run(main())


def test_a_loop_keeps_nothing_when_nobody_waits() -> None:
    from manycore._memory import loops

    async def main() -> None:
        queue = queues.Queue(1)
        for wait_for in (queue.aget, lambda: queue.aput(2)):
            task = asyncio.ensure_future(wait_for())
            await asyncio.sleep(0.001)
            assert len(loops._hubs) == 1
            task.cancel()
            await asyncio.wait([task])
            await asyncio.sleep(0)
            assert not loops._hubs
            if queue.empty():
                queue.put(1)

    asyncio.run(main())


def test_a_timed_out_aput_has_put_nothing() -> None:
    async def main() -> None:
        few = queues.Queue(1)
        few.put(1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(few.aput(2), 0.01)
        assert few.get() == 1
        assert few.empty()
        with pytest.raises(manycore.TaskPicklingError):
            await few.aput(threading.Lock())

    asyncio.run(main())
