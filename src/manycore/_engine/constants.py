"""What is the same for all items of a starmap travels once: `pool.starmap(f, [(table, 1), (table, 2), ...])`.

    parent                                            worker
    find places whose object is the same in all       the function, as any, once: it knows the file
    write them into one file in memory                for each task: map the file anew, privately, and load
    send the other arguments of each item             call function(*all arguments)

A task gets its own copy of the objects, as if they had travelled with it: what it changes in an array is seen by no
other task. The kernel copies only the pages that are written to, so a copy of an array costs some microseconds.

Only maps that have read all their items do this: nobody can change an object between two of them. The next call of the
map writes them again, so that nothing is ever stale.

If a process dies: a worker, nothing. The parent: the file goes with its last descriptor.
"""

from __future__ import annotations

import mmap
import os

from manycore._engine import here
from manycore._memory import codec
from manycore._memory.segment import create_memfd, receive_fd

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final

__all__ = ["WORTH_BYTES", "Repeated", "repeated_places"]

WORTH_BYTES: Final = 1 << 16  # a shorter one is not worth a mapping for each task
_LINE: Final = 64
_SMALL: Final = frozenset((int, float, complex, bool, type(None), type, type(len), type(lambda: 0)))

# What the last task loaded, of whichever map: (file, task) and the objects. One, so that an old map's are not kept.
_last: tuple[tuple[tuple[int, int], int], list[Any]] | None = None


def repeated_places(items: Sequence[Any]) -> tuple[int, ...]:
    """The places at which all items, tuples of one length, have the same object, if that may be a large one."""
    if len(items) < 2 or type(items[0]) is not tuple or type(items[-1]) is not tuple:
        return ()
    first, last, length = items[0], items[-1], len(items[0])
    if len(last) != length:
        return ()
    places = [place for place in range(length) if first[place] is last[place] and _may_be_large(first[place])]
    if not places or not all(type(item) is tuple and len(item) == length for item in items):
        return ()
    return tuple(place for place in places if all(item[place] is first[place] for item in items))


def _may_be_large(value: Any) -> bool:
    kind = type(value)
    if kind in _SMALL:
        return False
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size >= WORTH_BYTES
    return len(value) >= WORTH_BYTES if kind in (str, bytes, bytearray) else True


class Repeated:
    """A function some of whose arguments are the same for all items; it is called with the others.

    Args:
        function: The user's.
        name: What messages call it.
        places: Where the arguments go that are the same.
        values: What they are.

    Raises:
        ValueError: They are too short to be worth it.
        Exception: They cannot be pickled.
    """

    def __init__(self, function: Callable[..., Any], name: str, places: tuple[int, ...], values: list[Any]) -> None:
        self._fd = -1
        buffers: list[Any] = []
        data = codec.dumps(values, buffers=buffers)
        parts = [memoryview(data), *buffers]
        if sum(part.nbytes for part in parts) < WORTH_BYTES:
            raise ValueError("not worth it")
        self._function = function
        self.__qualname__ = name
        self._places = places
        self._layout: list[tuple[int, int]] = []
        self._size = 0
        for part in parts:
            self._layout.append((self._size, part.nbytes))
            self._size += -(-part.nbytes // _LINE) * _LINE
        self._fd = create_memfd("manycore-repeated")
        os.ftruncate(self._fd, self._size)
        for (at, _), part in zip(self._layout, parts, strict=True):
            _write(self._fd, part, at)
        status = os.fstat(self._fd)
        self._inode = (status.st_dev, status.st_ino)
        self._handle: Any = None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fd": -1, "_handle": (os.getpid(), self._fd)}  # the map keeps it open for its workers

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound here: modules are emptied at the end
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            close(fd)

    def __call__(self, *others: Any) -> Any:
        arguments = list(others)
        for place, value in zip(self._places, self._values(), strict=True):  # in the order of the places
            arguments.insert(place, value)
        return self._function(*arguments)

    def _values(self) -> list[Any]:
        """This task's own copy."""
        global _last
        key = (self._inode, here.task_number())
        if _last is not None and _last[0] == key:
            return _last[1]
        _last = None
        fd = receive_fd(self._handle, self._inode, os.O_RDONLY)
        try:
            pages = memoryview(mmap.mmap(fd, self._size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE))
        finally:
            os.close(fd)
        data, *buffers = [pages[at : at + length] for at, length in self._layout]
        values: list[Any] = codec.loads(data, buffers=buffers)
        _last = (key, values)
        return values


def _write(fd: int, part: Any, at: int) -> None:
    view = memoryview(part).cast("B")
    while view:
        done = os.pwrite(fd, view[: 1 << 30], at)
        view = view[done:]
        at += done
