"""A deadlock, as one of those who are in it finds it out.

Who has waited for a lock for a second follows the chain

    me -> the lock that I wait for -> the thread that holds it -> the lock that *it* waits for -> ...

through the same cells that `locks` reads, one process's descriptors a step; most chains end at the first step,
with an owner that waits for nothing. A chain that comes back to me is a deadlock, once it was seen twice: all the
records of the first look are still there at the second, so between the two looks all of them held at once.

A deadlock is complete when the last of its members begins to wait. Every member looks when it has waited for 1, 2, 4,
8... seconds, and the one whose record is the last reports what it finds: one report a deadlock. That is most often its
first look. It is a later one where the first saw too little: a member that was not yet recorded when it looked, since
eight others waited for the same lock, or a /proc that could not be read.

Not seen: waits for semaphores, events, conditions and for readers to leave, which name no thread that could end
them; a waiter for a lock that eight others have waited for longer; processes of another user or pid namespace.
If a process dies: what it held is taken over, and nothing is a deadlock that contains it.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from manycore._observe.locks import Held, Owner, Waiter, lock_table

__all__ = ["text_of_deadlock"]

_LONGEST = 64  # links of a chain that are followed
_HALF = 1 << 31  # ms; half the range of a record's time


class Link(NamedTuple):
    """One that waits, for what, and who holds that."""

    waiter: Waiter
    held: Held
    owner: Owner

    def key(self) -> tuple[object, ...]:
        """The same while this very wait for this very owner goes on."""
        waiter, owner = self.waiter, self.owner
        return waiter.pid, waiter.thread, waiter.since_ms, self.held.place, owner.pid, owner.thread, owner.since

    def __str__(self) -> str:
        return f"{self.waiter} waits for {self.held}, held by {self.owner}"


def _wait_of(pid: int, thread: int, place: tuple[int, int] | None = None) -> Link | None:
    """What this thread waits for (at this place, if it is known)."""
    for held in lock_table([pid]):
        if held.owners and held.kind != "semaphore" and place in {None, held.place}:
            for waiter in held.waiters:
                if (waiter.pid, waiter.thread) == (pid, thread):
                    return Link(waiter, held, held.owners[0])
    return None


def _cycle(place: tuple[int, int]) -> list[Link] | None:
    """The chain from the calling thread, if it comes back to it."""
    me = (os.getpid(), threading.get_native_id())
    link = _wait_of(*me, place)
    chain: list[Link] = []
    while link is not None and link.owner.alive and len(chain) < _LONGEST:
        chain.append(link)
        owner = (link.owner.pid, link.owner.thread)
        if owner == me:
            return chain
        if any(owner == (seen.waiter.pid, seen.waiter.thread) for seen in chain):
            return None  # a deadlock of others, whom this one waits for: they report it
        link = _wait_of(*owner)
    return None


def _began(link: Link, mine: Link) -> tuple[int, int, int]:
    """Orders waits by their beginnings: for every member the same order, though the clock's 32 bits wrap."""
    after_mine_ms = (link.waiter.since_ms - mine.waiter.since_ms + _HALF & 2 * _HALF - 1) - _HALF
    return after_mine_ms, link.waiter.pid, link.waiter.thread


def text_of_deadlock(place: tuple[int, int]) -> str | None:
    """Called by a thread that waits: the report of the deadlock that it is in, if it is the one to report it.

    Args:
        place: Of the lock that the thread waits for: inode of its memory and offset in it.
    """
    first = _cycle(place)
    if first is None:
        return None
    second = _cycle(place)
    if second is None or [link.key() for link in first] != [link.key() for link in second]:
        return None
    if max(second, key=lambda link: _began(link, second[0])) is not second[0]:
        return None
    if len(second) == 1:
        return f"deadlock: {second[0]}: by itself. Only a release by another thread or process can end this"
    lines = [f"deadlock of {len(second)}: each waits for what the next one holds, and none can go on"]
    return "\n  ".join([*lines, *map(str, second)])
