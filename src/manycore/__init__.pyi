# The face as type checkers see it: every name of the table in __init__.py, from its one home.
# Written by `python -m tests.unit.face_stub`.

from manycore._launch import Certificate as Certificate
from manycore._launch import cpu_count as cpu_count
from manycore.errors import AuthenticationError as AuthenticationError
from manycore.errors import BufferTooShort as BufferTooShort
from manycore.errors import ChannelClosed as ChannelClosed
from manycore.errors import DeadlockError as DeadlockError
from manycore.errors import LaunchError as LaunchError
from manycore.errors import ManagerDied as ManagerDied
from manycore.errors import ManycoreError as ManycoreError
from manycore.errors import ManycoreWarning as ManycoreWarning
from manycore.errors import OwnerDied as OwnerDied
from manycore.errors import PoolBroken as PoolBroken
from manycore.errors import PoolClosed as PoolClosed
from manycore.errors import ProcessError as ProcessError
from manycore.errors import ResultPicklingError as ResultPicklingError
from manycore.errors import TaskPicklingError as TaskPicklingError
from manycore.errors import TaskTimeout as TaskTimeout
from manycore.errors import TimeoutError as TimeoutError
from manycore.errors import WorkerDied as WorkerDied
from manycore.futures import Future as Future
from manycore.futures import ProcessPoolExecutor as ProcessPoolExecutor
from manycore.pool import Failure as Failure
from manycore.pool import Outcome as Outcome
from manycore.pool import Pool as Pool
from manycore.pool import imap as imap
from manycore.pool import map as map
from manycore.synchronize import BoundedSemaphore as BoundedSemaphore
from manycore.synchronize import Lock as Lock
from manycore.synchronize import RLock as RLock
from manycore.synchronize import Semaphore as Semaphore

__version__: str
_HOMES: dict[str, str]

__all__ = [
    "AuthenticationError",
    "BoundedSemaphore",
    "BufferTooShort",
    "Certificate",
    "ChannelClosed",
    "DeadlockError",
    "Failure",
    "Future",
    "LaunchError",
    "Lock",
    "ManagerDied",
    "ManycoreError",
    "ManycoreWarning",
    "Outcome",
    "OwnerDied",
    "Pool",
    "PoolBroken",
    "PoolClosed",
    "ProcessError",
    "ProcessPoolExecutor",
    "RLock",
    "ResultPicklingError",
    "Semaphore",
    "TaskPicklingError",
    "TaskTimeout",
    "TimeoutError",
    "WorkerDied",
    "__version__",
    "cpu_count",
    "imap",
    "map",
]
