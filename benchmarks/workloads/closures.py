"""Submits of a function that no worker can import: a closure over a local value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.clock import per_second
from benchmarks.spec import Measure, Unsupported, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run

WITHOUT = frozenset({"multiprocessing", "concurrent.futures", "billiard", "pebble", "mpire"})
"""Pools that pickle functions by name only; asked anyway, some of them never answer."""


def run(run: Run) -> dict[str, float]:
    if run.peer.name in WITHOUT:
        raise Unsupported("functions go by name only")
    base = 1000
    pool = run.pool()

    def add(x: int) -> int:
        return base + x

    if pool.call_all(add, [(1,)]) != [1001]:
        raise AssertionError("a closure lost its value")
    full = run.size(50_000, 500)
    found = {"map": per_second(lambda n: pool.map(add, range(n)), full=full, seconds=1.5) / 1e3}
    try:
        found["submit"] = per_second(lambda n: pool.submit_all(add, [(1,)] * n), full=full, seconds=1.5)
    except Unsupported:
        pass
    return found


WORKLOAD = Workload(
    "closures",
    "pool",
    (
        Measure("submit", "closures, submits", "/s", "higher", goal=192_000),
        Measure("map", "map of a closure", "thousand/s", "higher"),
    ),
    run,
)
