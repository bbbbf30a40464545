"""faster-fifo: a queue over a ring of bytes. It has nothing else, so its other primitives are missing."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.peers.base import Peer
from benchmarks.spec import Unsupported

RING_BYTES = 16 << 20  # its default of 1,000,000 cannot hold a message of 1 MB


class _Context:
    """Queues of faster-fifo, processes of the standard library."""

    def __init__(self, module: Any) -> None:
        import multiprocessing

        self.Queue = partial(module.Queue, max_size_bytes=RING_BYTES)
        self.Process = multiprocessing.get_context("fork").Process

    def __getattr__(self, name: str) -> Any:
        raise Unsupported(f"faster-fifo has no {name}")


class FasterFifo(Peer):
    name = "faster-fifo"
    module = "faster_fifo"
    distribution = "faster-fifo"
    families = frozenset({"primitive"})

    def context(self) -> Any:
        return _Context(self.load())


PEERS: tuple[Peer, ...] = (FasterFifo(),)
