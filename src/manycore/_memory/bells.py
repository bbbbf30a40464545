"""Bells: waiting for several things at once, beside descriptors.

    with borrow() as bell:
        for case in cases: case.watch(bell)          a slot in the thing's own table
        for case in cases: case.arm()                from now on the bell is rung once
        if nothing is ready: poll [bell, descriptors]
        bell.empty(), and arm again

A bell is a pipe; who changes a thing that is watched writes a byte into it (`c/bell.h` of `_native` tells how, and
what happens when either side dies). A case is one thing that is waited for, and how to ask whether it is ready.

Invariants:
    a bell is used by one waiter at a time; what is given back has no bytes in it and stands in no table
    whoever arms looks afterwards, so what changed before it armed is seen, and what changes later rings
    a process's bells are its own: a forked child makes its own
If a process dies: its slots are taken by others; its pipes go with it.
Source: `c/bell.h`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, Self

__all__ = ["LOOK_SECONDS", "Bell", "Case", "Native", "NativeCase", "borrow"]

# How often who waits looks without having been rung: that is how long a changer which is killed between its change and
# the ring can delay others. Where there was no slot, nobody rings.
LOOK_SECONDS = 0.25
LOOK_OFTEN_SECONDS = 0.02

_MOST_IDLE = 4  # bells that a process keeps for later

_idle: list[Bell] = []


class Bell:
    """A pipe that others ring, and that can be polled."""

    __slots__ = ("_write", "fd", "inode", "pid")

    def __init__(self) -> None:
        self.fd, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.inode = os.fstat(self._write).st_ino
        self.pid = os.getpid()

    @property
    def number(self) -> int:
        """The descriptor by which others find it."""
        return self._write

    def ring(self) -> None:
        """Ring it from this process."""
        try:
            os.write(self._write, b"\0")
        except BlockingIOError:
            pass

    def empty(self) -> None:
        """Take what was rung."""
        try:
            while len(os.read(self.fd, 512)) == 512:
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give it back, to be used again."""
        if self.pid != os.getpid() or len(_idle) >= _MOST_IDLE:
            self.discard()
            return
        self.empty()
        _idle.append(self)

    def discard(self, close: Callable[[int], None] = os.close) -> None:  # bound here: modules go first
        """Be done with it for good."""
        close(self.fd)
        close(self._write)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def borrow() -> Bell:
    """A bell; to be closed after use."""
    try:
        return _idle.pop()
    except IndexError:
        return Bell()


def drop_idle() -> None:
    """Close the bells that are kept for later; in a fork they are the parent's."""
    idle = _idle[:]
    _idle.clear()
    for bell in idle:
        bell.discard()


os.register_at_fork(after_in_child=drop_idle)


class Native(Protocol):
    """What a thing in shared memory offers its watchers; `side` is the thing's own business."""

    def _watch(self, side: int, fd: int, inode: int) -> int: ...
    def _arm(self, side: int, slot: int) -> None: ...
    def _unwatch(self, side: int, slot: int) -> None: ...


class Case:
    """One thing that is waited for.

    Attributes:
        source: What the user named.
        performs: `ready` does what it waits for, so that at most one such case of several is to be asked.
    """

    __slots__ = ("source",)

    performs = False

    def __init__(self, source: Any) -> None:
        self.source = source

    def ready(self) -> bool:
        """Whether it is ready, this moment."""
        raise NotImplementedError

    def watch(self, bell: Bell) -> bool:
        """Begin to watch; False where nobody will ring."""
        raise NotImplementedError

    def arm(self) -> None:
        """Have the bell rung at the next change. Somebody looks whether it is ready afterwards."""

    def unwatch(self) -> None:
        """Watch no longer."""


class NativeCase(Case):
    """A thing in shared memory, with a table of bells.

    Args:
        source: What the user named.
        native: The thing.
        side: Which of its tables.
        ready: Asks it.
    """

    __slots__ = ("_ready", "native", "side", "slot")

    def __init__(self, source: Any, native: Native, side: int, ready: Callable[[], bool]) -> None:
        super().__init__(source)
        self.native = native
        self.side = side
        self.slot = -1
        self._ready = ready

    def ready(self) -> bool:
        """Whether it is ready, this moment."""
        return self._ready()

    def watch(self, bell: Bell) -> bool:
        """Begin to watch; False where there was no slot."""
        self.slot = self.native._watch(self.side, bell.number, bell.inode)
        return self.slot >= 0

    def arm(self) -> None:
        """Have the bell rung at the next change."""
        if self.slot >= 0:
            self.native._arm(self.side, self.slot)

    def unwatch(self) -> None:
        """Give the slot back."""
        slot, self.slot = self.slot, -1
        if slot >= 0:
            self.native._unwatch(self.side, slot)
