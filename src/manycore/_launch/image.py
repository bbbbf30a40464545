"""Which memory of a zygote is put into a file, so that children copy what they write to at half the cost.

    zygote, when spares follow one another:     what is here and may be     -> runs of pages    memory()
    before it forks the next:                   written to a file, which is mapped in its place `Brood.take_image()`

How, and what memory may be: `_native/c/image.h`.

Invariants:
    nothing but time depends on it: the contents are the same at the same addresses
    what others have mapped is left alone: a library's own allocator, threads' stacks, what a module maps
"""

from __future__ import annotations

import array
import gc
import os

from manycore._native import brood

__all__ = ["memory"]

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_MOST_BYTES = 16 << 20  # to copy once; and to keep, as long as a child lives that was forked before the next time
_HEAP_START = 47  # the field in /proc/PID/stat (proc(5)); the state is the third


def memory() -> bytes:
    """The heap, the small objects and the static data of this process, whose objects are frozen (`gc.freeze`).

    Returns:
        For each run of pages its address and its bytes, as two unsigned integers of 8 bytes; none if they are too
        many, or it cannot be told which they are.
    """
    gc.unfreeze()
    objects = gc.get_objects()
    wanted = brood.arenas(objects)
    del objects
    gc.freeze()
    data = brood.static_data()
    runs = array.array("Q")
    try:
        with open("/proc/self/stat", "rb") as file:
            heap = int(file.read().rpartition(b")")[2].split()[_HEAP_START - 3])
        with open("/proc/self/maps", "rb") as file:
            lines = file.readlines()
    except (OSError, ValueError, IndexError):
        return b""
    if heap > 0:
        wanted.append((heap, brood.heap_end()))
    for line in lines:
        addresses, rights, _ = line.split(None, 2)
        if rights != b"rw-p":
            continue
        start, end = (int(address, 16) for address in addresses.split(b"-"))
        if start <= data < end:
            runs.extend((start, end - start))
            continue
        for first, last in wanted:
            low = max(start, -(-first // _PAGE_BYTES) * _PAGE_BYTES)
            high = min(end, last // _PAGE_BYTES * _PAGE_BYTES)
            if low < high:
                runs.extend((low, high - low))
    return runs.tobytes() if sum(runs[1::2]) <= _MOST_BYTES else b""
