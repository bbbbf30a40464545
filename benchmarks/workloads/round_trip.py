"""One no-op call at a time, waited for: what a call costs a program that needs its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.clock import percentile, sample
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import noop

if TYPE_CHECKING:
    from benchmarks.spec import Run


def run(run: Run) -> dict[str, float]:
    pool = run.pool()
    sample(lambda: pool.call(noop), seconds=run.seconds(0.3), most=500)
    samples = sample(lambda: pool.call(noop), seconds=run.seconds(1.5), most=20_000)
    return {"p50": percentile(samples, 0.5) * 1e6, "p99": percentile(samples, 0.99) * 1e6}


WORKLOAD = Workload(
    "round_trip",
    "pool",
    (
        Measure("p50", "no-op round trip, p50", "us", "lower", goal=10),
        Measure("p99", "no-op round trip, p99", "us", "lower", goal=60),
    ),
    run,
)
