"""A cycle of waiting is reported, with names, by one of those who are in it."""

from __future__ import annotations

import os
import signal
import warnings
from typing import Any

import pytest

from manycore import DeadlockWarning, synchronize
from manycore._native import sync
from manycore._observe import deadlock
from manycore._observe.locks import Held, Owner, Waiter
from manycore.synchronize import Event, Lock, ReadWriteLock, RLock
from tests.unit.sync_parties import Party

PATIENCE = 30.0  # s; far longer than any of these waits


def void(_: object) -> None:
    """Forget a result."""


def cross(mine: Any, other: Any, go: Any, report: int, party: Party) -> bool:
    """Hold one, wait for the other; each warning goes into `report`; say that the lock is held, and looked at."""
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *_, **__: void(os.write(report, f"{message}\0".encode()))

    def look(cell: Any) -> None:
        synchronize._look_for_deadlock(cell)
        party.say()

    sync.on_long_wait(look)
    mine.acquire()
    party.say()
    go.wait(PATIENCE)
    other.acquire(timeout=PATIENCE)
    signal.pause()
    return False


def reports(locks: list[Any]) -> tuple[list[str], list[Party]]:
    """What the parties reported that each hold one lock and wait for the next one, once all have looked."""
    go = Event()
    read, write = os.pipe()
    following = [*locks[1:], locks[0]]
    parties = [Party(cross, one, other, go, write) for one, other in zip(locks, following, strict=True)]
    os.close(write)
    for party in parties:
        party.heard()
    go.set()
    for party in parties:
        party.heard()  # it has looked
    for party in parties:
        party.kill()
    with open(read, encoding="utf-8") as file:
        return file.read().split("\0")[:-1], parties


@pytest.mark.parametrize("kind", [Lock, RLock])
@pytest.mark.parametrize("count", [2, 3])
def test_one_of_those_in_a_deadlock_reports_it_with_all_names(kind: type[Lock], count: int) -> None:
    found, parties = reports([kind(name=f"account {index}") for index in range(count)])
    assert len(found) == 1
    assert found[0].startswith(f"deadlock of {count}: ")
    assert all(f"(pid {party.pid}, thread {party.pid} MainThread)" in found[0] for party in parties)
    assert all(f"{kind.__name__.lower()} 'account {index}'" in found[0] for index in range(count))


def test_a_thread_that_waits_for_itself_is_told_so() -> None:
    lock, go = Lock(name="mine"), Event()
    go.set()
    read, write = os.pipe()
    party = Party(cross, lock, lock, go, write)
    os.close(write)
    party.heard()
    party.heard()
    party.kill()
    with open(read, encoding="utf-8") as file:
        text = file.read()
    assert "waits for lock 'mine'" in text
    assert text.count("\0") == 1


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

        def look(cell: Any) -> None:
            synchronize._look_for_deadlock(cell)
            party.say()

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
