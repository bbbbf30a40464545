"""mpire: a pool with shared objects, worker state and insights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import Peer, PoolAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class _Pool(PoolAdapter):
    """Single calls and maps go to a WorkerPool each: in one pool, a map after an apply_async raises TypeError."""

    survives_death = False

    def __init__(self, module: Any, workers: int) -> None:
        super().__init__(workers)
        self._module = module
        self._calls: Any = None
        self._maps: Any = None

    def _open(self, **options: Any) -> Any:
        return self._module.WorkerPool(n_jobs=self.workers, keep_alive=True, **options)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._calls is None:
            self._calls = self._open()
        return self._calls.apply_async(function, args)

    def result(self, handle: Any) -> Any:
        return handle.get()

    def _mapping(self) -> Any:
        if self._maps is None:
            self._maps = self._open()
        return self._maps

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self._mapping().map(function, items))

    def unordered(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        results: Iterator[Any] = self._mapping().imap_unordered(function, items)
        return results

    def map_shared(self, function: Callable[[Any, Any], Any], value: Any) -> Callable[[Sequence[Any]], list[Any]]:
        self._maps = self._open(shared_objects=value)
        return lambda items: list(self._maps.map(function, items))

    def close(self) -> None:
        for pool in (self._calls, self._maps):
            if pool is not None:
                pool.stop_and_join()


class Mpire(Peer):
    name = "mpire"
    module = "mpire"
    distribution = "mpire"

    def pool(self, workers: int, **options: Any) -> PoolAdapter:
        return _Pool(self.load(), workers, **options)


PEERS: tuple[Peer, ...] = (Mpire(),)
