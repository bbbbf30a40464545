"""Real work: parse, compile and measure the standard library's source files, as `manycore demo` does."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.clock import now
from benchmarks.spec import Measure, Workload
from manycore._cli.analysis import quiet, source_files, timed_analysis

if TYPE_CHECKING:
    from benchmarks.spec import Run


def run(run: Run) -> dict[str, float]:
    quiet()
    paths = [path for path, _ in source_files(Path(sysconfig.get_path("stdlib")))][: run.size(10_000, 20)]
    start = now()
    for path in paths:
        timed_analysis(path)
    alone = now() - start
    pool = run.pool()
    start = now()
    reports = pool.map(timed_analysis, paths)
    together = now() - start
    if len(reports) != len(paths):
        raise AssertionError("the map returned something else")
    return {"speedup": alone / together}


WORKLOAD = Workload(
    "standard_library",
    "pool",
    (Measure("speedup", "the standard library's files, speed-up over one core", "times", "higher", goal=1.8),),
    run,
)
