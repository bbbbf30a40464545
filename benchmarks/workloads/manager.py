"""A manager's dictionary: what a call through a proxy costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.clock import per_second
from benchmarks.spec import Measure, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run


def run(run: Run) -> dict[str, float]:
    with run.peer.context().Manager() as manager:
        shared = manager.dict()

        def write(times: int) -> None:
            for index in range(times):
                shared[index % 100] = index

        return {"rate": per_second(write, full=run.size(50_000, 100), seconds=1.0)}


WORKLOAD = Workload("manager", "primitive", (Measure("rate", "manager's dictionary, writes", "/s", "higher"),), run)
