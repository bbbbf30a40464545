"""What an engine and a map are made with, what an engine tells of itself, and what it tells results to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from manycore._engine import here
from manycore._launch.arguments import integer, seconds
from manycore._launch.machine import automatic_workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from manycore._engine.calls import Task
    from manycore._engine.policy import Policy

__all__ = ["INSTEAD", "MapOptions", "Settings", "Sink", "Stats", "nanoseconds", "number_of_workers"]


def number_of_workers(what: str, given: Any) -> int:
    """How many workers a caller asks for: None is as many as there are cores, "auto" counts the memory as well.

    Raises:
        TypeError: It is neither of these, nor an int.
        ValueError: It is less than 1.
    """
    if given is None:
        return here.cores()
    if isinstance(given, str) and given == "auto":
        return min(here.cores(), automatic_workers())
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        raise TypeError(f"{what} must be an int, 'auto' or None, not {given!r}")
    number = integer(what, given)
    if number < 1:
        raise ValueError(f"{what} must be greater than 0, not {number}")
    return number


def nanoseconds(what: str, given: Any) -> int:
    """A number of seconds as `Settings` and policies have it; None is 0, for no bound.

    Raises:
        TypeError: It is no number.
        ValueError: It is not more than 0, or not finite.
    """
    if given is None:
        return 0
    number = seconds(what, given)
    if not number:
        raise ValueError(f"{what} must be more than 0 seconds, not {given!r}")
    return max(1, int(number * 1e9))


# What to do in place of giving a pool to a task.
INSTEAD: Final = "a task that needs workers makes a pool of its own, or returns what is to be done next to its caller"


class Settings(NamedTuple):
    """What an engine is made with.

    Attributes:
        workers: How many worker processes, at least 1.
        initializer: Called in each worker before its first task, with `initargs`.
        initargs: Its arguments.
        finalizer: Called in each worker that ends in order, with what its initializer returned.
        blas_threads: Threads that numerical libraries may start in each worker; None = its share of the cores, 0 = as
            many as they like.
        logs: Whether records and warnings of workers come to this process's handlers; a level: only from it on.
        max_tasks: Tasks after which a worker is replaced by a fresh one; 0 = never.
        name: What titles and messages call the pool.
        preload: Modules that workers have imported before they start.
        start_method: How workers are started.
        idle_ns: How long a worker waits for a task before it leaves, until there is demand again; 0 = for ever.
        initializer_ns: How long the initializer may take; 0 = as long as it likes.
    """

    workers: int
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    max_tasks: int = 0
    name: str = ""
    preload: tuple[str, ...] = ()
    finalizer: Callable[[Any], object] | None = None
    logs: bool | int | str = True
    blas_threads: int | None = None
    start_method: str = "zygote"
    idle_ns: int = 0
    initializer_ns: int = 0

    @property
    def keeps_main(self) -> bool:
        """Whether workers have a `__main__` of their own: the parent's, forked or imported anew."""
        return self.start_method != "zygote"


class MapOptions(NamedTuple):
    """How a map runs.

    Attributes:
        star: Each item is the tuple of the function's arguments.
        ordered: Outcomes come in the input's order; else as they are done.
        lazy: Read the input only as results are consumed.
        chunksize: Items in a task; 0 = measured.
        window: Items read ahead of the consumer; 0 = as many as keep the workers busy.
        whole: It ends with all results or with the first failure: after that, the others' results are dropped.
        policy: What each item is promised; None for those without options.
    """

    star: bool = False
    ordered: bool = True
    lazy: bool = False
    chunksize: int = 0
    window: int = 0
    whole: bool = False
    policy: Policy | None = None


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
        workers_died: Those that did not end in order: crashed or killed, also for a timeout or a cancelled task.
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

    def lost(self, task: Task, error: BaseException) -> Callable[[], object] | None:
        """A thread was interrupted while it told of some of its items; which ones is not known."""

    def split(self, task: Task) -> None:
        """Encode what the task still owes anew, item by item, and submit it. Called without locks."""

    def arguments(self, task: Task, item: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the item's call was given, for messages."""
