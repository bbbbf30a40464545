"""Which pages a child writes to, so that the next one has its copies of them before it is asked for anything.

A fork copies no memory: a page is copied when one of the two first writes to it, and each copy costs 1 to 3 us, which
for the hundreds of pages that the interpreter writes to (a count of references is enough) is most of the time of a
start. They are nearly the same in every child: so one tells, at its end, which they were, and those after it have the
kernel copy them all at once, a spare before it is asked for anything.

    child, at its end:          /proc/self/pagemap -> runs of pages        written()
    the next, at their start:   runs of pages -> copied by the kernel      `_native.process.populate()`

Invariant: nothing but time depends on it. Addresses mean the same in all children of one zygote; where a page is
    no longer there, or the kernel is older than Linux 5.14, nothing happens.
"""

from __future__ import annotations

import array
import os

__all__ = ["written"]

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_MOST = 2000  # pages written to; a child that wrote to more did work of its own, and says nothing of the others
# Of an entry in /proc/PID/pagemap (Linux's Documentation/admin-guide/mm/pagemap.rst)
_OWN = 1 << 63 | 1 << 56  # present, and this process's alone
_STATE = _OWN | 1 << 61  # or a file's


def written() -> bytes:
    """In a child, at its end: the pages of its private memory that are its own, as it wrote to them.

    Returns:
        For each run of pages its address and its bytes, as two unsigned integers of 8 bytes; none if they are too
        many, or the kernel does not tell.
    """
    runs = array.array("Q")
    count = 0
    try:
        with open("/proc/self/maps", "rb") as file:
            lines = file.readlines()
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        for line in lines:
            addresses, rights, _ = line.split(None, 2)
            if rights != b"rw-p":
                continue
            start, end = (int(address, 16) for address in addresses.split(b"-"))
            data = os.pread(pagemap, (end - start) // _PAGE_BYTES * 8, start // _PAGE_BYTES * 8)
            for address, entry in zip(range(start, end, _PAGE_BYTES), memoryview(data).cast("Q"), strict=False):
                if entry & _STATE != _OWN:
                    continue
                count += 1
                if runs and address == runs[-2] + runs[-1]:
                    runs[-1] += _PAGE_BYTES
                else:
                    runs.extend((address, _PAGE_BYTES))
    except (OSError, ValueError):
        return b""
    finally:
        os.close(pagemap)
    return runs.tobytes() if count <= _MOST else b""
