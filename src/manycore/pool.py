"""`Pool`: `multiprocessing.pool.Pool`'s interface over manycore's engine, and the one-call forms `map` and `imap`.

    Pool.apply*            a Future each          -> Engine.submit
    Pool.map, starmap      a MapRun, consumed at once
    Pool.*_async           a BackgroundRun
    Pool.imap*, outcomes   a MapRun, consumed as its iterator is

Unlike `multiprocessing.pool.Pool`: a task whose worker dies fails alone and at once, with `WorkerDied`; a lazy map
reads its input only as its results are consumed; functions and classes of `__main__`, lambdas and closures are
sent by value; no chunk size need be guessed; what cannot be pickled fails where it was handed in.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sized
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from manycore import _launch
from manycore._engine import bring
from manycore._engine.settings import start_method_of
from manycore.errors import PoolClosed, RemoteTraceback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.pool import ThreadPool
    from types import TracebackType
    from typing import Self

    from manycore._engine.local import Engine, Settings, Stats
    from manycore._engine.mapping import BackgroundRun, Failure, MapOptions, MapRun, Outcome
    from manycore._engine.results import AsyncResult, Callbacks, IMapIterator, MapResult, OnError, gather, outcomes

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
    "imap",
    "map",
]

T = TypeVar("T")
_ON_ERROR = ("raise", "collect", "skip")

# What this module has of the engine: each name once it is asked for, all once there is a pool (`bring`).
_ENGINE: dict[str, str] = {
    "AsyncResult": "results",
    "BackgroundRun": "mapping",
    "Callbacks": "results",
    "Engine": "local",
    "Failure": "mapping",
    "IMapIterator": "results",
    "MapOptions": "mapping",
    "MapResult": "results",
    "MapRun": "mapping",
    "Outcome": "mapping",
    "Settings": "local",
    "Stats": "local",
    "gather": "results",
    "outcomes": "results",
}


def __getattr__(name: str) -> Any:
    if name == "ThreadPool":  # 20 ms of imports that a pool of processes does not need
        value = getattr(import_module("multiprocessing.pool"), name)
    elif name == "ApplyResult":
        value = __getattr__("AsyncResult")
    elif name in _ENGINE:
        value = getattr(import_module(f"manycore._engine.{_ENGINE[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


class Pool:
    """A pool of worker processes.

    Args:
        processes: How many workers; by default as many as the cores that this process may use.
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
        logs: Whether records of `logging` and warnings of workers come to this process's handlers, as far as its
            levels let them pass; a level, as a number or a name: only records from that level on are sent. A record
            has the attributes `manycore_pool`, `manycore_worker`, `manycore_task` and `manycore_function`.

    A `with` block ends with `terminate`, as the standard library's does.

    Process-safety: belongs to the process that made it; a forked child gets `PoolClosed`. Any thread may use it.
    If a process dies: a worker's task fails with `WorkerDied` and the worker is replaced; when this process dies,
        the kernel kills the workers.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        name: str | None = None,
        preload: Iterable[str] = (),
        finalizer: Callable[[Any], object] | None = None,
        logs: bool | int | str = True,
    ) -> None:
        method = start_method_of(context)
        bring(_ENGINE, globals(), start_zygote=method == "zygote")
        if processes is None:
            processes = _launch.cpu_count()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and maxtasksperchild <= 0:
            raise ValueError("maxtasksperchild must be a positive int or None")
        self._engine = Engine(
            Settings(
                workers=processes,
                initializer=initializer,
                initargs=tuple(initargs),
                max_tasks=maxtasksperchild or 0,
                name=name or "",
                start_method=method,
                preload=tuple(preload),
                finalizer=finalizer,
                logs=logs,
            )
        )
        self._engine.start()

    def __repr__(self) -> str:
        return f"<manycore.Pool {self._engine.name!r} of {self._processes} workers, {self._engine.state}>"

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __enter__(self) -> Self:
        if self._engine.closed:
            raise PoolClosed("this pool is closed")
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
        return self._engine.settings.workers

    _max_workers = _processes  # what libraries that take a pool or an executor read

    @staticmethod
    def Process(ctx: Any, *args: Any, **kwds: Any) -> Any:  # noqa: N802  (the standard library's name)
        """A process of the context `ctx`, as `multiprocessing.Pool.Process` makes it."""
        return ctx.Process(*args, **kwds)

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
        future: AsyncResult[T] = AsyncResult(self._engine)
        if callback is not None or error_callback is not None:
            future.add_done_callback(Callbacks(callback, error_callback))
        future._keeper = self
        self._engine.call(future, func, tuple(args), kwds or {})
        return future

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
            progress: True for a progress bar, or a callable that is told; None for neither.

        Raises:
            Exception: What `func` raised for the first item, in the input's order, that failed.
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
    ) -> MapResult[T]:
        """As `map`, returning at once; `callback` gets the list, `error_callback` the error."""
        return self._collect_later(func, iterable, False, chunksize, callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[T]:
        """As `starmap`, returning at once; `callback` gets the list, `error_callback` the error."""
        return self._collect_later(func, iterable, True, chunksize, callback, error_callback)

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
        """
        options = MapOptions(
            ordered=True, lazy=True, chunksize=_explicit(chunksize), window=buffersize, timeout=timeout, retries=retries
        )
        return IMapIterator(self._run(func, iterable, options), _check(on_error))

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
    ) -> IMapIterator:
        """As `imap`, in the order in which the results come."""
        options = MapOptions(
            ordered=False,
            lazy=True,
            chunksize=_explicit(chunksize),
            window=buffersize,
            timeout=timeout,
            retries=retries,
        )
        return IMapIterator(self._run(func, iterable, options), _check(on_error))

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
    ) -> Iterator[Outcome]:
        """What became of each item, as an iterator that never raises for a task's failure.

        Lazy, as `imap` is. An `Outcome` has the item, its index, its result or its error, and how long it ran.
        """
        options = MapOptions(
            ordered=ordered, lazy=True, chunksize=chunksize or 0, window=buffersize, timeout=timeout, retries=retries
        )
        run = self._run(func, iterable, options)
        run.start()
        return outcomes(run)

    def _run(self, func: Callable[..., Any], iterable: Iterable[Any], options: MapOptions) -> MapRun:
        self._engine.check_open()
        run = MapRun(self._engine, func, iterable, options)
        run.keeper = self
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
        _check(on_error)
        options = MapOptions(star=star, chunksize=chunksize or 0, timeout=timeout, retries=retries)
        run = self._run(func, iterable, options)
        with _reporting(progress, run.total, self._engine) as advance:
            return gather(run, on_error, advance)

    def _collect_later(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        star: bool,
        chunksize: int | None,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> MapResult[Any]:
        self._engine.check_open()
        future: MapResult[Any] = MapResult(self._engine)
        if callback is not None or error_callback is not None:
            future.add_done_callback(Callbacks(callback, error_callback))

        def finish(results: list[Any], error: BaseException | None) -> None:
            if error is None:
                future.set_result(results)
            else:
                future.set_exception(error)

        options = MapOptions(star=star, chunksize=chunksize or 0)
        run = BackgroundRun(self._engine, func, iterable, options, finish)
        future._run = run
        run.keeper = self
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


def _explicit(chunksize: int) -> int:
    """What was asked for; the standard default of 1 asks for nothing, since chunks cannot be told apart."""
    if chunksize < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize}")
    return 0 if chunksize == 1 else chunksize


def _check(on_error: OnError) -> OnError:
    if on_error not in _ON_ERROR:
        raise ValueError(f"on_error must be 'raise', 'collect' or 'skip', not {on_error!r}")
    return on_error


def map(
    function: Callable[..., T],
    *iterables: Iterable[Any],
    workers: int | None = None,
    ordered: bool = True,
    progress: Any = None,
    timeout: float | None = None,
    retries: int = 0,
    on_error: OnError = "raise",
    initializer: Callable[..., object] | None = None,
    initargs: Iterable[Any] = (),
    finalizer: Callable[[Any], object] | None = None,
) -> list[T]:
    """`list(map(function, *iterables))`, on all cores.

    Args:
        function: Called with one item of each iterable. Any function: also a lambda, or one of a script or a notebook.
        iterables: The items; the shortest ends it.
        workers: Worker processes; by default as many as the cores that this process may use.
        ordered: Results in the input's order; else as they come.
        progress: True for a progress bar, or a callable that is told; None for neither.
        timeout: Seconds that one call may run before its worker is killed and it fails with `TaskTimeout`.
        retries: How often a failed call is tried again.
        on_error: What a failed call does: "raise" its error, "collect" a `Failure` in its place, or "skip" it.
        initializer: Called in each worker before its first task, with `initargs`; what it returns is there
            `current_worker().state`.
        initargs: Its arguments.
        finalizer: Called in each worker at the end, with what the initializer returned. It has five seconds.

    Returns:
        The results.

    Raises:
        Exception: What the function raised, with the worker's traceback as its cause.
        WorkerDied: A worker died; only with on_error="raise".
    """
    bring(_ENGINE, globals(), start_zygote=start_method_of(None) == "zygote")
    items: Any = iterables[0] if len(iterables) == 1 else list(zip(*iterables, strict=False))
    if not hasattr(items, "__len__"):
        items = list(items)
    _check(on_error)
    options = MapOptions(star=len(iterables) != 1, ordered=ordered, timeout=timeout, retries=retries)
    if not iterables:
        raise TypeError("map() needs a function and at least one iterable")
    if not items:
        return []
    size = _fitting(workers, len(items))
    with Pool(size, initializer, initargs, finalizer=finalizer) as pool:
        run = pool._run(function, items, options)
        with _reporting(progress, len(items), pool._engine) as advance:
            results = gather(run, on_error, advance)
        pool.close()
        pool.join()
        return results


@contextlib.contextmanager
def _reporting(progress: Any, total: int | None, engine: Engine) -> Iterator[Callable[[int, int], object] | None]:
    """The function that is told of progress, while the block runs."""
    if not progress:
        yield None
        return
    start_progress = import_module("manycore._observe.progress").start_progress  # most maps show none
    with start_progress(progress, total=total, status=engine.load) as reporter:
        yield reporter.advance


def _fitting(workers: int | None, items: int) -> int:
    """As many workers as were asked for, but not more than there are items."""
    if workers is None:
        workers = _launch.cpu_count()
    elif workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    return max(1, min(workers, items))


def imap(
    function: Callable[..., T],
    *iterables: Iterable[Any],
    workers: int | None = None,
    ordered: bool = True,
    progress: Any = None,
    timeout: float | None = None,
    retries: int = 0,
    on_error: OnError = "raise",
    buffersize: int = 0,
    initializer: Callable[..., object] | None = None,
    initargs: Iterable[Any] = (),
    finalizer: Callable[[Any], object] | None = None,
) -> Iterator[T]:
    """As `map`, as an iterator that reads its inputs only as results are consumed; they may be endless.

    Args:
        function: Called with one item of each iterable.
        iterables: The items; the shortest ends it.
        workers: Worker processes; by default as many as the cores that this process may use.
        ordered: Results in the input's order; else as they come.
        progress: True for a progress bar, or a callable that is told; None for neither.
        timeout: Seconds that one call may run before its worker is killed and it fails with `TaskTimeout`.
        retries: How often a failed call is tried again.
        on_error: What a failed call does: "raise" its error, "collect" a `Failure` in its place, or "skip" it.
        buffersize: Items read ahead of the consumer; 0 = what keeps the workers busy.
        initializer: Called in each worker before its first task, with `initargs`; what it returns is there
            `current_worker().state`.
        initargs: Its arguments.
        finalizer: Called in each worker at the end, with what the initializer returned. It has five seconds.
    """
    if not iterables:
        raise TypeError("imap() needs a function and at least one iterable")
    if not callable(function):
        raise TypeError(f"{function!r} is not callable")
    _check(on_error)
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    star = len(iterables) != 1
    items: Iterable[Any] = zip(*iterables, strict=False) if star else iterables[0]
    total = len(items) if isinstance(items, Sized) else None
    bring(_ENGINE, globals(), start_zygote=start_method_of(None) == "zygote")
    options = MapOptions(star=star, ordered=ordered, lazy=True, window=buffersize, timeout=timeout, retries=retries)
    pool = partial(Pool, workers, initializer, tuple(initargs), finalizer=finalizer)
    return _stream(pool, function, items, options, on_error, progress, total)


def _stream(
    make_pool: Callable[[], Pool],
    function: Callable[..., Any],
    items: Iterable[Any],
    options: MapOptions,
    on_error: OnError,
    progress: Any,
    total: int | None,
) -> Iterator[Any]:
    with make_pool() as pool, _reporting(progress, total, pool._engine) as advance:
        yield from IMapIterator(pool._run(function, items, options), on_error, advance)
