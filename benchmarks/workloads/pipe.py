"""A duplex pipe: there and back, and messages of 1 MB one way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.clock import now, percentile, sample
from benchmarks.spec import Measure, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run

MESSAGE = 1 << 20  # bytes


def answer(connection: Any) -> None:
    """Sends small messages back, and swallows large ones until None comes, which it answers."""
    while True:
        message = connection.recv()
        if message is None:
            connection.send(None)
            return
        if len(message) < MESSAGE:
            connection.send(message)


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(theirs,))
    process.start()

    def there_and_back() -> None:
        ours.send(b"x")
        ours.recv()

    sample(there_and_back, seconds=run.seconds(0.2))
    trips = sample(there_and_back, seconds=run.seconds(0.7))
    large = b"x" * MESSAGE
    messages = run.size(400, 10)
    start = now()
    for _ in range(messages):
        ours.send(large)
    ours.send(None)
    ours.recv()
    took = now() - start
    process.join()
    return {"round_trip": percentile(trips, 0.5) * 1e6, "rate": messages * MESSAGE / took / 1e9}


WORKLOAD = Workload(
    "pipe",
    "primitive",
    (
        Measure("round_trip", "pipe round trip, p50", "us", "lower", goal=8),
        Measure("rate", "pipe, 1 MB messages", "GB/s", "higher", goal=5),
    ),
    run,
)
