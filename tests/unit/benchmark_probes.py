"""Workloads for the tests of the benchmark runner: each does one thing that a measurement can do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.spec import Measure, Run, Unsupported, Workload

MEASURES = (Measure("figure", "a figure", "things", "higher", goal=2.0),)
HERE = "tests.unit.benchmark_probes"


def _works(run: Run) -> dict[str, float]:
    return {"figure": float(run.workers + run.size(10, 1))}


def _raises(run: Run) -> dict[str, float]:
    raise ValueError("a very particular reason")


def _refuses(run: Run) -> dict[str, float]:
    raise Unsupported("nothing of the kind")


def _dies(run: Run) -> dict[str, float]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _hangs(run: Run) -> dict[str, float]:
    time.sleep(600)
    return {}


def _hangs_with_family(run: Run) -> dict[str, float]:
    """Hangs, with a child that has left the session and says who it is."""
    code = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w'), flush=True); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", code, os.environ["PROBE_FILE"]], start_new_session=True)
    time.sleep(600)
    return {}


def _leaves_a_process(run: Run) -> dict[str, float]:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(os.environ["PROBE_FILE"]).write_text(str(sleeper.pid))
    return {"figure": 1.0}


def _hangs_at_exit(run: Run) -> dict[str, float]:
    import threading

    threading.Thread(target=time.sleep, args=(600,)).start()
    return {"figure": 3.0}


def _probe(name: str, function: object, timeout: float = 30.0) -> Workload:
    return Workload(f"{HERE}:{name}", "pool", MEASURES, function, timeout)  # type: ignore[arg-type]


WORKS = _probe("WORKS", _works)
RAISES = _probe("RAISES", _raises)
REFUSES = _probe("REFUSES", _refuses)
DIES = _probe("DIES", _dies)
HANGS = _probe("HANGS", _hangs, timeout=1.0)
HANGS_WITH_FAMILY = _probe("HANGS_WITH_FAMILY", _hangs_with_family, timeout=3.0)
LEAVES_A_PROCESS = _probe("LEAVES_A_PROCESS", _leaves_a_process)
HANGS_AT_EXIT = _probe("HANGS_AT_EXIT", _hangs_at_exit)
