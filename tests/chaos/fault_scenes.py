"""Scenes for `test_fault_points.py`: what a process does with each structure, over and over, until it is killed.

A step uses every operation of its structure. Partners and the victim take the same steps; each finished step of a
partner counts, so whether a death has blocked anybody is seen in the count.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from queue import Empty, Full
from threading import BrokenBarrierError
from typing import Any

import manycore

SIZES = (10, 40_000, 100_000)
PATIENCE_S = 5.0  # an operation that takes longer was blocked by the death
VICTIM_S = 4.0  # a point that was not passed in this time is not passed by this scene


def pause() -> None:
    """Load, and no synchronisation: longer than anybody spins, so that the others sleep."""
    time.sleep(0.0003)


def nothing() -> None:
    """A barrier's action."""


class Blocked(Exception):
    """An operation did not come to its end."""


def lock_step(lock: Any, shared: Any) -> None:
    with contextlib.suppress(manycore.OwnerDied):
        if not lock.acquire(timeout=PATIENCE_S):
            raise Blocked("lock")
    shared[0] += 1
    pause()
    lock.release()


def semaphore_step(semaphore: Any, signals: Any) -> None:
    if not semaphore.acquire(timeout=PATIENCE_S):
        raise Blocked("semaphore")
    pause()
    semaphore.release()
    signals.release()
    signals.acquire(timeout=0.01)


def event_step(event: Any) -> None:
    event.wait(0.002)
    event.set()
    event.wait(0.002)
    event.clear()


def condition_step(condition: Any) -> None:
    with contextlib.suppress(manycore.OwnerDied):
        if not condition.acquire(timeout=PATIENCE_S):
            raise Blocked("condition")
    condition.notify()
    with contextlib.suppress(manycore.OwnerDied):  # the lock is held then, too
        condition.wait(0.004)
    condition.notify_all()
    condition.release()


def barrier_step(barrier: Any) -> None:
    try:
        barrier.wait(0.3)
    except BrokenBarrierError:
        with contextlib.suppress(BrokenBarrierError):
            barrier.reset()


def rwlock_step(rwlock: Any) -> None:
    for take, give in ((rwlock.acquire_read, rwlock.release_read), (rwlock.acquire_write, rwlock.release_write)):
        with contextlib.suppress(manycore.OwnerDied):
            if not take(timeout=PATIENCE_S):
                raise Blocked("rwlock")
        pause()
        give()


def queue_step(queue: Any) -> None:
    for size in SIZES:
        with contextlib.suppress(Full):
            queue.put(bytes([size % 251]) * size, timeout=0.01)
    for _ in SIZES:
        with contextlib.suppress(Empty):
            item = queue.get(timeout=0.01)
            queue.task_done()
            if item != bytes([len(item) % 251]) * len(item):
                raise Blocked("a broken item")


def broadcast_step(channel: Any) -> None:
    with channel.subscribe() as receiver:
        for number in range(8):  # more than it holds: the oldest go, and the receiver has to find its place
            with contextlib.suppress(Full):
                channel.send(number, timeout=0.01)
        for _ in range(4):
            with contextlib.suppress(Empty):
                receiver.recv(timeout=0.01)


# structure -> (its step, what makes its objects)
SCENES: dict[str, tuple[Callable[..., None], Callable[[], tuple[Any, ...]]]] = {
    "lock": (lock_step, lambda: (manycore.Lock(), manycore.SharedArray(1, int))),
    "semaphore": (semaphore_step, lambda: (manycore.Semaphore(1), manycore.Semaphore(0))),
    "gate": (semaphore_step, lambda: (manycore.Semaphore(1), manycore.Semaphore(0))),
    "event": (event_step, lambda: (manycore.Event(),)),
    "condition": (condition_step, lambda: (manycore.Condition(),)),
    "barrier": (barrier_step, lambda: (manycore.Barrier(2, nothing),)),
    "rwlock": (rwlock_step, lambda: (manycore.ReadWriteLock(),)),
    "queue": (queue_step, lambda: (manycore.JoinableQueue(4),)),
    "broadcast": (broadcast_step, lambda: (manycore.broadcast(4, slow="drop-oldest"),)),
}


def be_victim(structure: str, objects: tuple[Any, ...], plan: str) -> None:
    step, _ = SCENES[structure]
    os.environ.pop("MANYCORE_FAULT", None)  # its parent's
    step(*objects)
    os.environ["MANYCORE_FAULT"] = plan
    end = time.monotonic() + VICTIM_S
    while time.monotonic() < end:
        step(*objects)


def be_repairer(structure: str, objects: tuple[Any, ...], before: str, plan: str) -> None:
    """A victim whose child is killed before it: it hears of that first, and repairs, or does in its first step."""
    child = manycore.Process(target=be_victim, args=(structure, objects, before))
    os.environ["MANYCORE_FAULT"] = plan  # before the child can die: another thread of this process hears of it, too
    child.start()
    child.join()
    if structure == "queue":
        with contextlib.suppress(Empty):
            while True:
                objects[0].get(timeout=0.01)
                objects[0].task_done()
        with contextlib.suppress(manycore.ManycoreError):
            objects[0].join()
    SCENES[structure][0](*objects)


def take_over(objects: tuple[Any, ...], plan: str) -> None:
    os.environ["MANYCORE_FAULT"] = plan
    lock_step(*objects)


def be_waiter(condition: Any, count: Any, plan: str) -> None:
    os.environ["MANYCORE_FAULT"] = plan
    with contextlib.suppress(manycore.OwnerDied):
        condition.acquire()
    woken = True
    with contextlib.suppress(manycore.OwnerDied):
        woken = condition.wait(20)
    if not woken:
        raise Blocked("condition")
    count[0] += 1
    condition.release()


def be_caller(end: Any, plan: str) -> None:
    """Sends large messages through a connection, and has them back."""
    os.environ["MANYCORE_FAULT"] = plan
    for number in range(1000):
        end.send_bytes(bytes([number % 251]) * 300_000)
        end.recv_bytes()


def be_partner(structure: str, objects: tuple[Any, ...], count: Any, index: int) -> None:
    step, _ = SCENES[structure]
    while True:
        step(*objects)
        count[index] += 1


# ---- a pool


def arm(token: str, plan: str) -> None:
    """An initializer: one worker of the pool, the first to take the token, is the victim."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(token, os.O_CREAT | os.O_EXCL))
        os.environ["MANYCORE_FAULT"] = plan


def double(value: Any) -> Any:
    """A small value, or an array that is this worker's own."""
    return value + value


def long_answer(size: int) -> bytes:
    return b"x" * size
