"""Start and join of a process that does nothing, from a small parent and from one with 2 GB resident.

The function's module is one that the program has imported, and a child of a zygote has not: its import is a fourth
of the processor time of a start. So two measures are of our own alone: of the same function when its module has been
preloaded, and of one of the program's main file, which goes by value, so that there is nothing to import; both with
2 GB resident.

What would limit it are pages, each of which is copied when a child first writes to it: a count of references is enough.
On CPython 3.11 a child that runs `noop` writes to some 600 that it shares with its zygote. One child tells which they
were, and the next have them copied at once; from its request to its end a child takes about 50 page faults then, and
its zygote 160 a launch (counted with `getrusage`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from benchmarks.clock import middle, sample
from benchmarks.spec import Measure, Workload
from benchmarks.tasks import noop

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.spec import Run

PAGE = 4096  # bytes


def run(run: Run) -> dict[str, float]:
    context = run.peer.context()

    def start_and_join(target: Callable[[], object] = noop) -> None:
        process = context.Process(target=target)
        process.start()
        process.join()
        if process.exitcode != 0:
            raise AssertionError(f"exit code {process.exitcode}")

    found = {"first": sample(start_and_join, seconds=0, least=1)[0] * 1e3}
    found["small"] = middle(sample(start_and_join, seconds=run.seconds(1.0), least=5, most=200)) * 1e3
    ballast = bytearray(run.size(2 << 30, 64 << 20))
    ballast[::PAGE] = b"\1" * (len(ballast) // PAGE)
    found["large"] = middle(sample(start_and_join, seconds=run.seconds(1.5), least=5, most=200)) * 1e3
    if run.peer.module == "manycore":  # the standard fork server must be told before it starts
        empty = _of_main_file()
        found["own"] = middle(sample(lambda: start_and_join(empty), seconds=run.seconds(1.0), least=5, most=200)) * 1e3
        context.set_forkserver_preload([noop.__module__])
        start_and_join()
        found["module"] = middle(sample(start_and_join, seconds=run.seconds(1.0), least=5, most=200)) * 1e3
        del ballast
        found["ready"] = middle(sample(_zygote_is_ready, seconds=run.seconds(1.0), least=3, most=20)) * 1e3
    return found


def _of_main_file() -> Callable[[], object]:
    namespace = vars(sys.modules["__main__"])
    exec("def empty() -> None: pass", namespace)  # noqa: S102
    empty: Callable[[], object] = namespace["empty"]
    return empty


def _zygote_is_ready() -> None:
    """From nothing to a zygote that has started a process; the one before is ended within the time, which is short."""
    from manycore._launch import launch, shutdown

    shutdown()
    launch("operator:is_", b"").wait_started()


WORKLOAD = Workload(
    "process_start",
    "process",
    (
        Measure("first", "the first process, start and join", "ms", "lower", goal=42),
        Measure("small", "process start and join, small parent", "ms", "lower", goal=2),
        Measure("large", "process start and join, 2 GB parent", "ms", "lower", goal=2),
        Measure("own", "process start and join, a function of the main file", "ms", "lower", goal=2, rival=False),
        Measure("module", "process start and join, its module preloaded", "ms", "lower", goal=2, rival=False),
        Measure("ready", "a zygote is executed and has started a process", "ms", "lower", goal=40, rival=False),
    ),
    run,
)
