"""What an engine is made with, what it tells of itself, and what it tells results to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from manycore._engine.dispatch import Task

__all__ = ["Settings", "Sink", "Stats"]


class Settings(NamedTuple):
    """What an engine is made with.

    Attributes:
        workers: How many worker processes, at least 1.
        initializer: Called in each worker before its first task, with `initargs`.
        initargs: Its arguments.
        finalizer: Called in each worker that ends in order, with what its initializer returned.
        max_tasks: Tasks after which a worker is replaced by a fresh one; 0 = never.
        name: What titles and messages call the pool.
        preload: Modules that workers have imported before they start.
    """

    workers: int
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    max_tasks: int = 0
    name: str = ""
    preload: tuple[str, ...] = ()
    finalizer: Callable[[Any], object] | None = None


class Stats(NamedTuple):
    """A snapshot of a pool.

    Attributes:
        name: The pool's name.
        workers: Workers that are there now.
        pids: Their process ids.
        workers_busy: Those of them that run something now.
        tasks_pending: Calls and chunks that are not done.
        items_done: Items that gave a result.
        items_failed: Items that raised, timed out, or died with their worker.
        retries: How often an item was tried again.
        workers_started: Worker processes started so far.
        workers_died: Those that died without being told to.
        worker_seconds: Time that workers spent inside the user's functions.
        worker_cpu_seconds: CPU time of workers that have ended.
        worker_peak_rss_bytes: The largest peak memory of any worker that has ended, or lives and can be asked.
        bytes_sent: Of functions and arguments, pickled, from this process to workers.
        bytes_received: Of results, pickled, from workers to this process.
    """

    name: str
    workers: int
    pids: tuple[int, ...]
    workers_busy: int
    tasks_pending: int
    items_done: int
    items_failed: int
    retries: int
    workers_started: int
    workers_died: int
    worker_seconds: float
    worker_cpu_seconds: float
    worker_peak_rss_bytes: int
    bytes_sent: int
    bytes_received: int


class Sink(Protocol):
    """Who gets what comes of a task.

    All but `split` are called under the engine's locks: they must neither block nor run user code. Each returns
    what is to be called once the locks are released, or None.
    """

    def take_plain(
        self, task: Task, item: int, values: list[Any], took_ns: int, worker: int
    ) -> Callable[[], object] | None:
        """Results that needed no unpickling, of the items from `item` on."""

    def take(
        self, task: Task, item: int, status: int, data: Any, took_ns: int, worker: int
    ) -> Callable[[], object] | None:
        """One item's record: its pickle, or a `Parcel`."""

    def fail(self, task: Task, item: int, error: BaseException) -> Callable[[], object] | None:
        """The item has no result and will have none."""

    def split(self, task: Task) -> None:
        """Encode what the task still owes anew, item by item, and submit it. Called without locks."""

    def arguments(self, task: Task, item: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the item's call was given, for messages."""
