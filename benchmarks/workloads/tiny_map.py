"""map of x * x with default settings: what a user gets who does not know of chunk sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.clock import per_second
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import square

if TYPE_CHECKING:
    from benchmarks.spec import Run


def run(run: Run) -> dict[str, float]:
    pool = run.pool()

    def mapped(n: int) -> None:
        results = pool.map(square, range(n))
        if len(results) != n or results[-1] != (n - 1) ** 2:
            raise AssertionError("the map returned something else")

    rate = per_second(mapped, full=run.size(500_000, 2_000), seconds=2.0, first=2_000)
    return {"rate": rate / 1e3}


WORKLOAD = Workload("tiny_map", "pool", (Measure("rate", "map of x*x over 500,000 ints", "thousand/s", "higher"),), run)
