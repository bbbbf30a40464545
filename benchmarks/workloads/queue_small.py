"""Queues of small tuples: one to one, two to two, in batches where there are batches, and there and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.clock import percentile, sample
from benchmarks.gate import run_together
from benchmarks.spec import Measure, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run

BATCH = 100  # messages a put_many


def produce(queue: Any, messages: int) -> None:
    put = queue.put
    for index in range(messages):
        put(("message", index))
    finish(queue)


def finish(queue: Any) -> None:
    """Waits until what was put is on its way, where the queue has a feeder thread."""
    if hasattr(queue, "join_thread"):
        queue.close()
        queue.join_thread()


def consume(queue: Any, messages: int) -> None:
    get = queue.get
    for _ in range(messages):
        get()


def produce_many(queue: Any, messages: int) -> None:
    for start in range(0, messages, BATCH):
        queue.put_many([("message", index) for index in range(start, min(start + BATCH, messages))])
    finish(queue)


def consume_many(queue: Any, messages: int) -> None:
    while messages > 0:
        messages -= len(queue.get_many(min(messages, BATCH)))


def echo(there: Any, back: Any) -> None:
    while (message := there.get()) is not None:
        back.put(message)
    finish(back)


def _rate(run: Run, context: Any, name: str, parties: int, messages: int, *, many: bool = False) -> float:
    queue = context.Queue()
    source, sink = (produce_many, consume_many) if many else (produce, consume)
    bodies = [*[(source, (queue, messages))] * parties, *[(sink, (queue, messages))] * parties]
    return parties * messages / run_together(run, context, name, bodies)


def _round_trip(run: Run, context: Any) -> float:
    there, back = context.Queue(), context.Queue()
    process = context.Process(target=echo, args=(there, back))
    process.start()

    def there_and_back() -> None:
        there.put(1)
        back.get()

    sample(there_and_back, seconds=run.seconds(0.2))
    p50 = percentile(sample(there_and_back, seconds=run.seconds(0.7)), 0.5)
    there.put(None)
    process.join()
    return p50 * 1e6


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()
    messages = run.size(100_000, 500)
    found = {
        "one": _rate(run, context, "one", 1, messages),
        "two": _rate(run, context, "two", 2, messages // 2),
        "round_trip": _round_trip(run, context),
    }
    if hasattr(context.Queue(), "put_many"):
        found["many"] = _rate(run, context, "many", 1, messages, many=True)
    return found


WORKLOAD = Workload(
    "queue_small",
    "primitive",
    (
        Measure("one", "queue of small tuples, 1 to 1", "/s", "higher", goal=1_000_000),
        Measure("two", "queue of small tuples, 2 to 2", "/s", "higher", goal=1_000_000),
        Measure("many", "the same 1 to 1, put_many and get_many", "/s", "higher", goal=3_150_000),
        Measure("round_trip", "queue round trip, p50", "us", "lower"),
    ),
    run,
)
