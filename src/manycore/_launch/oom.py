"""Whether the kernel's out-of-memory killer ended a process: it counts its kills, and that is all it says.

The counter is that of this process's own memory cgroup, or of the next one above that counts, else the
machine's. Who asks after a SIGKILL takes one kill off what was counted in the last moments, so that of two
processes that died together each finds its own, and what happened long before is nobody's.
"""

from __future__ import annotations

import os
import threading
import time

from manycore._launch import machine

__all__ = ["OomWatch", "current"]

_FRESH_S = 2.0  # from a kill to the question; a report is late only when the machine is at its end


class OomWatch:
    """One for all the children of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = _count()
        self._unclaimed: list[float] = []  # when each kill was seen that no dead child of ours has claimed

    def has_killed(self) -> bool | None:
        """Whether it was at work, now that a child has died of SIGKILL; None where the kernel does not count."""
        with self._lock:
            before, self._seen = self._seen, _count()
            if before is None or self._seen is None:
                return None
            now = time.monotonic()
            self._unclaimed = [then for then in self._unclaimed if now - then < _FRESH_S]
            self._unclaimed += [now] * (self._seen - before)
            return bool(self._unclaimed and self._unclaimed.pop())


_current: OomWatch | None = None


def current() -> OomWatch:
    """The one of this process. What was killed before the first call is not counted."""
    global _current
    if _current is None:
        _current = OomWatch()
        os.register_at_fork(after_in_child=_forget)
    return _current


def _forget() -> None:
    """In a fork: its lock may be held by a thread that is not there."""
    global _current
    _current = None


def _count() -> int | None:
    for directory in machine.memory_cgroups():
        for name in ("memory.events", "memory.oom_control"):  # version 2, version 1
            count = _field(f"{directory}/{name}", "oom_kill")
            if count is not None:
                return count
    return _field("/proc/vmstat", "oom_kill")


def _field(path: str, name: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                key, _, value = line.partition(" ")
                if key == name:
                    return int(value)
    except (OSError, ValueError):
        pass
    return None
