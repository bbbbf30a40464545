"""Many no-ops submitted one by one, then their results taken in order.

What limits it: of the parent's time, about 1.3 us a task in the thread that submits and 0.2 in the one that collects;
of a worker's, half a microsecond a task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.clock import per_second
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import noop

if TYPE_CHECKING:
    from benchmarks.spec import Run


def run(run: Run) -> dict[str, float]:
    pool = run.pool()
    pool.call_all(noop, [(1,)] * 10)
    full = run.size(100_000, 500)
    return {"rate": per_second(lambda n: pool.submit_all(noop, [(1,)] * n), full=full, seconds=1.5)}


WORKLOAD = Workload(
    "submits", "pool", (Measure("rate", "no-op submits, results in order", "/s", "higher", goal=240_000),), run
)
