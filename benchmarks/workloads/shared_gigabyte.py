"""A 1 GB array that is placed once, to one task at a time; and the first task that gets it.

The others that can: an array in a SharedMemory, which a worker attaches by name at its first task and keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.clock import middle, now, sample
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import ends_of, ends_of_slowly

if TYPE_CHECKING:
    from benchmarks.spec import Run


def run(run: Run) -> dict[str, float]:
    import numpy as np

    if run.peer.role == "standard":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # else each worker starts one of its own, which unlinks at the worker's end
    items = run.size(125_000_000, 125_000)
    array = np.arange(items, dtype=np.float64)
    pool = run.pool()
    pool.call_all(ends_of_slowly, [(array[:10],)] * (4 * run.workers))  # all have imported NumPy
    call = pool.call_shared(ends_of, array)
    del array
    start = now()
    found = call()
    first = now() - start
    if found != float(items - 1):
        raise AssertionError("the array changed on its way")
    sample(call, seconds=run.seconds(0.3), most=500)
    each = middle(sample(call, seconds=run.seconds(1.0), most=20_000))
    return {"each": each * 1e6, "first": first * 1e6}


WORKLOAD = Workload(
    "shared_gigabyte",
    "pool",
    (
        Measure("each", "a shared 1 GB array to a task and its answer back, p50", "us", "lower", goal=50),
        Measure("first", "the same, the first task that gets it", "us", "lower"),
    ),
    run,
)
