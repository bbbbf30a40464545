"""The rings, in one process and between two."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from manycore._native.ring import (
    DECODING,
    FRAGMENT_BYTES,
    INLINE_BYTES,
    MORE,
    WORKERS_MAX,
    BrokenRing,
    ResultRing,
    TaskRing,
    Turn,
    now_ns,
)


def fork(child: Callable[[], int]) -> int:
    """A process that runs `child`, exits with its result, and dies with this one, or after 30 seconds."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        status = 99
        try:
            status = child()
        finally:
            os._exit(status)
    return pid


def task_ring(slots: int = 8) -> TaskRing:
    return TaskRing(memoryview(mmap.mmap(-1, TaskRing.nbytes(slots))), slots)


def result_ring(nbytes: int = 1 << 16) -> tuple[ResultRing, mmap.mmap]:
    memory = mmap.mmap(-1, nbytes)
    return ResultRing(memoryview(memory), create=True), memory


def taken(ring: ResultRing) -> list[Any]:
    records: list[Any] = []
    ring.take(records)
    return records


def test_tasks_are_claimed_in_order_and_once() -> None:
    ring = task_ring()
    assert [ring.publish(i, 0, i, b"head", b"body%d" % i) for i in range(1, 4)] == [8, 9, 10]
    assert ring.ready() == 3
    assert ring.claim(0) == (1, 0, 1, b"headbody1")
    assert ring.status(0)[:2] == (1, DECODING)
    assert ring.claim(5) == (2, 0, 2, b"headbody2")
    assert ring.claim(0) == (3, 0, 3, b"headbody3")
    assert ring.claim(0) is None


def test_a_full_ring_says_so_and_goes_on() -> None:
    ring = task_ring(4)
    tickets = [ring.publish(i, 0, 0, b"", b"") for i in range(1, 6)]
    assert tickets == [4, 5, 6, 7, -1]
    assert ring.claim(0) is not None
    assert ring.publish(9, 0, 0, b"", b"") == 8


def test_a_task_is_withdrawn_only_before_it_is_claimed() -> None:
    ring = task_ring()
    first, second = ring.publish(1, 0, 0, b"", b""), ring.publish(2, 0, 0, b"", b"")
    assert ring.holds(second)
    assert ring.withdraw(second)
    assert not ring.withdraw(second)
    assert not ring.holds(second)
    assert ring.claim(0) is not None
    assert not ring.withdraw(first)
    assert ring.claim(0) is None


def test_a_frame_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="more than the"):
        task_ring().publish(1, 0, 0, b"x", b"y" * INLINE_BYTES)


def test_a_worker_beyond_the_last_is_refused() -> None:
    with pytest.raises(ValueError, match="is not below"):
        task_ring().claim(WORKERS_MAX)


def test_memory_that_holds_no_ring_is_refused() -> None:
    with pytest.raises(ValueError, match="no task ring"):
        TaskRing(memoryview(mmap.mmap(-1, 1 << 20)))
    with pytest.raises(ValueError, match="no result ring"):
        ResultRing(memoryview(mmap.mmap(-1, 1 << 20)))
    with pytest.raises(ValueError, match="needs"):
        TaskRing(memoryview(mmap.mmap(-1, 4096)), 1000)


PLAIN = [None, True, False, 0, -1, 2**63 - 1, -(2**63), 1.5, float("inf"), "", "é", b"", b"\0bytes"]


def test_plain_results_come_as_runs() -> None:
    ring, _ = result_ring()
    for item, value in enumerate(PLAIN):
        assert ring.put_plain(7, item, 10, value)
    assert taken(ring) == [(7, 0, 0, 10 * len(PLAIN), True, 0, PLAIN)]


@pytest.mark.parametrize("value", [2**63, (1,), "\ud800", "x" * 5000, b"x" * 20_000, int, 1j])
def test_what_is_not_plain_is_left_to_the_codec(value: Any) -> None:
    ring, _ = result_ring()
    assert not ring.put_plain(1, 0, 0, value)
    assert ring.empty()


def test_runs_end_where_the_task_or_the_order_does() -> None:
    ring, _ = result_ring()
    ring.put_plain(1, 0, 5, 10)
    ring.put_plain(2, 0, 5, 20)
    ring.put_plain(2, 2, 5, 22)
    ring.put(2, 3, 1, 5, b"pickle")
    ring.put_plain(2, 4, 5, 24)
    assert [(record[0], record[1], record[6]) for record in taken(ring)] == [
        (1, 0, [10]),
        (2, 0, [20]),
        (2, 2, [22]),
        (2, 3, b"pickle"),
        (2, 4, [24]),
    ]


def test_laps_keep_every_record_whole() -> None:
    ring, _ = result_ring(1 << 13)
    for number in range(3000):
        data = bytes([number % 256]) * (number * 7 % 1500)
        ring.put(number, 0, 0, 0, data)
        assert [(record[0], record[6]) for record in taken(ring)] == [(number, data)]


def test_a_long_payload_goes_in_pieces_while_the_parent_reads() -> None:
    ring, memory = result_ring(1 << 18)
    data = os.urandom(5 * FRAGMENT_BYTES + 17)

    def put() -> int:
        ResultRing(memoryview(memory)).put(1, 0, 0, 0, data)
        return 0

    pid = fork(put)
    parts: list[bytes] = []
    more = 1
    while more:
        for record in taken(ring):
            parts.append(record[6])
            more = record[5] & MORE
    assert b"".join(parts) == data
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("at", [0, 4, 5, 32])
def test_garbage_in_a_record_is_noticed(at: int) -> None:
    ring, memory = result_ring()
    ring.put(1, 0, 0, 0, b"payload")
    start = bytes(memory).index(b"payload") - 40
    memory[start + at : start + at + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(BrokenRing):
        taken(ring)


def test_what_a_dead_worker_had_claimed_is_known() -> None:
    """A worker is killed after its claim: its page names the task."""
    ring = task_ring()
    for i in range(1, 4):
        ring.publish(i, 0, 0, b"", b"")

    def claim() -> int:
        ring.claim(3)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert os.waitstatus_to_exitcode(os.waitpid(fork(claim), 0)[1]) == -signal.SIGKILL
    assert ring.repair(3) == []  # claim() frees the slot once the page names the task
    assert ring.status(3)[0] == 1
    ring.reset(3)
    assert ring.status(3) == (0, 0, 0, 0, 0)
    assert ring.claim(4) == (2, 0, 0, b"")


def test_a_sleeping_worker_is_woken_by_a_task_and_by_a_stop() -> None:
    ring = task_ring()
    results, memory = result_ring()

    def work() -> int:
        mine = ResultRing(memoryview(memory), bell=ring)
        while not ring.stopped(0):
            claimed = ring.claim(0)
            if claimed is None:
                ring.wait_task(0)
                continue
            mine.put_plain(claimed[0], 0, 0, claimed[0] * 2)
            ring.done(0, 0, 1)
            ring.notify()
        return 7

    pid = fork(work)
    turn = Turn(ring)
    turn.rings = [results]
    for task in range(1, 500):
        assert ring.publish(task, 0, 0, b"", b"") >= 0
        with turn as mine:
            assert mine
            records: list[Any] = []
            while not records:
                alarms = turn.alarms() or 0
                results.take(records)
                if not records:
                    assert ring.wait([results], alarms, now_ns() + 10_000_000_000)
        assert records[0][6] == [task * 2]
    ring.stop(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_waiting_ends_at_the_deadline_and_at_an_alarm() -> None:
    ring = task_ring()
    assert not ring.wait([], ring.alarms(), now_ns() + 1_000_000)
    assert not ring.wait_task(0, now_ns() + 1_000_000)
    seen = ring.alarms()
    ring.alarm()
    assert ring.wait([], seen, now_ns() + 60_000_000_000)


def in_another_thread(call: Callable[[], Any]) -> Any:
    """What it returns there."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(call).result()


def entered(turn: Turn) -> bool:
    with turn as mine:
        return mine


def test_a_turn_is_one_threads() -> None:
    turn = Turn(task_ring())
    with turn as mine:
        assert mine
        assert turn.foreground
        assert not turn.take()
        assert not in_another_thread(lambda: entered(turn))
        assert entered(turn), "in the handler of a signal that came amidst"
        assert turn.foreground
        assert turn.alarms() is not None
    assert not turn.foreground
    taken = turn.take()
    assert taken
    assert not in_another_thread(lambda: entered(turn))
    assert entered(turn), "in a finalizer of the collector's"
    assert not turn.foreground
    turn.give()
    assert in_another_thread(lambda: entered(turn))


def test_who_has_given_up_its_turn_sees_that() -> None:
    ring = task_ring()
    turn = Turn(ring)
    turn.abandon()
    with turn as mine:
        assert mine
        before = ring.alarms()
        turn.abandon()
        assert ring.alarms() > before  # the collector hears of it
        assert turn.alarms() is None
        assert ring.wait([], ring.alarms(), None, turn)  # at once
        assert in_another_thread(turn.take)
    assert not turn.take()  # leaving does not take another's


def test_a_chunk_is_run_item_by_item() -> None:
    ring = task_ring()
    results, _ = result_ring()
    seen: list[Any] = []

    def work(value: int) -> Any:
        if value == 3:
            raise ValueError(value)
        return (value,) if value == 5 else value * 10

    def raised(*call: Any) -> None:
        seen.append(("raised", call[1], type(call[3])))

    def pickled(*call: Any) -> None:
        seen.append(("pickled", call[1], call[3]))

    took = results.run(ring, 0, 9, 1, work, [0, 1, 2, 3, 4, 5, 6], False, True, raised, pickled)
    assert took > 0
    assert seen == [("raised", 3, ValueError), ("pickled", 5, (5,))]
    assert [(record[1], record[6]) for record in taken(results)] == [(1, [10, 20]), (4, [40]), (6, [60])]
    assert ring.status(0)[1] == 7


def test_small_results_of_a_chunk_follow_each_other_in_a_third_of_the_room() -> None:
    results, _ = result_ring()
    values = [7, None, True, False, -1.5, -(1 << 63)]
    for item, value in enumerate(values):
        assert results.put_plain(4, item, 10, value)
    assert results.used() == 48 + 16 * 5
    assert taken(results) == [(4, 0, 0, 60, True, 0, values)]
    assert results.put_plain(4, 6, 10, 6)  # the record before it has been taken: it still follows it
    assert results.used() == 16
    assert taken(results) == [(4, 6, 0, 10, True, 0, [6])]


def test_what_comes_between_the_results_of_a_chunk_is_told_apart() -> None:
    results, _ = result_ring()
    put = results.put_plain
    assert put(4, 1, 1, 1)
    assert put(4, 2, 1, 2)
    results.put(0, 0, 8, 0, b"log")
    assert put(4, 3, 1, 3)
    assert put(4, 5, 1, 5)  # not the next one
    assert put(6, 6, 1, 6)  # another task's
    assert put(6, 7, 70_000, 7)  # too long for a short one to say
    assert put(6, 8, 1, "text")
    assert put(6, 9, 1, 9)
    assert [(record[0], record[1], record[3], record[6]) for record in taken(results)] == [
        (4, 1, 2, [1, 2]),
        (0, 0, 0, b"log"),
        (4, 3, 1, [3]),
        (4, 5, 1, [5]),
        (6, 6, 70_003, [6, 7, "text", 9]),
    ]


def test_a_run_of_results_goes_on_from_one_reading_to_the_next() -> None:
    results, _ = result_ring(8192)
    total = 20_000
    read: list[int] = []
    item = 0
    while len(read) < total:
        while item < total and results.used() < 3800:  # laps end everywhere
            assert results.put_plain(1, item, 0, item)
            item += 1
        records: list[Any] = []
        results.take(records, 1 + item % 50)
        for task, first, _, _, plain, _, values in records:
            assert (task, first, plain) == (1, len(read), True)
            read += values
    assert read == list(range(total))


def test_a_short_record_that_follows_nothing_is_damage() -> None:
    results, memory = result_ring()
    assert results.put_plain(1, 0, 0, 0)
    assert results.put_plain(1, 1, 0, 1)
    reader = ResultRing(memoryview(memory))
    assert taken(reader) == [(1, 0, 0, 0, True, 0, [0, 1])]
    assert results.put_plain(1, 2, 0, 2)
    with pytest.raises(BrokenRing):
        ResultRing(memoryview(memory)).take([])


def test_a_chunk_of_tiny_items_keeps_its_page_and_its_time() -> None:
    ring = task_ring()
    results, _ = result_ring(1 << 20)
    pages: list[int] = []

    def work(item: int) -> int:
        pages.append(ring.status(0)[1])
        return item

    took = results.run(ring, 0, 9, 0, work, list(range(1000)), False, False, print, print)
    assert pages == list(range(1000))
    [(_, _, _, told, _, _, values)] = taken(results)
    assert values == list(range(1000))
    assert 0 < told <= took
