"""How soon a process that waits for a lock has it when the holder, its sibling, is killed."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from benchmarks.clock import percentile
from benchmarks.spec import Measure, Unsupported, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run

PAUSE = 0.05  # seconds that the waiter has waited: it is in the longest of its sleeps


def hold(lock: Any, ready: Any) -> None:
    lock.acquire()
    ready.set()
    signal.pause()


def inherit(lock: Any, ready: Any, when: Any) -> None:
    ready.set()
    try:
        lock.acquire()
    except Exception:  # the library says that the owner died
        pass
    when.value = time.monotonic()
    lock.release()


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()
    if not hasattr(context.Lock(), "owner"):
        raise Unsupported("a lock whose holder was killed is locked for ever")
    waits = []
    for _ in range(run.size(15, 2)):
        lock, when, processes = context.Lock(), context.Value("d", 0.0, lock=False), []
        for target, args in ((hold, (lock,)), (inherit, (lock,))):
            ready = context.Event()
            extra = (when,) if target is inherit else ()
            processes.append(context.Process(target=target, args=(*args, ready, *extra)))
            processes[-1].start()
            ready.wait()
        time.sleep(PAUSE)
        killed = time.monotonic()
        os.kill(processes[0].pid, signal.SIGKILL)
        for process in processes:
            process.join()
        waits.append(when.value - killed)
    return {"inherit": percentile(waits, 0.5) * 1e3}


WORKLOAD = Workload(
    "lock_death",
    "primitive",
    (Measure("inherit", "lock of a killed process, until its sibling has it, p50", "ms", "lower", goal=50),),
    run,
)
