"""An idle pool: what a worker holds, and what all of it burns while nothing is to do."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from benchmarks.clock import cpu_seconds, descendants, worker_pids
from benchmarks.spec import Measure, Unsupported, Workload
from benchmarks.tasks import noop, pid_after

if TYPE_CHECKING:
    from benchmarks.spec import Run


def _pss(pid: int) -> float:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
        for line in rollup:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    raise ValueError("no Pss in smaps_rollup")


def _burnt(pids: list[int], seconds: float) -> float:
    """Returns the processor time used while this thread sleeps, in percent of one core."""
    before = cpu_seconds(pids)
    start = time.monotonic()
    time.sleep(seconds)
    after = cpu_seconds(pids)
    return 100 * sum(after[pid] - before[pid] for pid in after) / (time.monotonic() - start)


def run(run: Run) -> dict[str, float]:
    pool = run.pool()
    pool.call_all(noop, [()] * 200)
    pids = worker_pids(pool, run.workers)
    everyone = [os.getpid(), *descendants(os.getpid())]
    found = {"pss": sum(map(_pss, pids)) / len(pids)}
    time.sleep(0.2)
    found["cpu"] = _burnt(everyone, run.seconds(10.0))
    try:
        handle = pool.submit(pid_after, run.seconds(4.0))
        time.sleep(0.1)
        found["waiting"] = _burnt([os.getpid()], run.seconds(3.0))
        pool.result(handle)
    except Unsupported:
        pass
    return found


WORKLOAD = Workload(
    "idle",
    "pool",
    (
        Measure("pss", "an idle worker, PSS", "MB", "lower", goal=5),
        Measure("cpu", "an idle pool, all processes", "% of a core", "lower", goal=0.1),
        Measure("waiting", "parent while one long task runs", "% of a core", "lower", goal=0.1),
    ),
    run,
)
