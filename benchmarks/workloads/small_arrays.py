"""Many tasks, each with an array of 10 KB: too small for shared memory, too large to be nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.clock import per_second
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import ends_of

if TYPE_CHECKING:
    from benchmarks.spec import Run

ITEMS = 1280  # of 8 bytes


def run(run: Run) -> dict[str, float]:
    import numpy as np

    pool = run.pool()
    full = run.size(20_000, 300)
    base = np.arange(full + ITEMS, dtype=np.float64)

    def calls(n: int) -> None:
        # each task has an array of its own: pickle would send one that is repeated in a batch only once
        results = pool.call_all(ends_of, [(base[index : index + ITEMS],) for index in range(n)])
        if results[-1] != 2.0 * (n - 1) + ITEMS - 1:
            raise AssertionError("the last array changed on its way")

    return {"rate": per_second(calls, full=full, seconds=1.5)}


WORKLOAD = Workload(
    "small_arrays", "pool", (Measure("rate", "tasks with a 10 KB array each", "/s", "higher", goal=100_000),), run
)
