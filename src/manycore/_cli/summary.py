"""What `manycore map` says about failures and at the end, on standard error."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from manycore._cli.task import TaskFailed
from manycore._observe.progress import format_duration

if TYPE_CHECKING:
    from manycore._engine.local import Stats

__all__ = ["Failure", "Tally", "failure_of", "shorten"]

_WAITED_MUCH = 0.5  # of the tasks' time: from here on more workers than cores would help
_SHORTEST_JUDGED_S = 0.5  # of all tasks together: below, their share says nothing
_SHORTEST_TASK_S = 2e-3  # on average: shorter ones wait for a core, and not for a file or a network


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
    if isinstance(error, TaskFailed):
        return Failure(error.kind, error.reason, error.traceback)
    return Failure(type(error).__name__, str(error))


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

    def lines(self, stats: Stats) -> list[str]:
        """The closing summary.

        Args:
            stats: The pool's last word.
        """
        wall = time.monotonic() - self.started
        outcome = (
            "all succeeded" if not self.failed else f"{self.done - self.failed:,} succeeded, {self.failed:,} failed"
        )
        if not self.done:
            outcome = "nothing to do"
        lines = [
            f"{self.done:,} item{'' if self.done == 1 else 's'}: {outcome}",
            (
                f"wall time {_seconds(wall)}, worker time {_seconds(self.cpu_seconds)} "
                f"by {self.workers} worker{'' if self.workers == 1 else 's'}, "
                f"speed-up over one core {self.cpu_seconds / max(wall, 1e-9):.2f}x"
            ),
            (
                f"peak memory {_megabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)} here, "
                f"{_megabytes(stats.worker_peak_rss_bytes)} in the largest worker"
            ),
        ]
        waited = (
            1 - self.cpu_seconds / self.task_seconds
            if self.task_seconds > max(_SHORTEST_JUDGED_S, self.done * _SHORTEST_TASK_S)
            else 0.0
        )
        if waited > _WAITED_MUCH:
            lines.append(
                f"tasks computed {1 - waited:.0%} of their time: if they wait for files or a network, raise -j"
            )
        return lines


def _seconds(seconds: float) -> str:
    return format_duration(seconds) if seconds >= 100 else f"{seconds:.2f} s"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
