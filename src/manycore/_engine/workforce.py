"""The worker processes of an engine: starting them, looking at them, stopping and killing them.

Each has its own result ring, in a segment that a successor does not inherit: nothing that a dying worker did can
harm another's channel. All is called under the engine's lock, but for `_on_exit`, which the reaper thread calls.

If a process dies: a worker is appended to `dead` and the alarm is sounded; whoever collects next buries it. The
    parent: the kernel kills the workers.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from manycore import _launch
from manycore._engine import frames, guard, here, identity
from manycore._engine.cargo import Parcel, claim, unpack
from manycore._engine.log_sink import level_of
from manycore._engine.log_source import parents_levels
from manycore._engine.orders import Sight
from manycore._launch import stacks
from manycore._memory import codec
from manycore._memory.arena import ArenaView
from manycore._memory.segment import Segment, create_memfd
from manycore._native.ring import ResultRing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from manycore._engine.settings import Settings
    from manycore._native.ring import TaskRing, Turn

__all__ = ["Record", "Worker", "Workforce"]

Record = tuple[int, int, int, int, bool, int, Any]
"""(task, item, status, took_ns, plain, flags, value), as `ResultRing.take` gives it."""

# A worker's result ring. Shorter than the caches, long enough for 5,000 small results.
RING_BYTES: Final = 256 * 1024 + 4096  # the data is a power of two, and there is a header

# How long workers that were told to stop may take to end, before they are killed; beside it, what a finalizer may take.
STOP_GRACE: Final = 5.0  # seconds

# How long a worker's finalizer may run.
FINALIZER_SECONDS: Final = 5.0

# Pools in tasks of pools in tasks: more than anybody means. Without an end, they would take the whole machine.
DEPTH_MAX: Final = 10

# How long a worker may take to say where it is. A stopped one never says; the collector waits meanwhile.
STACK_SECONDS: Final = 0.5

# Looks, 0.2 ms apart, at whether a worker has stopped: a signal's delivery takes mostly less than 0.1 ms.
PAUSE_LOOKS: Final = 25


class Worker:
    """A worker process as the parent sees it.

    Attributes:
        index: Its place in the pool.
        ring: Its results.
        inbox, position: Records that were taken from the ring, and how many of them are settled.
        parts: Of a result that comes in several records, those that are here.
        leaving: It has said that it ends in order.
        buried: What it left has been settled.
        arena_fd: What its large results are in.
        large_bytes: Of its large results so far.
        trouble: Why it has never become ready, where that is known.
        cause: What its initializer raised.
    """

    __slots__ = (
        "_view",
        "arena_fd",
        "buried",
        "cause",
        "child",
        "inbox",
        "index",
        "large_bytes",
        "leaving",
        "parts",
        "position",
        "ring",
        "segment",
        "trouble",
    )

    def __init__(self, index: int, segment: Segment, ring: ResultRing) -> None:
        self.index = index
        self.arena_fd = create_memfd("manycore-results")
        self._view: ArenaView | None = None
        self.segment = segment
        self.ring = ring
        self.child: _launch.Child
        self.inbox: list[Record] = []
        self.position = 0
        self.parts: list[bytes] = []
        self.leaving = False
        self.buried = False
        self.large_bytes = 0
        self.trouble = ""
        self.cause: BaseException | None = None

    def open_cargo(self, flags: int, data: bytes) -> Parcel:
        """Take what a record's bytes name, before the worker may go: blocks of its arena, shared memory."""
        claims = None
        try:
            if flags & frames.CLAIMS:
                claims, data = claim(data)
            if flags & frames.PACKED:
                if self._view is None:
                    self._view = ArenaView(os.dup(self.arena_fd))
                parcel = unpack(self._view, data)
                self.large_bytes += parcel.nbytes
            else:
                parcel = Parcel(data, [])
        except OSError as error:  # no descriptor, no address space: this one result cannot be had
            parcel = Parcel(b"", [], error)
        parcel.claim = claims
        return parcel

    def close(self) -> None:
        """Give its descriptors back; results that were taken keep what they need."""
        self.segment.close()
        self._view = None
        fd, self.arena_fd = self.arena_fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class Workforce:
    """The workers of one engine.

    Attributes:
        name: The pool's.
        initializer: What each worker calls first.
        workers: Those that are there, by index.
        size: How many there are to be; new ones get their share of the cores accordingly.
        rings: Their result rings, in a list that is replaced and never changed.
        dead: Those that have ended and are not buried; appended by the reaper thread.
        started, died: How many were started, and how many died without being told to.
        cpu_seconds, peak_rss_bytes: Of those that have ended: CPU time together, and the largest peak memory.
    """

    def __init__(self, settings: Settings, name: str, turn: Turn, tasks: TaskRing, fds: Sequence[int]) -> None:
        self._depth = here.depth() + 1
        if self._depth > DEPTH_MAX:
            raise RuntimeError(
                f"{DEPTH_MAX} pools one inside another, and one more was asked for: each of their tasks makes a pool, "
                "or imports a module that makes one when it is imported"
            )
        self._settings = settings
        self.name = name
        self._turn = turn
        self._tasks = tasks
        self._fds = tuple(fds)
        self._inherits = settings.start_method == "fork"  # nothing is pickled then, and so anything may be given
        function: Any = settings.initializer
        self.initializer = function
        self._finalizer: Any = settings.finalizer
        if self._finalizer is not None and not self._inherits:
            self._finalizer = codec.dump_function(self._finalizer, main_is_there=settings.keeps_main)
        self._next_initializer = self._dump_initializer()
        self._logs = level_of(settings.logs)
        self._all_cores = here.cores()  # that all workers share
        self.size = settings.workers
        self.workers: dict[int, Worker] = {}
        self.rings: list[ResultRing] = []
        self.dead: deque[Worker] = deque()
        self.started = self.died = 0
        self.cpu_seconds = 0.0
        self.peak_rss_bytes = 0
        self._received_bytes = 0  # from those that have ended

    @property
    def advice(self) -> str:
        """What to look at when workers die before they are ready."""
        method = self._settings.start_method
        if method not in {"spawn", "forkserver"}:
            return ""
        return f"; under {method!r} they import the main module: is its pool under `if __name__ == '__main__':`?"

    def flaw(self, worker: Worker) -> str:
        """What ended a worker before it was ready, where each further one would end so; or nothing."""
        if not getattr(worker.child, "unguarded", False):  # which a zygote's child never is
            return ""
        method = self._settings.start_method
        return (
            f"its workers import the program's main module first, as {method!r} has it, and that starts processes;"
            ' what starts them must stand under `if __name__ == "__main__":`, which the method "zygote" does not need'
        )

    def _dump_initializer(self) -> Callable[[], tuple[Any, Any] | None]:
        """What gives each worker's initializer and arguments; pickled here, so that what cannot be is told now."""
        function, arguments, keeps_main = self.initializer, self._settings.initargs, self._settings.keeps_main
        if function is None or self._inherits:
            found = None if function is None else (function, arguments)
            return lambda: found

        def dump() -> tuple[bytes, bytes]:
            data = codec.dump_function(function, main_is_there=keeps_main)
            return data, codec.dumps(arguments, roots=("initargs",))

        before = _handed_over()
        first = dump()
        if _handed_over() == before:
            return lambda: first
        left = [first]  # with a socket or a connection, of which each pickle brings one process a descriptor
        return lambda: left.pop() if left else dump()

    def start(self, index: int) -> None:
        """Start a worker in this place; returns before it runs."""
        segment = Segment.create(RING_BYTES, "manycore-results")
        worker = Worker(index, segment, ResultRing(segment.buffer, create=True))
        self._tasks.reset(index)
        cores = max(1, self._all_cores // self.size)
        setup = {
            "index": index,
            "pool": self.name,
            "depth": self._depth,
            "initializer": self._next_initializer(),
            "finalizer": self._finalizer,
            "cores": cores,
            "blas_threads": cores if self._settings.blas_threads is None else self._settings.blas_threads,
            "logs": None if self._logs is False else (parents_levels(), self._logs, self._inherits),
            "max_tasks": self._settings.max_tasks,
            "finalizer_seconds": FINALIZER_SECONDS,
            "arenas": self._settings.workers + 1,
            "idle_ns": self._settings.idle_ns,
            "main": None if self._settings.keeps_main else codec.describe_main(),
            "identity": identity.of_workers(),
        }
        workforce = weakref.ref(self)

        def on_exit(_child: _launch.Child) -> None:
            owner = workforce()
            if owner is not None:
                owner.dead.append(worker)
                owner._tasks.alarm()

        method = self._settings.start_method
        launch: Any = _launch.launch if method == "zygote" else partial(_launch.launch_standard, method)
        worker.child = launch(
            "manycore._engine.worker:main",
            setup if self._inherits else pickle.dumps(setup, 5),
            [*self._fds, segment.fd, worker.arena_fd],
            title=f"manycore: worker {index} of pool {self.name!r}",
            on_exit=on_exit,
        )
        self.workers[index] = worker
        self._rings_changed()
        self.started += 1

    def remove(self, worker: Worker) -> None:
        """The worker has been buried."""
        if self.workers.get(worker.index) is worker:
            del self.workers[worker.index]
            self._rings_changed()
        certificate = worker.child.status
        if certificate is not None:
            self.cpu_seconds += certificate.user_seconds + certificate.system_seconds
            self.peak_rss_bytes = max(self.peak_rss_bytes, certificate.peak_rss_bytes)
        self._received_bytes += worker.ring.taken_bytes + worker.large_bytes
        if not worker.leaving:
            self.died += 1
        worker.close()

    def _rings_changed(self) -> None:
        self.rings = self._turn.rings = [worker.ring for worker in self.workers.values()]

    def sight(self, worker: Worker, unbegun: tuple[int, ...] = ()) -> Sight:
        """What the worker's page shows now."""
        task, item, started_ns, _, _ = self._tasks.status(worker.index)
        return Sight(worker.index, unbegun, task, item, started_ns)

    def sights(self) -> list[Sight]:
        """What all pages show."""
        return [self.sight(worker) for worker in tuple(self.workers.values())]

    def busy(self) -> int:
        """How many run something now."""
        return sum(self._tasks.status(index)[0] != 0 for index in tuple(self.workers))

    def pids(self) -> tuple[int, ...]:
        """The process ids of those that have started."""
        return tuple(worker.child.pid for worker in self.workers.values() if worker.child.started)

    @property
    def received_bytes(self) -> int:
        """Bytes of results that came so far."""
        return self._received_bytes + sum(
            worker.ring.taken_bytes + worker.large_bytes for worker in self.workers.values()
        )

    def peak_rss(self) -> int:
        """The largest peak memory of any worker so far, in bytes."""
        return max([self.peak_rss_bytes, *map(_peak_rss_bytes, self.pids())])

    def where(self, index: int) -> str:
        """Where a worker's main thread is: lines of a traceback; empty where it does not say. Without locks."""
        worker = self.workers.get(index)
        if worker is None or not worker.child.started or worker.child.error is not None:
            return ""
        try:
            text = stacks.read(worker.child.pid, STACK_SECONDS)
        except (LookupError, TimeoutError, OSError):
            return ""
        return _launch.Certificate(worker.child.pid, "", None, stack=f"\n{text}").where

    # Ending them

    def hold(self, sight: Sight) -> Worker | None:
        """Stop a worker that shows this: it is to be killed, or told to go on.

        Returns:
            The worker; None when it has gone on to something else, or cannot be stopped now.
        """
        worker = self.workers.get(sight.worker)
        if worker is None or not _pause(worker.child):
            return None
        now = self.sight(worker)
        if (now.task, now.item, now.started_ns) != (sight.task, sight.item, sight.started_ns):
            worker.child.signal(signal.SIGCONT)  # it was done in the last moment
            return None
        return worker

    def interrupt(self, sight: Sight) -> None:
        """Tell a worker that what it runs has run too long; it looks itself whether that still holds."""
        worker = self.workers.get(sight.worker)
        if worker is not None:
            worker.child.signal(guard.SIGNAL)

    def retire(self, index: int) -> None:
        """Tell a worker to leave after its task."""
        self._tasks.stop(index, now=True)

    def stop(self) -> None:
        """Tell all workers to leave when no task is ready."""
        for index in tuple(self.workers):
            self._tasks.stop(index)

    def kill(self, signum: int | None = None) -> None:
        """Kill all workers, or send them a signal."""
        for worker in self.workers.values():
            if signum is None:
                worker.child.kill()
            else:
                worker.child.signal(signum)
                worker.child.signal(signal.SIGCONT)  # a stopped process takes no other but SIGKILL

    def await_end(self, children: Sequence[_launch.Child]) -> None:
        """Wait until these have ended; kill those that do not in time. Without locks."""
        grace = STOP_GRACE if self._finalizer is None else STOP_GRACE + FINALIZER_SECONDS
        deadline = time.monotonic() + grace
        for child in children:
            if child.wait(max(0.0, deadline - time.monotonic())) is None:
                child.kill()
        for child in children:
            child.wait(STOP_GRACE)


def _pause(child: _launch.Child) -> bool:
    """Stop a process and make sure that it has stopped; False when it does not within a few milliseconds."""
    child.signal(signal.SIGSTOP)
    for _ in range(PAUSE_LOOKS):
        try:
            with open(f"/proc/{child.pid}/stat", "rb") as file:
                state = file.read().rpartition(b") ")[2][:1]
        except OSError:
            return False
        if state in b"Tt":
            return True
        time.sleep(0.0002)
    child.signal(signal.SIGCONT)
    return False


def _peak_rss_bytes(pid: int) -> int:
    """The most memory that a living process has held; 0 when it cannot be asked."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _handed_over() -> int:
    """How many descriptors this process has given to the standard library's sharer, which gives each away once."""
    sharer = sys.modules.get("multiprocessing.resource_sharer")
    return 0 if sharer is None else int(sharer._resource_sharer._key)
