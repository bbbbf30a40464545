"""`ProcessPoolExecutor`: `concurrent.futures`' interface over manycore's engine.

Unlike `concurrent.futures.ProcessPoolExecutor`: a worker's death fails the one task that it ran, with
`WorkerDied` (a `BrokenProcessPool`), and the executor goes on; an argument or a result that cannot be pickled or
rebuilt fails its own future; functions of `__main__`, lambdas and closures are sent by value; futures can be awaited.
"""

from __future__ import annotations

# The same as `signal`, but without its enumerations: what is imported here is so before the zygote starts.
import _signal  # type: ignore[import-not-found]
import concurrent.futures
import sys
import threading
import time
import weakref
from _pickle import PicklingError
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    BrokenExecutor,
    CancelledError,
    Executor,
    InvalidStateError,
    TimeoutError,
    as_completed,
    wait,
)
from importlib import import_module

from manycore import _launch
from manycore._engine import bring
from manycore._engine.methods import start_method_of
from manycore._engine.options import TakesOptions
from manycore._launch.arguments import integer, text
from manycore.pool import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import ThreadPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from types import TracebackType
    from typing import Any, Literal, NoReturn, ParamSpec, TypeVar

    from manycore._engine.future import Future
    from manycore._engine.local import Engine, Settings, Stats
    from manycore._engine.mapping import MapOptions, MapRun
    from manycore._engine.policy import Policy
    from manycore._engine.results import MapIterator, OnError, add_results, reporter_of
    from manycore._engine.settings import INSTEAD, nanoseconds, number_of_workers

    P = ParamSpec("P")
    T = TypeVar("T")

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "BrokenExecutor",
    "BrokenProcessPool",
    "CancelledError",
    "Executor",
    "Future",
    "InvalidStateError",
    "ProcessPoolExecutor",
    "ThreadPoolExecutor",
    "TimeoutError",
    "as_completed",
    "wait",
]

# What this module has of the engine: each name once it is asked for, all once there is an executor (`bring`).
_ENGINE: dict[str, str] = {
    "Engine": "local",
    "Future": "future",
    "INSTEAD": "settings",
    "MapIterator": "results",
    "MapOptions": "mapping",
    "MapRun": "mapping",
    "Policy": "policy",
    "Settings": "local",
    "Stats": "local",
    "add_results": "results",
    "nanoseconds": "settings",
    "number_of_workers": "settings",
    "reporter_of": "results",
}


def __getattr__(name: str) -> Any:
    if name == "BrokenProcessPool":  # 15 ms of imports that most executors never need
        value = getattr(import_module("concurrent.futures.process"), name)
    elif name == "ThreadPoolExecutor":
        value = concurrent.futures.ThreadPoolExecutor
    elif name in _ENGINE:
        value = getattr(import_module(f"manycore._engine.{_ENGINE[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


class ProcessPoolExecutor(TakesOptions, Executor):
    """Runs calls in worker processes.

    Args:
        max_workers: How many workers; by default as many as the cores that this process may use. "auto" counts the
            memory that is left as well.
        mp_context: How workers start: a context of `manycore.get_context`, or of `multiprocessing`. None is what
            `set_start_method` chose, else "zygote".
        initializer: Called in each worker before its first task, with `initargs`.
        initargs: Its arguments.
        max_tasks_per_child: Tasks after which a worker is replaced by a fresh one; None = never.
        name: What titles and messages call the executor.
        finalizer: Called in each worker that ends in order, with what its initializer returned (which is
            `current_worker().state`): after `shutdown`, and when it is replaced after `max_tasks_per_child`. Not when
            the worker is killed. It has five seconds.
        blas_threads: Threads that numerical libraries (OpenBLAS, MKL, OpenMP ...) may start in each worker; by default
            its share of the cores, so that all together are not more than there are. 0 leaves them alone.
        logs: Whether records of `logging` and warnings of workers come to this process's handlers, as far as its
            levels let them pass; a level, as a number or a name: only records from that level on are sent. A record
            has the attributes `manycore_pool`, `manycore_worker`, `manycore_task` and `manycore_function`.
        idle_timeout: Seconds without a task after which a worker leaves, to come back when there is work; None = never.
        initializer_timeout: Seconds that the initializer may take in a worker. One that takes longer is killed, and the
            pool gives up with `PoolBroken` when no start succeeds. None = as long as it likes; after a minute a warning
            of the logger "manycore" says where it is.

    A `with` block ends with `shutdown()`, which waits for what was submitted; after Ctrl-C nothing is waited for.

    Process-safety: belongs to the process that made it. Any thread may use it.
    If a process dies: a worker's task fails with `WorkerDied` and the worker is replaced; when this process dies,
        the kernel kills the workers.
    """

    def __init__(
        self,
        max_workers: int | Literal["auto"] | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        name: str | None = None,
        finalizer: Callable[[Any], object] | None = None,
        logs: bool | int | str = True,
        idle_timeout: float | None = None,
        blas_threads: int | None = None,
        initializer_timeout: float | None = None,
    ) -> None:
        method = start_method_of(mp_context)
        bring(_ENGINE, globals(), start_zygote=method == "zygote")
        workers = number_of_workers("max_workers", max_workers)
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        self._mp_context = mp_context
        self._engine = Engine(
            Settings(
                workers=workers,
                initializer=initializer,
                initargs=tuple(initargs),
                max_tasks=max_tasks_per_child or 0,
                name=text("name", name or ""),
                finalizer=finalizer,
                start_method=method,
                logs=logs,
                idle_ns=nanoseconds("idle_timeout", idle_timeout),
                blas_threads=None if blas_threads is None else integer("blas_threads", blas_threads, least=0),
                initializer_ns=nanoseconds("initializer_timeout", initializer_timeout),
            )
        )
        if method == "zygote":
            _launch.ensure_started()  # the first call will want it
        _at_exit.add(self._engine)

    @property
    def _max_workers(self) -> int:  # what libraries that take an executor read
        return self._engine.size

    def __repr__(self) -> str:
        return (
            f"<manycore.ProcessPoolExecutor {self._engine.name!r} of {self._max_workers} workers, {self._engine.state}>"
        )

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError(f"executors cannot be passed between processes or pickled; {INSTEAD}")

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.finish_unattended()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        if kind is not None and issubclass(kind, KeyboardInterrupt):  # which the workers have not had
            self.kill_workers()
        self.shutdown()
        return False

    def _view(self, policy: Policy) -> ProcessPoolExecutor:
        return _View(self, policy)

    def resize(self, max_workers: int) -> None:
        """Have so many workers from now on.

        New ones start at once; those that are too many finish the task that they have, and leave.

        Raises:
            ValueError: Less than 1, or more than there can be.
            PoolClosed: After `shutdown`.
        """
        self._engine.resize(max_workers)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `fn(*args, **kwargs)` in a worker.

        Raises:
            PoolClosed: After `shutdown` (a `RuntimeError`).
            PoolBroken: The pool has given up (a `BrokenProcessPool`).
            TaskPicklingError: Through the future: the function or an argument cannot be pickled.
        """
        engine = self._engine
        future: Future[T] = Future(engine)
        try:
            engine.call(future, fn, args, kwargs, self._policy)
        except (PicklingError, TypeError, AttributeError) as error:
            engine.check_open()
            future.set_exception(error)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        on_error: OnError = "raise",
        progress: Any = None,
    ) -> Iterator[T]:
        """`map(fn, *iterables)`, in the workers; an iterator of the results in the input's order, also for `async for`.

        Args:
            fn: Called with one item of each iterable.
            iterables: The items; all are read at once, unless there is a `buffersize`.
            timeout: Seconds from this call on after which the iterator raises TimeoutError.
            chunksize: Items that travel together; 1 = measured while it runs.
            buffersize: Read only as many items ahead of the consumer.
            on_error: What a failed call does: "raise" its error, "collect" a `Failure` in its place, or "skip" it.
            progress: True for a progress bar, or a callable that is told; None for neither.

        Raises:
            TimeoutError: From the iterator: the next result was not there in time.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None:
            if not isinstance(buffersize, int):
                raise TypeError("buffersize must be an integer or None")
            if buffersize < 1:
                raise ValueError("buffersize must be None or > 0")
        check(on_error)
        deadline = None if timeout is None else time.monotonic() + timeout
        self._engine.check_ready()
        lazy = buffersize is not None
        star = len(iterables) != 1
        items: Iterable[Any] = zip(*iterables, strict=False) if star else iterables[0]
        options = MapOptions(
            star=star,
            lazy=lazy,
            chunksize=0 if chunksize == 1 else chunksize,
            window=buffersize or 0,
            policy=self._policy,
        )
        run = MapRun(self._engine, fn, iter(items) if lazy else list(items), options)
        run.reporter = reporter_of(progress, run.total, self._engine)
        run.start()
        return MapIterator(_results(run, deadline, on_error), run, deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no new calls; the workers end when those that are there are done.

        Args:
            wait: Return only when the workers have ended.
            cancel_futures: Cancel what no worker has begun.
        """
        engine = self._engine
        engine.close()
        if cancel_futures:
            engine.cancel_all()
        if wait:
            engine.join(read_all=False)

    def terminate_workers(self) -> None:
        """Ask the workers to end (SIGTERM), and kill those that have not after five seconds.

        Calls that no worker has begun are cancelled, those that one has fail with `PoolBroken` (a `BrokenProcessPool`).
        """
        self._force_shutdown(_signal.SIGTERM)

    def kill_workers(self) -> None:
        """As `terminate_workers`, but kill them at once (SIGKILL)."""
        self._force_shutdown(None)

    def _force_shutdown(self, signum: int | None) -> None:
        engine = self._engine
        self.shutdown(wait=False, cancel_futures=True)
        if engine._parted:  # in a fork, where another thread may have been importing what errors are made of
            return
        from manycore import errors

        ended = "terminated" if signum else "killed"
        engine.terminate(errors.PoolBroken(f"pool {engine.name!r}: its workers were {ended}"), signum)

    def stats(self) -> Stats:
        """A snapshot of what the executor has done and is doing."""
        return self._engine.stats()


class _View(ProcessPoolExecutor):
    """An executor, with promises for its tasks."""

    def __init__(self, executor: ProcessPoolExecutor, policy: Policy) -> None:  # the engine is there already
        self._executor = executor  # which must not be dropped before
        self._engine = executor._engine
        self._policy = policy

    def __repr__(self) -> str:
        return f"{self._executor!r}.options(...)"

    def __del__(self) -> None:
        """Ends nothing: the executor does."""

    def options(self, **options: Any) -> ProcessPoolExecutor:  # type: ignore[override]  # only those that are given
        """The same with other options beside."""
        policy = self._policy or Policy()
        return self._executor._view(self._engine.bind(policy.but(**options)))


def _results(run: MapRun, deadline: float | None, on_error: OnError) -> Iterator[Any]:
    try:
        while (results := _next_results(run, deadline, on_error)) is not None:
            while results:
                yield results.pop()  # a result that was given is the caller's alone
    except KeyboardInterrupt:  # after which nobody can take what runs
        run.abandon(running=True)
        raise
    finally:
        run.forget()


def _next_results(run: MapRun, deadline: float | None, on_error: OnError) -> list[Any] | None:
    """The next results, the first one last; None at the end.

    Raises:
        Exception: What the function raised.
    """
    block = run.next_block(deadline)
    if block is None:
        return None
    if block.status is None:
        block.values.reverse()
        return block.values
    results: list[Any] = []
    add_results(run, block, results, on_error)
    return results[::-1]


_at_exit: weakref.WeakSet[Engine] = weakref.WeakSet()  # those whose executors are gone may still have calls to do


def _finish_all() -> None:
    """At the end of the main thread: what was submitted is done, as with the standard library's executor."""
    interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)  # what the program died of
    for engine in tuple(_at_exit):
        if interrupted:
            engine.terminate()
        else:
            engine.close()
            engine.join(read_all=False)


# Before the interpreter joins its threads and tears itself down; the standard library's own executors use it too.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
