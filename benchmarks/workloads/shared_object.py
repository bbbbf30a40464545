"""One 64 MB array to 200 tasks, each peer's best way; the placing is done before, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.clock import middle, sample
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
    tasks = range(run.size(TASKS, 20))

    def all_tasks() -> None:
        if mapped(tasks) != [float(items - 1)] * len(tasks):
            raise AssertionError("the array changed on its way")

    all_tasks()
    took = middle(sample(all_tasks, seconds=run.seconds(1.0), least=2, most=50))
    return {"each": took / len(tasks) * 1e6}


WORKLOAD = Workload(
    "shared_object",
    "pool",
    (Measure("each", "one 64 MB array to 200 tasks, each task", "us", "lower", goal=50),),
    run,
)
