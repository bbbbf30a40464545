"""What machine this is, and what it can do at best.

The limits come from `limits.c`, built when the benchmarks run: a figure without the limit of the
machine that it was measured on says little.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.cage import run_caged

SOURCE = Path(__file__).with_name("limits.c")
LIMIT_TITLES = {
    "pipe_round_trip_one_core_us": ("pipe round trip, both on one core", "us"),
    "pipe_round_trip_us": ("pipe round trip, on two cores", "us"),
    "futex_round_trip_us": ("futex round trip on two cores, sleeping", "us"),
    "spinning_round_trip_us": ("round trip on two cores, both spinning", "us"),
    "pipe_1mb_gb_s": ("pipe, 1 MB writes", "GB/s"),
    "memcpy_64mb_gb_s": ("memcpy of 64 MB", "GB/s"),
    "copy_into_fresh_shared_gb_s": ("copy into fresh shared memory", "GB/s"),
    "copy_into_warm_shared_gb_s": ("copy into warm shared memory", "GB/s"),
    "mutex_pair_ns": ("process-shared mutex, lock and unlock", "ns"),
    "robust_mutex_pair_ns": ("robust mutex, lock and unlock", "ns"),
    "fork_and_wait_us": ("fork and wait, small process", "us"),
}


def usable_cores() -> int:
    """Returns the cores that this process may use: affinity, and the quota of its cgroup."""
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def describe() -> dict[str, Any]:
    """Returns what the machine is, as data."""
    model = platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cores": usable_cores(),
        "cpu": model,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load": round(os.getloadavg()[0], 2),
    }


class Limits:
    """Builds `limits.c` once and runs it as often as asked. Without a compiler there are no limits."""

    def __init__(self, *, quick: bool) -> None:
        self._quick = quick
        self._folder = tempfile.TemporaryDirectory(prefix="manycore-limits-")
        self._program = self._build()
        self.missing = "" if self._program else "no C compiler, so the machine's limits are not measured"

    def _build(self) -> str | None:
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if not compiler:
            return None
        program = os.path.join(self._folder.name, "limits")
        command = [*compiler.split(), "-O2", "-pthread", "-std=gnu11", str(SOURCE), "-o", program]
        try:
            done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return program if done.returncode == 0 else None

    def measure(self) -> dict[str, float]:
        """Returns one set of limits, by the keys of `LIMIT_TITLES`; empty if it could not be measured."""
        if self._program is None:
            return {}
        result = run_caged([self._program, *(["quick"] if self._quick else [])], timeout=30.0)
        if result.returncode != 0:
            return {}
        pairs = (line.split() for line in result.output.splitlines())
        return {name: float(value) for name, value in pairs}

    def close(self) -> None:
        """Removes the program."""
        self._folder.cleanup()
