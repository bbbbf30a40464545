"""A cycle of waiting is reported, with names, by one of those who are in it."""

from __future__ import annotations

import os
import select
import signal
import time
import warnings
from typing import Any

import pytest

from manycore import DeadlockWarning, synchronize
from manycore._native import sync
from manycore._observe import deadlock
from manycore._observe.locks import Held, Owner, Waiter, lock_table
from manycore.synchronize import Event, Lock, ReadWriteLock, RLock
from tests.unit.sync_parties import Party

PATIENCE = 30.0  # s; far longer than any of these waits


def void(_: object) -> None:
    """Forget a result."""


def cross(mine: Any, other: Any, go: Any, report: int, party: Party) -> bool:
    """Hold one, wait for the other; each warning goes into `report`; say that the lock is held, and looked at."""
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *_, **__: void(os.write(report, f"{message}\0".encode()))

    def look(cell: Any) -> bool:
        told = synchronize._look_for_deadlock(cell)
        party.say()
        return told

    sync.on_long_wait(look)
    mine.acquire()
    party.say()
    go.wait(PATIENCE)
    other.acquire(timeout=PATIENCE)
    signal.pause()
    return False


def rest(read: int, parties: list[Party]) -> list[str]:
    """What the parties have reported: once there is a report, and each has looked since it was heard last."""
    if select.select([read], [], [], PATIENCE)[0]:
        for party in parties:
            party.heard()
    for party in parties:
        party.kill()
    with open(read, encoding="utf-8") as file:
        return file.read().split("\0")[:-1]


def reports(locks: list[Any]) -> tuple[list[str], list[Party]]:
    """What the parties reported that each hold one lock and wait for the next one."""
    go = Event()
    read, write = os.pipe()
    following = [*locks[1:], locks[0]]
    parties = [Party(cross, one, other, go, write) for one, other in zip(locks, following, strict=True)]
    os.close(write)
    for party in parties:
        party.heard()
    go.set()
    return rest(read, parties), parties


@pytest.mark.parametrize("kind", [Lock, RLock])
@pytest.mark.parametrize("count", [2, 3])
def test_one_of_those_in_a_deadlock_reports_it_with_all_names(kind: type[Lock], count: int) -> None:
    found, parties = reports([kind(name=f"account {index}") for index in range(count)])
    assert len(found) == 1
    assert found[0].startswith(f"deadlock of {count}: ")
    assert all(f"(pid {party.pid}, thread {party.pid} MainThread)" in found[0] for party in parties)
    assert all(f"{kind.__name__.lower()} 'account {index}'" in found[0] for index in range(count))


def test_a_member_whose_wait_is_not_recorded_when_all_look_is_reported_later() -> None:
    first, second, go = Lock(), Lock(), Event()
    read, write = os.pipe()
    members = [Party(cross, first, second, go, write), Party(cross, second, first, go, write)]
    os.close(write)
    for party in members:
        party.heard()
    place = (first.cell.segment.inode[1], first.cell.offset)
    crowd = [Party(lambda _: first.acquire(timeout=PATIENCE)) for _ in range(8)]
    while not any(held.place == place and len(held.waiters) == 8 for held in lock_table([os.getpid()])):
        time.sleep(0.001)  # polls other processes; they have all the records that there are
    go.set()
    for party in members:
        party.heard()  # it has looked, and saw no cycle
    assert select.select([read], [], [], 0)[0] == []
    for party in crowd:
        party.kill()
    assert len(rest(read, members)) == 1


def test_a_thread_that_waits_for_itself_is_told_so() -> None:
    lock, go = Lock(name="mine"), Event()
    go.set()
    read, write = os.pipe()
    party = Party(cross, lock, lock, go, write)
    os.close(write)
    party.heard()
    found = rest(read, [party])
    assert len(found) == 1
    assert "waits for lock 'mine'" in found[0]


def give_way(mine: Any, other: Any, go: Any, party: Party) -> bool:
    """True when the warning came as an error, or the other lock did."""
    warnings.simplefilter("error", DeadlockWarning)
    mine.acquire()
    party.say()
    go.wait(PATIENCE)
    try:
        taken = other.acquire(timeout=PATIENCE)
    except DeadlockWarning:
        mine.release()
        return not other._is_mine()
    return bool(taken)


def test_made_an_error_it_ends_the_deadlock() -> None:
    first, second, go = Lock(on_owner_death="acquire"), Lock(on_owner_death="acquire"), Event()
    parties = [Party(give_way, first, second, go), Party(give_way, second, first, go)]
    for party in parties:
        party.heard()
    go.set()
    assert [party.join() for party in parties] == [0, 0]


def test_a_long_wait_that_will_end_is_no_deadlock() -> None:
    lock, outer = Lock(), ReadWriteLock()
    lock.acquire()
    outer.acquire_write()

    def waits(party: Party) -> bool:
        warnings.simplefilter("error")

        looked = []

        def look(cell: Any) -> bool:
            told = synchronize._look_for_deadlock(cell)
            if cell not in looked:
                looked.append(cell)
                party.say()
            return told

        sync.on_long_wait(look)
        return lock.acquire(timeout=PATIENCE) and outer.acquire_read(timeout=PATIENCE)

    party = Party(waits)
    party.heard()
    lock.release()
    party.heard()
    outer.release_write()
    assert party.join() == 0


def test_a_chain_that_changes_between_two_looks_is_no_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Lock()
    lock.acquire()
    place = (lock.cell.segment.inode[1], lock.cell.offset)
    assert deadlock.text_of_deadlock(place) is None  # nobody is recorded as waiting
    held = Held(place, "lock", [], [])
    times = iter([1.0, 2.0])

    def chain(_: object) -> list[deadlock.Link]:
        waiter = Waiter(1, "a", 1, "b", 1.0, 5)
        return [deadlock.Link(waiter, held, Owner(1, "a", 1, "b", next(times), True))]

    monkeypatch.setattr(deadlock, "_cycle", chain)
    assert deadlock.text_of_deadlock(place) is None
    times = iter([1.0, 1.0])
    assert deadlock.text_of_deadlock(place) is not None


@pytest.mark.parametrize("began_ms", [(5, 9), (2**32 - 3, 1), (7, 7)])
def test_every_member_has_the_same_one_report(monkeypatch: pytest.MonkeyPatch, began_ms: tuple[int, int]) -> None:
    waiters = [Waiter(pid, "a", pid, "b", 1.0, since) for pid, since in zip([1, 2], began_ms, strict=True)]
    owners = [Owner(pid, "a", pid, "b", 1.0, True) for pid in [2, 1]]
    links = [
        deadlock.Link(waiter, Held((pid, 0), "lock"), owner)
        for pid, (waiter, owner) in enumerate(zip(waiters, owners, strict=True))
    ]
    monkeypatch.setattr(deadlock, "_cycle", lambda _: links)
    assert deadlock.text_of_deadlock((0, 0)) is None
    links.reverse()
    assert deadlock.text_of_deadlock((1, 0)) is not None
