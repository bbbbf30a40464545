"""Durations with a heavy tail (Pareto, seeded): how well a pool balances what it cannot foresee.

The lower bound of the makespan is the larger of the total divided by the workers and the longest task.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from benchmarks.clock import now
from benchmarks.spec import Measure, Unsupported, Workload
from benchmarks.tasks import spin, stamp

if TYPE_CHECKING:
    from benchmarks.spec import Run

SEED = 7
SHAPE = 1.3  # of the Pareto distribution: a few tasks hold much of the work
LEAST = 0.001  # seconds of the shortest task
MOST = 0.2  # seconds of the longest, so that one task cannot be the whole makespan


def durations(tasks: int) -> list[float]:
    """Returns seeded durations in seconds."""
    source = random.Random(SEED)
    return [min(MOST, LEAST * source.paretovariate(SHAPE)) for _ in range(tasks)]


def run(run: Run) -> dict[str, float]:
    pool = run.pool()
    work = durations(run.size(300, 30))
    bound = max(sum(work) / run.workers, *work)
    pool.call_all(spin, [(LEAST,)] * 4)
    found: dict[str, float] = {}
    start = now()
    pool.map(spin, work)
    found["map"] = (now() - start) / bound
    try:
        start = now()
        results = pool.unordered(stamp, work)
        ended = [next(results)]
        first = time.monotonic()
        ended += results
        found["unordered"] = (now() - start) / bound
        found["first"] = (first - min(ended)) * 1e3
    except Unsupported:
        pass
    return found


WORKLOAD = Workload(
    "heavy_tailed",
    "pool",
    (
        Measure("map", "heavy-tailed tasks, map, makespan over its bound", "times", "lower", goal=1.03),
        Measure("unordered", "heavy-tailed tasks, unordered", "times", "lower", goal=1.02),
        Measure("first", "first task's end to first unordered result", "ms", "lower", goal=1.0),
    ),
    run,
)
