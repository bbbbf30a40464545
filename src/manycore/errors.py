"""Every exception and warning of manycore. A leaf: it imports nothing of the package.

Each class is a subclass of the one that users of the standard library already catch, so a program
that was written for `multiprocessing` or `concurrent.futures` keeps its `except` clauses.

    Closed     you did it        PoolClosed, ChannelClosed
    Broken     it happened       WorkerDied, PoolBroken, LaunchError, ManagerDied
    OwnerDied  neither           the lock is held, and what it guards may be half changed

Those whose base is in `multiprocessing` or `concurrent.futures.process` are made in `_standard_errors`, when one is
first asked for: these two imports cost more than all others of a pool, which is to start in little time.

Every class survives pickling: a test sends one of each through a pickle and back.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from pickle import PicklingError, UnpicklingError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manycore._standard_errors import (
        ActorDied,
        AuthenticationError,
        BufferTooShort,
        LaunchError,
        ManagerDied,
        OwnerDied,
        PoisonTask,
        PoolBroken,
        ProcessError,
        RestartLimitExceeded,
        SoftTimeout,
        TasksLost,
        TaskTimeout,
        TimeoutError,
        WorkerDied,
    )

__all__ = [
    "ActorClosed",
    "ActorDied",
    "AuthenticationError",
    "BufferTooShort",
    "ChannelClosed",
    "DeadlockError",
    "DeadlockWarning",
    "LaunchError",
    "ManagerDied",
    "ManycoreError",
    "ManycoreWarning",
    "OwnerDied",
    "PoisonTask",
    "PoolBroken",
    "PoolClosed",
    "ProcessError",
    "RemoteTraceback",
    "RestartLimitExceeded",
    "ResultLost",
    "ResultPicklingError",
    "SoftTimeout",
    "TaskPicklingError",
    "TaskTimeout",
    "TasksLost",
    "TimeoutError",
    "WorkerDied",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    late = _import_module("manycore._standard_errors")
    globals().update({each: getattr(late, each) for each in late.__all__})
    return globals()[name]


class ManycoreError(Exception):
    """The base of what only manycore raises."""


class ManycoreWarning(UserWarning):
    """Something that will work, but not as well as the caller may think."""


class DeadlockWarning(ManycoreWarning):
    """A thread waits for a lock, and those that hold it wait, one for the other, for what this thread holds.

    Turned into an error (`warnings.simplefilter("error", manycore.DeadlockWarning)`), it is raised by the
    `acquire` that waits, without the lock, which ends the deadlock.
    """


class PoolClosed(ManycoreError, RuntimeError, ValueError):
    """Work was handed to a pool or an executor after `close`, `shutdown` or `terminate`.

    A `ValueError` because `multiprocessing.Pool` raises that, a `RuntimeError` because
    `ProcessPoolExecutor.submit` raises that.
    """


class ResultLost(ManycoreError, RuntimeError):
    """The task was done, but the thread that was collecting its result was interrupted, and the result is gone."""


class ActorClosed(ManycoreError, RuntimeError, ValueError):
    """The actor was called after it was closed."""


class TaskPicklingError(ManycoreError, PicklingError):
    """A task (its function or an argument) could not be pickled here, or could not be rebuilt in the worker."""


class ResultPicklingError(ManycoreError, PicklingError, UnpicklingError):
    """A result or an exception could not be pickled in the worker, or could not be rebuilt here.

    Attributes:
        value: What it was that did not come, in words.
        exc: Why, in words. Both have the names that `multiprocessing.pool.MaybeEncodingError` gives them.
    """

    def __init__(self, message: str = "", *, value: str = "", exc: str = "") -> None:
        super().__init__(message)
        self.value = value or message
        self.exc = exc or message


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


class DeadlockError(ManycoreError, RuntimeError):
    """The parties of a wait wait for each other, so that none can ever go on."""


class ChannelClosed(ManycoreError, EOFError, ValueError):
    """The channel was closed, and what was sent before has been received."""
