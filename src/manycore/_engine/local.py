"""The engine: rings, workers and the dispatcher, put together for one machine.

    caller's thread                shared memory                    worker process
    encode, submit  --------->  task ring, spool  ------------->  claim, run
    wait: drains the rings <--  one result ring a worker  <-----  put, notify
    collector thread: drains when nobody waits; kills what runs too long
    reaper thread (`_launch`): tells of deaths

Who waits, collects (`collecting.py`): a thread blocked in `wait` becomes the foreground and drains the rings itself,
which saves two thread switches a call. The collector thread does it when nobody waits, and watches the deadlines.

Locks, in this order:
    _turn    whose turn it is to drain the rings; a foreground thread keeps it while it sleeps for results
    _lock    the dispatcher, publishing, and the table of workers; never held over anything slow
    a future's or a run's condition
What a user gave us (pickling, callbacks, input iterators) never runs under any of them.

If a process dies:
    a worker: the reaper puts it among the dead; whoever drains next buries it (`settlement.py`).
    the parent: the kernel kills the workers.
If Ctrl-C comes while the main thread does something for others: it comes a moment later (`SHIELD`, `aftermath.py`).
"""

from __future__ import annotations

import itertools
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from manycore import _launch, errors
from manycore._engine import log_sink, parting
from manycore._engine.aftermath import lock_of, wake
from manycore._engine.collecting import Collecting
from manycore._engine.dispatch import Dispatcher
from manycore._engine.outbox import Outbox
from manycore._engine.settings import Settings, Stats
from manycore._engine.settlement import Settlement
from manycore._engine.task import TaskState
from manycore._engine.workforce import Workforce
from manycore._launch.arguments import integer
from manycore._memory.segment import Segment
from manycore._native.ring import SHIELD, WORKERS_MAX, TaskRing, Turn, now_ns
from manycore._native.step import Mutex, check_free, inside, postpone
from manycore.errors import PoolClosed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from manycore._engine.calls import Task
    from manycore._engine.functions import Function
    from manycore._engine.future import Future
    from manycore._engine.mapping import MapRun
    from manycore._engine.policy import Policy

__all__ = ["Engine", "Settings", "Stats"]

# Tasks that can be in the ring at once: 512 KiB of shared memory, and some milliseconds of the shortest tasks,
# during which a parent that is busy elsewhere starves nobody.
SLOTS: Final = 1024

# When it is told that an initializer without a bound has not returned: later than most models are loaded.
LONG_START_NS: Final = 60_000_000_000

# How long `terminate` waits for a callback that the collector is in; an orderly end waits until it returns.
CALLBACK_GRACE: Final = 0.5  # seconds

_names = itertools.count(1)


class Engine(Collecting):
    """Runs tasks in worker processes. `Pool` and `ProcessPoolExecutor` are its faces."""

    def __init__(self, settings: Settings) -> None:
        if not 1 <= settings.workers <= WORKERS_MAX:
            raise ValueError(f"a pool has 1 to {WORKERS_MAX} workers, not {settings.workers}")
        for what in ("initializer", "finalizer"):
            if (given := getattr(settings, what)) is not None and not callable(given):
                raise TypeError(f"{what} must be a callable")
        super().__init__()
        self.settings = settings
        self.name = settings.name or f"pool-{next(_names)}"
        self._lock = Mutex()
        limit_ns = settings.initializer_ns if settings.initializer is not None else 0
        notice_ns = LONG_START_NS if settings.initializer is not None and not limit_ns else 0
        self._dispatcher = Dispatcher(settings.workers, limit_ns=limit_ns, notice_ns=notice_ns)
        self._segment = Segment.create(TaskRing.nbytes(SLOTS), "manycore-tasks")
        self._tasks = TaskRing(self._segment.buffer, SLOTS)
        self.alarm = self._tasks.alarm  # has whoever waits look again at what it waits for
        self._turn = Turn(self._tasks)
        self.outbox = Outbox(self._tasks, arenas=settings.workers + 1, main_is_there=settings.keeps_main)
        fds = (self._segment.fd, *self.outbox.fds)
        self._wire(self._tasks, self._dispatcher, self.outbox)
        self._workforce = Workforce(settings, self.name, self._turn, self._tasks, fds)
        self._settlement = Settlement(self._dispatcher, self._tasks, self._workforce, self.outbox)
        self._after = self._settlement.after
        self._collector: threading.Thread | None = None
        self._begun = threading.Event()  # the collector was started, or that has failed
        self._unmanned = True  # workers are to be started when there is work
        self._closed = False  # no new tasks
        self._ended = False  # no workers, and no new ones
        self._parted = ""  # why this process has nothing more to do with the workers: it is a fork, or at its end
        self._unattended = False  # nobody submits any more, and nobody will call `join`
        self._abandoned = False  # nobody has the pool any more
        parting.engines.add(self)

    def start(self) -> None:
        """Start the workers and the collector, once."""
        with SHIELD:
            with self._lock:
                if self._collector is not None or self._ended:
                    return
                if self.settings.preload:
                    _launch.preload(*self.settings.preload)
                for index in range(self._dispatcher.size):
                    self._settlement.start_worker(index)
                self._unmanned = False
                name = f"manycore {self.name}"
                self._collector = threading.Thread(target=self._collect_forever, name=name, daemon=True)
            try:
                self._collector.start()
            finally:
                self._begun.set()

    # Tasks in

    def check_ready(self) -> None:
        """Raise unless this thread can hand in tasks now."""
        check_free()
        self.check_open()

    def check_open(self) -> None:
        """Raise unless new tasks are taken."""
        if self._broken is not None:
            raise errors.PoolBroken(str(self._broken)) from self._broken
        if self._parted:
            raise PoolClosed(self._parted)
        if self._closed:
            raise PoolClosed(f"pool {self.name!r} is closed: it takes no new tasks")

    def _call_at_length(
        self, future: Future[Any], function: Function, arguments: Any, packed: bytes | None, policy: Policy | None
    ) -> None:
        """What is left of `call` for a call that is not plain."""
        task = self.outbox.encode(function, arguments, future, roots=("args", "kwargs"), policy=policy, packed=packed)
        future._task = task
        if type(task.payload) is bytes:  # short: not worth much memory
            future._arguments = arguments
        self.submit(task)

    def bind(self, policy: Policy) -> Policy:
        """Get a policy ready for tasks of this engine.

        Raises:
            TaskPicklingError: An exception class of `retry_on` cannot be pickled.
        """
        self.check_ready()
        if policy.soft_ns and self.settings.start_method == "zygote":
            _launch.preload("manycore._standard_errors")  # what each worker would import at its first such task
        return self.outbox.bind(policy)

    def submit(self, task: Task, *, accepted: bool = False) -> None:
        """Queue a task.

        Args:
            task: What is to be done.
            accepted: It belongs to a call that was accepted before, and is taken while the engine closes.

        Raises:
            PoolClosed: After `close` or `terminate`, or in a forked child.
            PoolBroken: The pool has given up.
        """
        with SHIELD, self._lock:
            if self._closed and not (accepted and self._broken is None and not self._ended):
                self.check_open()
            try:
                if self._dispatcher.submit(task) is not None:
                    self.outbox.recall(self._dispatcher)
                self.pump()
            except BaseException:
                self._tear()
                raise
            if task.policy is not None and task.policy.first_ns:
                self._watch(now_ns() + task.policy.first_ns)
        if self._unmanned:
            self._man()

    def _man(self) -> None:
        """Start the workers that there is work for."""
        if self._collector is None:
            self.start()
            return
        with SHIELD, self._lock:
            if self._goes_on():
                for order in self._dispatcher.demand():
                    self._settlement.obey(order)
            self._unmanned = self._dispatcher.vacant

    def submit_again(self, tasks: Iterable[Task]) -> None:
        """Queue what an accepted call is still owed, also while the engine closes. Without locks."""
        with SHIELD, self._lock:
            recall = [task for task in tasks if self._dispatcher.submit(task) is not None]
            if recall:
                self.outbox.recall(self._dispatcher)
            if self._ended or self._broken is not None:
                self._fail_all()
            self.pump()
            if self._dispatcher.timed:
                self._watch(0)
        self.call_after()

    def enlist(self, run: MapRun) -> None:
        """The run will send tasks; until it is discharged or gone the engine does not end in order."""
        self._runs[id(run)] = weakref.ref(run)

    def discharge(self, run: MapRun) -> None:
        """The run will send nothing more. Also from a finalizer, so without locks."""
        if self._runs.pop(id(run), None) is not None and self._closed:
            self._tasks.alarm()

    def drop(self, tasks: Iterable[Task], *, running: bool = False) -> list[Task]:
        """Forget tasks, and return those that were there: no worker gets them, or they go unheard, or are ended too."""
        if self._parted:
            return []
        with SHIELD, self._lock:
            try:
                dropped = [task for task in tasks if task.state not in (TaskState.NEW, TaskState.DONE)]
                for task in dropped:
                    self._settlement.drop(task, running=running)
                self.pump()
            except BaseException:
                self._tear()
                raise
        return dropped

    # Asking and cancelling

    def cancel(self, future: Future[Any], *, running: bool = False) -> bool:
        """Take back a future's task if no worker has begun it; if one has and `running`, kill that worker.

        In the middle of a step of this thread's, that is noted for its end.
        """
        if postpone(partial(future.cancel, running=running)):
            return False
        with SHIELD, self._lock:
            task: Task | None = future._task
            if task is None or self._parted:
                return False
            try:
                call = future.give_up() if self._settlement.take_back(task, running=running) else None
                self.pump()
            except BaseException:
                self._tear()
                if task.state is TaskState.DONE:
                    self._settlement.then(future.give_up())
                raise
        if call is None:
            return False
        self._tasks.alarm()  # whoever waits for it
        call()
        return True

    def _tear(self) -> None:
        """An interrupt has come in the middle of something: whoever drains next mends what it left half done."""
        self._torn = True
        self._tasks.alarm()

    def resize(self, workers: int) -> None:
        """Have so many workers from now on; those that are too many finish what they have begun."""
        if not 1 <= integer("the number of workers", workers) <= WORKERS_MAX:
            raise ValueError(f"a pool has 1 to {WORKERS_MAX} workers, not {workers}")
        check_free()
        with SHIELD, self._lock:
            self.check_open()
            self._workforce.size = workers
            if self._collector is None:
                self._dispatcher.size = workers
                return
            for order in self._dispatcher.resize(workers):
                self._settlement.obey(order)

    @property
    def size(self) -> int:
        """How many workers there are to be."""
        return self._dispatcher.size

    def cancel_all(self) -> None:
        """Cancel every call that no worker has begun. Maps go on: their consumers wait for them."""
        if postpone(self.cancel_all):
            return
        with self._lock:
            sinks = [task.sink for task in self._dispatcher.tasks() if not task.chunk]
        for future in sinks:
            future.cancel()

    def running(self, future: Future[Any]) -> bool:
        """Whether a worker has the future's task."""
        task: Task | None = future._task
        return task is not None and any(sight.task == task.id for sight in self._workforce.sights())

    def load(self) -> tuple[int, int]:
        """(workers, those that run something now)."""
        return len(self._workforce.workers), self._workforce.busy()

    def stats(self) -> Stats:
        """A snapshot, for people and for programs that watch."""
        if inside():  # as it is then
            return self._settlement.stats(self.plain_bytes)
        with self._lock:
            return self._settlement.stats(self.plain_bytes)

    @property
    def state(self) -> str:
        """In one word, for people."""
        if self._broken is not None:
            return "broken"
        return "ended" if self._ended else "closed" if self._closed else "running"

    @property
    def closed(self) -> bool:
        """Whether new tasks are refused."""
        return self._closed

    # Ending

    def abandon(self) -> bool:
        """From a finalizer, so without locks: the collector thread terminates. False when there is nothing to end."""
        if self._ended or self._closed or self._collector is None:
            return False
        self._abandoned = True
        self._tasks.alarm()
        return True

    def finish_unattended(self) -> None:
        """From a finalizer, so without locks: nobody submits any more; what is there is done, then the workers end."""
        if self._ended or self._collector is None:
            return
        self._closed = True
        self._unattended = True
        self._tasks.alarm()

    def close(self) -> None:
        """Take no new tasks; those that are there are done, and then the workers end."""
        self._closed = True
        self._unattended = True
        self._tasks.alarm()

    def close_if_idle(self) -> bool:
        """`close`, unless something is still to be done; whether the engine is closed now and can be joined at once."""
        if not self._nothing_left():
            return False
        self.close()
        return self._nothing_left()

    def join(self, *, read_all: bool = True) -> None:
        """After `close`: wait until all tasks are done and the workers have ended.

        Args:
            read_all: Lazy maps read what is left of their inputs now; else they end with what they have read.
        """
        if self._parted or postpone(partial(self.join, read_all=read_all)):
            return
        runs = [run for reference in tuple(self._runs.values()) if (run := reference()) is not None]
        if any(run.postpone(partial(self.join, read_all=read_all)) for run in runs):
            return
        for run in runs:
            if run.lazy:
                if read_all:
                    run.read_all()
                else:
                    run.end_input(PoolClosed(f"pool {self.name!r} was shut down before this map had read its input"))
            else:
                run.advance()  # its thread may have been about to
        if self._collector is not None:
            self.wait(self._nothing_left, lambda: self._idle, None)
        self._end(kill=False)

    def terminate(self, error: BaseException | None = None, signum: int | None = None) -> None:
        """Kill the workers (those that get `signum`: after STOP_GRACE), fail what is outstanding, free everything."""
        if self._parted:
            return
        if postpone(partial(self.terminate, error, signum)):
            self._closed = True
        else:
            self._end(kill=True, error=error, signum=signum)

    def _end(self, *, kill: bool, error: BaseException | None = None, signum: int | None = None) -> None:
        """Stop the workers and give everything back, once; another call waits for the first.

        One that comes in the middle of the first, from the handler of a signal, sees to it that the workers end.
        """
        with SHIELD, self._lock:
            first, self._ended, self._closed = not self._ended, True, True  # from here on no worker is started
            if first:
                self._ender = threading.get_ident()
            if kill:
                self._runs.clear()
                self._fail_all(error)
                self._workforce.kill(signum)
            children = [worker.child for worker in self._workforce.workers.values()]
        if not first:
            if self._ender == threading.get_ident() and not self._over.is_set():
                self._workforce.await_end(children)
            elif threading.current_thread() is not self._collector:  # which the first call waits for
                self._over.wait(CALLBACK_GRACE if kill else None)
            return
        try:
            if not kill:
                self._workforce.stop()
            self._tasks.alarm()
            self._workforce.await_end(children)
            collector = self._collector
            if collector is not None and collector is not threading.current_thread():
                self._begun.wait()  # the thread that starts it may be amid that
                if collector.ident is not None:
                    collector.join(CALLBACK_GRACE if kill else None)
        except BaseException:  # an interrupt: it ends at once
            self._workforce.kill()
            raise
        finally:
            with SHIELD, self._lock:
                for worker in tuple(self._workforce.workers.values()):
                    self._settlement.bury(worker, self._goes_on)
                self._fail_all(error)
                self._segment.close()
                self.outbox.close()
            with SHIELD, lock_of(self._idle):
                wake(self._idle)
            self._after.call(everything=True)
            self._over.set()
        log_sink.catch_up(log_sink.END_SECONDS)

    def disown(self) -> None:
        """In a forked child of the parent: the workers are not its own."""
        self._parted = f"pool {self.name!r} belongs to this process's parent: a forked child makes its own"
        self._closed = self._ended = True
        self.outbox.disown()
        self._lock = Mutex()
        self._over.set()

    def leave(self) -> None:
        """At the interpreter's end, which kills the workers: none is started any more, and no end is waited for."""
        if postpone(self.leave):
            return
        with SHIELD, self._lock:
            self._parted = self._parted or f"pool {self.name!r} ended with the interpreter"
            self._closed = self._ended = True
