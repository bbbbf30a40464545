"""A condition as a ping-pong between two processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.clock import percentile, sample
from benchmarks.spec import Measure, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run

MINE, THEIRS, STOP = 0, 1, 2  # whose turn it is


def answer(condition: Any, turn: Any) -> None:
    while True:
        with condition:
            while turn.value == MINE:
                condition.wait()
            if turn.value == STOP:
                return
            turn.value = MINE
            condition.notify()


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()
    condition, turn = context.Condition(), context.Value("b", MINE, lock=False)
    process = context.Process(target=answer, args=(condition, turn))
    process.start()

    def there_and_back() -> None:
        with condition:
            turn.value = THEIRS
            condition.notify()
            while turn.value == THEIRS:
                condition.wait()

    sample(there_and_back, seconds=run.seconds(0.2))
    trips = sample(there_and_back, seconds=run.seconds(0.7))
    with condition:
        turn.value = STOP
        condition.notify()
    process.join()
    return {"round_trip": percentile(trips, 0.5) * 1e6}


WORKLOAD = Workload("condition", "primitive", (Measure("round_trip", "condition ping-pong, p50", "us", "lower"),), run)
