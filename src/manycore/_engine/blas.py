"""How many threads the numerical libraries of a worker may start: its share of the machine.

A library for linear algebra starts a thread for each core it sees, in each worker: eight workers on eight cores make
sixty-four threads, which get in each other's way. So each worker gets the cores of its process's parent, divided by the
number of workers, in the environment variables that those libraries read when they are loaded. Where one is loaded
before, by `preload` or a fork, threadpoolctl tells it, if it is installed.

A variable that the user has set stays. One that was set here, in a worker that has a pool of its own, does not: its
workers share what it got.

If a process dies: nothing is shared.
"""

from __future__ import annotations

import os
import sys

__all__ = ["limit_threads"]

_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_OURS = "MANYCORE_BLAS_THREADS"  # what was set here, so that a worker's workers know it from the user's
_LOADERS = ("numpy", "scipy", "torch")  # one of these brings such a library


def limit_threads(threads: int) -> None:
    """In a worker, before any code of the user's: let numerical libraries start so many threads."""
    before = os.environ.get(_OURS)
    text = str(threads)
    for name in _VARIABLES:
        if os.environ.get(name, before) == before:
            os.environ[name] = text
    os.environ[_OURS] = text
    if any(name in sys.modules for name in _LOADERS):
        try:
            import threadpoolctl
        except ImportError:
            return
        threadpoolctl.threadpool_limits(threads)
