"""Conditions, events and barriers: meaning, waiters that die, sending, signals."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from threading import BrokenBarrierError
from typing import Any

import pytest

from manycore.errors import OwnerDied
from manycore.synchronize import Barrier, Condition, Event, Lock, RLock
from tests.unit.sync_parties import Party

NOTICE_S = 1.0


def test_an_event_is_set_and_cleared() -> None:
    event = Event()
    assert not event.is_set()
    assert event.wait(0.01) is False
    event.set()
    event.set()
    assert event.is_set()
    assert event.wait() is True
    assert "set>" in repr(event)
    event.clear()
    assert not event.is_set()
    assert "unset>" in repr(event)


def test_an_event_wakes_all_even_if_cleared_at_once() -> None:
    event = Event()
    parties = [Party(lambda _: event.wait(20)) for _ in range(3)]
    for party in parties:
        party.sleeps()
    event.set()
    event.clear()
    assert [party.join() for party in parties] == [0, 0, 0]


def test_a_dead_waiter_hinders_no_event() -> None:
    event = Event()
    parties = [Party(lambda _: event.wait(20)) for _ in range(3)]
    for party in parties:
        party.sleeps()
    parties[0].kill()
    began = time.monotonic()
    event.set()
    assert time.monotonic() - began < NOTICE_S
    assert [party.join() for party in parties[1:]] == [0, 0]


def wait_on(condition: Condition, timeout: float, party: Party) -> bool:
    with condition:
        party.say()
        return condition.wait(timeout)


def waiting_on(condition: Condition, count: int, timeout: float = 20) -> list[Party]:
    """Parties that wait on the condition, in the order of the list."""
    parties = []
    for _ in range(count):
        party = Party(wait_on, condition, timeout)
        party.heard()
        with condition:  # it has released the lock: it waits
            pass
        parties.append(party)
    assert condition._sleepers() == count
    return parties


@pytest.mark.parametrize("lock", [None, Lock, RLock])
def test_notify_wakes_as_many_as_meant_and_the_oldest_first(lock: type[Lock] | None) -> None:
    condition = Condition(lock() if lock else None)
    parties = waiting_on(condition, 4)
    with condition:
        condition.notify(2)
    assert [party.join() for party in parties[:2]] == [0, 0]
    assert condition._sleepers() == 2
    with condition:
        condition.notify_all()
    assert [party.join() for party in parties[2:]] == [0, 0]
    assert condition._sleepers() == 0


def test_a_wait_times_out_and_a_late_comer_takes_nothing() -> None:
    condition = Condition()
    with condition:
        condition.notify()  # nobody waits: it is not kept
        began = time.monotonic()
        assert condition.wait(0.05) is False
        assert time.monotonic() - began >= 0.05
        assert condition.wait_for(lambda: 0, timeout=0.01) == 0
        assert condition.wait_for(lambda: "yes") == "yes"


def test_the_lock_is_demanded() -> None:
    condition = Condition()
    for call in (condition.wait, condition.notify, condition.notify_all):
        with pytest.raises(AssertionError):
            call()


def test_a_wait_releases_a_recursive_lock_as_a_whole() -> None:
    condition = Condition()
    condition.acquire()
    condition.acquire()
    done: list[bool] = []

    def notify() -> None:
        with condition:
            condition.notify()
            done.append(True)

    thread = threading.Thread(target=notify)
    thread.start()
    assert condition.wait(20)
    thread.join()
    assert done
    assert condition._lock._count() == 2
    condition.release()
    condition.release()


def test_a_notification_is_not_lost_on_a_dead_waiter() -> None:
    condition = Condition()
    first, second, third = waiting_on(condition, 3)
    first.kill()
    began = time.monotonic()
    with condition:
        condition.notify()
    assert second.join() == 0
    assert time.monotonic() - began < NOTICE_S
    with condition:
        condition.notify()
    assert third.join() == 0


def test_the_signal_of_a_dead_waiter_is_not_for_those_who_come_later() -> None:
    condition = Condition()
    (first,) = waiting_on(condition, 1)
    first.kill()
    with condition:
        condition.notify()
        assert condition.wait(0.2) is False


def test_more_waiters_than_slots() -> None:
    condition = Condition()
    count, woken = 130, []

    def wait() -> None:
        with condition:
            if condition.wait(20):
                woken.append(True)

    threads = [threading.Thread(target=wait) for _ in range(count)]
    for thread in threads:
        thread.start()
    while condition._sleepers() < 120:
        time.sleep(0.001)  # polls threads that are on their way
    with condition:
        condition.notify_all()
    deadline = time.monotonic() + 20
    while len(woken) < count and time.monotonic() < deadline:
        with condition:  # those that came after the first round
            condition.notify_all()
    for thread in threads:
        thread.join()
    assert len(woken) == count


def test_the_lock_of_a_condition_survives_its_owner() -> None:
    condition = Condition()

    def die_with_it(party: Party) -> None:
        condition.acquire()
        party.say()
        signal.pause()

    party = Party(die_with_it)
    party.heard()
    party.kill()
    with pytest.raises(OwnerDied), condition:
        pass
    with condition:
        condition.notify()


def test_a_wait_returns_with_the_lock_after_a_handler_raised() -> None:
    class Ring(Exception):
        pass

    def handler(signum: int, frame: object) -> None:
        raise Ring

    condition = Condition()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with condition:
            with pytest.raises(Ring):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                condition.wait()
            assert condition._lock._is_mine()
        assert condition._sleepers() == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def meet(barrier: Barrier, rounds: int, party: Party) -> bool:
    return sorted(barrier.wait(20) for _ in range(rounds)) is not None


def test_a_barrier_lets_all_go_at_once_again_and_again() -> None:
    barrier = Barrier(3)
    indices: list[int] = []

    def run() -> None:
        indices.extend([barrier.wait(20) for _ in range(50)])

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(indices) == sorted([0, 1, 2] * 50)
    assert barrier.n_waiting == 0
    assert barrier.parties == 3


def test_a_barrier_of_processes_with_an_action() -> None:
    done = Event()
    barrier = Barrier(2, action=done.set)
    party = Party(meet, barrier, 1)
    barrier.wait(20)
    assert done.is_set()
    assert party.join() == 0
    assert "waiters=0/2" in repr(barrier)


def test_a_barrier_breaks_by_timeout_abort_reset_and_action() -> None:
    barrier = Barrier(2)
    with pytest.raises(BrokenBarrierError):
        barrier.wait(0.01)
    assert barrier.broken
    with pytest.raises(BrokenBarrierError):
        barrier.wait()
    barrier.reset()
    assert "waiters=0/2" in repr(barrier)
    for end in (barrier.abort, barrier.reset):
        failed: list[bool] = []

        def run(failed: list[bool] = failed) -> None:
            with pytest.raises(BrokenBarrierError):
                barrier.wait(20)
            failed.append(True)

        thread = threading.Thread(target=run)
        thread.start()
        while barrier.n_waiting == 0:
            time.sleep(0.001)  # polls a thread that is on its way
        end()
        thread.join()
        assert failed
        barrier.reset()

    def bad() -> None:
        raise ArithmeticError

    single = Barrier(1, action=bad)
    with pytest.raises(ArithmeticError):
        single.wait()
    assert single.broken


def test_a_waiter_that_died_counts_as_arrived() -> None:
    barrier = Barrier(2)
    party = Party(meet, barrier, 1)
    while barrier.n_waiting == 0:
        time.sleep(0.001)  # polls a process that is on its way
    party.kill()
    began = time.monotonic()
    barrier.wait(20)
    assert time.monotonic() - began < NOTICE_S


def round_then_wait(barrier: Barrier, party: Party) -> None:
    barrier.wait(20)
    party.say()
    signal.pause()


def test_a_barrier_breaks_when_a_known_party_is_killed() -> None:
    barrier = Barrier(2)
    party = Party(round_then_wait, barrier)
    barrier.wait(20)
    party.heard()
    party.kill()
    began = time.monotonic()
    with pytest.raises(BrokenBarrierError):
        barrier.wait(20)
    assert time.monotonic() - began < NOTICE_S


def test_a_barrier_whose_parties_change_waits_for_those_who_come() -> None:
    barrier = Barrier(2)
    for _ in range(3):
        pair = [Party(meet, barrier, 1), Party(meet, barrier, 1)]
        assert [party.join() for party in pair] == [0, 0]
    patient = Barrier(2, on_party_death="wait")
    party = Party(round_then_wait, patient)
    patient.wait(20)
    party.heard()
    party.kill()
    with pytest.raises(BrokenBarrierError):
        patient.wait(0.3)  # by the timeout
    with pytest.raises(ValueError, match="on_party_death"):
        Barrier(2, on_party_death="panic")


def test_enrolled_parties_are_known_before_their_first_wait() -> None:
    barrier = Barrier(2)

    def enroll(party: Party) -> None:
        barrier.enroll()
        party.say()
        signal.pause()

    party = Party(enroll)
    party.heard()
    party.kill()
    with pytest.raises(BrokenBarrierError):
        barrier.wait(20)


def test_a_barrier_breaks_when_its_actor_dies() -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    barrier = Barrier(2, action=die)
    party = Party(lambda _: barrier.wait(20))
    while barrier.n_waiting == 0:
        time.sleep(0.001)  # the party has arrived: it is not the actor
    actor = Party(lambda _: barrier.wait(20))
    assert actor.join() == -signal.SIGKILL
    assert party.join() == 1
    assert barrier.broken


def test_wrong_numbers_of_parties() -> None:
    for parties in (0, -1, 1 << 20):
        with pytest.raises(ValueError, match="parties"):
            Barrier(parties)


@pytest.mark.parametrize("make", [Event, Condition, lambda: Barrier(2), lambda: Condition(Lock())])
def test_sent_to_a_process_that_runs_already(make: Any) -> None:
    thing = make()
    code = """
import pickle, sys
thing = pickle.load(sys.stdin.buffer)
if hasattr(thing, "set"):
    thing.set()
elif hasattr(thing, "notify"):
    with thing:
        thing.notify_all()
else:
    thing.abort()
"""
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(thing), timeout=30, check=True)
    if isinstance(thing, Event):
        assert thing.is_set()
    elif isinstance(thing, Barrier):
        assert thing.broken
