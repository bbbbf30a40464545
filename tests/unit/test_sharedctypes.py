"""Values, arrays, atomics and the lock of readers and writers: meaning, death, sending."""

from __future__ import annotations

import ctypes
import io
import math
import multiprocessing
import pickle
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest

import manycore
from manycore.errors import OwnerDied
from manycore.sharedctypes import Array, Atomic, RawArray, RawValue, Value, copy, synchronized
from manycore.synchronize import Lock, ReadWriteLock
from tests.unit.sync_parties import Party


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_double), ("y", ctypes.c_double)]


def through_pickle(obj: Any) -> Any:
    file = io.BytesIO()
    ForkingPickler(file).dump(obj)
    return pickle.loads(file.getvalue())


def test_values_and_arrays_are_shared_with_a_child() -> None:
    value, array, raw = Value("i", 3), Array("d", [1.0, 2.0]), RawArray("i", 4)
    point, text = Value(Point, 1.0, 2.0), Array("c", b"hello")

    def change(party: Party) -> bool:
        value.value += 1
        array[1] = 7.0
        raw[:] = [1, 2, 3, 4]
        point.x = 5.0
        text.value = b"bye"
        return True

    assert Party(change).join() == 0
    assert value.value == 4
    assert list(array) == [1.0, 7.0]
    assert list(raw) == [1, 2, 3, 4]
    assert (point.x, point.y) == (5.0, 2.0)
    assert text.value == b"bye"
    assert text.raw == b"bye\0o"


def test_sent_objects_are_the_same_memory() -> None:
    value, array, raw = Value("q", 1), Array("i", 10), RawValue("d", 2.5)
    value2, array2, raw2 = through_pickle((value, array, raw))
    value2.value = 9
    array2[3] = 4
    raw2.value = 1.5
    assert (value.value, array[3], raw.value) == (9, 4, 1.5)
    by_plain_pickle = pickle.loads(pickle.dumps(value))
    by_plain_pickle.value = 11
    assert value.value == 11
    local = through_pickle(ctypes.c_longlong(5))  # a type that is shared elsewhere; this object is not
    assert local.value == 5


def test_sent_to_a_process_that_runs_already() -> None:
    value, atomic = Value("i", 1), Atomic(1)
    code = "import pickle, sys; v, a = pickle.load(sys.stdin.buffer); v.value += 4; a.add(5)"
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps((value, atomic)), timeout=30, check=True)
    assert value.value == 5
    assert atomic.load() == 6


def test_the_standard_librarys_objects_of_the_same_type_keep_working() -> None:
    theirs, ours = multiprocessing.RawValue("h", 2), RawValue("h", 1)
    through_pickle(ours).value = 3
    with pytest.raises(RuntimeError, match="inheritance"):
        through_pickle(theirs)
    assert (ours.value, theirs.value) == (3, 2)


def test_copies_and_large_arrays() -> None:
    original = RawArray("d", 100_000)
    original[99_999] = 1.0
    other = copy(original)
    assert other[99_999] == 1.0
    other[0] = 2.0
    assert original[0] == 0.0
    assert len(RawArray("i", 0)) == 0


def test_locks_of_values() -> None:
    lock = Lock()
    assert Value("i", 0, lock=lock).get_lock() is lock
    assert not hasattr(Value("i", 0, lock=False), "get_lock")
    with pytest.raises(AttributeError, match="acquire"):
        Value("i", 0, lock="no")
    value = synchronized(RawValue("i", 1))
    with value.get_lock():
        value.value += 1
    with value:
        assert value.get_obj().value == 2
    with pytest.raises(AssertionError):
        synchronized(value)
    standard = multiprocessing.RLock()
    other = Value("i", 0, lock=standard)
    with other.get_lock():
        other.value += 1
    assert other.value == 1


def test_the_next_to_use_a_value_learns_of_a_death() -> None:
    value = Value("i", 0)

    def hold(party: Party) -> None:
        value.acquire()
        party.say()
        signal.pause()

    party = Party(hold)
    party.heard()
    party.kill()
    with pytest.raises(OwnerDied):
        _ = value.value
    value.value = 3
    assert value.value == 3


def test_atomics_lose_nothing() -> None:
    atomic = Atomic(0)

    def add(party: Party) -> bool:
        for _ in range(20_000):
            atomic.add()
        return True

    parties = [Party(add) for _ in range(3)]
    assert [party.join() for party in parties] == [0, 0, 0]
    assert atomic.load() == 60_000


def test_atomic_integers() -> None:
    atomic = Atomic(5)
    assert atomic.add(3) == 8
    assert atomic.sub(10) == -2
    assert atomic.exchange(7) == -2
    assert atomic.compare_exchange(7, 1) is True
    assert atomic.compare_exchange(7, 2) is False
    assert atomic.max(10) == 10
    assert atomic.max(3) == 10
    assert atomic.min(4) == 4
    atomic.store((1 << 63) - 1)
    assert atomic.add(1) == -(1 << 63)
    assert repr(atomic) == f"Atomic({-(1 << 63)})"
    with pytest.raises(OverflowError):
        atomic.store(1 << 63)
    with pytest.raises(TypeError):
        atomic.add(1.5)
    atomic.value = 3
    assert atomic.value == 3


def test_atomic_floats_and_booleans() -> None:
    real = Atomic(1.5)
    assert real.add(2) == 3.5
    assert real.sub(0.5) == 3.0
    assert real.max(10.0) == 10.0
    assert real.min(2) == 2.0
    assert real.exchange(math.pi) == 2.0
    assert real.compare_exchange(math.pi, 0.0)
    flag = Atomic(False)
    assert flag.exchange(True) is False
    assert flag.load() is True
    with pytest.raises(TypeError, match="arithmetic"):
        flag.add(1)
    assert through_pickle(flag).load() is True


def test_waiting_for_an_atomic() -> None:
    atomic = Atomic(0)
    assert atomic.wait(while_=1) is True
    assert atomic.wait(0, timeout=0.01) is False

    def wait(party: Party) -> bool:
        return bool(atomic.wait(while_=0, timeout=20))

    parties = [Party(wait) for _ in range(3)]
    for party in parties:
        party.sleeps()
    atomic.store(1)
    assert [party.join() for party in parties] == [0, 0, 0]


def test_readers_share_and_writers_do_not() -> None:
    lock = ReadWriteLock()
    with lock.read(), lock.read():
        assert not lock.acquire_write(timeout=0.01)
        assert "readers=2" in repr(lock)
    with lock.write():
        assert not lock.acquire_read(timeout=0.01)
        assert not lock.acquire_write(timeout=0.01)
        owner = lock.owner()
        assert owner is not None
        assert owner.alive
    assert lock.acquire_read(timeout=0)
    lock.release_read()
    with pytest.raises(ValueError, match="does not hold"):
        lock.release_read()
    with pytest.raises(ValueError, match="nobody"):
        lock.release_write()


def test_a_writer_is_not_starved_by_readers() -> None:
    lock = ReadWriteLock()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            with lock.read():
                pass

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert lock.acquire_write(timeout=20)
            lock.release_write()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("side", ["read", "write"])
def test_dead_readers_and_writers_hinder_nobody(side: str) -> None:
    lock = ReadWriteLock()

    def hold(party: Party) -> None:
        getattr(lock, f"acquire_{side}")()
        party.say()
        signal.pause()

    def died() -> None:
        party = Party(hold)
        party.heard()
        party.kill()

    for other in ("read", "write"):
        died()
        began = time.monotonic()
        if side == "write":
            with pytest.raises(OwnerDied):
                getattr(lock, f"acquire_{other}")(timeout=20)
        else:
            assert getattr(lock, f"acquire_{other}")(timeout=20)
        assert time.monotonic() - began < 1
        getattr(lock, f"release_{other}")()
    assert lock.acquire_write(timeout=5)


def test_writers_exclude_each_other_and_readers() -> None:
    lock, pair = ReadWriteLock(), RawArray("q", 2)

    def write(party: Party) -> bool:
        for _ in range(500):
            with lock.write():
                pair[0] += 1
                pair[1] += 1
        return True

    def read(party: Party) -> bool:
        for _ in range(500):
            with lock.read():
                if pair[0] != pair[1]:
                    return False
        return True

    parties = [Party(write), Party(write), Party(read), Party(read)]
    assert [party.join() for party in parties] == [0, 0, 0, 0]
    assert list(pair) == [1000, 1000]
    assert through_pickle(lock)._readers() == 0


@pytest.mark.parametrize("code", ["i", "I", "l", "L", "q", "Q", "d", "h", "B", "f"])
def test_numbers_behind_a_lock_are_converted_and_refused_as_ctypes_does(code: str) -> None:
    value, plain = Value(code, 0), RawValue(code)
    for number in (0, 1, -1, 2**31, 2**32 + 7, 2**63, 2**64 + 5, -(2**70), True, 1.5, "x", None):
        errors = []
        for target in (value, plain):
            try:
                target.value = number
            except (TypeError, OverflowError) as error:
                errors.append(type(error))
        assert len(set(errors)) < 2, number
        assert len(errors) != 1, number
        assert value.value == plain.value == value.get_obj().value, number
        assert type(value.value) is type(plain.value)


def test_a_number_behind_a_lock_follows_its_object() -> None:
    value, other = Value("i", 1), RawValue("i", 7)
    value._obj = other
    assert value.value == 7
    value.value = 8
    assert other.value == 8


def test_contexts_make_atomics_and_locks_of_readers_and_writers() -> None:
    context = manycore.get_context("spawn")
    assert context.Atomic(3).add(4) == 7
    lock = context.ReadWriteLock(on_owner_death="acquire")
    with lock.read(), lock.read():
        assert not lock.acquire_write(timeout=0)
