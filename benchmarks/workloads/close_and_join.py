"""Closing a pool after use, until it is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.clock import middle, now
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import noop

if TYPE_CHECKING:
    from benchmarks.spec import Run


def run(run: Run) -> dict[str, float]:
    took = []
    for _ in range(run.size(5, 1)):
        pool = run.pool()
        pool.call_all(noop, [()] * 100)
        start = now()
        pool.close()
        took.append((now() - start) * 1e3)
        run.closed(pool)
    return {"close": middle(took)}


WORKLOAD = Workload(
    "close_and_join", "pool", (Measure("close", "close and join after use", "ms", "lower", goal=5),), run
)
