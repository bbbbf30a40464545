"""An object in another process: a call and its reply, and calls one after the other without waiting.

manycore has actors; with the others, the object is in a manager, whose proxies wait for each reply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.clock import now, percentile, sample
from benchmarks.spec import Measure, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run

IN_FLIGHT = 1000  # calls; as many as a program may well have


def _actor(run: Run, context: Any) -> dict[str, float]:
    with context.Actor(dict) as values:

        def there_and_back() -> None:
            values.setdefault("key", 1).result()

        def many() -> None:
            for future in [values.setdefault("key", 1) for _ in range(IN_FLIGHT)]:
                future.result()

        return _measured(run, there_and_back, many)


def _proxy(run: Run, context: Any) -> dict[str, float]:
    with context.Manager() as manager:
        values = manager.dict()

        def there_and_back() -> None:
            values.setdefault("key", 1)

        def many() -> None:
            for _ in range(IN_FLIGHT):
                values.setdefault("key", 1)

        return _measured(run, there_and_back, many)


def _measured(run: Run, there_and_back: Any, many: Any) -> dict[str, float]:
    sample(there_and_back, seconds=run.seconds(0.2))
    trips = sample(there_and_back, seconds=run.seconds(0.7))
    rounds = run.size(30, 1)
    start = now()
    for _ in range(rounds):
        many()
    took = now() - start
    return {"round_trip": percentile(trips, 0.5) * 1e6, "rate": rounds * IN_FLIGHT / took}


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()
    return _actor(run, context) if hasattr(context, "Actor") else _proxy(run, context)


WORKLOAD = Workload(
    "actor",
    "primitive",
    (
        Measure("round_trip", "actor, or manager's proxy: call and reply, p50", "us", "lower", goal=12),
        Measure("rate", "actor, or manager's proxy: calls", "/s", "higher", goal=200_000),
    ),
    run,
)
