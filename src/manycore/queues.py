"""Queues between processes: records in shared memory, and nothing that a death can break.

      any process                                   any process
      put: pickle, copy into the queue    ==>       get: copy out, unpickle

The standard interface, with what it lacks: `put_many`, `get_many`, iteration, `shutdown`. A queue may be
sent to processes that already run: as a task's argument, through another queue, through a pipe.

There is no feeder thread. When `put` returns, the item is in the queue's memory, which belongs to all who
have the queue: it survives the exit, and the death, of the process that put it. What cannot be pickled
raises in `put`, at the caller's line. An unbounded queue grows as long as there is memory; then `put` raises
OSError. What was read is used again; beyond 64 MiB of such memory, the pages go back to the system.
`close`, `join_thread` and `cancel_join_thread` keep their names and have nothing to wait for.

Code that items bring along (objects of `__main__`) goes by value, as `manycore._memory.by_value` tells.

If a process dies:
    in `put`: its item is in the queue, or is not; never half.
    in `get`: at most the items that it was taking are lost with it.
    waiting: nothing.
    with a task of a `JoinableQueue` in its hands: that item is never done, so `join` waits for ever.
Unlike multiprocessing.Queue: `put` of a mutable object takes it as it is now; a reader or writer that is
    killed leaves the queue working; a timeout bounds the whole call; ends hold no lock while they wait.
Source: `c/queue.h` of `_native`.
"""

from __future__ import annotations

import multiprocessing.queues as _standard
import os
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.context import assert_spawning as _assert_spawning  # noqa: F401  (a name of the module)
from queue import Empty, Full
from types import GenericAlias
from typing import Any, Self
from weakref import WeakValueDictionary

from manycore._memory import codec
from manycore._memory.available import require_bytes
from manycore._memory.segment import create_memfd, receive_fd, send_fd
from manycore._native.queue import RecordQueue

__all__ = ["Empty", "Full", "JoinableQueue", "Queue", "ShutDown", "SimpleQueue"]

if sys.version_info >= (3, 13):
    from queue import ShutDown
else:

    class ShutDown(Exception):
        """Raised by `put` and `get` of a queue that was shut down; `queue.ShutDown` where Python has it."""

        __module__ = "manycore.queues"


_UNBOUNDED = 0
_MOST_ITEMS = 2**31 - 1  # the standard library's bound for maxsize (SEM_VALUE_MAX)

# (device, inode) -> this process's object for that memory
_known: WeakValueDictionary[tuple[int, int], _Shared] = WeakValueDictionary()
_known_lock = threading.Lock()  # guards the step from "not in _known" to "in _known"


class _Shared(RecordQueue):
    """What all queues have in common: their memory, how values are encoded, and how they are sent."""

    def __init__(self, maxsize: int = 0, *, ctx: Any = None) -> None:  # noqa: ARG002
        if not isinstance(maxsize, int):
            raise TypeError(f"maxsize is an int, not {type(maxsize).__name__}")
        if maxsize > _MOST_ITEMS:
            raise ValueError(f"maxsize is at most {_MOST_ITEMS}")
        self._begin(create_memfd("manycore:queue"), max(maxsize, _UNBOUNDED))

    def _begin(self, fd: int, most: int | None) -> None:
        self._open(fd, most, ShutDown)
        status = os.fstat(fd)
        self._inode = (status.st_dev, status.st_ino)
        with _known_lock:
            _known.setdefault(self._inode, self)

    def _require(self, size: int) -> None:
        require_bytes(size)

    def _encode(self, value: Any) -> list[Any]:
        buffers: list[Any] = []
        data = codec.dumps(value, buffers=buffers, roots=("item",))
        return [data, *buffers]

    def _decode(self, data: bytes, buffers: list[bytearray]) -> Any:
        return codec.loads(data, buffers=buffers)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _receive, (type(self), self._inode, send_fd(self._fd, self, self._memory_bytes()))

    def __repr__(self) -> str:
        kind = type(self)
        return f"<{kind.__module__}.{kind.__qualname__} of {self.qsize()} items at {id(self):#x}>"

    __class_getitem__: Any = classmethod(GenericAlias)


def _receive(kind: type[_Shared], inode: tuple[int, int], handle: Any) -> Any:
    known = _known.get(inode)
    if known is not None and type(known) is kind and isinstance(handle, tuple):
        return known
    made = kind.__new__(kind)
    made._begin(receive_fd(handle, inode), None)
    return made


class Queue(_Shared, _standard.Queue):  # type: ignore[type-arg]
    """A queue of items between any number of processes, first in, first out.

    Args:
        maxsize: Items that it holds at most; 0 is as many as memory allows.
        ctx: Taken for the standard signature; a queue is the same in all contexts.

    Process-safety: any thread of any process may use it; it may be sent to running processes.
    """

    def close(self) -> None:
        """Say that this process is done with the queue: `put` and `get` raise ValueError from now on, here."""
        self._close()

    def join_thread(self) -> None:
        """Nothing to wait for: `put` has put."""
        if not self.closed:
            raise AssertionError(f"Queue {self!r} not closed")

    def cancel_join_thread(self) -> None:
        """Nothing to cancel."""

    def __iter__(self) -> Iterator[Any]:
        """The items, until the queue is shut down and empty."""
        while True:
            try:
                item = self.get()
            except ShutDown:
                return
            yield item


class JoinableQueue(Queue):
    """A queue that knows how many of its items have been dealt with: `task_done` and `join`."""


class SimpleQueue(_Shared, _standard.SimpleQueue):  # type: ignore[type-arg]
    """A queue with `get`, `put`, `empty` and `close`.

    Args:
        ctx: Taken for the standard signature.
    """

    def __init__(self, *, ctx: Any = None) -> None:
        super().__init__(ctx=ctx)

    def close(self) -> None:
        """Say that this process is done with the queue."""
        self._close()

    def get(self) -> Any:  # type: ignore[override]
        """Take the item that was put first; waits for one."""
        return super().get()

    def put(self, obj: Any) -> None:  # type: ignore[override]
        """Put an item into the queue."""
        super().put(obj)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
