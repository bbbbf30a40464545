"""Tasks of one millisecond: how much of the workers' time is work.

Efficiency is the time that the work alone takes on all workers, divided by the time that it took.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.clock import now
from benchmarks.spec import Measure, Unsupported, Workload
from benchmarks.tasks import spin

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.spec import Run

TASK_SECONDS = 0.001


def run(run: Run) -> dict[str, float]:
    pool = run.pool()
    tasks = run.size(2_000, 50)
    ideal = tasks * TASK_SECONDS / run.workers
    durations = [TASK_SECONDS] * tasks
    ways: dict[str, Callable[[], object]] = {
        "map": lambda: pool.map(spin, durations),
        "submit": lambda: pool.submit_all(spin, [(TASK_SECONDS,)] * tasks),
    }
    found: dict[str, float] = {}
    pool.call_all(spin, [(TASK_SECONDS,)] * 10)
    for name, way in ways.items():
        try:
            start = now()
            way()
            found[name] = ideal / (now() - start)
        except Unsupported:
            continue
    return found


WORKLOAD = Workload(
    "millisecond_tasks",
    "pool",
    (
        Measure("map", "2,000 tasks of 1 ms, map", "efficiency", "higher", goal=0.98),
        Measure("submit", "2,000 tasks of 1 ms, submit", "efficiency", "higher", goal=0.97),
    ),
    run,
)
