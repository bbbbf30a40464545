"""Deaths of those who hold things, as their parent hears of them and as those who wait find out by themselves."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

import pytest

import manycore
from manycore._native import sync
from manycore.errors import OwnerDied
from manycore.synchronize import Barrier, BrokenBarrierError, Lock, ReadWriteLock, RLock, Semaphore
from tests.unit.sync_parties import Party

BURIED = 1 << 29  # MC_OWNER_DEAD of owner.h


def word(lock: Any) -> int:
    return int.from_bytes(lock.cell.buffer[8:16], "little")


def hold(lock: Any, ready: Any) -> None:
    lock.acquire()
    ready.set()
    signal.pause()


def test_the_reaper_marks_what_a_child_held_before_its_join_returns() -> None:
    lock, untouched, ready = Lock(), Lock(), manycore.Event()
    process = manycore.Process(target=hold, args=(lock, ready))
    process.start()
    assert ready.wait(30)
    process.kill()
    process.join()
    assert word(lock) & BURIED
    assert word(untouched) == 0
    with pytest.raises(OwnerDied) as caught:
        lock.acquire(block=False)
    assert caught.value.owner_pid == process.pid
    assert not word(lock) & BURIED


# Each party cannot open /proc and its holder is never reaped, so it cannot find out by itself.


def blind() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def take_lock(lock: Lock, party: Party) -> bool:
    blind()
    party.say()
    try:
        lock.acquire()
    except OwnerDied:
        lock.release()
        return True
    return False


def take_permit(sem: Semaphore, party: Party) -> bool:
    blind()
    party.say()
    return sem.acquire()


def write(lock: ReadWriteLock, party: Party) -> bool:
    blind()
    party.say()
    try:
        return lock.acquire_write()
    except OwnerDied:
        return True


def read(lock: ReadWriteLock, party: Party) -> bool:
    blind()
    party.say()
    try:
        lock.acquire_read()
    except OwnerDied:
        return True
    return False


def meet(barrier: Barrier, party: Party) -> bool:
    barrier.enroll()
    blind()
    party.say()
    try:
        barrier.wait()
    except BrokenBarrierError:
        return True
    return False


CASES: dict[str, tuple[Any, Any, Any]] = {
    "lock": (Lock, lambda thing: thing.acquire(), take_lock),
    "rlock": (RLock, lambda thing: thing.acquire(), take_lock),
    "semaphore": (lambda: Semaphore(1), lambda thing: thing.acquire(), take_permit),
    "writer, then a writer": (ReadWriteLock, lambda thing: thing.acquire_write(), write),
    "writer, then a reader": (ReadWriteLock, lambda thing: thing.acquire_write(), read),
    "reader, then a writer": (ReadWriteLock, lambda thing: thing.acquire_read(), write),
    "barrier": (lambda: Barrier(2), lambda thing: thing.enroll(), meet),
}


@pytest.mark.parametrize("case", CASES)
def test_those_who_cannot_see_the_death_themselves_go_on_when_the_parent_has_heard_of_it(case: str) -> None:
    make, occupy, wait = CASES[case]
    thing = make()

    def occupies(party: Party) -> bool:
        occupy(thing)
        party.say()
        signal.pause()
        return False

    holder = Party(occupies)
    holder.heard()
    waiter = Party(wait, thing)
    waiter.heard()
    waiter.sleeps()
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
    sync.bury(holder.pid)
    assert waiter.join() == 0
    assert holder.join() == -signal.SIGKILL
