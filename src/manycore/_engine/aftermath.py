"""What is to be done once the engine's locks are released: callbacks, going on with maps, asking users' backoffs.

    who collects (under the locks) --then()--> own, others --call()--> whoever comes out of the locks; the collector

Ctrl-C comes to a program's main thread wherever it is. What that thread does for others would be left undone then, and
who waits for it would wait for ever; so it calls only what is its own, and leaves the rest to the collector thread. It
does not come back from a wait before that is done, so that a callback has been called when `get()` returns, unless
one takes long.

Invariants:
    what was asked for is called once; `own` may be dropped by an interrupt, and a map that is consumed asks again
    answered <= asked
If a process dies: all of it is the parent's.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from manycore._native.ring import SHIELD
from manycore._native.step import Mutex, wake_all

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Aftermath", "condition_of", "lock_of", "sleep_on", "wake"]

# How long the main thread waits for callbacks that it has left to the collector: mostly it is microseconds, and one
# that takes longer is waited for once.
CATCH_UP_SECONDS: Final = 0.5


def sleep_on(condition: threading.Condition, ready: Callable[[], bool], deadline: float | None) -> bool:
    """Wait for a condition to be notified, or for the deadline, unless it is ready; returns whether it is then.

    As `Condition.wait`, in which an interrupt may leave the lock held, or given back by who does not hold it.
    """
    waiter = threading.Lock()
    waiter.acquire()
    waiters: Any = condition._waiters  # type: ignore[attr-defined]
    lock = lock_of(condition)
    with SHIELD, lock:
        if ready():
            return True
        waiters.append(waiter)
    try:
        waiter.acquire(True, -1 if deadline is None else max(0.0, deadline - time.monotonic()))
    finally:
        with SHIELD, lock:
            if waiter in waiters:
                waiters.remove(waiter)
    return ready()


def condition_of(mutex: Any) -> threading.Condition:
    """A condition whose lock is a `Mutex`."""
    return threading.Condition(mutex)


def lock_of(condition: threading.Condition) -> Any:
    """The lock of a condition: taking it is a single step, as taking the condition is not."""
    return condition._lock  # type: ignore[attr-defined]


def wake(condition: threading.Condition) -> None:
    """Wake all who wait for it, whoever interrupts. Its lock is held."""
    wake_all(condition._waiters)  # type: ignore[attr-defined]


class Aftermath:
    """Calls that wait for the locks to be released.

    Attributes:
        asked: How many of the others' there have been.
    """

    def __init__(self) -> None:
        self._own: deque[Callable[[], object]] = deque()  # of maps that the main thread consumes
        self._others: deque[Callable[[], object]] = deque()
        self.asked = self._answered = 0
        self._stuck_at = -1  # what had been answered when the main thread gave up waiting
        self._changed = condition_of(Mutex())  # notified when others' calls are over

    def then(self, call: Callable[[], object] | None) -> None:
        """Call it once the locks are released. Under the engine's lock."""
        if call is None:
            return
        if getattr(getattr(call, "__self__", None), "of_main", False):
            self._own.append(call)
        else:
            self._others.append(call)
            self.asked += 1

    @property
    def due(self) -> bool:
        """Whether there is something for this thread to call."""
        return bool(self._own) or (bool(self._others) and not SHIELD.main)

    def call(self, *, everything: bool = False) -> bool:
        """Call what is to be called; without locks. Whether there was anything.

        Args:
            everything: Also what is not the main thread's; at the end, when there is no collector.
        """
        called = False
        while self._own:
            try:
                call = self._own.popleft()
            except IndexError:  # another thread had the last one
                break
            called = True
            call()
        while self._others and (everything or not SHIELD.main):
            try:
                call = self._others.popleft()
            except IndexError:
                break
            called = True
            try:
                call()
            finally:
                with SHIELD, lock_of(self._changed):
                    self._answered += 1
                    wake(self._changed)
        return called

    def catch_up(self, deadline: float | None) -> None:
        """As the main thread: wait until what was left to the collector is done."""
        asked, most = self.asked, time.monotonic() + CATCH_UP_SECONDS
        while self._answered < asked and self._answered != self._stuck_at:
            until = most if deadline is None else min(most, deadline)
            if not sleep_on(self._changed, lambda: self._answered >= asked, until) and time.monotonic() >= until:
                self._stuck_at = self._answered
                return
