"""Contexts: the whole interface of `multiprocessing`, bound to one way of starting processes.

    zygote      the default: a clean process is forked from one that has nothing but what is needed
    fork        the standard meaning: a copy of this process
    spawn       the standard meaning: a fresh interpreter that imports the main module
    forkserver  the standard meaning: forked from a server without the main module

The classes are subclasses of the standard library's, so that whatever takes an `mp_context` takes ours.
What a context makes is ours as well.
"""

# Ours are no subclasses of the standard library's, which the base class declares; `_home` imports them when needed.
# mypy: disable-error-code="override, no-any-return"

from __future__ import annotations

import sys
from importlib import import_module
from multiprocessing import context as _std
from multiprocessing import reduction
from multiprocessing.context import assert_spawning, get_spawning_popen, set_spawning_popen

from manycore import process

TYPE_CHECKING = False  # every process imports this module, so it imports little itself
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, ClassVar, Literal

    from manycore import connection, managers, pool, queues, sharedctypes, synchronize

__all__ = [
    "Array",
    "Barrier",
    "BaseContext",
    "BoundedSemaphore",
    "Condition",
    "DefaultContext",
    "Event",
    "ForkContext",
    "ForkProcess",
    "ForkServerContext",
    "ForkServerProcess",
    "JoinableQueue",
    "Lock",
    "Manager",
    "Pipe",
    "Process",
    "Queue",
    "RLock",
    "RawArray",
    "RawValue",
    "Semaphore",
    "SimpleQueue",
    "SpawnContext",
    "SpawnProcess",
    "Value",
    "ZygoteContext",
    "ZygoteProcess",
    "allow_connection_pickling",
    "assert_spawning",
    "freeze_support",
    "get_all_start_methods",
    "get_context",
    "get_logger",
    "get_spawning_popen",
    "get_start_method",
    "log_to_stderr",
    "reducer",
    "reduction",
    "set_executable",
    "set_forkserver_preload",
    "set_spawning_popen",
    "set_start_method",
]


def _home(module: str) -> Any:
    """Our module of this name, or the standard library's where we have none."""
    try:
        return import_module(f"manycore.{module}")
    except ModuleNotFoundError as error:
        if error.name != f"manycore.{module}":
            raise
        return import_module(f"multiprocessing.{module}")


class BaseContext(_std.BaseContext):
    """What every context offers."""

    Process: ClassVar[type[process.BaseProcess]]

    def cpu_count(self) -> int:
        """The cores that this process may use: affinity and the quota of its control group counted."""
        from manycore._launch.machine import cpu_count

        return cpu_count()

    def Manager(self) -> managers.SyncManager:  # noqa: N802
        """A started manager, whose process holds objects that others reach by proxies."""
        manager = _home("managers").SyncManager(ctx=self.get_context())
        manager.start()
        return manager

    def Pipe(self, duplex: bool = True) -> tuple[connection.Connection, connection.Connection]:  # noqa: N802
        """Two connections that are the ends of a pipe; with `duplex`, both send and receive."""
        return _home("connection").Pipe(duplex)

    def Lock(self, **options: Any) -> synchronize.Lock:  # noqa: N802
        """A lock; the options are those of `manycore.synchronize.Lock`."""
        return _home("synchronize").Lock(ctx=self.get_context(), **options)

    def RLock(self, **options: Any) -> synchronize.RLock:  # noqa: N802
        """A lock that its holder may acquire again; the options are those of `manycore.synchronize.RLock`."""
        return _home("synchronize").RLock(ctx=self.get_context(), **options)

    def Condition(self, lock: Any = None) -> synchronize.Condition:  # noqa: N802
        """A condition variable over `lock`, by default a recursive lock of its own; see `synchronize.Condition`."""
        return _home("synchronize").Condition(lock, ctx=self.get_context())

    def Semaphore(self, value: int = 1) -> synchronize.Semaphore:  # noqa: N802
        """A semaphore of `value` permits, which come back from processes that die."""
        return _home("synchronize").Semaphore(value, ctx=self.get_context())

    def BoundedSemaphore(self, value: int = 1) -> synchronize.BoundedSemaphore:  # noqa: N802
        """A semaphore that cannot be released more often than it was acquired."""
        return _home("synchronize").BoundedSemaphore(value, ctx=self.get_context())

    def Event(self) -> synchronize.Event:  # noqa: N802
        """A flag that processes set, clear and wait for."""
        return _home("synchronize").Event(ctx=self.get_context())

    def Barrier(  # noqa: N802
        self, parties: int, action: Callable[[], object] | None = None, timeout: float | None = None
    ) -> synchronize.Barrier:
        """A barrier that opens when `parties` processes or threads wait at it; see `manycore.synchronize.Barrier`."""
        return _home("synchronize").Barrier(parties, action, timeout, ctx=self.get_context())

    def Queue(self, maxsize: int = 0) -> queues.Queue:  # noqa: N802
        """A queue in shared memory, between any processes; see `manycore.queues.Queue`.

        Args:
            maxsize: Items that it holds at most, for `put` to wait; 0 is no bound.
        """
        return _home("queues").Queue(maxsize, ctx=self.get_context())

    def JoinableQueue(self, maxsize: int = 0) -> queues.JoinableQueue:  # noqa: N802
        """A queue whose readers say `task_done` for each item, and whose `join` waits for that; else as `Queue`."""
        return _home("queues").JoinableQueue(maxsize, ctx=self.get_context())

    def SimpleQueue(self) -> queues.SimpleQueue:  # noqa: N802
        """A queue with `put`, `get`, `empty` and `close` alone."""
        return _home("queues").SimpleQueue(ctx=self.get_context())

    def Pool(  # noqa: N802
        self,
        processes: int | Literal["auto"] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        **options: Any,
    ) -> pool.Pool:
        """A pool of workers, which start by this context's method; the options are those of `manycore.Pool`."""
        given = (processes, initializer, initargs, maxtasksperchild)
        return _home("pool").Pool(*given, context=self.get_context(), **options)

    def RawValue(self, typecode_or_type: Any, *args: Any) -> Any:  # noqa: N802
        """A ctypes object in shared memory, without a lock. A type code is one of `array`: "i", "d" and so on."""
        return _home("sharedctypes").RawValue(typecode_or_type, *args)

    def RawArray(self, typecode_or_type: Any, size_or_initializer: Any) -> Any:  # noqa: N802
        """A ctypes array in shared memory, without a lock: of a length, or of the items given."""
        return _home("sharedctypes").RawArray(typecode_or_type, size_or_initializer)

    def Value(self, typecode_or_type: Any, *args: Any, lock: Any = True) -> Any:  # noqa: N802
        """A ctypes object in shared memory, with a lock (`get_lock()`); its value is `value`. See also `Atomic`."""
        return _home("sharedctypes").Value(typecode_or_type, *args, lock=lock, ctx=self.get_context())

    def Array(self, typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True) -> Any:  # noqa: N802
        """A ctypes array in shared memory, with a lock: of a length, or of the items given. See also `SharedArray`."""
        return _home("sharedctypes").Array(typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context())

    def Atomic(self, value: float = 0) -> sharedctypes.Atomic:  # noqa: N802
        """A number in shared memory whose every operation is one step."""
        return _home("sharedctypes").Atomic(value, ctx=self.get_context())

    def ReadWriteLock(self, **options: Any) -> synchronize.ReadWriteLock:  # noqa: N802
        """A lock for many readers or one writer; the options are those of `manycore.synchronize.ReadWriteLock`."""
        return _home("synchronize").ReadWriteLock(ctx=self.get_context(), **options)

    def set_executable(self, executable: Any) -> None:
        """Start other interpreters than `sys.executable`, with the methods "spawn", "forkserver" and "zygote"."""
        from manycore._launch import interpreter

        super().set_executable(executable)
        interpreter.set_executable(executable)

    def set_forkserver_preload(self, module_names: list[str]) -> None:
        """Import these modules in the fork server, and in the zygote, so that processes have them at no cost."""
        super().set_forkserver_preload(module_names)
        if module_names:
            from manycore._launch.launcher import preload

            preload(*(name for name in module_names if name != "__main__"))

    def get_context(self, method: str | None = None) -> BaseContext:
        """The context of a start method; None is this one."""
        if method is None:
            return self
        try:
            return _concrete_contexts[method]
        except KeyError:
            raise ValueError(f"cannot find context for {method!r}") from None


class _Restoring(process.BaseProcess):
    """A process that sets its parent's start method in the child."""

    def _restore_start_method(self) -> None:
        _force_start_method(self._method)


class ZygoteProcess(_Restoring):
    """See `BaseProcess`. Started by the zygote."""

    _method = "zygote"
    _start_method = None

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        if "manycore._launch.popen" not in sys.modules:  # its import takes as long as a zygote's start: side by side
            _start_zygote(type(process_obj))
        from manycore._launch.popen import ZygotePopen

        return ZygotePopen(process_obj)

    @staticmethod
    def _after_fork() -> None:
        """Nothing: what the zygote has forked is clean."""


def _start_zygote(cls: type) -> None:
    if getattr(process.current_process(), "_inheriting", False):  # the launch says what is wrong
        return
    from manycore import _launch
    from manycore._launch.handle import own_modules

    try:
        _launch.ensure_started()
    except OSError:  # the launch says it again
        pass
    _launch.preload(*own_modules(cls))


class ForkProcess(_Restoring, _std.ForkProcess):
    """See `BaseProcess`. A copy of the process that starts it."""

    _method = "fork"

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        from manycore._launch.popen import ForkPopen

        return ForkPopen(process_obj)


class SpawnProcess(_Restoring, _std.SpawnProcess):
    """See `BaseProcess`. A fresh interpreter, which imports the program's main module."""

    _method = "spawn"

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        from manycore._launch.popen import SpawnPopen

        return SpawnPopen(process_obj)


class ForkServerProcess(_Restoring, _std.ForkServerProcess):
    """See `BaseProcess`. Forked from the standard library's server process."""

    _method = "forkserver"

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        from manycore._launch.popen import ForkServerPopen

        return ForkServerPopen(process_obj)


class Process(_Restoring, _std.Process):
    """See `BaseProcess`. Started by the method that `set_start_method` has set, which is "zygote" by default."""

    _start_method = None

    def start(self) -> None:
        """Start the process, and return when it runs."""
        self._method = _default_context.get_start_method()
        super().start()

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        return _default_context.get_context().Process._Popen(process_obj)  # type: ignore[attr-defined]

    @staticmethod
    def _after_fork() -> None:
        _default_context.get_context().Process._after_fork()  # type: ignore[attr-defined]


Process.__doc__ = process.BaseProcess.__doc__  # what `help(manycore.Process)` is asked for


class ZygoteContext(BaseContext):
    """The default: clean, quick whatever this process's size, and safe in a program with threads."""

    _name = "zygote"
    Process = ZygoteProcess


class ForkContext(BaseContext, _std.ForkContext):
    """The standard "fork"."""

    _name = "fork"
    Process = ForkProcess


class SpawnContext(BaseContext, _std.SpawnContext):
    """The standard "spawn"."""

    _name = "spawn"
    Process = SpawnProcess


class ForkServerContext(BaseContext, _std.ForkServerContext):
    """The standard "forkserver"."""

    _name = "forkserver"
    Process = ForkServerProcess


class DefaultContext(BaseContext, _std.DefaultContext):
    """The context behind the functions of the package: its start method can be set once."""

    Process = Process
    _actual_context: Any
    _default_context: Any

    def get_context(self, method: str | None = None) -> BaseContext:
        """The context of a start method; None is the one that is set, which this call settles."""
        if method is not None:
            return super().get_context(method)
        if self._actual_context is None:
            self._actual_context = self._default_context
        return self._actual_context

    def get_all_start_methods(self) -> list[str]:
        """The start methods, the default first."""
        return list(_concrete_contexts)


_concrete_contexts: dict[str, Any] = {
    "zygote": ZygoteContext(),
    "fork": ForkContext(),
    "spawn": SpawnContext(),
    "forkserver": ForkServerContext(),
}
_default_context = DefaultContext(_concrete_contexts["zygote"])


def _force_start_method(method: str) -> None:
    _default_context._actual_context = _concrete_contexts[method]


# The package's face takes its functions from here: they are the default context's.
freeze_support = _default_context.freeze_support
get_all_start_methods = _default_context.get_all_start_methods
get_context = _default_context.get_context
get_logger = _default_context.get_logger
get_start_method = _default_context.get_start_method
log_to_stderr = _default_context.log_to_stderr
allow_connection_pickling = _default_context.allow_connection_pickling
set_executable = _default_context.set_executable
set_forkserver_preload = _default_context.set_forkserver_preload
reducer = reduction
set_start_method = _default_context.set_start_method
Manager = _default_context.Manager
Pipe = _default_context.Pipe
Lock = _default_context.Lock
RLock = _default_context.RLock
Condition = _default_context.Condition
Semaphore = _default_context.Semaphore
BoundedSemaphore = _default_context.BoundedSemaphore
Event = _default_context.Event
Barrier = _default_context.Barrier
Queue = _default_context.Queue
JoinableQueue = _default_context.JoinableQueue
SimpleQueue = _default_context.SimpleQueue
RawValue = _default_context.RawValue
RawArray = _default_context.RawArray
Value = _default_context.Value
Array = _default_context.Array
