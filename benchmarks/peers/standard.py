"""The standard library: multiprocessing.Pool, ProcessPoolExecutor, and the start methods.

Pools use `fork`, which is the fastest that the standard library has and its default up to CPython 3.13.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import Peer, PoolAdapter
from benchmarks.tasks import on_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class PoolLike(PoolAdapter):
    """Any pool with the interface of multiprocessing.pool.Pool."""

    def __init__(self, pool: Any, workers: int) -> None:
        super().__init__(workers)
        self.native = pool

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.native.apply_async(function, args)

    def result(self, handle: Any) -> Any:
        return handle.get()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.native.apply(function, args)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        mapped: list[Any] = self.native.map(function, items)
        return mapped

    def unordered(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        results: Iterator[Any] = self.native.imap_unordered(function, items)
        return results

    def close(self) -> None:
        self.native.close()
        self.native.join()


class ExecutorLike(PoolAdapter):
    """Any executor with the interface of concurrent.futures.Executor."""

    def __init__(self, executor: Any, workers: int) -> None:
        super().__init__(workers)
        self.native = executor

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.native.submit(function, *args)

    def result(self, handle: Any) -> Any:
        return handle.result()

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self.native.map(function, items))

    def unordered(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        from concurrent.futures import as_completed

        return (future.result() for future in as_completed([self.submit(function, item) for item in items]))

    def close(self) -> None:
        self.native.shutdown(wait=True)


class Named:
    """Arrays in named shared memory, which workers attach once; one array at a time."""

    def __init__(self) -> None:
        self._memory: Any = None

    def place(self, array: Any) -> tuple[Any, ...]:
        """Returns what `on_named` attaches by."""
        from multiprocessing.shared_memory import SharedMemory

        import numpy as np

        self.release()
        self._memory = SharedMemory(create=True, size=array.nbytes)
        np.ndarray(array.shape, array.dtype, buffer=self._memory.buf)[...] = array
        return self._memory.name, array.shape, array.dtype

    def release(self) -> None:
        """Removes the name."""
        if self._memory is not None:
            self._memory.close()
            self._memory.unlink()
            self._memory = None


class _Pool(PoolLike):
    def __init__(self, pool: Any, workers: int) -> None:
        super().__init__(pool, workers)
        self._named = Named()

    def call_shared(self, function: Callable[[Any], Any], array: Any) -> Callable[[], Any]:
        return partial(self.call, on_named, function, *self._named.place(array))

    def close(self) -> None:
        self._named.release()
        super().close()


class _Executor(ExecutorLike):
    def __init__(self, executor: Any, workers: int) -> None:
        super().__init__(executor, workers)
        self._named = Named()

    def call_shared(self, function: Callable[[Any], Any], array: Any) -> Callable[[], Any]:
        return partial(self.call, on_named, function, *self._named.place(array))

    def close(self) -> None:
        self._named.release()
        super().close()


class Multiprocessing(Peer):
    name = "multiprocessing"
    module = "multiprocessing"
    role = "standard"
    families = frozenset({"pool", "primitive"})

    def pool(self, workers: int, **options: Any) -> PoolAdapter:
        return _Pool(self.context().Pool(workers, **options), workers)

    def context(self) -> Any:
        return self.load().get_context("fork")


class Futures(Peer):
    name = "concurrent.futures"
    module = "concurrent.futures"
    role = "standard"

    def pool(self, workers: int, **options: Any) -> PoolAdapter:
        import multiprocessing

        executor = self.load().ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"), **options)
        return _Executor(executor, workers)


class StartMethod(Peer):
    """multiprocessing.Process by one start method."""

    module = "multiprocessing"
    role = "standard"
    families = frozenset({"process"})

    def __init__(self, method: str) -> None:
        self.method = method
        self.name = f"multiprocessing.{method}"

    def context(self) -> Any:
        return self.load().get_context(self.method)


PEERS: tuple[Peer, ...] = (
    Multiprocessing(),
    Futures(),
    StartMethod("fork"),
    StartMethod("forkserver"),
    StartMethod("spawn"),
)
