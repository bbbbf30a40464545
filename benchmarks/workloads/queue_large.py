"""Queues of messages of 1 MB: bytes and arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.gate import run_together
from benchmarks.spec import Measure, Workload
from benchmarks.workloads.queue_small import consume, finish

if TYPE_CHECKING:
    from benchmarks.spec import Run

MESSAGE = 1 << 20  # bytes


def produce_bytes(queue: Any, messages: int) -> None:
    message = b"x" * MESSAGE
    for _ in range(messages):
        queue.put(message)
    finish(queue)


def produce_arrays(queue: Any, messages: int) -> None:
    import numpy as np

    message = np.zeros(MESSAGE // 8)
    message[:] = 1.0
    for _ in range(messages):
        queue.put(message)
    finish(queue)


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()
    messages = run.size(1_000, 10)
    found = {}
    for name, source in (("bytes", produce_bytes), ("arrays", produce_arrays)):
        queue = context.Queue()
        bodies = [(source, (queue, messages)), (consume, (queue, messages))]
        seconds = run_together(run, context, name, bodies, imports=("numpy",))
        found[name] = messages * MESSAGE / seconds / 1e9
    return found


WORKLOAD = Workload(
    "queue_large",
    "primitive",
    (
        Measure("bytes", "queue of 1 MB bytes", "GB/s", "higher", goal=7),
        Measure("arrays", "queue of 1 MB arrays", "GB/s", "higher", goal=7),
    ),
    run,
)
