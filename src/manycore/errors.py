"""Every exception and warning of manycore. A leaf: it imports nothing of the package.

Each class is a subclass of the one that users of the standard library already catch, so a program
that was written for `multiprocessing` or `concurrent.futures` keeps its `except` clauses.

    Closed     you did it        PoolClosed, ChannelClosed
    Broken     it happened       WorkerDied, PoolBroken, LaunchError, ManagerDied
    OwnerDied  neither           the lock is held, and what it guards may be half changed

Every class survives pickling: a test sends one of each through a pickle and back.
"""

from __future__ import annotations

import builtins
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import AuthenticationError, BufferTooShort, ProcessError, TimeoutError
from pickle import PicklingError, UnpicklingError
from typing import Any

__all__ = [
    "AuthenticationError",
    "BufferTooShort",
    "ChannelClosed",
    "DeadlockError",
    "LaunchError",
    "ManagerDied",
    "ManycoreError",
    "ManycoreWarning",
    "OwnerDied",
    "PoolBroken",
    "PoolClosed",
    "ProcessError",
    "RemoteTraceback",
    "RestartLimitExceeded",
    "ResultLost",
    "ResultPicklingError",
    "TaskPicklingError",
    "TaskTimeout",
    "TasksLost",
    "TimeoutError",
    "WorkerDied",
]


class ManycoreError(Exception):
    """The base of what only manycore raises."""


class ManycoreWarning(UserWarning):
    """Something that will work, but not as well as the caller may think."""


class PoolClosed(ManycoreError, RuntimeError, ValueError):
    """Work was handed to a pool or an executor after `close`, `shutdown` or `terminate`.

    A `ValueError` because `multiprocessing.Pool` raises that, a `RuntimeError` because
    `ProcessPoolExecutor.submit` raises that.
    """


class PoolBroken(ManycoreError, BrokenProcessPool):
    """The pool has given up as a whole: its workers cannot be started or die faster than its restart budget allows."""


class LaunchError(ManycoreError, ProcessError, OSError):
    """A process could not be started."""


class WorkerDied(ManycoreError, BrokenProcessPool):
    """The process that ran this task died. Only this task failed; the pool has replaced the worker.

    Attributes:
        certificate: How the process ended (`manycore.Certificate`), or None where nothing is known.
    """

    def __init__(self, message: str = "", certificate: Any = None) -> None:
        super().__init__(message, certificate)
        self.certificate = certificate

    def __str__(self) -> str:
        return str(self.args[0])


class TaskTimeout(ManycoreError, TimeoutError, builtins.TimeoutError):
    """The task ran longer than its `timeout`; its worker was killed and replaced."""


class ResultLost(ManycoreError, RuntimeError):
    """The task was done, but the thread that was collecting its result was interrupted, and the result is gone."""


class TaskPicklingError(ManycoreError, PicklingError):
    """A task (its function or an argument) could not be pickled here, or could not be rebuilt in the worker."""


class ResultPicklingError(ManycoreError, PicklingError, UnpicklingError):
    """A result or an exception could not be pickled in the worker, or could not be rebuilt here."""


class RemoteTraceback(Exception):
    """The worker's traceback, as text: the `__cause__` of an exception that a task raised.

    Args:
        text: What `traceback.format_exception` gave in the worker.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.tb = text  # multiprocessing.pool's name for it

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class RestartLimitExceeded(ManycoreError, ProcessError):
    """A supervised process ended more often than its supervisor's budget bears; it was not started again."""


class OwnerDied(ManycoreError, ProcessError):
    """The process that held this lock died holding it.

    The lock *is* held by the caller now; what it guards may be half changed.

    Attributes:
        owner_pid: The pid of the dead owner.
    """

    def __init__(self, message: str = "", owner_pid: int = 0) -> None:
        super().__init__(message, owner_pid)
        self.owner_pid = owner_pid

    def __str__(self) -> str:
        return str(self.args[0])


class TasksLost(ManycoreError, ProcessError):
    """Processes died that had taken items of a `JoinableQueue` and had not called `task_done` for them.

    Attributes:
        count: How many items.
    """

    def __init__(self, message: str = "", count: int = 0) -> None:
        super().__init__(message, count)
        self.count = count

    def __str__(self) -> str:
        return str(self.args[0])


class DeadlockError(ManycoreError, RuntimeError):
    """The parties of a wait wait for each other, so that none can ever go on."""


class ChannelClosed(ManycoreError, EOFError, ValueError):
    """The channel was closed, and what was sent before has been received."""


class ManagerDied(ManycoreError, ProcessError, EOFError, ConnectionError):
    """The manager's process is gone, and with it the objects that it held."""
