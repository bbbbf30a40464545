"""Small pieces of shared memory, for locks and counters: many to a segment.

    allocate(size) -> Cell          the creator's, zeroed, 64-byte aligned
    pickle / fork  -> the same cell elsewhere; whoever has it keeps its segment

A cell that never left its process is used again when its object dies. One that was sent, or that lived
while its process forked, is not: somebody may still hold it, and no count of holders survives kill -9.
Its segment goes as a whole, by the kernel's hand, when the last process drops the last cell in it.

Invariants:
    two live cells never overlap;
    a cell is used again only if no other process can ever have seen it;
    only the process that made a segment hands out cells of it (a forked child starts its own).
If a process dies: its references go; nothing has to be repaired, since nothing is counted.
"""

from __future__ import annotations

import os
import threading
from collections import deque

from manycore._memory.segment import Segment

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Cell", "allocate", "in_use"]

_LINE = 64  # bytes; a cell never shares a cache line with another

# The first segment is one page; each later one is four times larger, up to this. Larger saves descriptors
# (one a segment) and lets a single long-lived lock hold more memory.
_FIRST_BYTES = 4096
_MOST_BYTES = 64 << 10


class _Pool:
    """The cells of one process. Guarded by `lock`; `dropped` is appended to by finalizers, which take no lock."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.segment: Segment | None = None
        self.used = 0
        self.next_bytes = _FIRST_BYTES
        self.free: dict[int, list[tuple[Segment, int]]] = {}
        self.dropped: deque[tuple[Segment, int, int]] = deque()
        self.forks = 0

    def take(self, size: int) -> tuple[Segment, int]:
        with self.lock:
            while self.dropped:
                segment, offset, freed = self.dropped.popleft()
                if segment is self.segment:  # of retired segments nothing is kept, so that they can go
                    self.free.setdefault(freed, []).append((segment, offset))
            if spare := self.free.get(size):
                return spare.pop()
            if size > _MOST_BYTES // 4:
                return Segment.create(size, "manycore:cell"), 0
            if self.segment is None or self.used + size > self.segment.size:
                self.segment = Segment.create(max(self.next_bytes, size), "manycore:cells")
                self.next_bytes = min(self.next_bytes * 4, _MOST_BYTES)
                self.used = 0
                self.free.clear()
            offset = self.used
            self.used += size
            return self.segment, offset


_pool = _Pool()


def in_use() -> bool:
    """Whether this process has made any."""
    return _pool.segment is not None


def _around_fork() -> None:
    _pool.forks += 1  # before, for the cells that are there; after, for those that other threads made meanwhile


def _after_fork_in_child() -> None:
    global _pool
    _pool = _Pool()


os.register_at_fork(before=_around_fork, after_in_parent=_around_fork, after_in_child=_after_fork_in_child)


class Cell:
    """A piece of a segment. Made by `allocate`; arrives in other processes by pickle or fork.

    Attributes:
        segment: The memory that it is in.
        offset: Bytes from the segment's beginning; a multiple of 64.
        size: Bytes, a multiple of 64.
        buffer: The bytes, writable. An own reference to it keeps the memory mapped but not the cell taken.
    """

    __slots__ = ("__weakref__", "_forks", "_home", "buffer", "offset", "segment", "size")

    def __init__(self, segment: Segment, offset: int, size: int) -> None:
        self.segment = segment
        self.offset = offset
        self.size = size
        self.buffer = segment.buffer[offset : offset + size]
        self._home: _Pool | None = None  # the pool to go back to; None once another process may have the cell
        self._forks = 0

    def __del__(self) -> None:
        home = getattr(self, "_home", None)
        if home is not None and home is _pool and home.forks == self._forks:
            home.dropped.append((self.segment, self.offset, self.size))

    def __reduce__(self) -> tuple[Callable[..., Cell], tuple[Any, ...]]:
        self._home = None
        return Cell, (self.segment, self.offset, self.size)

    def __repr__(self) -> str:
        return f"<Cell of {self.size} bytes at {self.offset} of {self.segment!r}>"


def allocate(size: int) -> Cell:
    """A zeroed cell of at least `size` bytes.

    Args:
        size: Bytes; rounded up to a multiple of 64.

    Raises:
        OSError: No memory, or no descriptor for one more segment.
    """
    if size < 1:
        raise ValueError(f"a cell has at least 1 byte, not {size}")
    size = (size + _LINE - 1) // _LINE * _LINE
    pool = _pool
    forks = pool.forks
    segment, offset = pool.take(size)
    cell = Cell(segment, offset, size)
    cell.buffer[:] = bytes(size)
    cell._home = pool
    cell._forks = forks
    return cell
