"""mpire: a pool with shared objects, worker state and insights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import Peer, PoolAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class _Pool(PoolAdapter):
    def __init__(self, module: Any, workers: int) -> None:
        super().__init__(workers)
        self._module = module
        self.native = module.WorkerPool(n_jobs=workers, keep_alive=True)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.native.apply_async(function, args)

    def result(self, handle: Any) -> Any:
        return handle.get()

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self.native.map(function, items))

    def unordered(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        results: Iterator[Any] = self.native.imap_unordered(function, items)
        return results

    def map_shared(self, function: Callable[[Any, Any], Any], value: Any) -> Callable[[Sequence[Any]], list[Any]]:
        self.close()
        self.native = self._module.WorkerPool(n_jobs=self.workers, shared_objects=value, keep_alive=True)
        return lambda items: list(self.native.map(function, items))

    def close(self) -> None:
        self.native.stop_and_join()


class Mpire(Peer):
    name = "mpire"
    module = "mpire"
    distribution = "mpire"

    def pool(self, workers: int, **options: Any) -> PoolAdapter:
        return _Pool(self.load(), workers, **options)


PEERS: tuple[Peer, ...] = (Mpire(),)
