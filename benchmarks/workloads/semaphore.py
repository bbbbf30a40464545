"""Two semaphores as a ping-pong between two processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.clock import percentile, sample
from benchmarks.spec import Measure, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run


def answer(there: Any, back: Any, stop: Any) -> None:
    while True:
        there.acquire()
        if stop.value:
            return
        back.release()


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()
    there, back, stop = context.Semaphore(0), context.Semaphore(0), context.Value("b", 0)
    process = context.Process(target=answer, args=(there, back, stop))
    process.start()

    def there_and_back() -> None:
        there.release()
        back.acquire()

    sample(there_and_back, seconds=run.seconds(0.2))
    trips = sample(there_and_back, seconds=run.seconds(0.7))
    stop.value = 1
    there.release()
    process.join()
    return {"round_trip": percentile(trips, 0.5) * 1e6}


WORKLOAD = Workload("semaphore", "primitive", (Measure("round_trip", "semaphore ping-pong, p50", "us", "lower"),), run)
