"""The spool: bytes that workers fetch by offset, written by the parent into one nameless file.

Functions, and arguments that are too long for a slot of the task ring, go here. The parent appends and
later gives the pages back; a worker reads with pread, so it maps nothing and the file may grow to any size
while it runs.

Invariants:
    a range is written before its offset is published, and never again before `free`;
    a range is freed when the parent's last reference to its `Range` goes, which a task that may still be
        read holds: nothing is counted, and nothing can be forgotten.
If a process dies:
    a worker: nothing, it only reads. The parent: the kernel frees the file with its last descriptor.
"""

from __future__ import annotations

import os
from importlib import import_module

from manycore._memory.segment import create_memfd
from manycore._native.mapping import punch
from manycore._native.step import Mutex

__all__ = ["Range", "Spool", "read_exactly"]

_PAGE_BYTES = 4096


def read_exactly(fd: int, length: int, offset: int) -> bytes:
    """`length` bytes of a spool from `offset` on.

    Raises:
        OSError: The file is shorter.
    """
    data = os.pread(fd, length, offset)
    if len(data) == length:
        return data
    parts = [data]
    missing = length - len(data)  # one call moves at most 2 GiB
    while missing:
        data = os.pread(fd, missing, offset + length - missing)
        if not data:
            raise OSError(f"the spool ends before {offset + length}")
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


class Range:
    """Bytes in a spool; their pages go back when this object does.

    Attributes:
        offset, length: Where, in bytes.
    """

    __slots__ = ("_spool", "length", "offset")

    def __init__(self, spool: Spool, offset: int, length: int) -> None:
        self._spool = spool
        self.offset = offset
        self.length = length

    def __del__(self) -> None:
        if self._spool.fd < 0:  # as at the interpreter's end, when this module's own names may be gone
            return
        first = -(-self.offset // _PAGE_BYTES) * _PAGE_BYTES
        last = (self.offset + self.length) // _PAGE_BYTES * _PAGE_BYTES
        if last > first:
            punch(self._spool.fd, first, last - first)


class Spool:
    """The parent's side. Any of its threads may put.

    Attributes:
        fd: The parent's descriptor; -1 once closed.
        reader: The one that workers get: what a task writes into all descriptors that it finds does not come here.
    """

    __slots__ = ("_end", "_lock", "fd", "reader")

    def __init__(self) -> None:
        self.fd = self.reader = create_memfd("manycore-spool")
        self.reader = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        self._lock = Mutex()  # guards _end, and the descriptor while it is written to; nothing is acquired under it
        self._end = 0

    def put(self, data: bytes | memoryview) -> Range:
        """Append.

        Raises:
            PoolClosed: It is closed.
            OSError: Memory is short; nothing was kept.
        """
        view = memoryview(data).cast("B")
        step = _PAGE_BYTES if len(view) >= _PAGE_BYTES else 8  # a long range has pages of its own, to give back
        with self._lock:
            if self.fd < 0:
                raise import_module("manycore.errors").PoolClosed("this pool has ended: it takes no new tasks")
            start = -(-self._end // step) * step
            self._end = -(-(start + len(view)) // step) * step
            place = Range(self, start, len(view))
            done = 0
            while done < len(view):
                done += os.pwrite(self.fd, view[done:], start + done)
        return place

    def disown(self) -> None:
        """In a forked child: its copies of ranges give back nothing, for the parent's workers still read them.

        The descriptors stay open: the child may be about to become a worker, which has got one by its number.
        """
        self.fd = -1

    def close(self) -> None:
        """Close the descriptors; workers that have their own go on reading."""
        with self._lock:
            fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
            if self.reader != fd:
                os.close(self.reader)

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:  # nobody came to close it: an engine whose making failed
            self.close()
