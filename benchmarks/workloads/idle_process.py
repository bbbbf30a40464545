"""What a process costs that does nothing: its memory, and its start where modules were preloaded for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.clock import middle, sample
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import noop

if TYPE_CHECKING:
    from benchmarks.spec import Run

MODULES = ["asyncio", "decimal", "email.mime.text", "http.client", "sqlite3", "unittest", "xml.dom.minidom"]


def _pss(pid: int) -> float:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
        for line in rollup:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    raise ValueError("no Pss in smaps_rollup")


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()

    def start_and_join() -> None:
        process = context.Process(target=noop)
        process.start()
        process.join()
        if process.exitcode != 0:
            raise AssertionError(f"exit code {process.exitcode}")

    idle = [context.Process(target=time.sleep, args=(1000,)) for _ in range(4)]
    for process in idle:
        process.start()
    time.sleep(run.seconds(0.5))  # until they sleep
    found = {"pss": sum(_pss(process.pid) for process in idle) / len(idle)}
    for process in idle:
        process.kill()
        process.join()
    start_and_join()
    found["bare"] = middle(sample(start_and_join, seconds=run.seconds(0.7), least=5, most=100)) * 1e3
    context.set_forkserver_preload(MODULES)
    start_and_join()
    found["preloaded"] = middle(sample(start_and_join, seconds=run.seconds(0.7), least=5, most=100)) * 1e3
    return found


WORKLOAD = Workload(
    "idle_process",
    "process",
    (
        Measure("pss", "an idle process, PSS", "MB", "lower", goal=5),
        Measure("bare", "start and join, nothing preloaded", "ms", "lower", goal=2),
        Measure("preloaded", f"start and join, {len(MODULES)} modules preloaded", "ms", "lower"),
    ),
    run,
)
