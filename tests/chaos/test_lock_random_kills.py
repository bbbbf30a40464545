"""Users of every primitive, killed at random instants through Python: the living are never stuck, nor two inside.

MANYCORE_CHAOS_RUNS=10000 kills so many. `tests/native/kill_sync.c` does the same without the interpreter, and at each
named step.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import pytest

from manycore._native import sync
from manycore.errors import OwnerDied
from manycore.sharedctypes import Atomic, RawArray
from manycore.synchronize import BoundedSemaphore, Condition, Event, Lock, ReadWriteLock, RLock
from tests.unit.sync_parties import Party

KILLS = int(os.environ.get("MANYCORE_CHAOS_RUNS", "150"))
LIMIT_S = 1.0  # that a death may block anybody
SLACK = 5  # times that, on a machine that is busy with other things
PERMITS = 2


class Broken(Exception):
    """A promise was broken."""


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rsplit(b")", 1)[1].split()[0] not in {b"Z", b"X"}  # X while it is being reaped
    except OSError:
        return False


class Scene:
    """What all share."""

    def __init__(self) -> None:
        self.lock, self.rlock, self.outer = Lock(), RLock(), ReadWriteLock()
        self.sem, self.condition, self.event = BoundedSemaphore(PERMITS), Condition(Lock()), Event()
        self.inside = RawArray("q", 3)  # the pid that is inside the lock, the recursive lock, the writer's side
        self.over, self.told = Event(), Atomic(0)

    def exclusively(self, lock: Any, index: int, levels: int) -> None:
        try:
            lock.acquire()
        except OwnerDied:
            self.told.add()
            self.inside[index] = 0
        for _ in range(levels - 1):
            lock.acquire()
        if self.inside[index]:
            raise Broken(f"{self.inside[index]} is inside, or died inside and nobody was told")
        self.inside[index] = os.getpid()
        sum(range(200))
        if self.inside[index] != os.getpid():
            raise Broken("somebody came in")
        self.inside[index] = 0
        for _ in range(levels):
            lock.release()

    def read(self) -> None:
        try:
            self.outer.acquire_read()
        except OwnerDied:
            self.told.add()
        if self.inside[2] and is_alive(self.inside[2]):
            raise Broken("a reader beside a writer")
        self.outer.release_read()

    def write(self) -> None:
        try:
            self.outer.acquire_write()
        except OwnerDied:
            self.told.add()
        if self.inside[2] and is_alive(self.inside[2]):
            raise Broken("two writers")
        self.inside[2] = os.getpid()
        sum(range(200))
        if self.inside[2] != os.getpid():
            raise Broken("somebody came in to write")
        self.inside[2] = 0
        self.outer.release_write()

    def permit(self) -> None:
        with self.sem:
            sum(range(200))

    def signal(self) -> None:
        try:
            self.condition.acquire()
        except OwnerDied:
            self.told.add()
        self.condition.notify()
        self.condition.release()

    def wait(self) -> None:
        try:
            self.condition.acquire()
        except OwnerDied:
            self.told.add()
        try:
            self.condition.wait(0.002)
        except OwnerDied:
            self.told.add()
        self.condition.release()

    def announce(self) -> None:
        self.event.set()
        self.event.clear()

    def listen(self) -> None:
        self.event.wait(0.001)

    def step(self, rng: random.Random) -> None:
        rng.choice(
            [
                lambda: self.exclusively(self.lock, 0, 1),
                lambda: self.exclusively(self.rlock, 1, 2),
                self.read,
                self.write,
                self.permit,
                self.signal,
                self.announce,
                *([self.wait, self.listen] if rng.random() < 0.02 else []),
            ]
        )()


def live(scene: Scene, longest: Any, index: int, seed: int, _: Party) -> bool:
    rng = random.Random(seed)
    while not scene.over.is_set():
        began = time.monotonic()
        scene.step(rng)
        longest[index] = max(longest[index], time.monotonic() - began)
    return True


def fall(scene: Scene, seed: int, party: Party) -> bool:
    rng = random.Random(seed)
    scene.step(rng)
    party.say()
    while True:
        scene.step(rng)


@pytest.mark.timeout(120 + KILLS / 10)
def test_random_kills_block_nobody_and_let_nobody_in(rng: random.Random) -> None:
    scene, longest = Scene(), RawArray("d", 2)
    living = [Party(live, scene, longest, index, rng.randrange(1 << 30)) for index in range(2)]
    for _ in range(KILLS):
        victim = Party(fall, scene, rng.randrange(1 << 30))
        victim.heard()
        time.sleep(rng.random() * 0.004)  # where it is killed
        os.kill(victim.pid, signal.SIGKILL)
        if rng.random() < 0.5:  # as a reaper would; else they find out by themselves
            os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
            sync.bury(victim.pid)
        assert victim.join() == -signal.SIGKILL
    scene.over.set()
    assert [party.join() for party in living] == [0, 0]
    assert scene.sem.get_value() == PERMITS, "a permit was lost or made"
    print(f"{KILLS} kills, {scene.told.load()} told, the longest wait {max(longest) * 1000:.0f} ms")
    assert max(longest) < LIMIT_S * SLACK
