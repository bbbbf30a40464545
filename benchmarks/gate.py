"""Processes that announce themselves and start together.

Announcements go through a FIFO, so the parent sleeps until they come; the start is a file that appears,
polled each millisecond by those that wait, which any peer's processes can do.
"""

from __future__ import annotations

import os
import select
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.clock import now
from benchmarks.tasks import announce

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.spec import Run

PATIENCE = 10.0  # seconds until a full set must be at work


class Announcements:
    """The reading end of a FIFO into which tasks write the ids of their processes."""

    def __init__(self, folder: str, name: str) -> None:
        self.path = os.path.join(folder, f"{name}.fifo")
        self.release = os.path.join(folder, f"{name}.go")
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self._rest = b""

    def wait_for(self, distinct: int, patience: float) -> list[int]:
        """Returns the ids of the first processes once so many different ones have announced themselves."""
        found: dict[int, None] = {}
        end = now() + patience
        while len(found) < distinct:
            if not select.select([self._fd], [], [], max(0.0, end - now()))[0]:
                raise TimeoutError(f"only {len(found)} of {distinct} workers at work after {patience} s")
            lines = (self._rest + os.read(self._fd, 4096)).split(b"\n")
            self._rest = lines.pop()
            found.update(dict.fromkeys(map(int, lines)))
        return list(found)

    def let_go(self) -> None:
        """Lets the tasks go."""
        with open(self.release, "wb"):
            pass

    def close(self) -> None:
        """Lets the tasks go; none may announce itself any more."""
        self.let_go()
        os.close(self._fd)


def run_together(
    run: Run,
    context: Any,
    name: str,
    bodies: Sequence[tuple[Callable[..., object], tuple[Any, ...]]],
    *,
    imports: tuple[str, ...] = (),
) -> float:
    """Runs functions in a process each, started together, to their ends.

    Args:
        run: The run.
        context: Namespace with Process.
        name: Name of this gathering, different for each in a run.
        bodies: Function and arguments of each process.
        imports: Modules that each process imports before the start.

    Returns:
        Seconds from the first one's start to the last one's end.
    """
    gate = Announcements(run.folder, name)
    reports = [os.path.join(run.folder, f"{name}.{index}") for index in range(len(bodies))]
    processes = [
        context.Process(target=_body, args=(gate.path, gate.release, report, imports, function, args))
        for report, (function, args) in zip(reports, bodies, strict=True)
    ]
    for process in processes:
        process.start()
    gate.wait_for(len(bodies), PATIENCE)
    gate.close()
    for process in processes:
        process.join()
    spans = []
    for report in reports:
        with open(report, encoding="ascii") as file:
            spans.append([float(word) for word in file.read().split()])
    return max(end for _, end in spans) - min(start for start, _ in spans)


def _body(
    fifo: str,
    release: str,
    report: str,
    imports: tuple[str, ...],
    function: Callable[..., object],
    args: tuple[Any, ...],
) -> None:
    for module in imports:
        import_module(module)
    announce(fifo, release)
    start = time.monotonic()
    function(*args)
    end = time.monotonic()
    with open(report, "w", encoding="ascii") as file:
        file.write(f"{start!r} {end!r}")
