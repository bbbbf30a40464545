"""Named shared memory: create, fill, attach, close and unlink a megabyte.

It is filled because whoever makes it will: memory that is reserved at once costs at once, the other later.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from benchmarks.clock import middle, sample
from benchmarks.spec import Measure, Unsupported, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run

SIZE = 1 << 20  # bytes


def run(run: Run) -> dict[str, float]:
    try:
        shared_memory = import_module(f"{run.peer.module}.shared_memory")
    except ImportError as error:
        raise Unsupported(str(error)) from error

    content = bytes(SIZE)

    def create_attach_close() -> None:
        block = shared_memory.SharedMemory(create=True, size=SIZE)
        block.buf[:SIZE] = content
        again = shared_memory.SharedMemory(name=block.name)
        again.close()
        block.close()
        block.unlink()

    create_attach_close()
    return {"each": middle(sample(create_attach_close, seconds=run.seconds(0.5), least=5)) * 1e6}


WORKLOAD = Workload(
    "shared_memory",
    "primitive",
    (Measure("each", "SharedMemory of 1 MB, create, fill, attach, close, unlink", "us", "lower"),),
    run,
)
