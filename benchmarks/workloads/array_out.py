"""A 64 MB array as a result, beside memcpy in the same process. The worker keeps the array: only sending is timed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.clock import middle, sample
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import same_array

if TYPE_CHECKING:
    from benchmarks.spec import Run


def run(run: Run) -> dict[str, float]:
    import numpy as np

    items = run.size(8 << 20, 128 << 10)
    array = np.arange(items, dtype=np.float64)
    target = np.empty_like(array)
    target[:] = 0
    pool = run.pool()

    def call() -> None:
        got = pool.call(same_array, items)
        if got[-1] != items - 1 or got.nbytes != array.nbytes:
            raise AssertionError("the array changed on its way")

    sample(call, seconds=0.0, least=6)
    rates = middle(sample(call, seconds=run.seconds(1.5), least=5))
    copies = middle(sample(lambda: np.copyto(target, array), seconds=run.seconds(0.3)))
    return {
        "rate": array.nbytes / rates / 1e9,
        "memcpy": array.nbytes / copies / 1e9,
        "share": copies / rates,
    }


WORKLOAD = Workload(
    "array_out",
    "pool",
    (
        Measure("rate", "64 MB array out", "GB/s", "higher"),
        Measure("share", "64 MB array out, of memcpy", "share", "higher", goal=0.7),
        Measure("memcpy", "memcpy in the same run", "GB/s", "higher", rival=False),
    ),
    run,
)
