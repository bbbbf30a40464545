"""A barrier of two processes, round after round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.gate import run_together
from benchmarks.spec import Measure, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run


def meet(barrier: Any, rounds: int) -> None:
    for _ in range(rounds):
        barrier.wait()


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()
    rounds = run.size(5_000, 50)
    return {"rate": rounds / run_together(run, context, "meet", [(meet, (context.Barrier(2), rounds))] * 2)}


WORKLOAD = Workload("barrier", "primitive", (Measure("rate", "barrier of two, rounds", "/s", "higher"),), run)
