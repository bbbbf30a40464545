"""Whether the cost of a task grows with the number of tasks that wait, and with the number of workers.

Each figure is the time of a task, submitted and waited for, divided by that in a small case in the same process:
1.0 is a pool whose bookkeeping costs the same however much there is of it.

The interpreter's garbage collector walks all objects that live, the caller's own futures among them, so what it costs a
task does grow with their number, whatever the pool does. The first figure is without it, the second with.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from benchmarks.clock import now
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import noop

if TYPE_CHECKING:
    from benchmarks.peers.base import PoolAdapter
    from benchmarks.spec import Run

FEW_PENDING = 1_000
MANY_WORKERS = 16
REPEATS = 3  # of which the best counts: a small case is disturbed more easily than a large one


def _each(pool: PoolAdapter, pending: int, repeats: int = REPEATS) -> float:
    """Returns the seconds of a task when so many are submitted at once."""
    best = float("inf")
    for _ in range(repeats):
        start = now()
        pool.submit_all(noop, [(1,)] * pending)
        best = min(best, now() - start)
    return best / pending


def run(run: Run) -> dict[str, float]:
    pool = run.pool()
    _each(pool, 200)
    many = run.size(100_000, 2 * FEW_PENDING)
    gc.disable()
    try:
        deep = _each(pool, many, repeats=2) / _each(pool, FEW_PENDING)
    finally:
        gc.enable()
    collected = _each(pool, many, repeats=2) / _each(pool, FEW_PENDING)
    middling = _each(pool, run.size(10_000, FEW_PENDING))
    wide_pool = run.peer.pool(MANY_WORKERS)
    try:
        _each(wide_pool, 200)
        wide = _each(wide_pool, run.size(10_000, FEW_PENDING))
    finally:
        wide_pool.close()
    return {"deep": deep, "collected": collected, "wide": wide / middling}


WORKLOAD = Workload(
    "scaling",
    "pool",
    (
        Measure("deep", "a task among 100,000 pending, over one among 1,000", "times", "lower", goal=1.2),
        Measure("collected", "the same, with the interpreter's garbage collector on", "times", "lower"),
        Measure("wide", "a task for 16 workers, over one for the usual number", "times", "lower", goal=1.5),
    ),
    run,
    timeout=120.0,
)
