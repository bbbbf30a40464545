"""Who holds what, and who waits for whom: read from shared memory and /proc, never written.

A lock's cell names its owner (process, thread, since when) and those who have waited for it for more than
a few milliseconds. So whoever can map the cell can tell, even of programs that hang; nothing is asked of
the processes themselves.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass

__all__ = ["Owner", "describe", "process_name", "thread_name"]


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        pid: The process.
        process: Its name: that of `Process.name` for this process, of the kernel for another.
        thread: The thread's number in the system (`threading.Thread.native_id`).
        thread_name: Its name: that of `Thread.name` in this process, of the kernel in another.
        since: When it took the lock, in seconds of `time.monotonic`, to some milliseconds.
        alive: False when the process is dead, and nobody has taken the lock over yet.
    """

    pid: int
    process: str
    thread: int
    thread_name: str
    since: float
    alive: bool

    @property
    def held_for(self) -> float:
        """Seconds since it took the lock."""
        return max(0.0, time.monotonic() - self.since)

    def __str__(self) -> str:
        state = "" if self.alive else ", dead"
        return f"{self.process} (pid {self.pid}, thread {self.thread} {self.thread_name}{state})"


def _comm(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return "?"


def process_name(pid: int) -> str:
    """The name of a process: its own one's as Python knows it, another's as the kernel does."""
    if pid == os.getpid():
        module = sys.modules.get("multiprocessing.process")
        return str(module.current_process().name) if module is not None else "MainProcess"
    return _comm(f"/proc/{pid}/comm")


def thread_name(pid: int, tid: int) -> str:
    """The name of a thread, likewise."""
    if pid == os.getpid():
        for thread in threading.enumerate():
            if thread.native_id == tid:
                return thread.name
    return _comm(f"/proc/{pid}/task/{tid}/comm")


def describe(pid: int, tid: int, since_ns: int, *, dead: bool) -> Owner:
    """An `Owner` of what a lock's cell says."""
    return Owner(pid, process_name(pid), tid, thread_name(pid, tid), since_ns / 1e9, not dead)
