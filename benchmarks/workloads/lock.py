"""A lock: alone, and with two processes that want it all the time."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

from benchmarks.clock import middle, sample
from benchmarks.gate import run_together
from benchmarks.spec import Measure, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run


def take_and_give(lock: Any, times: int) -> None:
    acquire, release = lock.acquire, lock.release
    for _ in repeat(None, times):
        acquire()
        release()


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()
    times = run.size(100_000, 1_000)
    alone = context.Lock()
    pair = middle(sample(lambda: take_and_give(alone, times), seconds=run.seconds(0.5), least=5)) / times
    wanted = run.size(500_000, 1_000)
    seconds = run_together(run, context, "contended", [(take_and_give, (context.Lock(), wanted))] * 2)
    return {"alone": pair * 1e9, "contended": 2 * wanted / seconds / 1e6}


WORKLOAD = Workload(
    "lock",
    "primitive",
    (
        Measure("alone", "lock, acquire and release, alone", "ns", "lower", goal=51),
        Measure("contended", "lock, two processes, acquire and release", "million/s", "higher"),
    ),
    run,
)
