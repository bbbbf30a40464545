"""billiard, Celery's fork of multiprocessing."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.base import Peer, PoolAdapter
from benchmarks.peers.standard import PoolLike


class Billiard(Peer):
    name = "billiard"
    module = "billiard"
    distribution = "billiard"
    families = frozenset({"pool", "process", "primitive"})

    def pool(self, workers: int, **options: Any) -> PoolAdapter:
        return PoolLike(self.load().Pool(workers, **options), workers)

    def context(self) -> Any:
        return self.load()


PEERS: tuple[Peer, ...] = (Billiard(),)
