"""A busy worker is killed with SIGKILL: how soon its task fails, and how soon a full set is at work again.

Tasks announce themselves through a FIFO, so nothing is polled. Where the pool is broken for good by the
death, a new one is opened, as its user would have to.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from benchmarks.clock import middle, now
from benchmarks.gate import PATIENCE, Announcements
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import announce, noop

if TYPE_CHECKING:
    from benchmarks.peers.base import PoolAdapter
    from benchmarks.spec import Run

ENOUGH = 5.0  # seconds after which no further worker is killed


def _once(run: Run, pool: PoolAdapter, number: int) -> tuple[float | None, float, PoolAdapter]:
    pool.call_all(noop, [()] * 4)
    victim = Announcements(run.folder, f"victim{number}")
    doomed = pool.submit(announce, victim.path, victim.release)
    pid = victim.wait_for(1, PATIENCE)[0]
    start = now()
    os.kill(pid, signal.SIGKILL)
    failed = None
    if pool.reruns_lost:
        victim.let_go()
    else:
        try:
            pool.result(doomed)
        except Exception:
            failed = now() - start
        else:
            raise AssertionError("the task of a killed worker returned")
    full = Announcements(run.folder, f"full{number}")
    handles = _full_set(run, pool, full) if pool.survives_death else []
    if not handles:
        run.closed(pool)  # broken: nothing is left to close in order
        pool = run.pool()
        handles = _full_set(run, pool, full)
    recovered = now() - start
    full.let_go()
    for handle in (*handles, doomed) if failed is None else handles:
        pool.result(handle)
    full.close()
    victim.close()
    return failed, recovered, pool


def _full_set(run: Run, pool: PoolAdapter, full: Announcements) -> list[Any]:
    """Returns the handles of tasks that are all at work at once; empty if the pool is broken."""
    try:
        handles = [pool.submit(announce, full.path, full.release) for _ in range(run.workers)]
        full.wait_for(run.workers, PATIENCE)
    except Exception:
        return []
    return handles


def run(run: Run) -> dict[str, float]:
    pool = run.pool()
    failed, recovered = [], []
    end = now() + ENOUGH
    for number in range(run.size(7, 1)):
        if now() > end:
            break
        one, two, pool = _once(run, pool, number)
        recovered.append(two * 1e3)
        if one is not None:
            failed.append(one * 1e3)
    found = {"full_set": middle(recovered)}
    if failed:
        found["failed"] = middle(failed)
    return found


WORKLOAD = Workload(
    "killed_worker",
    "pool",
    (
        Measure("failed", "busy worker killed, to its task failed", "ms", "lower", goal=5),
        Measure("full_set", "busy worker killed, to a full set at work", "ms", "lower", goal=15),
    ),
    run,
    timeout=40.0,
)
