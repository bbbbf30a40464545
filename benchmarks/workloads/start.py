"""From nothing to a first result, and a second pool in the same program.

What limits the cold start is the zygote: within 4 ms it is told to start, then executes an interpreter (about 10 ms),
imports its own modules (5), `typing`, as the tasks here do (6), and what a worker needs (7), and forks; a worker's own
start and the import of its function take 4. Meanwhile this process imports the engine (about 30 ms of processor time,
a quarter of it `logging`, which `concurrent.futures` imports for one logger; an executor before all else, for it is
an `Executor`). The two run side by side; without a free core they take turns, and the figure doubles.
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
