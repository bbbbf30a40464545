"""Where code runs: the worker that it is in, and the task that it is part of.

Nothing is kept for it while tasks run: who asks is told from the worker's page and from what the loop has in its
hands, so a task that does not ask pays nothing.

If a process dies: nothing is shared. A process that a task forks has the worker's memory and is not the worker: it is
    told None.
"""

from __future__ import annotations

import os
from collections import namedtuple

from manycore import _launch

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NamedTuple
else:
    NamedTuple = object

__all__ = ["CurrentTask", "CurrentWorker", "become", "cores", "current_task", "current_worker", "depth", "task_number"]


class CurrentTask(NamedTuple):
    """The task that the calling code is part of.

    Attributes:
        id: Its number in its pool, as messages have it. The items of a map that travel together share it.
        name: What the pool calls it: the name that it was given, or the function's.
        function: The function's name.
        attempt: How often it has begun, this time included: 1 unless it is tried again.
        deadline: When it will be ended for its `timeout`, on `time.monotonic`; None where it has none.
    """

    id: int
    name: str
    function: str
    attempt: int
    deadline: float | None


if not TYPE_CHECKING:

    class CurrentTask(namedtuple("CurrentTask", CurrentTask.__annotations__)):  # noqa: PYI024  (without typing)
        __slots__ = ()
        __doc__ = CurrentTask.__doc__


class CurrentWorker:
    """The worker that the calling code runs in.

    Attributes:
        index: Its place in its pool, from 0.
        pool: The pool's name.
        pid: Its process id.
        cores: How many of the machine's cores are its share: a pool in a task has so many workers by default.
        state: What the initializer returned; None without one. It may be set.
    """

    __slots__ = ("_look", "_number", "cores", "index", "pid", "pool", "state")

    def __init__(
        self, index: int, pool: str, cores: int, look: Callable[[], CurrentTask | None], number: Callable[[], int]
    ) -> None:
        self.index = index
        self.pool = pool
        self.cores = cores
        self.pid = os.getpid()
        self.state: Any = None
        self._look = look
        self._number = number

    def __repr__(self) -> str:
        return f"<worker {self.index} of pool {self.pool!r}, pid {self.pid}>"


_worker: CurrentWorker | None = None
_depth = 0


def become(worker: CurrentWorker, depth: int) -> None:
    """From now on this process is that worker, of a pool inside so many pools, itself counted."""
    global _worker, _depth
    _worker, _depth = worker, depth


def depth() -> int:
    """In how many pools, one inside another, this code runs."""
    return _depth


def current_worker() -> CurrentWorker | None:
    """The worker that this code runs in; None outside of one.

    Its `state` is what the pool's `initializer` returned there.
    """
    worker = _worker
    return worker if worker is not None and worker.pid == os.getpid() else None


def task_number() -> int:
    """The number of the task that the worker is at; 0 outside of one."""
    return 0 if _worker is None else _worker._number()


def cores() -> int:
    """How many of the machine's cores this process is to keep busy."""
    worker = current_worker()
    return _launch.cpu_count() if worker is None else worker.cores


def current_task() -> CurrentTask | None:
    """The task that this code is part of; None outside of one, and in an initializer or a finalizer.

    A thread that a task has started is told of the task that the worker runs now.
    """
    worker = current_worker()
    return None if worker is None else worker._look()
