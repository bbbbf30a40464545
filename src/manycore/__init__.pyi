# The face as type checkers see it: every name of the table in __init__.py, from its one home.
# Written by `python -m tests.unit.face_stub`.

from manycore._engine.here import current_task as current_task
from manycore._engine.here import current_worker as current_worker
from manycore._launch import Certificate as Certificate
from manycore._launch import cpu_count as cpu_count
from manycore._launch import preload as preload
from manycore._observe.progress import Progress as Progress
from manycore.actor import Actor as Actor
from manycore.channels import Broadcast as Broadcast
from manycore.channels import Channel as Channel
from manycore.channels import broadcast as broadcast
from manycore.context import Array as Array
from manycore.context import Barrier as Barrier
from manycore.context import Condition as Condition
from manycore.context import Event as Event
from manycore.context import JoinableQueue as JoinableQueue
from manycore.context import Manager as Manager
from manycore.context import Pipe as Pipe
from manycore.context import Process as Process
from manycore.context import Queue as Queue
from manycore.context import RawArray as RawArray
from manycore.context import RawValue as RawValue
from manycore.context import SimpleQueue as SimpleQueue
from manycore.context import Value as Value
from manycore.context import allow_connection_pickling as allow_connection_pickling
from manycore.context import freeze_support as freeze_support
from manycore.context import get_all_start_methods as get_all_start_methods
from manycore.context import get_context as get_context
from manycore.context import get_logger as get_logger
from manycore.context import get_start_method as get_start_method
from manycore.context import log_to_stderr as log_to_stderr
from manycore.context import reducer as reducer
from manycore.context import set_executable as set_executable
from manycore.context import set_forkserver_preload as set_forkserver_preload
from manycore.context import set_start_method as set_start_method
from manycore.errors import ActorClosed as ActorClosed
from manycore.errors import ActorDied as ActorDied
from manycore.errors import AuthenticationError as AuthenticationError
from manycore.errors import BufferTooShort as BufferTooShort
from manycore.errors import ChannelClosed as ChannelClosed
from manycore.errors import DeadlockError as DeadlockError
from manycore.errors import DeadlockWarning as DeadlockWarning
from manycore.errors import LaunchError as LaunchError
from manycore.errors import ManagerDied as ManagerDied
from manycore.errors import ManycoreError as ManycoreError
from manycore.errors import ManycoreWarning as ManycoreWarning
from manycore.errors import OwnerDied as OwnerDied
from manycore.errors import PoisonTask as PoisonTask
from manycore.errors import PoolBroken as PoolBroken
from manycore.errors import PoolClosed as PoolClosed
from manycore.errors import ProcessError as ProcessError
from manycore.errors import RestartLimitExceeded as RestartLimitExceeded
from manycore.errors import ResultLost as ResultLost
from manycore.errors import ResultPicklingError as ResultPicklingError
from manycore.errors import SoftTimeout as SoftTimeout
from manycore.errors import TaskPicklingError as TaskPicklingError
from manycore.errors import TaskTimeout as TaskTimeout
from manycore.errors import TasksLost as TasksLost
from manycore.errors import TimeoutError as TimeoutError
from manycore.errors import WorkerDied as WorkerDied
from manycore.futures import Future as Future
from manycore.futures import ProcessPoolExecutor as ProcessPoolExecutor
from manycore.group import Group as Group
from manycore.maps import imap as imap
from manycore.maps import map as map
from manycore.pool import Failure as Failure
from manycore.pool import Outcome as Outcome
from manycore.pool import Pool as Pool
from manycore.process import active_children as active_children
from manycore.process import current_process as current_process
from manycore.process import parent_process as parent_process
from manycore.selection import select as select
from manycore.shared_memory import SharedArray as SharedArray
from manycore.shared_memory import share as share
from manycore.sharedctypes import Atomic as Atomic
from manycore.supervisor import Supervisor as Supervisor
from manycore.supervisor import supervise as supervise
from manycore.synchronize import BoundedSemaphore as BoundedSemaphore
from manycore.synchronize import BrokenBarrierError as BrokenBarrierError
from manycore.synchronize import Lock as Lock
from manycore.synchronize import RLock as RLock
from manycore.synchronize import ReadWriteLock as ReadWriteLock
from manycore.synchronize import Semaphore as Semaphore

__version__: str
_HOMES: dict[str, str]

__all__ = [
    "Actor",
    "ActorClosed",
    "ActorDied",
    "Array",
    "Atomic",
    "AuthenticationError",
    "Barrier",
    "BoundedSemaphore",
    "Broadcast",
    "BrokenBarrierError",
    "BufferTooShort",
    "Certificate",
    "Channel",
    "ChannelClosed",
    "Condition",
    "DeadlockError",
    "DeadlockWarning",
    "Event",
    "Failure",
    "Future",
    "Group",
    "JoinableQueue",
    "LaunchError",
    "Lock",
    "Manager",
    "ManagerDied",
    "ManycoreError",
    "ManycoreWarning",
    "Outcome",
    "OwnerDied",
    "Pipe",
    "PoisonTask",
    "Pool",
    "PoolBroken",
    "PoolClosed",
    "Process",
    "ProcessError",
    "ProcessPoolExecutor",
    "Progress",
    "Queue",
    "RLock",
    "RawArray",
    "RawValue",
    "ReadWriteLock",
    "RestartLimitExceeded",
    "ResultLost",
    "ResultPicklingError",
    "Semaphore",
    "SharedArray",
    "SimpleQueue",
    "SoftTimeout",
    "Supervisor",
    "TaskPicklingError",
    "TaskTimeout",
    "TasksLost",
    "TimeoutError",
    "Value",
    "WorkerDied",
    "__version__",
    "active_children",
    "allow_connection_pickling",
    "broadcast",
    "cpu_count",
    "current_process",
    "current_task",
    "current_worker",
    "freeze_support",
    "get_all_start_methods",
    "get_context",
    "get_logger",
    "get_start_method",
    "imap",
    "log_to_stderr",
    "parent_process",
    "preload",
    "reducer",
    "select",
    "set_executable",
    "set_forkserver_preload",
    "set_start_method",
    "share",
    "supervise",
]
