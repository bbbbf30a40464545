"""The exceptions of `errors` whose bases are in the standard library's `multiprocessing` and `concurrent.futures`.

They belong to `manycore.errors`, which has them from here when one is first asked for; nobody else imports this.
"""

from __future__ import annotations

import builtins
from concurrent.futures import BrokenExecutor
from multiprocessing import AuthenticationError, BufferTooShort, ProcessError, TimeoutError
from typing import Any

from manycore.errors import ManycoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures.process import BrokenProcessPool
else:
    try:
        from concurrent.futures.process import BrokenProcessPool
    except RuntimeError:  # the interpreter is ending: nobody has it, nor can import it any more
        BrokenProcessPool = BrokenExecutor

__all__ = [
    "ActorDied",
    "AuthenticationError",
    "BufferTooShort",
    "LaunchError",
    "ManagerDied",
    "OwnerDied",
    "PoisonTask",
    "PoolBroken",
    "ProcessError",
    "RestartLimitExceeded",
    "SoftTimeout",
    "TaskTimeout",
    "TasksLost",
    "TimeoutError",
    "WorkerDied",
]


class PoolBroken(ManycoreError, BrokenProcessPool):
    """The pool has given up as a whole: its workers cannot be started or die faster than its restart budget allows."""


class LaunchError(ManycoreError, ProcessError, OSError):
    """A process could not be started."""


class WorkerDied(ManycoreError, BrokenProcessPool):
    """The process that ran this task died. Only this task failed; the pool has replaced the worker.

    Where a fatal signal ended it inside Python code, that place is among the notes.

    Attributes:
        certificate: How the process ended (`manycore.Certificate`), or None where nothing is known.
    """

    def __init__(self, message: str = "", certificate: Any = None) -> None:
        super().__init__(message, certificate)
        self.certificate = certificate
        if where := getattr(certificate, "where", ""):
            self.add_note(f"It died here (most recent call first):\n{where}")
        if where := getattr(certificate, "native_where", ""):
            self.add_note(f"In native code (most recent call first):\n{where}")

    def __str__(self) -> str:
        return str(self.args[0])


class ActorDied(WorkerDied):
    """The process of an actor died with this call in its hands, or died for good before it took the call."""


class TaskTimeout(ManycoreError, TimeoutError, builtins.TimeoutError):
    """The task ran longer than its `timeout`; its worker was killed and replaced."""


class SoftTimeout(TaskTimeout):
    """Raised inside a task that has run longer than its `soft_timeout`, so that it can end in order."""


class PoisonTask(WorkerDied):
    """The task was tried again after it had killed a worker, and has killed another.

    Attributes:
        certificate: How the last of them ended.
        certificates: How each of them ended, in order.
    """

    def __init__(self, message: str = "", certificates: tuple[Any, ...] = ()) -> None:
        super().__init__(message, certificates[-1] if certificates else None)
        self.args = (message, certificates)
        self.certificates = certificates


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


class ManagerDied(ManycoreError, ProcessError, EOFError, ConnectionError):
    """The manager's process is gone, and with it the objects that it held."""


for _class in map(globals().__getitem__, __all__):
    if issubclass(_class, ManycoreError):
        _class.__module__ = "manycore.errors"
