"""One 64 MB array to 200 tasks, each peer's best way; the placing is done before, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.clock import middle, per_second
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import ends_of_shared

if TYPE_CHECKING:
    from benchmarks.spec import Run

TASKS = 200


def run(run: Run) -> dict[str, float]:
    import numpy as np

    items = run.size(8 << 20, 128 << 10)
    pool = run.pool()
    mapped = pool.map_shared(ends_of_shared, np.arange(items, dtype=np.float64))

    def tasks(n: int) -> None:
        if mapped(range(n)) != [float(items - 1)] * n:
            raise AssertionError("the array changed on its way")

    full = run.size(TASKS, 20)
    tasks(run.workers)
    rate = per_second(tasks, full=full, seconds=4.0, first=4)
    repeats = max(1, min(9, int(rate / full)))  # where all 200 take less than a second, more than once
    return {"each": 1e6 / middle([per_second(tasks, full=full, seconds=4.0, first=4) for _ in range(repeats)])}


WORKLOAD = Workload(
    "shared_object",
    "pool",
    (Measure("each", "one 64 MB array to 200 tasks, each task", "us", "lower", goal=50),),
    run,
)
