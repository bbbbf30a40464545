"""manycore: all the cores, none of the hangs.

The face of the package: a written table of names, each imported when it is first used. Importing
manycore starts no process, no thread and no signal handler.

    errors.py          exceptions and warnings
    _cli               the way in from a shell
    pool, futures, ... what a user holds; the standard library's module names
    _engine, _observe  the engine under both pools, and what it shows
    _launch            process life
    _memory            bytes between processes
    _native            the C core
"""

from __future__ import annotations

from importlib import import_module as _import_module

__version__ = "0.1.0"

# name -> the module of this package that defines it
_HOMES = {
    "Actor": "actor",
    "Failure": "pool",
    "Outcome": "pool",
    "Pool": "pool",
    "current_task": "_engine.here",
    "current_worker": "_engine.here",
    "imap": "maps",
    "map": "maps",
    "Future": "futures",
    "ProcessPoolExecutor": "futures",
    "ManycoreError": "errors",
    "ManycoreWarning": "errors",
    "ActorClosed": "errors",
    "ActorDied": "errors",
    "PoolBroken": "errors",
    "PoolClosed": "errors",
    "WorkerDied": "errors",
    "TaskTimeout": "errors",
    "SoftTimeout": "errors",
    "PoisonTask": "errors",
    "TaskPicklingError": "errors",
    "ResultLost": "errors",
    "ResultPicklingError": "errors",
    "LaunchError": "errors",
    "OwnerDied": "errors",
    "RestartLimitExceeded": "errors",
    "TasksLost": "errors",
    "DeadlockError": "errors",
    "DeadlockWarning": "errors",
    "ChannelClosed": "errors",
    "ManagerDied": "errors",
    "ProcessError": "errors",
    "TimeoutError": "errors",
    "BufferTooShort": "errors",
    "AuthenticationError": "errors",
    "Progress": "_observe.progress",
    "Certificate": "_launch",
    "cpu_count": "_launch",
    "preload": "_launch",
    "Group": "group",
    "Supervisor": "supervisor",
    "supervise": "supervisor",
    "Lock": "synchronize",
    "RLock": "synchronize",
    "Semaphore": "synchronize",
    "BoundedSemaphore": "synchronize",
    "SharedArray": "shared_memory",
    "share": "shared_memory",
    "active_children": "process",
    "current_process": "process",
    "parent_process": "process",
    "Process": "context",
    "reducer": "context",
    "allow_connection_pickling": "context",
    "freeze_support": "context",
    "get_all_start_methods": "context",
    "get_context": "context",
    "get_logger": "context",
    "get_start_method": "context",
    "log_to_stderr": "context",
    "set_executable": "context",
    "set_forkserver_preload": "context",
    "set_start_method": "context",
    "Manager": "context",
    "Pipe": "context",
    "Condition": "context",
    "Event": "context",
    "Barrier": "context",
    "Queue": "context",
    "JoinableQueue": "context",
    "SimpleQueue": "context",
    "RawValue": "context",
    "RawArray": "context",
    "Value": "context",
    "Array": "context",
    "select": "selection",
    "Broadcast": "channels",
    "Channel": "channels",
    "broadcast": "channels",
    "BrokenBarrierError": "synchronize",
    "Atomic": "sharedctypes",
    "ReadWriteLock": "synchronize",
}

# A star import leaves the builtin `map` as it is. The stub beside this file is written out.
__all__ = sorted({"__version__", *_HOMES} - {"map"})  # noqa: PLE0605


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *__all__})
