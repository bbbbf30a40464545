"""How much memory this process may still take: the machine's, or its control group's where that is less.

The kernel gives a memfd pages until there are none, and then kills some process. So who asks for much
compares it with this first, and gets an error that can be handled.
"""

from __future__ import annotations

import errno
import os

__all__ = ["available_bytes", "read_small", "require_bytes"]

# Kept for everybody else when memory is taken in large pieces: the kernel's own reserves and a little more.
_MARGIN_BYTES = 64 << 20


def read_small(path: str) -> bytes:
    """A short file of the kernel's, without what a file object costs: a pool that starts waits for some ten of them."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 16384)
    finally:
        os.close(fd)


def _number(path: str) -> int | None:
    try:
        return int(read_small(path))
    except (OSError, ValueError):  # missing, or "max"
        return None


def _field(text: bytes, name: bytes) -> int | None:
    """The number behind a name at the beginning of a line."""
    _, found, rest = (b"\n" + text).partition(b"\n" + name)
    return int(rest.split(None, 1)[0]) if found else None


def _group_bytes() -> int | None:
    """What the memory control group leaves; None without a limit."""
    try:
        lines = os.fsdecode(read_small("/proc/self/cgroup")).splitlines()
    except OSError:
        return None
    left: int | None = None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage = "/sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, usage = "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # The limit of any ancestor binds. Inside a container the path may not exist: then the root is the group.
        folder = path.rstrip("/")
        while True:
            most = _number(f"{root}{folder}/{limit}")
            if most is not None and most < 1 << 60 and (used := _number(f"{root}{folder}/{usage}")) is not None:
                reclaimable = _inactive_file_bytes(f"{root}{folder}/memory.stat")
                here = max(0, most - used + reclaimable)
                left = here if left is None else min(left, here)
            if not folder:
                break
            folder = os.path.dirname(folder).rstrip("/")
    return left


def _inactive_file_bytes(path: str) -> int:
    try:
        text = read_small(path)
        return _field(text, b"inactive_file ") or _field(text, b"total_inactive_file ") or 0
    except (OSError, ValueError):
        return 0


def available_bytes() -> int:
    """Bytes that can be taken without the system killing somebody, as far as it says."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        text = read_small("/proc/meminfo")
        free = _field(text, b"MemAvailable:")
        if free is not None:
            machine = (free + (_field(text, b"SwapFree:") or 0)) * 1024
    except (OSError, ValueError):
        pass  # no /proc, or no descriptor left to read it: the kernel is the judge
    group = _group_bytes()
    return machine if group is None else min(machine, group)


def require_bytes(size: int) -> None:
    """Raise ENOSPC when `size` more bytes are not there."""
    left = available_bytes()
    if size + _MARGIN_BYTES > left:
        raise OSError(errno.ENOSPC, f"not enough memory: {size} bytes of shared memory wanted, {left} available")
