"""Queues between processes: records in shared memory, and nothing that a death can break.

      any process                                   any process
      put: pickle, copy into the queue    ==>       get: copy out, unpickle

The standard interface, with what it lacks: `put_many`, `get_many`, iteration, `shutdown`, `aget` and `aput` for
asyncio, `manycore.select`. A queue may be sent to processes that already run: as a task's argument, through another
queue, through a pipe.

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
    with a task of a `JoinableQueue` in its hands: `join` counts the task as lost, waits for the others, and
        raises `TasksLost`.
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

from manycore import selection
from manycore._memory import codec
from manycore._memory.available import require_bytes
from manycore._memory.bells import Bell, NativeCase
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
_GETS, _PUTS = 0, 1  # the sides of a queue that can be watched
_MOST_ITEMS = 2**31 - 1  # the standard library's bound for maxsize (SEM_VALUE_MAX)

# (device, inode) -> this process's object for that memory
_known: WeakValueDictionary[tuple[int, int], _Shared] = WeakValueDictionary()
_known_lock = threading.Lock()  # guards the step from "not in _known" to "in _known"


class _Shared(RecordQueue):
    """What all queues have in common: their memory, how values are encoded, how they are sent and waited for."""

    _joinable = False
    _one_reader = True  # an item is taken by one
    _ends: tuple[_ReaderEnd, _WriterEnd] | None = None

    def __init__(self, maxsize: int = 0, *, ctx: Any = None) -> None:  # noqa: ARG002
        if not isinstance(maxsize, int):
            raise TypeError(f"maxsize is an int, not {type(maxsize).__name__}")
        if maxsize > _MOST_ITEMS:
            raise ValueError(f"maxsize is at most {_MOST_ITEMS}")
        self._begin(create_memfd("manycore:queue"), max(maxsize, _UNBOUNDED))

    def _begin(self, fd: int, most: int | None) -> None:
        self._open(fd, most, ShutDown, self._joinable)
        status = os.fstat(fd)
        self._inode = (status.st_dev, status.st_ino)
        with _known_lock:
            _known.setdefault(self._inode, self)

    def _require(self, size: int) -> None:
        require_bytes(size)

    def _encode(self, value: Any) -> list[Any]:
        buffers: list[Any] = []
        data = codec.dumps(value, buffers=buffers, roots=("item",), one_reader=self._one_reader)
        return [data, *buffers]

    def _decode(self, data: bytes, buffers: list[bytearray]) -> Any:
        return codec.loads(data, buffers=buffers)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _receive, (type(self), self._inode, send_fd(self._fd, self, self._memory_bytes()))

    def _select_case(self) -> NativeCase:
        if self.closed:
            raise ValueError(f"Queue {self!r} is closed")
        return NativeCase(self, self, _GETS, lambda: self._ready(_GETS))

    def _end(self, which: int) -> Any:
        if self._ends is None:
            self._ends = (_ReaderEnd(self), _WriterEnd(self))
        return self._ends[which]

    # The standard queues are made of a pipe and a lock, which the standard library's pools, and some programs, use.

    @property
    def _reader(self) -> _ReaderEnd:
        end: _ReaderEnd = self._end(0)
        return end

    _rlock = _reader

    @property
    def _writer(self) -> _WriterEnd:
        end: _WriterEnd = self._end(1)
        return end

    def __repr__(self) -> str:
        kind = type(self)
        if self._fd < 0:
            return f"<{kind.__module__}.{kind.__qualname__} without memory at {id(self):#x}>"
        return f"<{kind.__module__}.{kind.__qualname__} of {self.qsize()} items at {id(self):#x}>"

    __class_getitem__: Any = classmethod(GenericAlias)


class _ReaderEnd:
    """A queue as the reading end of a pipe: what `multiprocessing.connection.wait` and event loops can wait for.

    The descriptor is readable when there may be an item: who put one may ring late, when it has been taken already. So
    `recv` does not wait in a thread that has asked for `fileno` before, as whoever polls does, but gives None: the
    standard executor's thread passes over that, and would otherwise wait for a result while it is told to end.
    """

    def __init__(self, queue: _Shared) -> None:
        self._queue = queue
        self._bell: Bell | None = None
        self._case = NativeCase(queue, queue, _GETS, lambda: queue._ready(_GETS))
        self._empties = False
        self._poller = 0  # the thread that asked for the descriptor
        self.closed = False

    def _refresh(self) -> Bell:
        bell = self._bell
        if bell is None or bell.pid != os.getpid():
            bell = self._bell = Bell()  # of its own: a late ring for another's wait would be an item that is not there
            self._case.slot = -1
        bell.empty()
        if self._case.slot < 0:
            self._case.watch(bell)
        self._case.arm()
        if self._case.slot < 0 or self._case.ready():
            bell.ring()
        return bell

    def fileno(self) -> int:
        if self.closed:
            raise OSError("handle is closed")
        self._poller = threading.get_ident()
        return self._refresh().fd

    def acquire(self) -> None:
        """As the standard queue's lock of readers, under which a pool empties its queue: no `recv` waits any more."""
        self._empties = True

    def recv(self) -> Any:
        polled = self._poller == threading.get_ident()
        if polled:
            self._poller = 0
        try:
            item = RecordQueue.get(self._queue, block=not (polled or self._empties))
        except Empty:
            return None
        if self._bell is not None and self._bell.pid == os.getpid():
            self._refresh()
        return item

    def poll(self, timeout: float | None = 0.0) -> bool:
        return bool(selection.select(self._queue, timeout=timeout))

    def close(self) -> None:
        self.closed = True
        bell, self._bell = self._bell, None
        if bell is not None:
            self._case.unwatch()  # does nothing in a forked child: the slot is its parent's
            bell.discard()

    def __del__(self) -> None:
        self.close()


class _WriterEnd:
    """A queue as the writing end of a pipe."""

    def __init__(self, queue: _Shared) -> None:
        self._queue = queue
        self.closed = False

    def send(self, obj: Any) -> None:
        self._queue.put(obj)

    def close(self) -> None:
        self.closed = True


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

    def empty(self) -> bool:
        """Whether there is no item, this moment.

        Raises:
            OSError: This object was closed, and there are items.
        """
        nothing = super().empty()
        if self.closed and not nothing:
            raise OSError(f"Queue {self!r} is closed")
        return nothing

    def join_thread(self) -> None:
        """Nothing to wait for: `put` has put."""
        if not self.closed:
            raise AssertionError(f"Queue {self!r} not closed")

    def cancel_join_thread(self) -> None:
        """Nothing to cancel."""

    async def aget(self) -> Any:
        """`get`, for asyncio: the event loop goes on meanwhile, and no thread waits.

        A task that is cancelled here has taken nothing. Where several wait, the first that came is the first served.

        Raises:
            ShutDown: The queue is empty, and was shut down.
            ValueError: This object was closed.
        """
        from manycore._memory.loops import until_ready

        while True:
            try:
                return self.get_nowait()
            except Empty:
                await until_ready(self._select_case())

    async def aput(self, obj: Any) -> None:
        """`put`, for asyncio; the item is pickled here and now.

        A task that is cancelled while it waits for room has put nothing.

        Args:
            obj: The item.

        Raises:
            TaskPicklingError: The item cannot be pickled; the message says which part.
            ShutDown: The queue was shut down.
            ValueError: This object was closed.
        """
        from manycore._memory.loops import until_ready

        item = self._encoded(obj)
        while not self._put_encoded(item):
            await until_ready(NativeCase(self, self, _PUTS, lambda: self._ready(_PUTS)))

    def __iter__(self) -> Iterator[Any]:
        """The items, until the queue is shut down and empty."""
        while True:
            try:
                item = self.get()
            except ShutDown:
                return
            yield item


class JoinableQueue(Queue):
    """A queue that knows how many of its items have been dealt with: `task_done` and `join`.

    If a process dies: the items that it took, and had not called `task_done` for, are lost; `join` says how many.
    """

    _joinable = True

    def task_done(self) -> None:
        """Say that an item that was taken has been dealt with.

        Usually the process that took the item says so. Another may: then the item is booked off whoever has one.

        Raises:
            ValueError: There are no more items than were dealt with.
        """
        self._task_done()

    def join(self) -> None:
        """Wait until every item that was put has been dealt with (`task_done`), or is lost.

        Raises:
            TasksLost: Processes died that had taken items and not dealt with them. Everything else is dealt with,
                and the queue goes on. Each loss is told once in each process.
        """
        lost = self._join()
        if lost:
            from manycore import errors

            raise errors.TasksLost(
                f"{lost} of the tasks of this queue were lost: a process that had taken them died before task_done(); "
                "put them again if they may run twice",
                lost,
            )


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

    def empty(self) -> bool:
        """Whether there is no item, this moment; OSError where this object was closed."""
        if self.closed:
            raise OSError(f"Queue {self!r} is closed")
        return super().empty()

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
