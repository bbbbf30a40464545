"""Objects placed in shared memory once, and read by many: what is behind `share`.

    creator                                        any process of this user
    dumps, out-of-band buffers                     known inode: the object that is there
    write into a memfd, seal it for ever           else map read-only, loads once, remember the object

    file   page 0      released, table, parts, creator     the creator alone writes, through an older mapping
           then        the pickle | each buffer, 64-byte aligned | the table: (offset, length) a part

Invariants:
    the bytes never change after the seal (F_SEAL_FUTURE_WRITE): a reader cannot, and the creator does not;
    a process unpickles a sealed object once, as long as its creator keeps the handle.
The arrays of the object are views of the memory: read-only, and valid as long as anybody holds them. When the
creator drops its handle it says so in page 0; a process that remembers the object forgets it when it next
receives one.
If a process dies: a reader, nothing. The creator: the memory lives as long as somebody has it mapped, and who
    remembers the object forgets it when it next receives one, as above.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from typing import Any

from manycore._memory import codec
from manycore._memory.available import require_bytes
from manycore._memory.segment import create_memfd, receive_fd, seal, send_fd
from manycore._native.mapping import Mapping

__all__ = ["Sealed"]

_PAGE = 4096
_LINE = 64
_HEADER = struct.Struct("<QQQQ")  # released; the table's offset; parts; the creator's pid
_PART = struct.Struct("<QQ")  # offset; length
_F_SEAL_FUTURE_WRITE = 0x0010  # Linux 5.1; `fcntl` has no name for it before CPython 3.14
_CHECKED_BYTES = 8 << 20  # as in segment.py

# inode -> (page 0, the object): what this process has unpickled. Guarded by the lock (re-entered by a finalizer), not
# held while an object is unpickled, since that may run any code; two threads may then both do it, and the first one's
# is kept.
_objects: dict[tuple[int, int], tuple[memoryview, object]] = {}
_objects_lock = threading.RLock()


def _after_fork_in_child() -> None:
    global _objects_lock
    _objects_lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _forget_released() -> None:
    living: dict[int, bool] = {}
    gone = []
    with _objects_lock:
        for inode, (page, _) in list(_objects.items()):
            released, _, _, creator = _HEADER.unpack_from(page, 0)
            if creator not in living:
                living[creator] = _is_alive(creator)
            if released or not living[creator]:
                gone.append(_objects.pop(inode))
    del gone


def _is_alive(pid: int) -> bool:
    """Another process that has the number now only delays the forgetting."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _write(fd: int, data: Any, offset: int) -> None:
    view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
    while view:
        done = os.pwrite(fd, view[: 1 << 30], offset)
        view = view[done:]
        offset += done


class Sealed:
    """An immutable copy of an object, placed once. The creator's handle: see `manycore.shared_memory.share`.

    Attributes:
        size: Bytes of shared memory.
    """

    __slots__ = ("__weakref__", "_fd", "_inode", "_page", "_pid", "size")

    def __init__(self, value: object) -> None:
        self._fd = -1
        buffers: list[Any] = []
        data = codec.dumps(value, buffers=buffers, least=1, roots=("value",))
        parts = [memoryview(data), *buffers]
        layout, offset = [], _PAGE
        for part in parts:
            layout.append((offset, part.nbytes))
            offset += (part.nbytes + _LINE - 1) // _LINE * _LINE
        table = offset
        parts.append(memoryview(b"".join(_PART.pack(*place) for place in layout)))
        layout.append((table, parts[-1].nbytes))
        offset += parts[-1].nbytes
        if offset >= _CHECKED_BYTES:
            require_bytes(offset)
        fd = create_memfd("manycore:share")
        try:
            os.ftruncate(fd, offset)
            for (at, _), part in zip(layout, parts, strict=True):
                _write(fd, part, at)
            self._page = memoryview(Mapping(fd, _PAGE))
            _HEADER.pack_into(self._page, 0, 0, table, len(layout) - 1, os.getpid())
            seal(fd, _F_SEAL_FUTURE_WRITE)  # where the kernel cannot: readers map it read-only all the same
            status = os.fstat(fd)
        except OSError as error:
            os.close(fd)
            raise OSError(error.errno, f"cannot place {offset} bytes in shared memory: {error.strerror}") from error
        self._fd = fd
        self._inode = (status.st_dev, status.st_ino)
        self._pid = os.getpid()
        self.size = offset

    def get(self) -> Any:
        """The object, as every receiver gets it: its arrays are read-only views of the shared memory."""
        return _remembered(self._inode, self.size, lambda: os.dup(self._fd))

    def __del__(
        self, getpid: Callable[[], int] = os.getpid, close: Callable[[int], None] = os.close
    ) -> None:  # bound here, since modules are emptied before the last objects go
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd < 0:
            return
        if self._pid == getpid():
            self._page[0] = 1
            if _objects_lock is not None:
                with _objects_lock:
                    known = _objects.pop(self._inode, None)
                del known
        close(fd)

    def handle(self) -> tuple[int, int, int, int]:
        """As `Segment.handle`."""
        return (os.getpid(), self._fd, *self._inode)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Any, ...]]:
        return _receive, (self._inode, self.size, send_fd(self._fd, self, self.size))

    def __repr__(self) -> str:
        return f"<shared object of {self.size} bytes>"


def _receive(inode: tuple[int, int], size: int, handle: Any) -> object:
    return _remembered(inode, size, lambda: receive_fd(handle, inode, os.O_RDONLY))


def _remembered(inode: tuple[int, int], size: int, descriptor: Callable[[], int]) -> object:
    known = _objects.get(inode)
    if known is not None and not known[0][0]:
        return known[1]
    _forget_released()
    fd = descriptor()
    try:
        pages = memoryview(Mapping(fd, size, writable=False))
    finally:
        os.close(fd)
    _, table, count, _ = _HEADER.unpack_from(pages, 0)
    places = _PART.iter_unpack(pages[table : table + count * _PART.size])
    parts = [pages[at : at + length] for at, length in places]
    value = codec.loads(parts[0], buffers=parts[1:])
    with _objects_lock:
        return _objects.setdefault(inode, (pages[: _HEADER.size], value))[1]
