"""Repeating and timing, the same way in every workload."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.peers.base import PoolAdapter

now = time.perf_counter


def percentile(samples: Sequence[float], share: float) -> float:
    """Returns the smallest sample that at least `share` of all do not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def middle(samples: Sequence[float]) -> float:
    """Returns the median."""
    return percentile(samples, 0.5)


def sample(action: Callable[[], object], *, seconds: float, least: int = 3, most: int = 100_000) -> list[float]:
    """Times `action` again and again for `seconds`; returns each duration in seconds."""
    durations: list[float] = []
    end = now() + seconds
    while len(durations) < most and (len(durations) < least or now() < end):
        start = now()
        action()
        durations.append(now() - start)
    return durations


def per_second(action: Callable[[int], object], *, full: int, seconds: float, first: int = 200) -> float:
    """Returns how many a second `action(n)` does, with n as near to `full` as about `seconds` allow.

    A peer that is fast enough runs all `full` at once, as a user would; a slow one runs as many as it
    can do in the time. Growing n warms the peer up on the way.
    """
    n = min(first, full)
    while True:
        start = now()
        action(n)
        took = max(now() - start, 1e-9)
        if n >= full or took >= seconds / 2:
            return n / took
        n = min(full, max(int(n * min(seconds / took, 20.0)), n + 1))


def worker_pids(pool: PoolAdapter, workers: int) -> list[int]:
    """Returns the ids of a pool's workers, found by asking them."""
    from benchmarks.tasks import pid_after

    found: set[int] = set()
    for pause in (0.005, 0.02, 0.1, 0.3):
        found.update(pool.call_all(pid_after, [(pause,)] * (2 * workers)))
        if len(found) >= workers:
            break
    return sorted(found)


def resident_bytes() -> int:
    """Returns the resident memory of this process."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pids: Sequence[int]) -> dict[int, float]:
    """Returns the processor time that each process has used, without those that are gone.

    To the nanosecond where the kernel counts it so, else in ticks of 10 ms.
    """
    used: dict[int, float] = {}
    for pid in pids:
        try:
            used[pid] = sum(_thread_seconds(f"/proc/{pid}/task/{thread}") for thread in os.listdir(f"/proc/{pid}/task"))
        except FileNotFoundError:
            continue
    return used


def _thread_seconds(folder: str) -> float:
    if os.path.exists(f"{folder}/schedstat"):
        with open(f"{folder}/schedstat", "rb") as schedstat:
            return int(schedstat.read().split()[0]) / 1e9
    with open(f"{folder}/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


def descendants(root: int) -> list[int]:
    """Returns the ids of all living descendants of a process."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:
                fields: Any = stat.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] not in b"ZX":
            children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found
