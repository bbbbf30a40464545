"""A lock: alone, and with two processes that want it all the time."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

from benchmarks.clock import middle, now, sample
from benchmarks.gate import run_together
from benchmarks.spec import Measure, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run


ROUND = 1_000  # pairs between two looks at the clock


def take_and_give(lock: Any, times: int) -> None:
    acquire, release = lock.acquire, lock.release
    for _ in repeat(None, times):
        acquire()
        release()


def contend(lock: Any, counts: Any, index: int, seconds: float) -> None:
    end, done = now() + seconds, 0
    while now() < end:
        take_and_give(lock, ROUND)
        done += ROUND
    counts[index] = done


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()
    times = run.size(100_000, 1_000)
    alone = context.Lock()
    pair = middle(sample(lambda: take_and_give(alone, times), seconds=run.seconds(0.5), least=5)) / times
    # For a time, not a number: who gets ahead with a number is done before the other has begun to contend.
    lock, counts, seconds = context.Lock(), context.Array("q", 2, lock=False), run.seconds(0.7)
    took = run_together(run, context, "contended", [(contend, (lock, counts, index, seconds)) for index in range(2)])
    return {"alone": pair * 1e9, "contended": sum(counts) / took / 1e6}


WORKLOAD = Workload(
    "lock",
    "primitive",
    (
        Measure("alone", "lock, acquire and release, alone", "ns", "lower", goal=51),
        Measure("contended", "lock, two processes, acquire and release", "million/s", "higher"),
    ),
    run,
)
