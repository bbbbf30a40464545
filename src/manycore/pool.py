"""`Pool`: `multiprocessing.pool.Pool`'s interface over manycore's engine.

    Pool.apply*            a Future each          -> Engine.submit
    Pool.map, starmap      a MapRun, consumed at once
    Pool.*_async           a BackgroundRun
    Pool.imap*, outcomes   a MapRun, consumed as its iterator is

Unlike `multiprocessing.pool.Pool`: a task whose worker dies fails alone and at once, with `WorkerDied`; a lazy map
reads its input only as its results are consumed; functions and classes of `__main__`, lambdas and closures are
sent by value; no chunk size need be guessed; what cannot be pickled fails where it was handed in.
"""

from __future__ import annotations

import warnings
from importlib import import_module

from manycore._engine import bring
from manycore._engine.methods import start_method_of
from manycore._engine.options import TakesOptions
from manycore._launch.arguments import integer, module_names, text

TYPE_CHECKING = False  # whatever else is imported here would be so before the zygote starts, and not meanwhile
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.pool import ThreadPool
    from types import TracebackType
    from typing import Any, Literal, NoReturn, Self, TypeVar

    from manycore._engine.background import BackgroundRun
    from manycore._engine.local import Engine, Settings, Stats
    from manycore._engine.mapping import MapOptions, MapRun
    from manycore._engine.outcomes import Failure, Outcome
    from manycore._engine.policy import Policy
    from manycore._engine.results import (
        AsyncResult,
        Callbacks,
        CallingResult,
        IMapIterator,
        MapResult,
        OnError,
        gather,
        outcomes,
        reporter_of,
    )
    from manycore._engine.settings import INSTEAD, nanoseconds, number_of_workers
    from manycore.errors import RemoteTraceback

    T = TypeVar("T")

__all__ = [
    "AsyncResult",
    "Failure",
    "IMapIterator",
    "MapResult",
    "Outcome",
    "Pool",
    "RemoteTraceback",
    "Stats",
    "ThreadPool",
]

_ON_ERROR = ("raise", "collect", "skip")

# What this module has of the engine: each name once it is asked for, all once there is a pool (`bring`): first what
# starts workers, and the rest while they start.
_START = ("Engine", "Settings", "nanoseconds", "number_of_workers")
_ENGINE: dict[str, str] = {
    "AsyncResult": "results",
    "BackgroundRun": "background",
    "Callbacks": "results",
    "CallingResult": "results",
    "Engine": "local",
    "Failure": "outcomes",
    "INSTEAD": "settings",
    "IMapIterator": "results",
    "MapOptions": "mapping",
    "MapResult": "results",
    "MapRun": "mapping",
    "Outcome": "outcomes",
    "Policy": "policy",
    "Settings": "local",
    "Stats": "local",
    "gather": "results",
    "nanoseconds": "settings",
    "number_of_workers": "settings",
    "outcomes": "results",
    "reporter_of": "results",
}


# What `multiprocessing.pool` has besides: ours by its names there, and what is the same for both.
_ALIASES = {"ApplyResult": "AsyncResult", "IMapUnorderedIterator": "IMapIterator"}
_ERRORS = {
    "MaybeEncodingError": "ResultPicklingError",
    "RemoteTraceback": "RemoteTraceback",
    "TimeoutError": "TimeoutError",
}
_STANDARD = {
    *(
        "CLOSE",
        "INIT",
        "RUN",
        "TERMINATE",
        "ExceptionWithTraceback",
        "ThreadPool",
        "job_counter",
        "mapstar",
        "rebuild_exc",
    ),
    *("starmapstar", "worker"),
}


def __getattr__(name: str) -> Any:
    if name in _STANDARD:  # 20 ms of imports that a pool of processes does not need
        value = getattr(import_module("multiprocessing.pool"), name)
    elif name in _ALIASES:
        value = __getattr__(_ALIASES[name])
    elif name in _ERRORS:
        value = getattr(import_module("manycore.errors"), _ERRORS[name])
    elif name in _ENGINE:
        value = getattr(import_module(f"manycore._engine.{_ENGINE[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


class Pool(TakesOptions):
    """A pool of worker processes.

    Args:
        processes: How many workers; by default as many as the cores that this process may use. "auto" counts the
            memory that is left as well.
        initializer: Called in each worker before its first task, with `initargs`.
        initargs: Its arguments.
        maxtasksperchild: Tasks after which a worker is replaced by a fresh one; None = never.
        context: How workers start: a context of `manycore.get_context`, or of `multiprocessing`. None is what
            `set_start_method` chose, else "zygote".
        name: What titles and messages call the pool.
        preload: Modules that workers have imported before they start.
        finalizer: Called in each worker that ends in order, with what its initializer returned (which is
            `current_worker().state`): after `close`, when it is replaced after `maxtasksperchild`, and at the end of
            a `with` block that leaves nothing undone. Not when the worker is killed. It has five seconds.
        blas_threads: Threads that numerical libraries (OpenBLAS, MKL, OpenMP ...) may start in each worker; by default
            its share of the cores, so that all together are not more than there are. 0 leaves them alone.
        logs: Whether records of `logging` and warnings of workers come to this process's handlers, as far as its
            levels let them pass; a level, as a number or a name: only records from that level on are sent. A record
            has the attributes `manycore_pool`, `manycore_worker`, `manycore_task` and `manycore_function`.
        idle_timeout: Seconds without a task after which a worker leaves, to come back when there is work; None = never.
        initializer_timeout: Seconds that the initializer may take in a worker. One that takes longer is killed, and the
            pool gives up with `PoolBroken` when no start succeeds. None = as long as it likes; after a minute a warning
            of the logger "manycore" says where it is.

    A `with` block ends with `terminate`, as the standard library's does.

    Process-safety: belongs to the process that made it; a forked child gets `PoolClosed`. Any thread may use it.
    If a process dies: a worker's task fails with `WorkerDied` and the worker is replaced; when this process dies,
        the kernel kills the workers.
    """

    def __init__(
        self,
        processes: int | Literal["auto"] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        name: str | None = None,
        preload: Iterable[str] = (),
        finalizer: Callable[[Any], object] | None = None,
        logs: bool | int | str = True,
        idle_timeout: float | None = None,
        blas_threads: int | None = None,
        initializer_timeout: float | None = None,
    ) -> None:
        method = start_method_of(context)
        bring({name: _ENGINE[name] for name in _START}, globals(), start_zygote=method == "zygote")
        workers = number_of_workers("processes", processes)
        given: object = maxtasksperchild
        if given is not None and (not isinstance(given, int) or given <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        self._engine = Engine(
            Settings(
                workers=workers,
                initializer=initializer,
                initargs=tuple(initargs),
                max_tasks=maxtasksperchild or 0,
                name=text("name", name or ""),
                start_method=method,
                preload=module_names("preload", preload),
                finalizer=finalizer,
                logs=logs,
                idle_ns=nanoseconds("idle_timeout", idle_timeout),
                blas_threads=None if blas_threads is None else integer("blas_threads", blas_threads, least=0),
                initializer_ns=nanoseconds("initializer_timeout", initializer_timeout),
            )
        )
        self._engine.start()
        bring(_ENGINE, globals(), start_zygote=False)

    def __repr__(self) -> str:
        return f"<manycore.Pool {self._engine.name!r} of {self._processes} workers, {self._engine.state}>"

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError(f"pool objects cannot be passed between processes or pickled; {INSTEAD}")

    def __enter__(self) -> Self:
        self._engine.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        engine = self._engine
        if kind is None and engine.settings.finalizer is not None and engine.close_if_idle():
            self.join()
        else:
            self.terminate()

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None and engine.abandon():
            warnings.warn(f"unclosed running pool {self!r}", ResourceWarning, source=self, stacklevel=2)

    @property
    def name(self) -> str:
        """What titles and messages call the pool."""
        return self._engine.name

    @property
    def _processes(self) -> int:
        return self._engine.size

    _max_workers = _processes  # what libraries that take a pool or an executor read

    @staticmethod
    def Process(ctx: Any, *args: Any, **kwds: Any) -> Any:  # noqa: N802  (the standard library's name)
        """A process of the context `ctx`, as `multiprocessing.Pool.Process` makes it."""
        return ctx.Process(*args, **kwds)

    def _view(self, policy: Policy) -> Pool:
        return _View(self, policy)

    def _promise(self, timeout: float | None, retries: int) -> Policy | None:
        """The promises of this view, and what one call asks for."""
        if timeout is None and not retries:
            return self._policy
        asked = {"timeout": timeout, "retries": retries}
        policy = self._policy or Policy()
        return self._engine.bind(policy.but(**{key: value for key, value in asked.items() if value}))

    def resize(self, processes: int) -> None:
        """Have so many workers from now on.

        New ones start at once; those that are too many finish the task that they have, and leave.

        Raises:
            ValueError: Less than 1, or more than there can be.
            PoolClosed: After `close` or `terminate`.
        """
        self._engine.resize(processes)

    # One call

    def apply(self, func: Callable[..., T], args: Iterable[Any] = (), kwds: dict[str, Any] | None = None) -> T:
        """Call `func(*args, **kwds)` in a worker and wait for the result."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: dict[str, Any] | None = None,
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        """Call `func(*args, **kwds)` in a worker.

        Args:
            func: Any callable; by name where a worker can import it, else by value.
            args: Its arguments.
            kwds: Its keyword arguments.
            callback: Called with the result, in the thread that collects it.
            error_callback: Called with the exception instead.

        Raises:
            PoolClosed: After `close` or `terminate`.
            TaskPicklingError: The function or an argument cannot be pickled.
        """
        future: AsyncResult[T]
        if callback is None and error_callback is None:
            future = AsyncResult(self._engine)
        else:
            future = CallingResult(self._engine)
            future._callback = Callbacks(callback, error_callback)
            future.add_done_callback(future._callback)
        future._keeper = self
        self._engine.call(future, func, tuple(args), kwds or {}, self._policy)
        return future

    def submit(self, func: Callable[..., T], /, *args: Any, **kwds: Any) -> AsyncResult[T]:
        """As `apply_async(func, args, kwds)`, as executors spell it: `await pool.submit(func, 1)`."""
        return self.apply_async(func, args, kwds)

    # Maps

    def map(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        *,
        timeout: float | None = None,
        retries: int = 0,
        on_error: OnError = "raise",
        progress: Any = None,
    ) -> list[T]:
        """`[func(item) for item in iterable]`, in the workers.

        Args:
            func: Called with each item.
            iterable: The items; all are read at once.
            chunksize: Items that travel together; by default measured while it runs.
            timeout: Seconds that one item may run before its worker is killed.
            retries: How often a failed item is tried again.
            on_error: What a failed item does: "raise" its error, "collect" a `Failure` in its place, or "skip" it.
                With "raise" the other items go on, as with `multiprocessing`: the error is raised when all are over.
            progress: True for a progress bar, or a callable that is told; None for neither.

        Raises:
            Exception: What `func` raised for the item that failed first.
            WorkerDied: The worker of that item died.
            TaskTimeout: That item took longer than `timeout`.
        """
        return self._collect(func, iterable, False, chunksize, timeout, retries, on_error, progress)

    def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        timeout: float | None = None,
        retries: int = 0,
        on_error: OnError = "raise",
        progress: Any = None,
    ) -> list[T]:
        """As `map`, each item being the tuple of the function's arguments: `func(*item)`."""
        return self._collect(func, iterable, True, chunksize, timeout, retries, on_error, progress)

    def map_async(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        on_error: OnError = "raise",
        progress: Any = None,
    ) -> MapResult[T]:
        """As `map`, returning at once; `callback` gets the list, or `error_callback` the error, when all are over."""
        return self._collect_later(func, iterable, False, chunksize, callback, error_callback, on_error, progress)

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        on_error: OnError = "raise",
        progress: Any = None,
    ) -> MapResult[T]:
        """As `starmap`, returning at once; `callback` gets the list, or `error_callback` the error."""
        return self._collect_later(func, iterable, True, chunksize, callback, error_callback, on_error, progress)

    def imap(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        timeout: float | None = None,
        retries: int = 0,
        on_error: OnError = "raise",
        buffersize: int = 0,
        progress: Any = None,
    ) -> IMapIterator:
        """Results in the input's order, as an iterator that reads the input only as far ahead as is useful.

        Args:
            func: Called with each item.
            iterable: The items; may be endless.
            chunksize: Items that travel together; 1 = measured while it runs.
            timeout: Seconds that one item may run before its worker is killed.
            retries: How often a failed item is tried again.
            on_error: What a failed item does: "raise" its error (the iterator can go on), "collect", or "skip".
            buffersize: Items read ahead of the consumer; 0 = what keeps the workers busy.
            progress: True for a progress bar, or a callable that is told; None for neither.
        """
        options = MapOptions(
            ordered=True,
            lazy=True,
            chunksize=_explicit(chunksize),
            window=buffersize,
            policy=self._promise(timeout, retries),
        )
        return IMapIterator(self._run(func, iterable, options, progress), check(on_error))

    def imap_unordered(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        timeout: float | None = None,
        retries: int = 0,
        on_error: OnError = "raise",
        buffersize: int = 0,
        progress: Any = None,
    ) -> IMapIterator:
        """As `imap`, in the order in which the results come."""
        options = MapOptions(
            ordered=False,
            lazy=True,
            chunksize=_explicit(chunksize),
            window=buffersize,
            policy=self._promise(timeout, retries),
        )
        return IMapIterator(self._run(func, iterable, options, progress), check(on_error))

    def outcomes(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        *,
        ordered: bool = True,
        timeout: float | None = None,
        retries: int = 0,
        chunksize: int | None = None,
        buffersize: int = 0,
        progress: Any = None,
    ) -> Iterator[Outcome]:
        """What became of each item, as an iterator that never raises for a task's failure.

        Lazy, as `imap` is. An `Outcome` has the item, its index, its result or its error, and how long it ran.
        """
        options = MapOptions(
            ordered=ordered,
            lazy=True,
            chunksize=chunksize or 0,
            window=buffersize,
            policy=self._promise(timeout, retries),
        )
        run = self._run(func, iterable, options, progress)
        run.start()
        return outcomes(run)

    def _run(
        self, func: Callable[..., Any], iterable: Iterable[Any], options: MapOptions, progress: Any = None
    ) -> MapRun:
        self._engine.check_ready()
        run = MapRun(self._engine, func, iterable, options)
        run.keeper = self
        run.reporter = reporter_of(progress, run.total, self._engine)
        return run

    def _collect(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        star: bool,
        chunksize: int | None,
        timeout: float | None,
        retries: int,
        on_error: OnError,
        progress: Any,
    ) -> list[Any]:
        check(on_error)
        whole, policy = on_error == "raise", self._promise(timeout, retries)
        options = MapOptions(star=star, chunksize=chunksize or 0, whole=whole, policy=policy)
        run = self._run(func, iterable, options, progress)
        return gather(run, on_error)

    def _collect_later(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        star: bool,
        chunksize: int | None,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        on_error: OnError,
        progress: Any,
    ) -> MapResult[Any]:
        check(on_error)
        self._engine.check_ready()
        future: MapResult[Any] = MapResult(self._engine)
        future._callback = None
        if callback is not None or error_callback is not None:
            future._callback = Callbacks(callback, error_callback)
            future.add_done_callback(future._callback)

        def finish(results: list[Any], error: BaseException | None) -> None:
            if error is None:
                future.set_result(results)
            else:
                future.set_exception(error)

        options = MapOptions(star=star, chunksize=chunksize or 0, whole=on_error == "raise", policy=self._policy)
        run = BackgroundRun(self._engine, func, iterable, options, finish, on_error)
        future._run = run
        run.keeper = self
        run.reporter = reporter_of(progress, run.total, self._engine)
        run.start()
        return future

    # Ending

    def close(self) -> None:
        """Take no new tasks; the workers end when those that are there are done."""
        self._engine.close()

    def terminate(self) -> None:
        """Kill the workers at once; what is not done fails with `PoolClosed`."""
        self._engine.terminate()

    def join(self) -> None:
        """Wait until the workers have ended.

        Raises:
            ValueError: Neither `close` nor `terminate` was called before.
        """
        if not self._engine.closed:
            raise ValueError("Pool is still running")
        self._engine.join()

    def stats(self) -> Stats:
        """A snapshot of what the pool has done and is doing."""
        return self._engine.stats()


class _View(Pool):
    """A pool, with promises for its tasks."""

    def __init__(self, pool: Pool, policy: Policy) -> None:  # the engine is there already
        self._pool = pool  # which must not be dropped before
        self._engine = pool._engine
        self._policy = policy

    def __repr__(self) -> str:
        return f"{self._pool!r}.options(...)"

    def __del__(self) -> None:
        """Ends nothing: the pool does."""

    def options(self, **options: Any) -> Pool:  # type: ignore[override]  # only those that are given
        """The same with other options beside."""
        policy = self._policy or Policy()
        return self._pool._view(self._engine.bind(policy.but(**options)))


def _explicit(chunksize: int) -> int:
    """What was asked for; the standard default of 1 asks for nothing, since chunks cannot be told apart."""
    if chunksize < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize}")
    return 0 if chunksize == 1 else chunksize


def check(on_error: OnError) -> OnError:
    """It is one of the three; else ValueError."""
    if on_error not in _ON_ERROR:
        raise ValueError(f"on_error must be 'raise', 'collect' or 'skip', not {on_error!r}")
    return on_error
