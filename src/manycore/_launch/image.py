"""Which memory of a zygote is put into a file, so that children copy what they write to at half the cost.

    zygote, when spares follow one another:     what is here and may be     -> runs of pages    memory()
    before it forks the next:                   written to a file, which is mapped in its place `Brood.take_image()`

How, and what memory may be: `_native/c/image.h`.

Invariants:
    nothing but time depends on it: the contents are the same at the same addresses
    what others have mapped is left alone: a library's own allocator, threads' stacks, what a module maps
    hooks that a fork has in the process that forks (`os.register_at_fork`) are called in the child from then on, so
        they are the standard library's, which puts its locks in order; with others there, nothing is put into a file
"""

from __future__ import annotations

import array
import gc
import os
import sys

from manycore._launch import threads
from manycore._native import brood

__all__ = ["memory"]

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_MOST_BYTES = 24 << 20  # to copy once; and to keep, as long as a child lives that was forked before the next time
_OBJECT_BYTES = 160  # about, of one that the garbage collector knows, with what is its own
_HEAP_START = 47  # the field in /proc/PID/stat (proc(5)); the state is the third


def memory() -> bytes:
    """The heap, the small objects and the static data of this process, whose objects are frozen (`gc.freeze`).

    Returns:
        For each run of pages its address and its bytes, as two unsigned integers of 8 bytes; none if they are too
        many, or it cannot be told which they are, or a fork has hooks in this process that matter.
    """
    if gc.get_freeze_count() * _OBJECT_BYTES > _MOST_BYTES:  # before each is written to, as its references are counted
        return b""
    gc.unfreeze()
    try:
        if _is_hooked():
            return b""
        wanted = brood.arenas(gc.get_objects())
    finally:
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


def _is_hooked() -> bool:
    """Whether a fork has hooks that must be called here; this package's must where this process has shared objects."""
    hooks = threads.hooks_here()
    cells, blocks = sys.modules.get("manycore._memory.cells"), sys.modules.get("manycore._native.arena")
    if hooks is None or (cells is not None and cells.in_use()) or (blocks is not None and blocks.held_blocks()):
        return True
    modules = {getattr(hook, "__module__", None) or type(getattr(hook, "__self__", None)).__module__ for hook in hooks}
    return not {str(name).partition(".")[0] for name in modules} <= {"manycore", *sys.stdlib_module_names}
