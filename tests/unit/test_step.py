"""Steps of a thread, and the lock that knows who holds it."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from manycore._native.ring import SHIELD
from manycore._native.step import NESTED, Mutex, check_free, inside, postpone, wake_all


def test_who_holds_it_is_told_in_place_of_waiting() -> None:
    mutex = Mutex()
    with mutex:
        assert mutex.locked()
        assert inside()
        with pytest.raises(RuntimeError, match="handler of a signal"):
            mutex.acquire()
        with pytest.raises(RuntimeError), mutex:
            pass
        assert not mutex.acquire(False)
        with pytest.raises(RuntimeError, match=NESTED[:20]):
            check_free()
    assert not mutex.locked()
    assert not inside()
    check_free()


def test_another_thread_waits_for_it() -> None:
    mutex, began = Mutex(), threading.Event()
    order: list[str] = []

    def other() -> None:
        assert not mutex.acquire(False)
        began.set()
        with mutex:
            order.append("other")

    with mutex:
        thread = threading.Thread(target=other)
        thread.start()
        assert began.wait(30)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_only_its_holder_gives_it_back() -> None:
    mutex = Mutex()
    with pytest.raises(RuntimeError, match="not taken"):
        mutex.release()


def test_a_reentrant_one_is_taken_again() -> None:
    mutex = Mutex(reentrant=True)
    with mutex, mutex:
        assert inside()
        assert not inside(lent=False)
        with Mutex():
            assert inside(lent=False)
        assert mutex.acquire(False)
        mutex.release()
    assert not inside()
    assert not mutex.locked()


def test_one_that_is_dropped_while_it_is_held_leaves_no_step_behind() -> None:
    mutex = Mutex(reentrant=True)
    mutex.acquire()
    mutex.acquire()
    assert inside()
    del mutex
    assert not inside()
    with Mutex():
        assert inside(lent=False)


def test_what_is_postponed_is_called_in_order_when_the_outermost_step_ends() -> None:
    outer, inner = Mutex(), Mutex()
    called: list[str] = []

    def first() -> None:
        called.append("first")
        assert not inside()

    assert not postpone(first)
    with SHIELD, outer:
        with inner:
            assert postpone(first)
            assert postpone(lambda: called.append("second"))
        assert called == []
    assert called == ["first", "second"]
    with outer:
        pass
    assert called == ["first", "second"]


def test_it_is_called_in_the_thread_that_asked() -> None:
    mutex = Mutex()
    asked, other_done = threading.Event(), threading.Event()
    called: list[int] = []

    def other() -> None:
        with mutex:
            assert postpone(lambda: called.append(threading.get_ident()))
            asked.set()
            assert other_done.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    assert asked.wait(30)
    with Mutex():
        pass
    assert called == []
    other_done.set()
    thread.join()
    assert called == [thread.ident]


def test_an_error_of_what_was_postponed_is_told_and_the_rest_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    called: list[int] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: told.append(kind))

    def fail() -> None:
        raise ValueError

    with Mutex():
        postpone(fail)
        postpone(lambda: called.append(1))
    assert told == [ValueError]
    assert called == [1]


def test_an_exit_of_what_was_postponed_is_the_steps() -> None:
    called: list[int] = []

    def leave() -> None:
        raise SystemExit(3)

    mutex = Mutex()
    with pytest.raises(SystemExit), mutex:
        postpone(leave)
        postpone(lambda: called.append(1))
    assert not mutex.locked()
    with mutex:
        assert called == []
    assert called == [1]


def test_a_fork_is_in_no_step_of_its_parents() -> None:
    called: list[int] = []
    with Mutex():
        postpone(lambda: called.append(os.getpid()))
        pid = os.fork()
        if not pid:
            os._exit(bool(called) or inside())
    assert called == [os.getpid()]
    assert os.waitpid(pid, 0)[1] == 0


def test_a_handler_that_comes_while_it_is_waited_for_is_called() -> None:
    mutex, held, over = Mutex(), threading.Event(), threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: over.set())

    def hold() -> None:
        with mutex:
            held.set()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            assert over.wait(30)

    thread = threading.Thread(target=hold)
    try:
        thread.start()
        assert held.wait(30)
        with mutex:
            assert over.is_set()
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_all_waiters_of_a_condition_are_woken() -> None:
    condition = threading.Condition()
    locks = [threading.Lock() for _ in range(3)]
    for lock in locks[1:]:
        lock.acquire()
    waiters = condition._waiters  # type: ignore[attr-defined]
    waiters.extend(locks)
    wake_all(waiters)
    assert not waiters
    assert not any(lock.locked() for lock in locks)
