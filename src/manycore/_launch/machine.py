"""What of this machine this process may use: affinity, control groups (both versions) and limits counted."""

from __future__ import annotations

import math
import os
import resource

from manycore._memory.available import available_bytes, read_small

__all__ = ["automatic_workers", "cpu_count", "memory_cgroups", "memory_limit_bytes"]

# The memory that is to be there for each worker: an interpreter with a numerical library or two, and some data.
WORKER_BYTES = 128 << 20

# What a pool has at the most (`_native/c/task_ring.h`).
MOST_WORKERS = 256

_UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes "no limit" as a number about as large as the address space


def cpu_count() -> int:
    """The cores that this process may really use: its affinity, bounded by its cgroup's CPU quota.

    Unlike `os.cpu_count`, which counts the machine's, and so starts 64 workers in a container that may use two.
    A quota of one and a half cores counts as two.
    """
    count = len(os.sched_getaffinity(0))
    for directory in _cgroups("cpu"):
        quota = _quota(directory)
        if quota is not None:
            count = min(count, max(1, math.ceil(quota)))
    return count


def automatic_workers() -> int:
    """As many workers as this machine serves well: its cores, and no more than the memory that is left bears."""
    return max(1, min(cpu_count(), available_bytes() // WORKER_BYTES, MOST_WORKERS))


def memory_limit_bytes() -> int | None:
    """The most memory that this process may use by its cgroups and by RLIMIT_AS; None without a limit."""
    limits = []
    for directory in memory_cgroups():
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(f"{directory}/{name}")
            if text.isdigit() and int(text) < _UNLIMITED_BYTES:
                limits.append(int(text))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    return min(limits, default=None)


def memory_cgroups() -> list[str]:
    """The directories of this process's memory control group and of those above it, its own first."""
    return _cgroups("memory")


def _cgroups(controller: str) -> list[str]:
    found = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            roots = [f"/sys/fs/cgroup/{controllers}", f"/sys/fs/cgroup/{controller}"]
        else:
            continue
        for root in roots:
            parts = [part for part in path.split("/") if part and part != ".."]
            # In a container the path may be the host's: then only the root is there, and is our group.
            candidates = ["/".join([root, *parts[:depth]]) for depth in range(len(parts), -1, -1)]
            found += [directory for directory in candidates if os.path.isdir(directory) and directory not in found]
    return found


def _quota(directory: str) -> float | None:
    quota, _, period = _read(f"{directory}/cpu.max").partition(" ")
    if not quota:
        quota, period = _read(f"{directory}/cpu.cfs_quota_us"), _read(f"{directory}/cpu.cfs_period_us")
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def _read(path: str) -> str:
    try:
        return os.fsdecode(read_small(path)).strip()
    except OSError:
        return ""
