"""What was sent can be received when its sender is gone, and what is kept for that is bounded."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from random import Random
from typing import Any

import numpy as np
import pytest

import manycore
from manycore._memory import keeper, sealed
from manycore._memory.segment import Segment
from manycore.shared_memory import SharedArray, share

MIB = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left() -> Iterator[None]:
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def make(kind: str) -> Any:
    if kind == "share":
        return share({"big": np.arange(100_000), "small": [1]})
    if kind == "array":
        return SharedArray(1000, values=7, lock=True)
    if kind == "lock":
        return manycore.Lock()
    queue = manycore.Queue()
    queue.put("inside")
    return queue


def is_right(kind: str, value: Any) -> bool:
    if kind == "share":
        return bool(value["big"][99_999] == 99_999 and value["small"] == [1])
    if kind == "array":
        with value.lock:
            return bool(value.sum() == 7000)
    if kind == "lock":
        return value.acquire(timeout=10) is True
    return bool(value.get(timeout=10) == "inside")


KINDS = ("share", "array", "lock", "queue")


def put_and_die(there: Any) -> None:
    for kind in KINDS:
        put = there.send if hasattr(there, "send") else there.put
        put((kind, make(kind)))
    os.kill(os.getpid(), signal.SIGKILL)


def start_one_that_puts_and_dies(queue: Any) -> None:
    child = manycore.Process(target=put_and_die, args=(queue,))
    child.start()
    child.join(30)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("method", ["zygote", "fork", "spawn", "forkserver"])
def test_a_sender_may_be_killed_before_what_it_sent_is_received(method: str) -> None:
    manycore.Pool(1).terminate()  # there is a zygote
    context = manycore.get_context(method)
    queue = context.Queue()
    here, there = context.Pipe()
    for where in (queue, there):
        process = context.Process(target=put_and_die, args=(where,))
        process.start()
        process.join(40)
        assert process.exitcode == -signal.SIGKILL
        for _ in KINDS:
            kind, value = here.recv() if where is there else queue.get(timeout=10)
            assert is_right(kind, value)


def test_so_may_the_sender_s_parent() -> None:
    queue = manycore.Queue()
    process = manycore.Process(target=start_one_that_puts_and_dies, args=(queue,))
    process.start()
    process.join(30)
    for _ in KINDS:
        kind, value = queue.get(timeout=10)
        assert is_right(kind, value)


def get_and_check(queue: Any, count: int) -> int:
    return sum(is_right(*queue.get(timeout=10)) for _ in range(count))


def test_any_process_of_the_tree_may_receive() -> None:
    queue = manycore.Queue()
    process = manycore.Process(target=put_and_die, args=(queue,))
    process.start()
    process.join(30)
    with manycore.Pool(1) as pool:
        assert pool.apply(get_and_check, (queue, len(KINDS))) == len(KINDS)


def put_for_ever(queue: Any) -> None:
    number = 0
    while True:
        queue.put((number, SharedArray(10, values=number), share([number])))
        number += 1


@pytest.mark.timeout(120)
def test_whatever_arrived_can_be_opened_whenever_the_sender_was_killed(rng: Random) -> None:
    for _ in range(10):
        queue = manycore.Queue()
        process = manycore.Process(target=put_for_ever, args=(queue,))
        process.start()
        number, array, _ = queue.get(timeout=30)
        for _ in range(rng.randrange(50)):
            number, array, _ = queue.get(timeout=30)
        process.kill()
        process.join(30)
        while not queue.empty():
            last = number
            number, array, shared = queue.get(timeout=10)
            assert number == last + 1
            assert array.sum() == number * 10
            assert shared == [number]


def test_the_keeper_s_death_loses_only_what_it_had_read() -> None:
    queue = manycore.Queue()
    process = manycore.Process(target=put_and_die, args=(queue,))
    process.start()
    process.join(30)
    launcher = sys.modules["manycore._launch.launcher"].current()
    zygote = launcher._zygote.pid
    os.kill(zygote, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(OSError, match="has exited"):
        queue.get(timeout=10)
    assert time.monotonic() - start < keeper._ANSWER_SECONDS + 5
    process = manycore.Process(target=put_and_die, args=(queue,))
    process.start()
    process.join(30)
    found = 0
    for _ in range(2 * len(KINDS) - 1):
        try:
            found += is_right(*queue.get(timeout=10))
        except OSError:
            continue
    assert found == len(KINDS)


def test_a_shared_object_whose_creator_was_killed_is_forgotten() -> None:
    queue = manycore.Queue()
    for _ in range(3):
        process = manycore.Process(target=put_and_die, args=(queue,))
        process.start()
        process.join(30)
        for _ in KINDS:
            assert is_right(*queue.get(timeout=10))
    assert len(sealed._objects) == 1  # the next that is received replaces it
    assert share([1]).get() == [1]
    gc.collect()
    assert not sealed._objects


# ---- the keeper alone


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def end() -> Iterator[tuple[keeper.Keeper, Clock]]:
    """A keeper without a process, whose senders' end this process uses."""
    before = keeper._fd, keeper._inode, keeper._root, keeper._start
    ours, theirs = keeper.pair()
    keeper.connect(ours)
    clock = Clock()
    made = keeper.Keeper(theirs, clock)
    yield made, clock
    made.close()
    os.close(ours)
    keeper._fd, keeper._inode, keeper._root, keeper._start = before
    keeper._given.clear()


def memory(size: int = 4096) -> int:
    fd = os.memfd_create("test")
    os.ftruncate(fd, size)
    return fd


def give(kept: keeper.Keeper, size: int) -> tuple[int, int]:
    fd = memory()
    keeper.keep(fd, size)
    kept.serve()
    status = os.fstat(fd)
    os.close(fd)
    return status.st_dev, status.st_ino


def test_what_is_held_is_bounded(end: tuple[keeper.Keeper, Clock]) -> None:
    kept, clock = end
    assert kept.expire() is None
    first = give(kept, 200 * MIB)
    second = give(kept, 200 * MIB)
    third = give(kept, 200 * MIB)  # the latest is beside the bound
    assert list(kept._held) == [second, third]
    huge = give(kept, 2000 * MIB)
    assert list(kept._held) == [third, huge]
    assert first != huge
    small = [give(kept, 100) for _ in range(keeper._MOST + 10)]
    assert len(kept._held) == keeper._MOST
    assert kept._bytes == 100 * keeper._MOST
    assert list(kept._held) == small[10:]
    last = give(kept, 50 * MIB)
    assert kept.expire() == pytest.approx(30)
    clock.now += 30
    assert kept.expire() == pytest.approx(570)
    assert last not in kept._held
    clock.now += 570
    assert kept.expire() is None
    assert kept._bytes == 0
    assert not kept._held


def test_no_descriptor_is_lost(end: tuple[keeper.Keeper, Clock]) -> None:
    kept, clock = end
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        give(kept, 10)
    fd = memory()
    for _ in range(3):
        keeper._given.clear()
        keeper.keep(fd, 10)
    kept.serve()
    assert len(kept._held) == 51
    os.close(fd)
    clock.now += 10_000
    kept.expire()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_was_given_is_not_given_again_at_once(
    end: tuple[keeper.Keeper, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _ = end
    sent = []
    monkeypatch.setattr(keeper, "_send", lambda _, fd: sent.append(fd))
    segment = Segment.create(100)
    for _ in range(5):
        pickle.dumps(segment)
    assert sent == [segment.fd]
    for number in range(keeper._MOST_REMEMBERED + 5):
        keeper._given[0, number] = time.monotonic() - 1
    pickle.dumps(Segment.create(100))
    assert len(keeper._given) <= keeper._MOST_REMEMBERED
    assert kept._bytes == 0


def test_a_keeper_that_does_not_read_blocks_nobody(
    end: tuple[keeper.Keeper, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _ = end
    monkeypatch.setattr(keeper, "_ANSWER_SECONDS", 0.05)
    fds = [memory() for _ in range(600)]
    for fd in fds:
        keeper.keep(fd, 10)
    assert keeper.find((1, 2)) == -1
    for fd in fds:
        os.close(fd)
    kept.serve()
    assert 100 < len(kept._held) < 600


def test_records_that_make_no_sense_are_dropped(end: tuple[keeper.Keeper, Clock]) -> None:
    kept, _ = end
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(fileno=os.dup(keeper._fd)) as raw:
        for record in (b"x", struct.pack("<QQQQ", 7, 1, 2, 3), struct.pack("<QQQQ", 1, 1, 2, 3)):
            raw.send(record)
            socket.send_fds(raw, [record], [0])
    kept.serve()
    assert [os.fstat(fd).st_ino for _, fd, _ in kept._held.values()] == [os.fstat(0).st_ino]
    kept._drop(next(iter(kept._held)))
    assert len(os.listdir("/proc/self/fd")) == before


def test_another_file_under_the_number_is_left_alone() -> None:
    """As in a program that closes every descriptor, and then opens its own."""
    code = """
import os, socket
from manycore._memory import keeper, sealed
ours, theirs = keeper.pair()
keeper.connect(ours)
os.close(ours)
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.dup2(a.fileno(), ours)
keeper.keep(os.memfd_create("x"), 10)
assert keeper.find((1, 2)) == -1
b.setblocking(False)
try:
    b.recv(100)
except BlockingIOError:
    print("nothing came")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "nothing came\n"


BUSY = """
import os, select, threading
from manycore._memory import keeper

ours, theirs = keeper.pair()
keeper.connect(ours, root=1)
busy = keeper.Keeper(theirs)
kept = [os.memfd_create("kept") for _ in range(900)]
over = threading.Event()

def serve_now_and_then():
    while not over.wait(0.02):
        busy.serve()
    busy.serve()

thread = threading.Thread(target=serve_now_and_then)
"""


def test_what_is_sent_waits_for_a_keeper_that_is_busy() -> None:
    program = """
thread.start()
for fd in kept:
    keeper.keep(fd, 0)
over.set()
thread.join()
assert len(busy._held) == len(kept), len(busy._held)
"""
    subprocess.run([sys.executable, "-c", BUSY + program], check=True, timeout=30)


def test_for_a_keeper_that_does_not_answer_is_not_waited_for_twice() -> None:
    program = """
import time
begun = time.monotonic()
for fd in kept:  # more than the socket takes
    keeper.keep(fd, 0)
waited = time.monotonic() - begun
assert keeper._ROOM_SECONDS <= waited < 5 * keeper._ROOM_SECONDS, waited
"""
    subprocess.run([sys.executable, "-c", BUSY + program], check=True, timeout=30)
