"""pebble: a pool that survives the death of a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import Peer, PoolAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class _Pool(PoolAdapter):
    def __init__(self, pool: Any, workers: int) -> None:
        super().__init__(workers)
        self.native = pool

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.native.schedule(function, args=args)

    def result(self, handle: Any) -> Any:
        return handle.result()

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self.native.map(function, items).result())

    def close(self) -> None:
        self.native.close()
        self.native.join()


class Pebble(Peer):
    name = "pebble"
    module = "pebble"
    distribution = "Pebble"

    def pool(self, workers: int, **options: Any) -> PoolAdapter:
        return _Pool(self.load().ProcessPool(max_workers=workers, **options), workers)


PEERS: tuple[Peer, ...] = (Pebble(),)
