"""An event: asking it, and how soon a waiter in another process wakes."""

from __future__ import annotations

import time
from itertools import repeat
from typing import TYPE_CHECKING, Any

from benchmarks.clock import middle, percentile, sample
from benchmarks.spec import Measure, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run

PAUSE = 0.0005  # seconds before each set, so that the waiter sleeps


def answer(there: Any, back: Any, rounds: int) -> None:
    for _ in range(rounds):
        there.wait()
        there.clear()
        back.set()


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()
    event = context.Event()
    times = run.size(50_000, 500)

    def ask() -> None:
        is_set = event.is_set
        for _ in repeat(None, times):
            is_set()

    asked = middle(sample(ask, seconds=run.seconds(0.4), least=5)) / times
    there, back = context.Event(), context.Event()
    rounds = run.size(1_000, 20)
    process = context.Process(target=answer, args=(there, back, rounds))
    process.start()
    trips = []
    for _ in range(rounds):
        time.sleep(PAUSE)
        start = time.perf_counter()
        there.set()
        back.wait()
        trips.append(time.perf_counter() - start)
        back.clear()
    process.join()
    return {"is_set": asked * 1e9, "wake": percentile(trips, 0.5) / 2 * 1e6}


WORKLOAD = Workload(
    "event",
    "primitive",
    (
        Measure("is_set", "event, is_set", "ns", "lower", goal=45),
        Measure("wake", "event, wake-up of a waiter (half a round trip), p50", "us", "lower"),
    ),
    run,
)
