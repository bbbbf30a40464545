"""What a pending task costs the parent: the workers are held, and no-ops pile up behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.clock import now, resident_bytes
from benchmarks.gate import PATIENCE, Announcements
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import announce, noop

if TYPE_CHECKING:
    from benchmarks.spec import Run


def run(run: Run) -> dict[str, float]:
    pool = run.pool()
    held = Announcements(run.folder, "held")
    holders = [pool.submit(announce, held.path, held.release) for _ in range(run.workers)]
    held.wait_for(run.workers, PATIENCE)
    tasks = run.size(200_000, 1_000)
    handles: list[Any] = [None] * tasks
    before = resident_bytes()
    start = now()
    for index in range(tasks):
        handles[index] = pool.submit(noop, index)
    took = now() - start
    each = (resident_bytes() - before) / tasks
    del holders
    run.abandon()
    return {"each": each, "rate": tasks / took}


WORKLOAD = Workload(
    "pending_memory",
    "pool",
    (
        Measure("each", "a pending task, memory of the parent", "bytes", "lower", goal=1_000),
        Measure("rate", "submits while all workers are held", "/s", "higher"),
    ),
    run,
)
