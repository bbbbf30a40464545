"""Which pages a child writes to, so that the next one has its copies of them before it is asked for anything.

A fork copies no memory: a page is copied when one of the two first writes to it, and each copy costs 1 to 3 us, which
for the hundreds of pages that the interpreter writes to (a count of references is enough) is most of the time of a
start. They are nearly the same in every child: so two tell, at their ends, to which they wrote, and those after them
have the kernel copy what both name at once, a spare before it is asked for anything.

    a child, at its end:        /proc/self/pagemap -> runs of pages        written()
    zygote, as it reaps:        what two of them wrote to                  common()
    the next, at their start:   runs of pages -> copied by the kernel      `_native.brood.populate()`

Invariants:
    nothing but time depends on it: addresses mean the same in all children of one zygote; where a page is no longer
        there, or the kernel is older than Linux 5.14, nothing happens
    a child that tells had no page copied for it, so the pages are those that children do write to
"""

from __future__ import annotations

import array
import os

__all__ = ["common", "written"]

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_MOST_PAGES = 2000  # written to; a child that wrote to more did work of its own, and says nothing of the others
_MOST_BYTES = 64 << 20  # that it could have written to, which are to be gone through
_MOST_AREA_BYTES = 16 << 20  # of one area; what is larger is a library's store (OpenBLAS), of which a child uses little
# Of an entry in /proc/PID/pagemap (Linux's Documentation/admin-guide/mm/pagemap.rst)
_OWN = 1 << 63 | 1 << 56  # present, and this process's alone
_STATE = _OWN | 1 << 61  # or a file's


def written() -> bytes:
    """In a child, at its end: the pages of its private memory that are its own, as it wrote to them.

    Returns:
        For each run of pages its address and its bytes, as two unsigned integers of 8 bytes; none if they are too
        many, or the kernel does not tell.
    """
    found = []
    left = _MOST_BYTES
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
            if end - start > _MOST_AREA_BYTES:
                continue
            left -= end - start
            if left < 0:
                return b""
            data = os.pread(pagemap, (end - start) // _PAGE_BYTES * 8, start // _PAGE_BYTES * 8)
            entries = zip(range(start, end, _PAGE_BYTES), memoryview(data).cast("Q"), strict=False)
            found += [address for address, entry in entries if entry & _STATE == _OWN]
    except (OSError, ValueError):
        return b""
    finally:
        os.close(pagemap)
    return _runs(found) if len(found) <= _MOST_PAGES else b""


def common(one: bytes, other: bytes) -> bytes:
    """What is in both of two results of `written`."""
    return _runs(sorted(_addresses(one) & _addresses(other)))


def _addresses(runs: bytes) -> set[int]:
    numbers = iter(memoryview(runs).cast("Q"))
    return {
        page for start, size in zip(numbers, numbers, strict=True) for page in range(start, start + size, _PAGE_BYTES)
    }


def _runs(pages: list[int]) -> bytes:
    """Pages in ascending order, as the address and the bytes of each run of them."""
    runs = array.array("Q")
    for page in pages:
        if runs and page == runs[-2] + runs[-1]:
            runs[-1] += _PAGE_BYTES
        else:
            runs.extend((page, _PAGE_BYTES))
    return runs.tobytes()
