"""The workloads, one a file; `NAMES` is in the order of the tables."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.spec import Workload

NAMES = (
    "start",
    "round_trip",
    "submits",
    "closures",
    "tiny_map",
    "millisecond_tasks",
    "heavy_tailed",
    "standard_library",
    "array_in",
    "array_out",
    "small_arrays",
    "shared_object",
    "shared_gigabyte",
    "killed_worker",
    "close_and_join",
    "pending_memory",
    "scaling",
    "idle",
    "process_start",
    "idle_process",
    "queue_small",
    "hand_over",
    "queue_large",
    "pipe",
    "lock",
    "lock_death",
    "counter",
    "event",
    "semaphore",
    "condition",
    "barrier",
    "shared_memory",
    "shared_block",
    "ring",
    "manager",
    "actor",
)


def load(name: str) -> Workload:
    """Returns one workload by its file's name, or one that lives elsewhere as "package.module:NAME"."""
    module, _, attribute = name.partition(":")
    if not attribute:
        module, attribute = f"{__name__}.{name}", "WORKLOAD"
    workload: Workload = getattr(import_module(module), attribute)
    return workload


def load_all() -> list[Workload]:
    """Returns all workloads, in order."""
    return [load(name) for name in NAMES]
