"""What a workload is, and what it is given when it runs.

A workload is one file in `workloads/` that defines `WORKLOAD`. It declares what it measures (each
measure with its unit and which direction is better) and a function that runs once in a fresh process
for one peer and returns a value for each measure. How often, in which order and beside whom is the
runner's business.

This module and all that the child imports before the workload stay light: the time that a library
needs for its own imports is one of the things measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.peers.base import Peer, PoolAdapter

Family = Literal["pool", "process", "primitive"]


class Unsupported(Exception):
    """The peer does not offer what the workload needs; the table says "no"."""


class Measure(NamedTuple):
    """One figure that a workload yields.

    Attributes:
        key: Name of the figure in the results.
        title: The row's title in the table.
        unit: Unit of the figure, as printed.
        better: Which direction is better.
        goal: What manycore aims for, in the unit; None where the aim is a ratio.
        rival: False for a figure that is context and not a contest (no ratios are computed).
    """

    key: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    goal: float | None = None
    rival: bool = True


class Workload(NamedTuple):
    """One workload: what it measures and how.

    Attributes:
        name: The file's name, without its ending.
        family: Which peers can take part.
        measures: The figures that `run` returns, by their keys.
        run: Runs the workload once and returns its figures; a key may be left out where a peer
            does not offer that part.
        timeout: Seconds after which the peer "hangs".
    """

    name: str
    family: Family
    measures: tuple[Measure, ...]
    run: Callable[[Run], dict[str, float]]
    timeout: float = 60.0


class Run:
    """One run of one workload for one peer, inside its own process.

    Attributes:
        peer: The adapter of the peer.
        workers: Worker processes to use.
        quick: True for a smoke run: the smallest sizes that still exercise the path.
        folder: An empty folder of this run, removed afterwards.
    """

    def __init__(self, peer: Peer, *, workers: int, quick: bool, folder: str) -> None:
        self.peer = peer
        self.workers = workers
        self.quick = quick
        self.folder = folder
        self._pools: list[PoolAdapter] = []
        self._abandoned = False

    def size(self, full: int, quick: int) -> int:
        """Returns `full`, or `quick` in a smoke run."""
        return quick if self.quick else full

    def seconds(self, full: float) -> float:
        """Returns how long a repeated measurement may take, in seconds."""
        return full / 10 if self.quick else full

    def pool(self, **options: Any) -> PoolAdapter:
        """Opens a pool of the peer; it is closed at the end of the run."""
        opened = self.peer.pool(self.workers, **options)
        self._pools.append(opened)
        return opened

    def closed(self, pool: PoolAdapter) -> None:
        """Says that the workload has closed `pool` itself."""
        self._pools.remove(pool)

    def abandon(self) -> None:
        """Leaves the pools as they are (too full to close in time); the runner kills what remains."""
        self._abandoned = True

    @property
    def abandoned(self) -> bool:
        """Whether the pools are to be left as they are."""
        return self._abandoned

    def close(self) -> None:
        """Closes the pools that are still open."""
        while self._pools:
            self._pools.pop().close()
