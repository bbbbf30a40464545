"""What `manycore map` says about failures and at the end, on standard error."""

from __future__ import annotations

import json
import os
import re
import resource
import time
from dataclasses import dataclass, field
from typing import Any

from manycore._observe.progress import format_duration

__all__ = ["Failure", "Tally", "failure_of", "shorten"]

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_FRAME = re.compile(r'  File "(?P<path>[^"]*)", line ')
_WAITED_MUCH = 0.5  # of the tasks' time: from here on more workers than cores would help
_SHORTEST_JUDGED_S = 0.5  # of the tasks' time: below, its share says nothing


@dataclass(frozen=True)
class Failure:
    """Why an item has no result: the name of an error, its text, and the traceback in the user's code."""

    kind: str
    reason: str
    traceback: str = ""

    def __str__(self) -> str:
        first = self.reason.strip().partition("\n")[0]
        return f"{self.kind}: {first}" if first else self.kind

    def as_json(self) -> dict[str, str]:
        """The object that stands for it in an output line."""
        shown = {"type": self.kind, "message": self.reason}
        if self.traceback:
            shown["traceback"] = self.traceback
        return shown


def failure_of(error: BaseException) -> Failure:
    """Describe what a task raised, or what became of it."""
    text = getattr(error.__cause__, "text", "")
    return Failure(type(error).__name__, str(error), _without_our_frames(text) if isinstance(text, str) else "")


def _without_our_frames(text: str) -> str:
    """A traceback's text without the frames of this package: the user's function begins below them."""
    kept = []
    ours = False
    for line in text.splitlines():
        frame = _FRAME.match(line)
        if frame is not None:
            ours = frame["path"].startswith(_PACKAGE)
        elif not line.startswith("    "):
            ours = False
        if not ours:
            kept.append(line)
    return "\n".join(kept).strip()


def shorten(item: object, width: int = 60) -> str:
    """An item for a reader."""
    text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, default=repr)
    text = text.encode("utf-8", "backslashreplace").decode()
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


@dataclass
class Tally:
    """Counts what a run did.

    Attributes:
        workers: How many workers there are.
        done: Items that are finished, failed ones included.
        failed: Items that failed.
        cpu_seconds: Processor time of all tasks.
        task_seconds: Time that tasks took by the wall clock, added up.
    """

    workers: int
    done: int = 0
    failed: int = 0
    cpu_seconds: float = 0.0
    task_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def lines(self, stats: Any) -> list[str]:
        """The closing summary."""
        wall = time.monotonic() - self.started
        items = f"{self.done:,} item{'' if self.done == 1 else 's'}"
        outcome = (
            "all succeeded" if not self.failed else f"{self.done - self.failed:,} succeeded, {self.failed:,} failed"
        )
        if not self.done:
            outcome = "nothing to do"
        wall_text = format_duration(wall) if wall >= 100 else f"{wall:.2f} s"
        here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        there = getattr(stats, "worker_peak_rss_bytes", 0) or 0
        memory = f"peak memory {_megabytes(here)} here"
        if there:
            memory += f", {_megabytes(there)} in the largest worker"
        work = (
            f"{self.workers} worker{'' if self.workers == 1 else 's'}: {self.cpu_seconds:.2f} s of processor time, "
            f"{self.cpu_seconds / max(wall, 1e-9):.2f} times one core; {memory}"
        )
        lines = [f"{items}: {outcome}; {wall_text}", work]
        waited = 1 - self.cpu_seconds / self.task_seconds if self.task_seconds > _SHORTEST_JUDGED_S else 0.0
        if waited > _WAITED_MUCH:
            lines.append(
                f"tasks waited {waited:.0%} of their time (files, network, sleep): -j above the cores may help"
            )
        return lines


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
