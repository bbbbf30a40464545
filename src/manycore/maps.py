"""`map` and `imap`: a pool for one call."""

from __future__ import annotations

from _collections_abc import Sized
from functools import partial

from manycore._engine import bring
from manycore._engine.methods import start_method_of
from manycore._launch.arguments import integer
from manycore.pool import Pool, check

TYPE_CHECKING = False  # whatever else is imported here would be so before the zygote starts, and not meanwhile
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Literal, TypeVar

    from manycore._engine.mapping import MapOptions
    from manycore._engine.policy import make_policy
    from manycore._engine.results import IMapIterator, OnError, gather, reporter_of
    from manycore._engine.settings import nanoseconds, number_of_workers

    T = TypeVar("T")

__all__ = ["imap", "map"]

_ENGINE: dict[str, str] = {
    "IMapIterator": "results",
    "MapOptions": "mapping",
    "gather": "results",
    "make_policy": "policy",
    "nanoseconds": "settings",
    "number_of_workers": "settings",
    "reporter_of": "results",
}


def map(
    function: Callable[..., T],
    *iterables: Iterable[Any],
    workers: int | Literal["auto"] | None = None,
    ordered: bool = True,
    progress: Any = None,
    timeout: float | None = None,
    soft_timeout: float | None = None,
    retries: int = 0,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception,
    backoff: float | Callable[[int], float] = 0.0,
    priority: int = 0,
    memory_limit: int | None = None,
    name: str = "",
    on_error: OnError = "raise",
    initializer: Callable[..., object] | None = None,
    initargs: Iterable[Any] = (),
    initializer_timeout: float | None = None,
    finalizer: Callable[[Any], object] | None = None,
) -> list[T]:
    """`list(map(function, *iterables))`, on all cores.

    Args:
        function: Called with one item of each iterable. Any function: also a lambda, or one of a script or a notebook.
        iterables: The items; the shortest ends it.
        workers: Worker processes; by default as many as the cores that this process may use. "auto" counts the memory
            that is left as well.
        ordered: Results in the input's order; else as they come.
        progress: True for a progress bar, or a callable that is told; None for neither.
        timeout: Seconds that one call may run before its worker is killed and it fails with `TaskTimeout`.
        soft_timeout: Seconds after which `SoftTimeout` is raised inside the call.
        retries: How often a failed call is tried again.
        retry_on: Only for these exceptions.
        backoff: Seconds before the first retry, or a callable; as `Pool.options` has it.
        priority: As `Pool.options` has it; the calls of one map are all alike.
        memory_limit: Bytes that a call may take; more raises MemoryError in it.
        name: What messages, `ps` and `current_task()` call the calls.
        on_error: What a failed call does: "raise" its error, "collect" a `Failure` in its place, or "skip" it.
        initializer: Called in each worker before its first task, with `initargs`; what it returns is there
            `current_worker().state`.
        initargs: Its arguments.
        initializer_timeout: Seconds that it may take in a worker, which is killed after that; as `Pool` has it.
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
    check(on_error)
    nanoseconds("initializer_timeout", initializer_timeout)
    policy = make_policy(
        timeout=timeout,
        soft_timeout=soft_timeout,
        retries=retries,
        retry_on=retry_on,
        backoff=backoff,
        priority=priority,
        memory_limit=memory_limit,
        name=name,
    )
    options = MapOptions(star=len(iterables) != 1, ordered=ordered, policy=policy)
    if not iterables:
        raise TypeError("map() needs a function and at least one iterable")
    if not items:
        return []
    size = _fitting(workers, len(items))
    with Pool(size, initializer, initargs, finalizer=finalizer, initializer_timeout=initializer_timeout) as pool:
        results = gather(pool._run(function, items, options, progress), on_error)
        pool.close()
        pool.join()
        return results


def _fitting(workers: int | Literal["auto"] | None, items: int) -> int:
    """As many workers as were asked for, but not more than there are items."""
    return max(1, min(number_of_workers("workers", workers), items))


def imap(
    function: Callable[..., T],
    *iterables: Iterable[Any],
    workers: int | Literal["auto"] | None = None,
    ordered: bool = True,
    progress: Any = None,
    timeout: float | None = None,
    soft_timeout: float | None = None,
    retries: int = 0,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception,
    backoff: float | Callable[[int], float] = 0.0,
    priority: int = 0,
    memory_limit: int | None = None,
    name: str = "",
    on_error: OnError = "raise",
    buffersize: int = 0,
    initializer: Callable[..., object] | None = None,
    initargs: Iterable[Any] = (),
    initializer_timeout: float | None = None,
    finalizer: Callable[[Any], object] | None = None,
) -> Iterator[T]:
    """As `map`, as an iterator that reads its inputs only as results are consumed; they may be endless.

    Args:
        function: Called with one item of each iterable.
        iterables: The items; the shortest ends it.
        workers: Worker processes; by default as many as the cores that this process may use. "auto" counts the memory
            that is left as well.
        ordered: Results in the input's order; else as they come.
        progress: True for a progress bar, or a callable that is told; None for neither.
        timeout: Seconds that one call may run before its worker is killed and it fails with `TaskTimeout`.
        soft_timeout: Seconds after which `SoftTimeout` is raised inside the call.
        retries: How often a failed call is tried again.
        retry_on: Only for these exceptions.
        backoff: Seconds before the first retry, or a callable; as `Pool.options` has it.
        priority: As `Pool.options` has it; the calls of one map are all alike.
        memory_limit: Bytes that a call may take; more raises MemoryError in it.
        name: What messages, `ps` and `current_task()` call the calls.
        on_error: What a failed call does: "raise" its error, "collect" a `Failure` in its place, or "skip" it.
        buffersize: Items read ahead of the consumer; 0 = what keeps the workers busy.
        initializer: Called in each worker before its first task, with `initargs`; what it returns is there
            `current_worker().state`.
        initargs: Its arguments.
        initializer_timeout: Seconds that it may take in a worker, which is killed after that; as `Pool` has it.
        finalizer: Called in each worker at the end, with what the initializer returned. It has five seconds.
    """
    if not iterables:
        raise TypeError("imap() needs a function and at least one iterable")
    if not callable(function):
        raise TypeError(f"{function!r} is not callable")
    check(on_error)
    bring(_ENGINE, globals(), start_zygote=start_method_of(None) == "zygote")
    size = number_of_workers("workers", workers)
    integer("buffersize", buffersize)
    if buffersize < 0:
        raise ValueError(f"buffersize must be at least 1, or 0 for what is useful, not {buffersize}")
    star = len(iterables) != 1
    items: Iterable[Any] = zip(*iterables, strict=False) if star else iterables[0]
    total = len(items) if isinstance(items, Sized) else None
    items = iter(items)  # what is no iterable is said here, and not where the first result is taken
    nanoseconds("initializer_timeout", initializer_timeout)
    policy = make_policy(
        timeout=timeout,
        soft_timeout=soft_timeout,
        retries=retries,
        retry_on=retry_on,
        backoff=backoff,
        priority=priority,
        memory_limit=memory_limit,
        name=name,
    )
    options = MapOptions(star=star, ordered=ordered, lazy=True, window=buffersize, policy=policy)
    given = (size, initializer, tuple(initargs))
    pool = partial(Pool, *given, finalizer=finalizer, initializer_timeout=initializer_timeout)
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
    with make_pool() as pool:
        run = pool._run(function, items, options, None)
        run.reporter = reporter_of(progress, total, pool._engine)
        yield from IMapIterator(run, on_error)
