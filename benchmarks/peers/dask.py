"""Dask's distributed scheduler with local worker processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import Peer, PoolAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class _Pool(PoolAdapter):
    reruns_lost = True

    def __init__(self, module: Any, workers: int) -> None:
        super().__init__(workers)
        self._module = module
        self.native = module.Client(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=40
        )

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.native.submit(function, *args, pure=False)

    def result(self, handle: Any) -> Any:
        return handle.result()

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self.native.gather(self.native.map(function, items, pure=False)))

    def unordered(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        futures = self.native.map(function, items, pure=False)
        return (future.result() for future in self._module.as_completed(futures))

    def map_shared(self, function: Callable[[Any, Any], Any], value: Any) -> Callable[[Sequence[Any]], list[Any]]:
        placed = self.native.scatter(value, broadcast=True)
        return lambda items: list(self.native.gather([self.submit(function, placed, item) for item in items]))

    def close(self) -> None:
        self.native.shutdown()


class Dask(Peer):
    name = "dask"
    module = "distributed"
    distribution = "distributed"

    def pool(self, workers: int, **options: Any) -> PoolAdapter:
        return _Pool(self.load(), workers, **options)


PEERS: tuple[Peer, ...] = (Dask(),)
