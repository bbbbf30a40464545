"""Ray, on one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import Peer, PoolAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class _Pool(PoolAdapter):
    reruns_lost = True

    def __init__(self, module: Any, workers: int) -> None:
        super().__init__(workers)
        self._ray = module
        self._maps: Any = None
        self._remote: dict[Any, Any] = {}
        module.init(num_cpus=workers, include_dashboard=False, logging_level="ERROR")

    def _function(self, function: Callable[..., Any]) -> Any:
        remote = self._remote.get(function)
        if remote is None:
            remote = self._remote[function] = self._ray.remote(function)
        return remote

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._function(function).remote(*args)

    def result(self, handle: Any) -> Any:
        return self._ray.get(handle)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        from ray.util.multiprocessing import Pool

        if self._maps is None:
            self._maps = Pool(self.workers)
        return list(self._maps.map(function, items))

    def unordered(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        waiting = [self.submit(function, item) for item in items]
        while waiting:
            ready, waiting = self._ray.wait(waiting, num_returns=1)
            yield self._ray.get(ready[0])

    def map_shared(self, function: Callable[[Any, Any], Any], value: Any) -> Callable[[Sequence[Any]], list[Any]]:
        reference = self._ray.put(value)
        remote = self._function(function)
        return lambda items: list(self._ray.get([remote.remote(reference, item) for item in items]))

    def close(self) -> None:
        self._ray.shutdown()


class Ray(Peer):
    name = "ray"
    module = "ray"
    distribution = "ray"

    def pool(self, workers: int, **options: Any) -> PoolAdapter:
        return _Pool(self.load(), workers, **options)


PEERS: tuple[Peer, ...] = (Ray(),)
