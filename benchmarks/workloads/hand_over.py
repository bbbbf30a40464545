"""A put to a get that waits in another process, one way: to a receiver that sleeps, and to one that still spins.

The item is the time at which it was put; the receiver subtracts. Both processes read one clock.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from benchmarks.clock import now, percentile
from benchmarks.machine import Limits
from benchmarks.spec import Measure, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run

ASLEEP = 0.001  # seconds between two puts, after which a receiver sleeps
AWAKE = 0.00002  # seconds after which it is back in `get`, and would still spin


def receive(queue: Any, back: Any, messages: int) -> None:
    back.put(None)
    late = []
    for _ in range(messages):
        put_at = queue.get()
        late.append(now() - put_at)
    back.put(percentile(late, 0.5))


def pause(seconds: float) -> None:
    """Lets time pass without giving up the core."""
    end = now() + seconds
    while now() < end:
        pass


def _measure(context: Any, messages: int, wait: Any, seconds: float) -> float:
    queue, back = context.Queue(), context.Queue()
    process = context.Process(target=receive, args=(queue, back, messages))
    process.start()
    back.get()
    for _ in range(messages):
        wait(seconds)
        queue.put(now())
    p50: float = back.get()
    process.join()
    return p50 * 1e6


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()
    found = {
        "asleep": _measure(context, run.size(500, 20), time.sleep, ASLEEP),
        "awake": _measure(context, run.size(5_000, 20), pause, AWAKE),
    }
    limits = Limits(quick=True)
    try:
        futex = limits.measure().get("futex_round_trip_us")
    finally:
        limits.close()
    if futex:
        found["futex"] = found["asleep"] / futex
    return found


WORKLOAD = Workload(
    "hand_over",
    "primitive",
    (
        Measure("asleep", "put to a get that sleeps in another process, p50", "us", "lower"),
        Measure("futex", "the same, in futex round trips of the same minute", "times", "lower", goal=1.5),
        Measure("awake", "put to a get that spins, p50", "us", "lower", goal=5),
    ),
    run,
)
