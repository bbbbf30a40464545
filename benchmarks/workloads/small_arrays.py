"""Many tasks, each with an array of 10 KB: too small for shared memory, too large to be nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.clock import per_second
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import ends_of

if TYPE_CHECKING:
    from benchmarks.spec import Run


def run(run: Run) -> dict[str, float]:
    import numpy as np

    array = np.arange(1280, dtype=np.float64)
    pool = run.pool()
    full = run.size(20_000, 300)
    return {"rate": per_second(lambda n: pool.call_all(ends_of, [(array,)] * n), full=full, seconds=1.5)}


WORKLOAD = Workload(
    "small_arrays", "pool", (Measure("rate", "tasks with a 10 KB array each", "/s", "higher", goal=100_000),), run
)
