"""Who holds what and who waits for whom, read from outside; deadlocks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from manycore._native import sync
from manycore._observe.locks import Held, deadlocks, lock_table, report
from manycore.synchronize import Event, Lock, RLock, Semaphore
from tests.unit.sync_parties import Party


def place(thing: Any) -> tuple[int, int]:
    return thing.cell.segment.inode[1], thing.cell.offset


def until(ready: Callable[[], Any]) -> Any:
    end = time.monotonic() + 20
    while not (found := ready()):
        assert time.monotonic() < end
        time.sleep(0.01)  # polls what other processes write
    return found


def of(thing: Any) -> Held | None:
    return next((held for held in lock_table() if held.place == place(thing)), None)


def test_a_held_lock_and_its_waiters_are_in_the_table() -> None:
    lock = RLock(name="the accounts of all the branches")
    assert lock.name == "the accounts of all the "
    assert of(lock) is None
    lock.acquire()

    def wait(_: Party) -> bool:
        return lock.acquire(timeout=20)

    party = Party(wait)
    held = until(lambda: (found := of(lock)) and found.waiters and found)
    assert held.kind == "rlock"
    assert str(held).startswith("rlock 'the accounts of all the ' (")
    assert [owner.pid for owner in held.owners] == [os.getpid()]
    assert held.owners[0].thread == threading.get_native_id()
    assert [waiter.pid for waiter in held.waiters] == [party.pid]
    assert any(f"{held}: held by" in line for line in report())
    lock.release()
    assert party.join() == 0


def test_a_dead_waiter_is_not_shown() -> None:
    lock = Lock()
    with lock:
        party = Party(lambda _: lock.acquire(timeout=20))
        until(lambda: (found := of(lock)) and found.waiters)
        party.kill()
        held = of(lock)
        assert held is not None
        assert held.waiters == []


def test_a_descriptor_that_goes_before_it_is_opened_hides_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks has a segment open for a moment, under any number: another who looks then must not rely on that one."""
    lock = Lock()
    spare = os.dup(lock.cell.segment.fd)
    really, gone = os.open, list[str]()

    def once_gone(path: str, flags: int) -> int:
        if os.stat(path).st_ino == place(lock)[0] and not gone:
            gone.append(path)
            raise FileNotFoundError(path)
        return really(path, flags)

    with lock:
        monkeypatch.setattr(os, "open", once_gone)
        try:
            assert place(lock) in [held.place for held in lock_table([os.getpid()])]
        finally:
            monkeypatch.undo()
            os.close(spare)
    assert gone


def test_semaphores_and_events_show_who_waits() -> None:
    sem, event = Semaphore(1), Event()
    sem.acquire()
    parties = [Party(lambda _: sem.acquire(timeout=20)), Party(lambda _: event.wait(20))]
    held = until(lambda: (found := of(sem)) and found.waiters and found)
    assert [owner.pid for owner in held.owners] == [os.getpid()]
    until(lambda: (found := of(event)) and found.waiters)
    sem.release()
    event.set()
    assert [party.join() for party in parties] == [0, 0]


def test_a_cycle_of_waiting_is_a_deadlock_with_names() -> None:
    first, second, go = Lock(), Lock(), Event()

    def cross(one: Lock, other: Lock, party: Party) -> None:
        sync.on_long_wait(None)
        one.acquire()
        party.say()
        go.wait(20)
        other.acquire(timeout=40)
        signal.pause()

    parties = [Party(cross, first, second), Party(cross, second, first)]
    for party in parties:
        party.heard()
    go.set()
    pids = {party.pid for party in parties}
    cycle = until(lambda: [c for c in deadlocks(lock_table()) if {waiter.pid for waiter, _ in c} == pids])[0]
    assert {held.place for _, held in cycle} == {place(first), place(second)}
    text = "\n".join(report())
    assert "DEADLOCK of 2" in text
    assert all(f"pid {pid}" in text for pid in pids)
    for party in parties:
        party.kill()
    assert not [c for c in deadlocks(lock_table()) if {waiter.pid for waiter, _ in c} & pids]


def test_a_thread_that_waits_for_itself_is_a_deadlock() -> None:
    lock = Lock()

    def twice(_: Party) -> None:
        sync.on_long_wait(None)
        lock.acquire()
        lock.acquire(timeout=40)

    party = Party(twice)
    until(lambda: [c for c in deadlocks(lock_table()) if [waiter.pid for waiter, _ in c] == [party.pid]])
    party.kill()
