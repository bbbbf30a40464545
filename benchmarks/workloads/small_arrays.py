"""Many tasks, each with an array of 10 KB: too small for shared memory, too large to be nothing.

What limits it: three copies of 10 KB a task (packed, into a block, out of it), and that a worker which is faster than
its parent sleeps between two tasks, so that each submit wakes one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.clock import per_second
from benchmarks.spec import Measure, Unsupported, Workload
from benchmarks.tasks import ends_of

if TYPE_CHECKING:
    from benchmarks.spec import Run

ITEMS = 1280  # of 8 bytes


def run(run: Run) -> dict[str, float]:
    import numpy as np

    pool = run.pool()
    full = run.size(20_000, 300)
    base = np.arange(full + ITEMS, dtype=np.float64)

    def arrays(n: int) -> list[Any]:
        # each task has an array of its own: pickle would send one that is repeated in a batch only once
        return [base[index : index + ITEMS] for index in range(n)]

    def check(n: int, results: list[Any]) -> None:
        if results[-1] != 2.0 * (n - 1) + ITEMS - 1:
            raise AssertionError("the last array changed on its way")

    pool.call_all(ends_of, [(base[:ITEMS],)] * 4)
    found = {"map": per_second(lambda n: check(n, pool.map(ends_of, arrays(n))), full=full, seconds=1.5)}
    try:
        found["submit"] = per_second(
            lambda n: check(n, pool.submit_all(ends_of, [(array,) for array in arrays(n)])), full=full, seconds=1.5
        )
    except Unsupported:
        pass
    return found


WORKLOAD = Workload(
    "small_arrays",
    "pool",
    (
        Measure("submit", "tasks with a 10 KB array each, submits", "/s", "higher", goal=100_000),
        Measure("map", "tasks with a 10 KB array each, map", "/s", "higher", goal=100_000),
    ),
    run,
)
