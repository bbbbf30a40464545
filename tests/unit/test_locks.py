"""Locks and semaphores: meaning, death, sending, signals."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from manycore.errors import OwnerDied
from manycore.synchronize import BoundedSemaphore, Lock, RLock, Semaphore

FORK = multiprocessing.get_context("fork")
NOTICE_S = 1.0  # nobody may be blocked by a death for longer; the machine of the tests may be busy


def kill_while(hold: Any, *args: Any) -> int:
    """Run hold(*args) in a child, kill the child when it has returned there, and wait for the death."""
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        hold(*args)
        os.write(ready_write, b"x")
        signal.pause()
    os.close(ready_write)
    assert os.read(ready_read, 1) == b"x"
    os.close(ready_read)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return pid


def test_a_lock_is_exclusive_and_counts_nothing() -> None:
    lock = Lock()
    assert lock.acquire() is True
    assert lock.locked()
    assert lock.acquire(False) is False
    assert lock.acquire(block=True, timeout=0.01) is False
    assert lock.acquire(timeout=-1) is False
    lock.release()
    with pytest.raises(ValueError, match="released too many times"):
        lock.release()
    with lock:
        assert lock.locked()
    assert not lock.locked()


def test_any_thread_and_any_process_may_release() -> None:
    lock = Lock()
    lock.acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    lock.acquire()
    process = FORK.Process(target=lock.release)
    process.start()
    process.join()
    assert lock.acquire(timeout=5)
    lock.release()


@pytest.mark.parametrize("kind", [Lock, RLock])
def test_the_next_owner_is_told_of_a_death_and_holds_the_lock(kind: type[Lock]) -> None:
    lock = kind()
    pid = kill_while(lock.acquire)
    began = time.monotonic()
    with pytest.raises(OwnerDied) as caught:
        lock.acquire()
    assert time.monotonic() - began < NOTICE_S
    assert caught.value.owner_pid == pid
    assert lock.locked()
    assert lock._is_mine()
    lock.release()
    assert lock.acquire()
    lock.release()


@pytest.mark.parametrize("kind", [Lock, RLock])
def test_with_gives_back_what_it_took_over(kind: type[Lock]) -> None:
    lock = kind()
    kill_while(lock.acquire)
    entered = False
    with pytest.raises(OwnerDied), lock:
        entered = True
    assert not entered
    assert not lock.locked()
    with lock:
        pass


def test_a_lock_may_be_told_to_say_nothing_of_deaths() -> None:
    lock = Lock(on_owner_death="acquire")
    kill_while(lock.acquire)
    assert lock.acquire(timeout=5) is True
    with pytest.raises(ValueError, match="on_owner_death"):
        Lock(on_owner_death="ignore")


def test_a_short_timeout_and_no_timeout_find_the_dead_too() -> None:
    lock = Lock()
    kill_while(lock.acquire)
    with pytest.raises(OwnerDied):
        lock.acquire(timeout=0.001)
    lock.release()
    kill_while(lock.acquire)
    end = time.monotonic() + 5
    with pytest.raises(OwnerDied):
        while not lock.acquire(False):
            assert time.monotonic() < end
    assert lock.locked()


def test_a_waiter_notices_a_death_during_its_wait() -> None:
    lock = Lock()
    held_read, held_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock.acquire()
        os.write(held_write, b"x")
        signal.pause()
    assert os.read(held_read, 1) == b"x"
    noticed: list[float] = []

    def wait() -> None:
        with pytest.raises(OwnerDied):
            lock.acquire()
        noticed.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)  # long enough that the waiter is in its longest sleep; a shorter time tests less, and fails never
    died = time.monotonic()
    os.kill(pid, signal.SIGKILL)  # stays a zombie: dead all the same
    thread.join()
    os.waitpid(pid, 0)
    os.close(held_read)
    os.close(held_write)
    assert noticed[0] - died < NOTICE_S


def test_a_stopped_owner_is_alive() -> None:
    lock = Lock()
    held_read, held_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock.acquire()
        os.write(held_write, b"x")
        signal.pause()
    assert os.read(held_read, 1) == b"x"
    os.kill(pid, signal.SIGSTOP)
    try:
        assert lock.acquire(timeout=0.2) is False
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(held_read)
        os.close(held_write)
    with pytest.raises(OwnerDied):
        lock.acquire()


def test_a_forked_child_is_not_its_parent() -> None:
    lock = RLock()
    lock.acquire()
    process = FORK.Process(target=lambda: sys.exit(lock.acquire(False) or lock._is_mine()))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert lock._count() == 1
    lock.release()


def test_an_rlock_counts_and_belongs_to_its_thread() -> None:
    lock = RLock()
    assert lock.acquire()
    assert lock.acquire(False)
    with lock:
        assert lock._count() == 3
    refused: list[bool] = []

    def other() -> None:
        refused.append(lock.acquire(False))
        with pytest.raises(AssertionError):
            lock.release()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert refused == [False]
    lock.release()
    lock.release()
    with pytest.raises(AssertionError):
        lock.release()


def test_owner_says_who() -> None:
    lock = Lock()
    assert lock.owner() is None
    assert repr(lock) == "<Lock(owner=None)>"
    before = time.monotonic()
    lock.acquire()
    owner = lock.owner()
    assert owner is not None
    assert (owner.pid, owner.process, owner.thread) == (os.getpid(), "MainProcess", threading.get_native_id())
    assert owner.thread_name == "MainThread"
    assert owner.alive
    assert abs(owner.since - before) < 1
    assert repr(lock) == "<Lock(owner=MainProcess)>"
    lock.release()
    pid = kill_while(lock.acquire)
    dead = lock.owner()
    assert dead is not None
    assert dead.pid == pid
    assert not dead.alive
    assert repr(lock) == "<Lock(owner=SomeOtherProcess)>"


def test_reprs_are_the_standard_librarys() -> None:
    lock = RLock()
    assert repr(lock) == "<RLock(None, 0)>"
    with lock, lock:
        assert repr(lock) == "<RLock(MainProcess, 2)>"
    assert repr(Semaphore(2)) == "<Semaphore(value=2)>"
    assert repr(BoundedSemaphore(2)) == "<BoundedSemaphore(value=2, maxvalue=2)>"


def test_a_semaphore_counts_past_its_beginning_unless_bounded() -> None:
    sem = Semaphore(2)
    assert [sem.acquire(False) for _ in range(3)] == [True, True, False]
    for value in range(1, 5):
        sem.release()
        assert sem.get_value() == value
    assert [sem.acquire(False) for _ in range(5)] == [True] * 4 + [False]
    assert sem.acquire(timeout=0.01) is False
    bounded = BoundedSemaphore(1)
    with pytest.raises(ValueError, match="too many"):
        bounded.release()
    with bounded:
        assert bounded.get_value() == 0
    assert bounded.get_value() == 1


def test_large_and_wrong_values() -> None:
    sem = BoundedSemaphore(5000)
    for _ in range(5000):
        assert sem.acquire(False)
    assert not sem.acquire(False)
    for _ in range(5000):
        sem.release()
    with pytest.raises(ValueError, match="too many"):
        sem.release()
    with pytest.raises(ValueError, match="between 0 and"):
        Semaphore(-1)
    with pytest.raises(TypeError):
        Semaphore("1")  # type: ignore[arg-type]


def test_permits_come_back_from_the_dead_and_only_theirs() -> None:
    sem = Semaphore(3)
    sem.acquire()

    def take_two() -> None:
        sem.acquire()
        sem.acquire()

    kill_while(take_two)
    assert sem.get_value() == 2
    assert sem.acquire(timeout=5)
    assert sem.acquire(timeout=5)
    assert not sem.acquire(timeout=0.05)


def test_signals_are_consumed() -> None:
    sem = Semaphore(0)
    sem.release()
    kill_while(sem.acquire)
    assert sem.get_value() == 0
    sem.release()
    assert sem.get_value() == 1


def test_a_process_that_exits_in_order_keeps_its_permit() -> None:
    sem = Semaphore(2)
    process = FORK.Process(target=sem.acquire)
    process.start()
    process.join()
    assert sem.get_value() == 1
    assert sem.acquire(timeout=1)
    assert not sem.acquire(timeout=0.05)
    sem.release()
    sem.release()
    assert sem.get_value() == 2


@pytest.fixture
def standard_helpers() -> Iterator[None]:
    """Stops what the standard library starts and leaves running: its fork server and its tracker."""
    yield
    from multiprocessing import forkserver, resource_tracker

    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("standard_helpers")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_sent_as_an_argument(method: str) -> None:
    lock, sem = Lock(on_owner_death="acquire"), Semaphore(2)
    process = multiprocessing.get_context(method).Process(target=use_both, args=(lock, sem))  # type: ignore[attr-defined]
    process.start()
    process.join()
    assert process.exitcode == 0
    assert lock.locked()
    assert sem.get_value() == 1


def use_both(lock: Lock, sem: Semaphore) -> None:
    assert lock._tells is False
    lock.acquire()
    sem.acquire()
    sem._forget()


def test_sent_to_a_process_that_runs_already() -> None:
    lock = Lock()
    lock.acquire()
    code = "import pickle, sys; lock = pickle.load(sys.stdin.buffer); print(lock.acquire(False)); lock.release()"
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(lock), capture_output=True, timeout=30, check=True
    )
    assert done.stdout.strip() == b"False"
    assert not lock.locked()


def test_a_wait_is_interrupted_by_a_handler_that_raises_and_by_no_other() -> None:
    class Ring(Exception):
        pass

    rings: list[float] = []

    def handler(signum: int, frame: object) -> None:
        rings.append(time.monotonic())
        if len(rings) == 3:
            raise Ring

    lock = Lock()
    lock.acquire()
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        with pytest.raises(Ring):
            lock.acquire()
        assert len(rings) == 3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    lock.release()
    assert lock.acquire(False)


def test_contending_threads_lose_no_update() -> None:
    lock, count = Lock(), 0

    def work() -> None:
        nonlocal count
        for _ in range(5000):
            with lock:
                seen = count
                count = seen + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 20_000


def test_making_and_dropping_leaves_no_descriptor() -> None:
    Lock()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2000):
        Lock(), Semaphore(3)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 2
