"""From nothing to a first result, and a second pool in the same program.

What limits the cold start: this process imports the engine (about 20 ms of processor time, a third of it `logging`,
which `concurrent.futures` imports for one logger) while the zygote executes an interpreter (about 10 ms), imports
what a worker needs (about 8 ms) and forks. The two run side by side; without a free core they take turns, and the
figure doubles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.clock import now
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import noop

if TYPE_CHECKING:
    from benchmarks.spec import Run


def run(run: Run) -> dict[str, float]:
    start = now()
    pool = run.pool()
    pool.call(noop)
    cold = now() - start
    pool.close()
    run.closed(pool)

    start = now()
    run.pool().call(noop)
    return {"cold": cold * 1e3, "warm": (now() - start) * 1e3}


WORKLOAD = Workload(
    "start",
    "pool",
    (
        Measure("cold", "import and constructor to first result", "ms", "lower", goal=60),
        Measure("warm", "a second pool to first result", "ms", "lower", goal=5),
    ),
    run,
)
