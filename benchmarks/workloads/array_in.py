"""A 64 MB array as an argument, beside memcpy in the same process."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from benchmarks.clock import middle, sample
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import ends_of

if TYPE_CHECKING:
    from benchmarks.spec import Run

SHIFTS = 64  # different arrays


def run(run: Run) -> dict[str, float]:
    import numpy as np

    items = run.size(8 << 20, 128 << 10)
    base = np.arange(items + SHIFTS, dtype=np.float64)
    array = base[:items]
    target = np.empty_like(array)
    target[:] = 0
    pool = run.pool()

    shifts = itertools.cycle(range(SHIFTS))

    def call() -> None:
        # another array each time: one that was sent before might not be sent again
        shift = next(shifts)
        if pool.call(ends_of, base[shift : shift + items]) != 2.0 * shift + items - 1:
            raise AssertionError("the array changed on its way")

    sample(call, seconds=0.0, least=4)
    rates = middle(sample(call, seconds=run.seconds(1.5), least=5))
    copies = middle(sample(lambda: np.copyto(target, array), seconds=run.seconds(0.3)))
    return {
        "rate": array.nbytes / rates / 1e9,
        "memcpy": array.nbytes / copies / 1e9,
        "share": copies / rates,
    }


WORKLOAD = Workload(
    "array_in",
    "pool",
    (
        Measure("rate", "64 MB array in", "GB/s", "higher"),
        Measure("share", "64 MB array in, of memcpy", "share", "higher", goal=0.7),
        Measure("memcpy", "memcpy in the same run", "GB/s", "higher", rival=False),
    ),
    run,
)
