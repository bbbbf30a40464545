"""loky, joblib's executor."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.base import Peer, PoolAdapter
from benchmarks.peers.standard import ExecutorLike


class Loky(Peer):
    name = "loky"
    module = "loky"
    distribution = "loky"

    def pool(self, workers: int, **options: Any) -> PoolAdapter:
        return ExecutorLike(self.load().get_reusable_executor(max_workers=workers, **options), workers)


PEERS: tuple[Peer, ...] = (Loky(),)
