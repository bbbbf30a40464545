"""Maps over a real pool: windows, order, endings of the input, and futures as the standard library's tools see them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import manycore
from manycore._engine.mapping import MapOptions, MapRun


@pytest.fixture(scope="module")
def pool() -> Iterator[manycore.Pool]:
    with manycore.Pool(2) as made:
        yield made


def test_a_lazy_map_reads_no_further_than_its_window(pool: manycore.Pool) -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for n in itertools.count():
            read.append(n)
            yield n

    results = pool.imap(abs, items(), buffersize=10)
    for n in range(50):
        assert next(results) == n
        assert len(read) <= n + 1 + 10
    results.close()
    before = len(read)
    assert pool.map(abs, range(100)) == list(range(100))
    assert len(read) == before


def test_orders(pool: manycore.Pool) -> None:
    assert list(pool.imap(abs, range(5000))) == list(range(5000))
    assert sorted(pool.imap_unordered(abs, range(5000))) == list(range(5000))
    assert pool.starmap(pow, [(2, 3), (3, 2)]) == [8, 9]
    assert pool.map(abs, []) == []


class SlowToPickle:
    """Says when it is being pickled, and waits."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __reduce__(self) -> Any:
        self.begun.set()
        assert self.go_on.wait(30)
        return int, (7,)


@pytest.mark.parametrize("lazy", [True, False])
def test_a_last_chunk_in_another_threads_hands_is_waited_for(pool: manycore.Pool, lazy: bool) -> None:
    slow = SlowToPickle()
    run = MapRun(pool._engine, abs, iter([slow]), MapOptions(lazy=lazy, chunksize=2))
    thread = threading.Thread(target=run.start)
    thread.start()
    assert slow.begun.wait(30)
    assert not run.poll()
    slow.go_on.set()
    outcome = run.next_outcome()
    assert outcome is not None
    assert outcome.result == 7
    assert run.next_outcome() is None
    thread.join()


def test_a_range_is_sent_in_parts_of_it(pool: manycore.Pool) -> None:
    assert pool.map(abs, range(10, -10_000, -3)) == [abs(n) for n in range(10, -10_000, -3)]
    assert pool.map(abs, range(7), chunksize=3) == list(range(7))
    assert pool.map_async(abs, range(9000)).get() == list(range(9000))
    assert pool.map(abs, range(0)) == []
    assert pool.map(lambda n: 1 // n, range(-1, 2), chunksize=2, on_error="skip") == [-1, 1]
    failures = [outcome for outcome in pool.outcomes(lambda n: 1 // (n - 700), range(1000)) if outcome.error]
    assert [(failure.index, failure.item) for failure in failures] == [(700, 700)]


def test_who_waits_for_an_item_hears_that_there_is_none(pool: manycore.Pool) -> None:
    """The input's end is met by another thread, while its consumer waits for one more."""
    ending, waits = threading.Event(), threading.Event()

    class Items:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[int]:
            yield -1
            ending.set()
            assert waits.wait(10)

    run = MapRun(pool._engine, abs, Items(), MapOptions(chunksize=1))
    sender = threading.Thread(target=run.start)
    sender.start()
    assert ending.wait(10)
    block = run.next_block()
    assert block is not None
    threading.Timer(0.05, waits.set).start()  # late enough for the consumer to wait; right if it is not
    assert run.next_block() is None
    sender.join()


def test_a_failed_item_is_tried_again_also_in_chunks(pool: manycore.Pool) -> None:
    assert pool.map(lambda n: 1 // n, [1, 0, 1], chunksize=3, retries=2, on_error="skip") == [1, 1]
    outcomes = list(pool.outcomes(lambda n: 1 // n, [1, 0, 1]))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), ZeroDivisionError, type(None)]


def test_the_standard_tools_take_its_futures() -> None:
    with manycore.ProcessPoolExecutor(2) as executor:
        futures = [executor.submit(abs, n) for n in range(100)]
        done, pending = concurrent.futures.wait(futures, timeout=30)
        assert len(done) == 100
        assert not pending
        again: Any = [executor.submit(abs, n) for n in range(100)]
        finished = concurrent.futures.as_completed(again, timeout=30)
        assert sorted(future.result() for future in finished) == list(range(100))

        async def use() -> list[int]:
            wrapped = await asyncio.wrap_future(executor.submit(abs, -1))
            return [wrapped, await executor.submit(abs, -2)]

        assert asyncio.run(use()) == [1, 2]


def test_a_timeout_counts_after_a_time_without_any(pool: manycore.Pool) -> None:
    assert pool.map(abs, [1], timeout=5) == [1]
    with pytest.raises(manycore.TaskTimeout):
        pool.map(lambda _: all(itertools.repeat(True)), [1], timeout=0.2)


class Tracked:
    """Something that a weak reference can point to."""


def make_tracked(_: int) -> Tracked:
    return Tracked()


def test_the_executors_map_keeps_no_result_that_it_has_given() -> None:
    with manycore.ProcessPoolExecutor(2) as executor:
        for result in executor.map(make_tracked, range(20)):
            seen = weakref.ref(result)
            del result
            gc.collect()
            assert seen() is None


@pytest.mark.parametrize("way", ["apply_async", "map_async"])
def test_a_result_is_ready_when_its_callback_has_returned(way: str) -> None:
    """In whatever thread it is waited for, and for those whom the callback itself asks it is."""
    with manycore.Pool(1) as pool:
        may_go_on, seen = threading.Event(), list[Any]()

        def callback(value: Any) -> None:
            may_go_on.wait()
            seen.append((value, result.ready(), result.get(10)))

        function, given, value = (str, (12,), "12") if way == "apply_async" else (str, [1, 2], ["1", "2"])
        result = getattr(pool, way)(function, given, callback=callback)
        waits = threading.Thread(target=result.wait)
        waits.start()
        may_go_on.set()
        waits.join()
        assert seen == [(value, True, value)]


def test_a_callback_may_wait_for_a_result_that_has_one() -> None:
    """The same thread calls both; what the other one's result waits for is then behind the callback that waits."""
    with manycore.Pool(1) as pool:
        is_done, ended, seen = threading.Event(), threading.Event(), list[Any]()

        def callback(_: Any) -> None:
            is_done.wait()
            seen.append(second.get(20))
            ended.set()

        pool.apply_async(abs, (-1,), callback=callback)
        second = pool.apply_async(abs, (-2,), callback=seen.append)
        pool.apply(abs, (-3,))
        assert second.done()
        is_done.set()
        assert ended.wait(30)
        assert seen == [2, 2]


def test_who_waits_while_a_pool_ends_hears_of_it() -> None:
    """Also when the collector is held up by a callback: no wait ends before its time with a TimeoutError."""
    pool = manycore.Pool(1)
    called, may_go_on = threading.Event(), threading.Event()

    def callback(_: Any) -> None:
        called.set()
        may_go_on.wait()

    pool.apply_async(abs, (-1,), callback=callback)
    assert called.wait(30)
    result = pool.map_async(time.sleep, [1000])
    ends = threading.Thread(target=pool.terminate)
    ends.start()
    while not pool._engine._ended:
        time.sleep(0.001)
    with pytest.raises(manycore.PoolClosed):
        result.get(30)
    may_go_on.set()
    ends.join()


def test_what_a_map_sends_while_its_pool_is_terminated_starts_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that nobody has killed would be waited for."""
    pool = manycore.Pool(1)
    engine = pool._engine
    end, started = engine._end, engine._workforce.started
    pool.map_async(abs, [-1] * 200, chunksize=1)

    def end_late(**how: Any) -> None:
        until = time.monotonic() + 0.3
        while engine._workforce.started == started and time.monotonic() < until:
            time.sleep(0.001)
        end(**how)

    monkeypatch.setattr(engine, "_end", end_late)
    pool.map_async(time.sleep, [1000] * 200, chunksize=1)
    began = time.monotonic()
    pool.terminate()
    assert time.monotonic() - began < 3
    assert engine._workforce.started == started


def test_a_callback_that_takes_its_time_bounds_a_wait() -> None:
    with manycore.Pool(1) as pool:
        may_go_on = threading.Event()
        result = pool.apply_async(abs, (-1,), callback=lambda _: may_go_on.wait())
        with pytest.raises(manycore.TimeoutError):
            result.get(0.2)
        assert not result.ready()
        assert pool.apply(abs, (-2,)) == 2  # others have theirs
        may_go_on.set()
        assert result.get(10) == 1


def test_who_joins_the_pool_reads_no_more_of_a_map_that_was_closed() -> None:
    read = threading.Semaphore(0)
    pool = manycore.Pool(1)

    def items() -> Iterator[int]:
        for n in itertools.count():
            read.release()
            yield n

    results = pool.imap(abs, items(), buffersize=4)
    pool.close()
    joining = threading.Thread(target=pool.join, daemon=True)
    joining.start()
    for _ in range(100):
        read.acquire()
    results.close()
    joining.join(30)
    assert not joining.is_alive()


@pytest.mark.parametrize("name", ["imap", "imap_unordered", "outcomes"])
@pytest.mark.parametrize("what", ["buffersize", "chunksize"])
def test_less_than_no_items_are_refused_at_the_call(pool: manycore.Pool, name: str, what: str) -> None:
    with pytest.raises(ValueError, match=rf"(?i){what} must be .*not -1"):
        getattr(pool, name)(abs, [1], **{what: -1})


@pytest.mark.parametrize("name", ["map", "starmap", "map_async", "starmap_async"])
def test_chunks_of_less_than_no_items_are_refused_at_the_call(pool: manycore.Pool, name: str) -> None:
    with pytest.raises(ValueError, match=r"chunksize must be .*not -1"):
        getattr(pool, name)(abs, [(1,)], chunksize=-1)


def test_a_map_of_its_own_refuses_a_negative_buffer_at_the_call() -> None:
    with pytest.raises(ValueError, match=r"buffersize must be .*not -1"):
        manycore.imap(abs, [1], buffersize=-1)


@pytest.mark.parametrize("face", [manycore.Pool, manycore.ProcessPoolExecutor])
def test_ctrl_c_ends_what_a_map_runs_and_not_the_pool(face: Any) -> None:
    begun = manycore.Event()

    def interrupt() -> None:
        begun.wait(30)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with face(1) as pool:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            list(pool.map(_begin_and_sleep, [begun]))
        thread.join()
        assert pool.submit(abs, -1).result(30) == 1  # the one worker would sleep for longer than that


def _begin_and_sleep(begun: Any) -> None:
    begun.set()
    time.sleep(40)  # longer than the test waits for a result; an executor that failed to end it waits for it to end
