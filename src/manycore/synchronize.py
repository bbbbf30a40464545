"""Locks, semaphores, conditions, events and barriers: multiprocessing.synchronize, surviving its users.

Each object is a subclass of its compiled half (`manycore._native.sync`), whose methods the user calls
without a Python frame in between, over a cell of nameless shared memory. What is added here is how an
object is made, named and sent.

    object  --keeps-->  cell (64-byte multiples of a memfd)  <--keeps--  the same object elsewhere

Sending: as an argument of a process under any start method, through a queue, to a pool's worker that
runs already: wherever pickle goes. A forked child inherits the object as it is.

If a process dies
    holding a lock       the next to acquire has it, and gets `OwnerDied` (unless the lock was made with
                         on_owner_death="acquire"). In a `with`, the lock is given back first. Those who
                         wait notice within 50 ms, and at once where a process that has the lock too started
                         the dead one: its reaper tells them (with the start methods of the standard library,
                         which have no reaper, its `join` or `is_alive`).
    holding permits      they come back, as far as the semaphore's initial value goes. Permits that
                         releases made on top of it are signals: who takes one has consumed it. A process
                         that exits in order (returns, sys.exit) keeps what it took, as with the standard
                         semaphore, so that taking a permit and leaving remains a way of consuming it.
    waiting              nothing is left: events, conditions and barriers do not notice. A signal that a dead
                         waiter was to get goes to the next.
    due at a barrier     the barrier breaks when it can never be complete: when all who have arrived were of
                         the last round (or enrolled), and another party of it was killed.

A cycle of waiting is found by the last one to enter it, a second later, and reported by a `DeadlockWarning`
(`_observe/deadlock.py`).

Unlike multiprocessing.synchronize: nothing is registered anywhere, so nothing leaks and no tracker runs;
    timeouts are monotonic; waits are interruptible by signals; `owner()` says who holds a lock.
Source: the algorithms and their sources are in `_native/c`; _native/README.md has the proofs.
"""

from __future__ import annotations

import os
import time
from threading import BrokenBarrierError
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from manycore._launch.arguments import integer, text
from manycore._memory.cells import Cell, allocate
from manycore._native import events as _events
from manycore._native import shared as _shared
from manycore._native import sync as _native
from manycore._native.sync import SEM_VALUE_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from manycore._memory.bells import NativeCase
    from manycore._native.sync import HasBuffer
    from manycore._observe.locks import Owner

__all__ = [
    "SEM_VALUE_MAX",
    "Barrier",
    "BoundedSemaphore",
    "BrokenBarrierError",
    "Condition",
    "Event",
    "Lock",
    "RLock",
    "ReadWriteLock",
    "Semaphore",
]


def _rejoin(cls: type, cell: Cell, *details: Any) -> Any:
    """The object of class `cls` over a cell that came from elsewhere."""
    return cls._over(cell, *details)  # type: ignore[attr-defined]


def _look_for_deadlock(cell: Cell) -> bool:
    """Called by who has waited for a lock for a second, and later again until this is true: a deadlock was told."""
    import warnings

    from manycore._observe.deadlock import text_of_deadlock
    from manycore.errors import DeadlockWarning

    text = text_of_deadlock((cell.segment.inode[1], cell.offset))
    if text is not None:
        warnings.warn(text, DeadlockWarning, stacklevel=2)
    return text is not None


_native.on_long_wait(_look_for_deadlock)


def _own_name() -> str:
    """What repr calls the holder when it is the caller, as the standard library does."""
    import threading
    from multiprocessing.process import current_process

    name: str = current_process().name
    thread = threading.current_thread().name
    return name if thread == "MainThread" else f"{name}|{thread}"


class _Owned:
    """What a lock and a recursive lock have in common beside their compiled halves."""

    __slots__ = ()

    if TYPE_CHECKING:
        cell: Cell
        _tells: bool

        def _make(self, cell: HasBuffer, tells: bool) -> None: ...
        def _join(self, cell: HasBuffer, tells: bool) -> None: ...
        def _owner(self) -> tuple[int, int, int, bool]: ...
        def _is_mine(self) -> bool: ...
        def _count(self) -> int: ...

    def _begin(self, on_owner_death: str, name: str) -> None:
        if on_owner_death not in {"raise", "acquire"}:
            raise ValueError(f'on_owner_death is "raise" or "acquire", not {on_owner_death!r}')
        name = text("name", name)
        self._make(allocate(_native.LOCK_BYTES), on_owner_death == "raise")
        if name:
            place = self.cell.buffer[_native.LOCK_NAME]
            written = name.encode()[: len(place)].decode(errors="ignore").encode()  # no half of a character
            place[: len(written)] = written

    @classmethod
    def _over(cls, cell: Cell, tells: bool) -> _Owned:
        self = cls.__new__(cls)
        self._join(cell, tells)
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rejoin, (type(self), self.cell, self._tells)

    @property
    def name(self) -> str:
        """What reports call it; empty where it has no name."""
        return bytes(self.cell.buffer[_native.LOCK_NAME]).rstrip(b"\0").decode(errors="replace")

    def owner(self) -> Owner | None:
        """Who holds it: process, thread, since when; None when nobody does."""
        from manycore._observe.locks import describe

        pid, tid, since_ns, dead = self._owner()
        return describe(pid, tid, since_ns, dead=dead) if pid else None

    def _holder(self) -> tuple[str, object]:
        pid = self._owner()[0]
        if pid == 0:
            return "None", 0
        if self._is_mine():
            return _own_name(), self._count()
        return "SomeOtherThread" if pid == os.getpid() else "SomeOtherProcess", "nonzero"


class Lock(_Owned, _native.Lock):
    """A lock between processes, that survives its owner. Any thread of any process may release it.

    Args:
        ctx: Accepted for the standard library's sake.
        on_owner_death: What the next owner gets when the last one died: "raise" is `OwnerDied`, raised by
            `acquire` with the lock held, and by `with` with the lock given back; "acquire" is the lock alone.
        name: What reports of deadlocks and `manycore ps --locks` call it; 24 bytes of it are kept.

    Process-safety: all methods, in all processes that have it.
    If a process dies: see the module.
    Memory effects: what was written before a release is seen after the next acquire.
    """

    __slots__ = ()

    def __init__(self, *, ctx: object = None, on_owner_death: str = "raise", name: str = "") -> None:  # noqa: ARG002
        self._begin(on_owner_death, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(owner={self._holder()[0]})>"


class RLock(_Owned, _native.RLock):
    """A lock that the thread which owns it may take again. Only that thread may release it.

    Args:
        ctx: Accepted for the standard library's sake.
        on_owner_death: As for `Lock`.
        name: As for `Lock`.

    Process-safety, deaths and memory effects: as `Lock`.
    """

    __slots__ = ()

    def __init__(self, *, ctx: object = None, on_owner_death: str = "raise", name: str = "") -> None:  # noqa: ARG002
        self._begin(on_owner_death, name)

    def __repr__(self) -> str:
        name, count = self._holder()
        return f"<{type(self).__name__}({name}, {count})>"


# ---- semaphores ----

# What this process has that must be told when it exits in order: semaphores, and barriers.
_settled: WeakSet[Any] = WeakSet()
_settles_in = 0  # the pid of the process that has arranged it


def _settle_at_exit(thing: Any) -> None:
    """Have `thing._forget()` called when this process exits in order (not when it is killed, nor by os._exit)."""
    global _settles_in
    _settled.add(thing)
    if _settles_in != os.getpid():
        first = _settles_in == 0
        _settles_in = os.getpid()
        from multiprocessing import util

        # Runs at the exit of the main process and of a child of multiprocessing alike. A child forgets the
        # finalizers of its parent, and those made while its arguments were being unpickled.
        util.Finalize(None, _settle, exitpriority=-100)
        if first:
            util.register_after_fork(_settled, _settle_in_child)


def _settle_in_child(_: object) -> None:
    from multiprocessing import util

    global _settles_in
    _settles_in = os.getpid()
    util.Finalize(None, _settle, exitpriority=-100)


def _settle() -> None:
    for thing in list(_settled):
        thing._forget()


class Semaphore(_native.Semaphore):
    """A number of permits, which come back from processes that die.

    Args:
        value: How many permits there are at first.
        ctx: Accepted for the standard library's sake.

    Process-safety: all methods, in all processes that have it. Any thread of any process may release.
    If a process dies: see the module.
    Memory effects: what was written before a release is seen after the acquire that it lets through.
    """

    __slots__ = ()

    _bounded = False

    def __init__(self, value: int = 1, *, ctx: object = None) -> None:  # noqa: ARG002
        self._make(allocate(self._bytes(value)), value, self._bounded)
        _settle_at_exit(self)

    @classmethod
    def _over(cls, cell: Cell) -> Semaphore:
        self = cls.__new__(cls)
        self._join(cell)
        _settle_at_exit(self)
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rejoin, (type(self), self.cell)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(value={self.get_value()})>"


class BoundedSemaphore(Semaphore):
    """A semaphore that refuses a release (ValueError) when all its permits are there."""

    __slots__ = ()

    _bounded = True

    def __init__(self, value: int = 1, *, ctx: object = None) -> None:
        super().__init__(value, ctx=ctx)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(value={self.get_value()}, maxvalue={self._initial})>"


# ---- signals ----


class Event(_events.Event):
    """A flag that processes set, clear and wait for.

    Args:
        ctx: Accepted for the standard library's sake.

    Process-safety: all methods, in all processes that have it; `set` may be called by a signal handler.
    If a process dies: waiting, nobody notices; setting, it is set or it is not.
    Memory effects: what was written before `set` is seen after the `wait` or `is_set` that it made true.
    """

    __slots__ = ()

    def __init__(self, *, ctx: object = None) -> None:  # noqa: ARG002
        self._make(allocate(_events.EVENT_BYTES))

    @classmethod
    def _over(cls, cell: Cell) -> Event:
        self = cls.__new__(cls)
        self._join(cell)
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rejoin, (type(self), self.cell)

    def _select_case(self) -> NativeCase:
        from manycore._memory.bells import NativeCase

        begun = self._begin()
        return NativeCase(self, self, 0, lambda: self._passed(begun))

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} at {id(self):#x} {'set' if self.is_set() else 'unset'}>"


class _Count:
    """A number that tests of the standard library's insides ask for."""

    def __init__(self, value: int) -> None:
        self._value = value

    def get_value(self) -> int:
        return self._value


class Condition(_events.Condition):
    """Wait, with a lock held, until another process says that something has changed.

    Args:
        lock: The lock; a new `RLock` by default.
        ctx: Accepted for the standard library's sake.

    Process-safety: all methods, in all processes that have it.
    If a process dies: waiting, nobody notices, and a notification that it was to get goes to the next;
        holding the lock, the lock's next owner is told.
    Memory effects: those of the lock.
    """

    __slots__ = ()

    def __init__(self, lock: Any = None, *, ctx: object = None) -> None:  # noqa: ARG002
        if lock is not None and not hasattr(lock, "acquire"):
            raise TypeError(f"lock must be a lock, not {lock!r}")
        self._make(allocate(_events.CONDITION_BYTES), RLock() if lock is None else lock)

    @classmethod
    def _over(cls, cell: Cell, lock: Any) -> Condition:
        self = cls.__new__(cls)
        self._join(cell, lock)
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rejoin, (type(self), self.cell, self._lock)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until `predicate()`, called with the lock held, is true; returns what it returned last.

        Args:
            predicate: Called before each wait and after each notification.
            timeout: Seconds for the whole; None is for ever.
        """
        result = predicate()
        if result:
            return result
        end = None if timeout is None else time.monotonic() + timeout
        while not result:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    @property
    def _sleeping_count(self) -> _Count:
        return _Count(self._sleepers())

    @property
    def _woken_count(self) -> _Count:
        return _Count(0)

    @property
    def _wait_semaphore(self) -> _Count:
        return _Count(0)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({self._lock}, {self._sleepers()})>"


class Barrier(_events.Barrier):
    """A fixed number of parties wait for each other, again and again.

    Args:
        parties: How many have to arrive.
        action: Called by one of them when all have arrived, before they go on.
        timeout: Seconds that `wait` waits by default; None is for ever.
        ctx: Accepted for the standard library's sake.
        on_party_death: "break": the barrier breaks when a party is killed without which it can never be
            complete, as far as the parties are known; "wait": the others wait for a replacement.

    Process-safety: all methods, in all processes that have it.
    If a process dies: see `on_party_death`. Having arrived, it counts. Running the action: the barrier breaks.
    Memory effects: what any party wrote before its wait is seen by all after theirs.
    """

    __slots__ = ("_action", "_timeout")

    def __init__(
        self,
        parties: int,
        action: Callable[[], Any] | None = None,
        timeout: float | None = None,
        *,
        ctx: object = None,  # noqa: ARG002
        on_party_death: str = "break",
    ) -> None:
        if on_party_death not in {"break", "wait"}:
            raise ValueError(f'on_party_death is "break" or "wait", not {on_party_death!r}')
        if action is not None and not callable(action):
            raise TypeError(f"action must be callable, not {action!r}")
        integer("parties", parties)
        self._make(allocate(self._bytes(parties)), parties, on_party_death == "break")
        self._action = action
        self._timeout = timeout
        _settle_at_exit(self)

    @classmethod
    def _over(cls, cell: Cell, action: Callable[[], Any] | None, timeout: float | None) -> Barrier:
        self = cls.__new__(cls)
        self._join(cell)
        self._action = action
        self._timeout = timeout
        _settle_at_exit(self)
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rejoin, (type(self), self.cell, self._action, self._timeout)

    def wait(self, timeout: float | None = None) -> int:
        """Arrive, and wait for the others.

        Args:
            timeout: Seconds to wait at most; None is this barrier's own timeout.

        Returns:
            A number from 0 to parties - 1, another for each party.

        Raises:
            BrokenBarrierError: The barrier is or was broken: by `abort`, `reset`, a timeout of any party, an
                action that raised, or a death.
        """
        return self._wait(self._action, self._timeout if timeout is None else timeout)

    def __repr__(self) -> str:
        state = "broken" if self.broken else f"waiters={self.n_waiting}/{self.parties}"
        return f"<{type(self).__module__}.{type(self).__qualname__} at {id(self):#x}: {state}>"


# ---- readers and writers ----


class _Side:
    """One side of a `ReadWriteLock`, for `with`."""

    __slots__ = ("_acquire", "_release")

    def __init__(self, acquire: Callable[[], bool], release: Callable[[], None]) -> None:
        self._acquire = acquire
        self._release = release

    def __enter__(self) -> None:
        from manycore.errors import OwnerDied

        try:
            self._acquire()
        except OwnerDied:
            self._release()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self._release()


class ReadWriteLock(_shared.ReadWriteLock):
    """Many readers at once, or one writer. Not recursive on either side.

        with lock.read(): ...
        with lock.write(): ...

    A writer waits for the readers that are inside when it comes, and for no others: later ones wait until
    it has written. So its wait is bounded by the longest that any of those reads. Some hundred readers can
    be inside at once (104); more wait.

    Args:
        ctx: Accepted for symmetry with `Lock`.
        on_owner_death: "raise": whoever comes after a writer that died is told by `OwnerDied`, as for `Lock`;
            "acquire": it gets the lock alone.

    Process-safety: all methods, in all processes that have it.
    If a process dies: reading, its place is given up; writing, see `on_owner_death`.
    Memory effects: what a writer wrote is seen by all that read or write after it.
    """

    __slots__ = ()

    def __init__(self, *, ctx: object = None, on_owner_death: str = "raise") -> None:  # noqa: ARG002
        if on_owner_death not in {"raise", "acquire"}:
            raise ValueError(f'on_owner_death is "raise" or "acquire", not {on_owner_death!r}')
        self._make(allocate(_shared.RWLOCK_BYTES), on_owner_death == "raise")

    @classmethod
    def _over(cls, cell: Cell, tells: bool) -> ReadWriteLock:
        self = cls.__new__(cls)
        self._join(cell, tells)
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rejoin, (type(self), self.cell, self._tells)

    def read(self) -> _Side:
        """For `with`: hold the lock for reading."""
        return _Side(self.acquire_read, self.release_read)

    def write(self) -> _Side:
        """For `with`: hold the lock for writing."""
        return _Side(self.acquire_write, self.release_write)

    def owner(self) -> Owner | None:
        """Who writes, or waits for readers in order to; None when nobody does."""
        from manycore._observe.locks import describe

        pid, tid, since_ns, dead = self._owner()
        return describe(pid, tid, since_ns, dead=dead) if pid else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(readers={self._readers()}, writer={self._owner()[0] or None})>"
