"""A counter that two processes increment: a value under its lock, and an atomic where there is one."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

from benchmarks.gate import run_together
from benchmarks.spec import Measure, Unsupported, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run


def increment(value: Any, times: int) -> None:
    for _ in repeat(None, times):
        with value.get_lock():
            value.value += 1


def add(atomic: Any, times: int) -> None:
    one = atomic.add
    for _ in repeat(None, times):
        one(1)


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()
    times = run.size(200_000, 500)
    value = context.Value("l", 0)
    seconds = run_together(run, context, "value", [(increment, (value, times))] * 2)
    if value.value != 2 * times:
        raise AssertionError(f"{2 * times - value.value} increments were lost")
    found = {"value": 2 * times / seconds, "best": 2 * times / seconds}
    try:
        atomic = context.Atomic(0)
    except (Unsupported, AttributeError):
        return found
    times *= 5
    seconds = run_together(run, context, "atomic", [(add, (atomic, times))] * 2)
    if atomic.load() != 2 * times:
        raise AssertionError(f"{2 * times - atomic.load()} additions were lost")
    return {**found, "best": 2 * times / seconds}


WORKLOAD = Workload(
    "counter",
    "primitive",
    (
        Measure("value", "value += 1 under its lock, two processes", "/s", "higher"),
        Measure("best", "the same by the best way there is (an atomic, or a lock)", "/s", "higher"),
    ),
    run,
)
