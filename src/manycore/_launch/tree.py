"""The processes below a process, by what /proc says; held by pidfds, so that nobody else is ever signalled."""

from __future__ import annotations

import os
import signal

__all__ = ["children", "descendants", "hold", "kill"]


def children(pid: int) -> list[int]:
    """The living children of `pid`, of whichever of its threads; none if it has ended."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                found += [int(child) for child in file.read().split()]
    except OSError:
        pass
    return found


def descendants(pid: int) -> list[int]:
    """The children of `pid`, theirs, and so on; parents before their children."""
    found: list[int] = []
    level = children(pid)
    while level:
        found += level
        level = [below for child in level for below in children(child)]
    return found


def hold(pids: list[int]) -> list[int]:
    """A pidfd for each of `pids` that is alive."""
    held = []
    for pid in pids:
        try:
            held.append(os.pidfd_open(pid))
        except OSError:
            pass
    return held


def kill(pidfds: list[int], signum: int = signal.SIGKILL) -> None:
    """Signal each process that is held, and let go of all."""
    for pidfd in pidfds:
        try:
            signal.pidfd_send_signal(pidfd, signum)
        except OSError:
            pass
        os.close(pidfd)
