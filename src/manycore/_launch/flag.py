"""A flag that is set once, and can be waited for in a thread that Ctrl-C interrupts.

`threading.Event` has a condition inside, whose steps are Python: an interrupt amidst one leaves its lock held, or has
it given back by who does not hold it. Here each waiter sleeps on a lock of its own, which nobody else takes.

Invariant: a waiter shows its lock first and looks at the flag then; who sets the flag does so first and looks for locks
then. So one of them sees the other.
"""

from __future__ import annotations

import threading

__all__ = ["Flag"]


class Flag:
    """As `threading.Event`, without `clear`."""

    __slots__ = ("_is_set", "_sleepers")

    def __init__(self) -> None:
        self._is_set = False
        self._sleepers: list[threading.Lock] = []  # held; released by who sets the flag

    def is_set(self) -> bool:
        """Whether it is."""
        return self._is_set

    def set(self) -> None:
        """Wake all who wait, and nobody waits again."""
        self._is_set = True
        try:
            while True:
                self._sleepers.pop().release()
        except IndexError:  # all are awake
            pass

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or for `timeout` seconds; returns whether it is."""
        if self._is_set:
            return True
        sleeper = threading.Lock()
        sleeper.acquire()
        self._sleepers.append(sleeper)
        if not self.is_set() and not sleeper.acquire(True, -1 if timeout is None else max(0.0, timeout)):
            try:
                self._sleepers.remove(sleeper)
            except ValueError:  # just woken
                pass
        return self._is_set
