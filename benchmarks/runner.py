"""Which measurement runs when, and the record of each.

A round measures every workload once for every peer; the rounds follow one another, so that what the
machine does meanwhile (a neighbour, a frequency step) falls on all peers alike, and the order of the
peers within a workload turns by one place each round, so that none is always first.

      plan: round -> workload -> peer          one measurement:
      jobs, in order  ==>  execute(job)        child in a cage -> result file -> Outcome

A peer that hangs or has no counterpart is not asked again in later rounds: each asking would cost the
whole bound, and a median of hangs is a hang.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.cage import run_caged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.peers.base import Peer
    from benchmarks.spec import Workload

ROOT = Path(__file__).resolve().parent.parent
FINAL = frozenset({"no", "hangs"})  # outcomes that later rounds would only repeat


class Job(NamedTuple):
    """One measurement to make."""

    workload: str
    peer: str
    round: int


class Outcome(NamedTuple):
    """One measurement made.

    Attributes:
        workload: Name of the workload.
        peer: Name of the peer.
        round: Number of the round, from 0.
        status: "ok", "no" (the peer does not offer it), "fails" (an exception), "crashes" (the
            process died) or "hangs" (killed at its bound).
        values: The figures, by the keys of the workload's measures.
        seconds: Wall time of the whole process.
        load: Load average of one minute before it started.
        detail: Why it is not "ok", or what else is to be known.
    """

    workload: str
    peer: str
    round: int
    status: str
    values: dict[str, float]
    seconds: float
    load: float
    detail: str


def plan(workloads: Sequence[Workload], peers: Sequence[Peer], rounds: int) -> Iterator[Job]:
    """Yields all jobs in the order in which they run."""
    for number in range(rounds):
        for workload in workloads:
            taking_part = [peer for peer in peers if workload.family in peer.families]
            turn = number % len(taking_part) if taking_part else 0
            for peer in (*taking_part[turn:], *taking_part[:turn]):
                yield Job(workload.name, peer.name, number)


def run_all(
    jobs: Iterator[Job],
    execute: Callable[[Job], Outcome],
    *,
    report: Callable[[Outcome], None] = lambda _outcome: None,
) -> list[Outcome]:
    """Runs the jobs one after the other.

    Args:
        jobs: What to run, in order.
        execute: Makes one measurement; never raises for what a peer does.
        report: Is told of each outcome as it comes.

    Returns:
        The outcomes, in order.
    """
    outcomes: list[Outcome] = []
    settled: set[tuple[str, str]] = set()
    for job in jobs:
        if (job.workload, job.peer) in settled:
            continue
        outcome = execute(job)
        if outcome.status in FINAL:
            settled.add((job.workload, job.peer))
        outcomes.append(outcome)
        report(outcome)
    return outcomes


class Executor:
    """Makes measurements, each in a caged child process.

    Args:
        timeouts: The bound of each workload in seconds, by name.
        workers: Worker processes a pool.
        quick: Smallest sizes.
    """

    def __init__(self, timeouts: dict[str, float], *, workers: int, quick: bool) -> None:
        self._timeouts = timeouts
        self._workers = workers
        self._quick = quick

    def __call__(self, job: Job) -> Outcome:
        """Makes one measurement."""
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory(prefix="manycore-bench-", ignore_cleanup_errors=True) as folder:
            result = os.path.join(folder, "result.json")
            inside = os.path.join(folder, "run")
            os.mkdir(inside)
            config = {
                "workload": job.workload,
                "peer": job.peer,
                "workers": self._workers,
                "quick": self._quick,
                "folder": inside,
                "result": result,
            }
            command = [sys.executable, "-m", "benchmarks.child", json.dumps(config)]
            ended = run_caged(command, timeout=self._timeouts[job.workload], result=result, cwd=str(ROOT))
            found = _read(result)
        if found is not None:
            status, values, detail = found["status"], found["values"], found["detail"]
            if ended.returncode is None:
                detail += " (did not exit by itself)"
        elif ended.returncode is None:
            status, values, detail = "hangs", {}, f"killed after {ended.seconds:.1f} s; {ended.output[-500:]}"
        else:
            status, values, detail = "crashes", {}, f"exit code {ended.returncode}; {ended.output[-1500:]}"
        return Outcome(job.workload, job.peer, job.round, status, values, ended.seconds, load, detail.strip())


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return None
    return found


def record(
    outcomes: Sequence[Outcome],
    *,
    machine: dict[str, Any],
    limits: Sequence[dict[str, float]],
    versions: dict[str, str],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Returns all that is known of a run as plain data, for the JSON file and for the tables."""
    return {
        "format": 1,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine,
        "limits": list(limits),
        "versions": versions,
        "settings": settings,
        "measurements": [outcome._asdict() for outcome in outcomes],
    }
