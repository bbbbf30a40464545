"""Queues under what machines and users do to them: payloads at the edges, full memory, signals, stops, exits.

MANYCORE_MESSAGES=1000000    messages through four producers and four consumers
MANYCORE_HUGE=1              payloads of 2 GiB and 3 GiB
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

import manycore
from manycore import Channel, queues
from tests.chaos.test_queues import fork

MESSAGES = int(os.environ.get("MANYCORE_MESSAGES", "40000"))
SIZES = [0, 4095, 4096, 4097, 65535, 65536, 65537, 212_991, 212_992, 212_993]
HUGE = [2**31 - 1, 2**31 + 1, 3 << 30] if os.environ.get("MANYCORE_HUGE") else []


def ended(pid: int, status: int = 0) -> None:
    _, got = os.waitpid(pid, 0)
    assert got == status


# Order, loss, duplicates


def _produce(many: Any, who: int, count: int) -> None:
    for index in range(count):
        many.put((who, index))


def _consume(many: Any, results: Any) -> None:
    last: dict[int, int] = {}
    counts: dict[int, int] = defaultdict(int)
    sums: dict[int, int] = defaultdict(int)
    disordered = 0
    for who, index in many:
        disordered += index <= last.get(who, -1)
        last[who] = index
        counts[who] += 1
        sums[who] += index * index
    results.put((dict(counts), dict(sums), disordered))


@pytest.mark.timeout(60 + MESSAGES / 5_000)
def test_four_producers_and_four_consumers() -> None:
    each = MESSAGES // 4
    many, results = queues.Queue(), queues.Queue()
    consumers = [fork(_consume, many, results) for _ in range(4)]
    producers = [fork(_produce, many, who, each) for who in range(4)]
    for pid in producers:
        ended(pid)
    many.shutdown()
    seen = [results.get(timeout=60 + MESSAGES / 5_000) for _ in consumers]
    for pid in consumers:
        ended(pid)
    assert [disordered for _, _, disordered in seen] == [0, 0, 0, 0]
    for who in range(4):
        assert sum(counts.get(who, 0) for counts, _, _ in seen) == each
        assert sum(sums.get(who, 0) for _, sums, _ in seen) == sum(index * index for index in range(each))


# Exits


def _put_much(many: Any) -> None:
    chunk = os.urandom(1 << 20)
    for _ in range(100):
        many.put(chunk)


def test_a_child_that_put_100_mb_is_joined_before_anybody_reads() -> None:
    many = manycore.Queue()
    process = manycore.Process(target=_put_much, args=(many,))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert many.qsize() == 100
    assert sum(len(many.get()) for _ in range(100)) == 100 << 20


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_a_program_exits_with_unread_data(kind: str) -> None:
    program = f"""
import manycore
many = manycore.{kind}()
for _ in range(20):
    many.put(bytes(1 << 20))
other = manycore.Channel(3)
other.send("unread")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# Sizes, each with a death half-way


@pytest.mark.timeout(60 + 120 * len(HUGE))
@pytest.mark.parametrize("size", [*SIZES, *HUGE])
def test_a_payload_at_an_edge_with_a_kill_half_way(size: int) -> None:
    many = queues.Queue(2 if size < 1 << 20 else 1)
    item = np.arange(size, dtype=np.uint8) if size < 1 << 20 else np.ones(size, np.uint8)

    def put() -> None:
        while True:
            many.put(item)

    pid = fork(put)
    for _ in range(20 if size < 1 << 20 else 0):
        many.get(timeout=30)
    while size >= 1 << 20 and many._memory_bytes() < 1 << 20:  # it has begun
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    ended(pid, signal.SIGKILL)
    while not many.empty():
        many.get_nowait()
    many.put(item)
    many.shutdown()
    for got in many:
        assert got.nbytes == size
        assert np.array_equal(got[:: max(size // 1000, 1)], item[:: max(size // 1000, 1)])


# Pickles that end the process that makes or loads them


class Exits:
    """Ends the process that pickles it, or that unpickles it."""

    def __init__(self, when: str, how: str) -> None:
        self.when, self.how = when, how

    def __reduce__(self) -> tuple[Any, ...]:
        if self.when == "pickled":
            _end(self.how)
        return _end, (self.how,)


def _end(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        sys.exit(7)
    raise {"error": ValueError, "interrupt": KeyboardInterrupt, "generator": GeneratorExit}[how]("in a pickle")


@pytest.mark.parametrize("how", ["kill", "exit", "error", "interrupt", "generator"])
@pytest.mark.parametrize("when", ["pickled", "unpickled"])
def test_a_pickle_that_ends_its_process(when: str, how: str) -> None:
    """Whoever pickles or unpickles it pays; the queue and the others go on."""
    many = queues.Queue(5)
    many.put("before")

    def use() -> None:
        many.put(Exits(when, how))
        many.get()
        many.get()

    pid = fork(use)
    _, status = os.waitpid(pid, 0)
    assert status != 0
    many.put("after")
    many.shutdown()
    assert list(many) == (["before", "after"] if when == "pickled" else ["after"])


def test_an_item_that_cannot_be_rebuilt_raises_in_get_and_is_gone() -> None:
    many = queues.Queue()
    many.put(Exits("unpickled", "error"))
    many.put("next")
    with pytest.raises(ValueError, match="in a pickle"):
        many.get()
    assert many.get() == "next"


# Stops


@pytest.mark.parametrize("holds", ["writers", "readers"])
def test_a_stopped_process_delays_nobody_beyond_their_timeouts(holds: str) -> None:
    """It is stopped again and again wherever it is; whoever waits with a timeout gets an answer in time."""
    many = queues.Queue(4)
    big = bytes(300_000)

    def work() -> None:
        while True:
            if holds == "writers":
                many.put(big)
            else:
                many.get()

    pid = fork(work)
    try:
        for turn in range(30):
            time.sleep(0.001 * (turn % 3))  # the moment at which it is stopped; nothing waits for it
            os.kill(pid, signal.SIGSTOP)
            os.waitpid(pid, os.WUNTRACED)
            began = time.monotonic()
            try:
                if holds == "writers":
                    assert many.get(timeout=0.01) == big
                else:
                    many.put(big, timeout=0.01)
            except (queues.Empty, queues.Full):
                pass
            assert time.monotonic() - began < 2
            os.kill(pid, signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGKILL)
        ended(pid, signal.SIGKILL)
    while not many.empty():
        many.get_nowait()
    many.put("after", timeout=10)
    assert many.get(timeout=10) == "after"


# Signals


def _echo(there: Any, back: Any) -> None:
    _storm()
    while (item := there.get()) is not None:
        back.put(item)


def _storm() -> None:
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)


def _talk() -> None:
    there, back = queues.Queue(2), queues.Queue(2)
    channel = Channel()
    pid = fork(_echo, there, back)
    _storm()
    for index in range(300):
        there.put((index, bytes(index * 300)))
        assert back.get(timeout=30) == (index, bytes(index * 300))
    there.put(None)
    sender = fork(channel.send, "through the storm")
    assert channel.recv(timeout=30) == "through the storm"
    began = time.monotonic()
    try:
        back.get(timeout=0.05)
    except queues.Empty:
        assert 0.05 <= time.monotonic() - began < 5
    assert manycore.select(there, back, channel, timeout=0.05) in ([], [there])
    for child in (pid, sender):
        ended(child)


def test_a_storm_of_signals_interrupts_nothing() -> None:
    ended(fork(_talk))


# Limits


def _without_descriptors(spare: int) -> None:
    many, channel = queues.Queue(), Channel(2)
    lowest = os.dup(0)
    os.close(lowest)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, hard))
    kept: list[Any] = []
    with pytest.raises(OSError, match="shared memory"):
        while len(kept) < 50:
            kept.append(queues.Queue())
    many.put(bytes(1_000_000))
    assert len(many.get(timeout=10)) == 1_000_000
    channel.send(1)
    assert channel.recv(timeout=10) == 1
    try:
        found: Any = manycore.select(many, channel, timeout=0.01)
    except OSError as error:
        found = error.errno
    assert found in ([], errno.EMFILE)
    kept.clear()
    if spare >= 2:
        assert manycore.select(many, channel, timeout=0.01) == []


@pytest.mark.parametrize("spare", range(0, 41, 4))
def test_few_descriptors_are_an_error_and_never_a_hang(spare: int) -> None:
    ended(fork(_without_descriptors, spare))


def _without_room() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    many = queues.Queue()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    put = 0
    with pytest.raises(OSError, match="cannot grow"):
        while put < 100:
            many.put(bytes(100_000))
            put += 1
    assert 5 <= put < 15
    with pytest.raises(OSError, match="cannot grow"):
        many.put(np.zeros(1_000_000))
    for _ in range(put):
        assert len(many.get(timeout=10)) == 100_000
    assert many.empty()
    many.put(bytes(100_000))
    assert len(many.get(timeout=10)) == 100_000


def test_no_room_is_an_error_and_the_queue_goes_on() -> None:
    ended(fork(_without_room))


# A task's hands


def test_a_consumer_killed_with_a_task_in_hand() -> None:
    many = queues.JoinableQueue()
    taken = queues.Queue()

    def take() -> None:
        many.get()
        taken.put(None)
        signal.pause()

    for _ in range(5):
        many.put_many([1, 2, 3])
        pid = fork(take)
        taken.get(timeout=30)
        for _ in range(2):
            many.get()
            many.task_done()
        os.kill(pid, signal.SIGKILL)
        ended(pid, signal.SIGKILL)
        with pytest.raises(manycore.TasksLost) as caught:
            many.join()
        assert caught.value.count == 1
