"""The engine: rings, workers and the dispatcher, put together for one machine.

    caller's thread                shared memory                    worker process
    encode, submit  --------->  task ring, spool  ------------->  claim, run
    wait: drains the rings <--  one result ring a worker  <-----  put, notify
    collector thread: drains when nobody waits; kills what runs too long
    reaper thread (`_launch`): tells of deaths

Who waits, collects: a thread blocked in `wait` becomes the foreground and drains the rings itself, which
saves two thread switches a call. The collector thread does it when nobody waits, and watches the deadlines.

Locks, in this order:
    _collecting   who drains the rings; held while a foreground thread sleeps for results
    _lock         the dispatcher, publishing, and the table of workers; never held over anything slow
    a future's condition
What a user gave us (pickling, callbacks, input iterators) never runs under any of them.

If a process dies:
    a worker: the reaper puts it into `_dead`; whoever drains next reads its ring to the end, asks the
        dispatcher who is to blame, fails that item and starts a successor.
    the parent: the kernel kills the workers.
A forked child of the parent has no collector and no workers: the engine is closed to it.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from manycore import _launch
from manycore._engine import frames
from manycore._engine.dispatch import Broken, Dispatcher, Failed, Kill, Sight, Split, Start, Task, TaskState
from manycore._engine.failure import load_failure, shorten
from manycore._engine.functions import FunctionTable
from manycore._engine.spool import Range, Spool
from manycore._memory import codec
from manycore._memory.segment import Segment
from manycore._native.ring import INLINE_BYTES, MORE, WORKERS_MAX, BrokenRing, ResultRing, TaskRing, now_ns
from manycore.errors import PoolBroken, PoolClosed, RemoteTraceback, TaskTimeout, WorkerDied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from manycore._engine.functions import Function
    from manycore._engine.future import Future

__all__ = ["Engine", "Settings", "Sink", "Stats"]

# Tasks that can be in the ring at once: 512 KiB of shared memory, and some milliseconds of the shortest tasks,
# during which a parent that is busy elsewhere starves nobody.
SLOTS: Final = 1024

# A worker's result ring. Shorter than the caches, long enough for 6,000 small results.
RING_BYTES: Final = 256 * 1024

# How long workers that were told to stop may take for what they still run at exit, before they are killed.
STOP_GRACE: Final = 5.0  # seconds

# A worker that was killed for its deadline, or could not be stopped for it, is looked at again after this time.
RETRY_KILL_NS: Final = 2_000_000

# Looks, 0.2 ms apart, at whether a worker has stopped: it takes a signal's delivery, mostly less than 0.1 ms.
PAUSE_LOOKS: Final = 25

_names = itertools.count(1)
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Sink(Protocol):
    """Who gets what comes of a task. Called under the collecting lock; must neither block nor run user code.

    Each returns what is to be called once the locks are released, or None.
    """

    def take_plain(
        self, task: Task, item: int, values: list[Any], took_ns: int, worker: int
    ) -> Callable[[], object] | None:
        """Results that needed no unpickling, of the items from `item` on."""

    def take(
        self, task: Task, item: int, status: int, data: bytes, took_ns: int, worker: int
    ) -> Callable[[], object] | None:
        """One item's record."""

    def fail(self, task: Task, item: int, error: BaseException) -> Callable[[], object] | None:
        """The item has no result and will have none."""

    def split(self, task: Task) -> None:
        """The chunk must be sent again item by item. Called without locks; encodes and submits."""


@dataclass(frozen=True)
class Settings:
    """What an engine is made with.

    Attributes:
        workers: How many worker processes, at least 1.
        initializer: Called in each worker before its first task, with `initargs`.
        initargs: Its arguments.
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


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of a pool.

    Attributes:
        name: The pool's name.
        workers: Workers that are there now.
        pids: Their process ids.
        tasks_pending: Calls and chunks that are not done.
        items_done: Items that gave a result.
        items_failed: Items that raised, timed out, or died with their worker.
        workers_started: Worker processes started so far.
        workers_died: Those that died without being told to.
        worker_seconds: Time that workers spent inside the user's functions.
        worker_cpu_seconds: CPU time of workers that have ended.
        worker_peak_rss_bytes: The largest peak memory of any worker that has ended, or lives and can be asked.
    """

    name: str
    workers: int
    pids: tuple[int, ...]
    tasks_pending: int
    items_done: int
    items_failed: int
    workers_started: int
    workers_died: int
    worker_seconds: float
    worker_cpu_seconds: float
    worker_peak_rss_bytes: int


class _Worker:
    """A worker process as the parent sees it."""

    __slots__ = ("child", "index", "leaving", "parts", "ring", "segment")

    def __init__(self, index: int, segment: Segment, ring: ResultRing) -> None:
        self.index = index
        self.segment = segment
        self.ring = ring
        self.child: _launch.Child
        self.leaving = False
        self.parts: list[bytes] = []  # of a result that comes in several records


class Engine:
    """Runs tasks in worker processes. `Pool` and `ProcessPoolExecutor` are its faces."""

    def __init__(self, settings: Settings) -> None:
        if not 1 <= settings.workers <= WORKERS_MAX:
            raise ValueError(f"a pool has 1 to {WORKERS_MAX} workers, not {settings.workers}")
        if settings.initializer is not None and not callable(settings.initializer):
            raise TypeError("initializer must be a callable")
        self.settings = settings
        self.name = settings.name or f"pool-{next(_names)}"
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._collecting = threading.Lock()
        self._foreground = 0  # threads inside `wait` that hold _collecting; 0 or 1
        self._dispatcher = Dispatcher()
        self._segment = Segment.create(TaskRing.nbytes(SLOTS), "manycore-tasks")
        self._tasks = TaskRing(self._segment.buffer, SLOTS)
        self._spool = Spool()
        self.functions = FunctionTable(self._spool)
        self._workers: dict[int, _Worker] = {}
        self._rings: list[ResultRing] = []
        self._dead: deque[_Worker] = deque()  # appended by the reaper thread
        self._initializer = (
            None
            if settings.initializer is None
            else (codec.dump_function(settings.initializer), codec.dumps(settings.initargs))
        )
        self._collector: threading.Thread | None = None
        self._closed = False  # no new tasks
        self._ended = False  # no workers, and no new ones
        self._unattended = False  # nobody submits any more, and nobody will call `join`
        self._abandoned = False  # nobody has the pool any more
        self._broken: BaseException | None = None
        self._watched_until: int | None = None  # ns; when the collector looks at the deadlines next
        self._idle = threading.Condition(
            threading.Lock()
        )  # notified when nothing is outstanding any more, or at the end
        self._items_done = self._items_failed = self._started = self._died = 0
        self._busy_ns = 0
        self._cpu_seconds = 0.0
        self._peak_rss = 0
        _engines.add(self)

    # Starting

    def start(self) -> None:
        """Start the workers and the collector, once."""
        with self._lock:
            if self._collector is not None or self._ended:
                return
            if self.settings.preload:
                _launch.preload(*self.settings.preload)
            for index in range(self.settings.workers):
                self._start_worker(index)
            self._collector = threading.Thread(target=self._collect_forever, name=f"manycore {self.name}", daemon=True)
        self._collector.start()

    def _start_worker(self, index: int) -> None:
        segment = Segment.create(RING_BYTES, "manycore-results")
        worker = _Worker(index, segment, ResultRing(segment.buffer, create=True))
        self._tasks.reset(index)
        setup = {
            "index": index,
            "initializer": self._initializer,
            "max_tasks": self.settings.max_tasks,
            "main": codec.describe_main(),
        }
        engine = weakref.ref(self)

        def on_exit(_child: _launch.Child) -> None:
            owner = engine()
            if owner is not None:
                owner._dead.append(worker)
                owner._tasks.alarm()

        worker.child = _launch.launch(
            "manycore._engine.worker:main",
            pickle.dumps(setup, 5),
            [self._segment.fd, segment.fd, self._spool.fd],
            title=f"manycore: worker {index} of pool {self.name!r}",
            on_exit=on_exit,
        )
        self._dispatcher.worker_started(index)
        self._workers[index] = worker
        self._rings = [other.ring for other in self._workers.values()]
        self._started += 1

    # Tasks in

    def encode(self, function: Function, payload: bytes, sink: Any, **options: Any) -> Task:
        """A task for `submit`; a payload too long for a slot goes into the spool. In the caller's thread, no locks."""
        body: Any = payload if len(payload) <= INLINE_BYTES - frames.HEADER.size else self._spool.put(payload)
        return Task(sink, function, body, **options)

    def call(
        self, future: Future[Any], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Encode and submit one call; `future` gets the result.

        Raises:
            TypeError: The function is not callable.
            TaskPicklingError: The function or an argument cannot be pickled.
            PoolClosed, PoolBroken: As `submit`.
        """
        if self._closed:
            self.check_open()
        arguments = (args, kwargs)
        payload = codec.dumps(arguments, roots=("args", "kwargs"))
        task = self.encode(self.functions.get(function), payload, future)
        future._task = task
        if len(payload) <= INLINE_BYTES:
            future._arguments = arguments
        self.submit(task)

    def submit(self, task: Task) -> None:
        """Queue a task.

        Raises:
            PoolClosed: After `close` or `terminate`, or in a forked child.
            PoolBroken: The pool has given up.
        """
        with self._lock:
            self.check_open()
            self._dispatcher.submit(task)
            self._pump()
            if task.timeout_ns:
                self._watch(now_ns() + task.timeout_ns)
        if self._collector is None:
            self.start()

    def submit_again(self, tasks: Iterable[Task]) -> None:
        """Queue what an accepted call is still owed, also while the engine closes. Without locks."""
        after: list[Callable[[], object]] = []
        with self._lock:
            for task in tasks:
                self._dispatcher.submit(task)
            if self._ended or self._broken is not None:
                self._fail_all(self._why_ended, after)
            self._pump()
            if self._dispatcher.timed:
                self._watch(0)
        _call_all(after)

    def _why_ended(self) -> BaseException:
        if self._broken is not None:
            return self._broken
        return PoolClosed(f"pool {self.name!r} was terminated")

    def drop(self, tasks: Iterable[Task]) -> None:
        """Forget tasks: those that no worker has begun are taken back, and nothing is heard of the others."""
        with self._lock:
            for task in tasks:
                if task.state in (TaskState.QUEUED, TaskState.PUBLISHED):
                    if task.ticket >= 0:
                        self._tasks.withdraw(task.ticket)
                    self._dispatcher.drop(task)
            self._pump()

    def _watch(self, until_ns: int) -> None:
        """The collector must look at the deadlines by then. Under the lock."""
        if self._watched_until is None or until_ns < self._watched_until:
            self._watched_until = until_ns
            self._tasks.alarm()

    def check_open(self) -> None:
        """Raise unless new tasks are taken."""
        if self._broken is not None:
            raise PoolBroken(str(self._broken)) from self._broken
        if self._closed:
            raise PoolClosed(f"pool {self.name!r} is closed: it takes no new tasks")
        if self._pid != os.getpid():
            raise PoolClosed(f"pool {self.name!r} belongs to process {self._pid}: a forked child makes its own")

    def _pump(self) -> None:
        """Publish from the backlog while the ring has room."""
        dispatcher, publish = self._dispatcher, self._tasks.publish
        while True:
            task = dispatcher.peek()
            if task is None:
                return
            payload = task.payload
            flags = task.function.flags if task.chunk else frames.CALL
            if type(payload) is Range:
                flags |= frames.SPOOLED
                payload = frames.WHERE.pack(payload.offset, payload.length)
            where = task.function.place
            frame = frames.HEADER.pack(where.offset, where.length, task.received) + payload
            ticket = publish(task.id, 0, flags, frame)
            if ticket < 0:
                return
            dispatcher.published(task, ticket)

    # Results out

    def wait(
        self, ready: Callable[[], bool], condition: Callable[[], threading.Condition], deadline: float | None
    ) -> bool:
        """Collect results until `ready()`; False at the deadline.

        Args:
            ready: Becomes true by what is collected.
            condition: Notified when `ready` may have become true; for the time that another thread collects.
            deadline: On `time.monotonic`; None = never.
        """
        deadline_ns = None if deadline is None else int(deadline * 1e9)
        while not ready():
            if self._ended and not self._rings:
                # nobody will resolve anything any more
                return ready()
            if self._foreground == 0 and self._collecting.acquire(timeout=0.001):
                after: list[Callable[[], object]] = []
                try:
                    self._foreground = 1
                    self._tasks.enter()
                    while True:
                        alarms = self._tasks.alarms()
                        after = self._drain()
                        if after or ready():
                            break
                        if not self._tasks.wait(self._rings, alarms, deadline_ns):
                            after = self._drain()
                            break
                        if self._ended and not self._rings:
                            break
                finally:
                    self._foreground = 0
                    self._tasks.leave(self._rings)
                    self._collecting.release()
                    _call_all(after)
            elif self._foreground:
                guard = condition()
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                with guard:
                    if not ready():
                        guard.wait(left)
            if deadline is not None and time.monotonic() >= deadline:
                return ready()
        return True

    def _collect_forever(self) -> None:
        tasks = self._tasks
        alarms = 0
        while not self._ended:
            tasks.wait_background(self._rings, alarms, self._watch_deadlines())
            alarms = tasks.alarms()
            if self._abandoned:
                self.terminate()
                return
            if self._unattended and not self._dispatcher.outstanding:
                self._end(kill=False)
                return
            if self._collecting.acquire(blocking=False):
                try:
                    after = self._drain()
                finally:
                    self._collecting.release()
                _call_all(after)

    def _drain(self) -> list[Callable[[], object]]:
        """Read all rings and handle all deaths; under _collecting. Returns what to call without locks."""
        after: list[Callable[[], object]] = []
        records: list[tuple[int, int, int, int, bool, int, Any]] = []
        for worker in tuple(self._workers.values()):
            if worker.ring.empty():
                continue
            try:
                worker.ring.take(records)
            except BrokenRing:
                worker.child.kill()
            self._handle(worker, records, after)
            records.clear()
        while self._dead:
            self._bury(self._dead.popleft(), after)
        if self._dispatcher.outstanding == 0:
            with self._idle:
                self._idle.notify_all()
        return after

    def _handle(
        self,
        worker: _Worker,
        records: list[tuple[int, int, int, int, bool, int, Any]],
        after: list[Callable[[], object]],
    ) -> None:
        with self._lock:
            for task_id, item, status, took_ns, plain, flags, value in records:
                call: Callable[[], object] | None = None
                if plain:
                    task = self._dispatcher.finished(task_id, item, len(value))
                    if task is not None:
                        self._items_done += len(value)
                        self._busy_ns += took_ns
                        call = task.sink.take_plain(task, item, value, took_ns, worker.index)
                elif flags & MORE:
                    worker.parts.append(value)
                else:
                    if worker.parts:
                        worker.parts.append(value)
                        value = b"".join(worker.parts)  # noqa: PLW2901
                        worker.parts = []
                    call = self._handle_pickle(worker, task_id, item, status, took_ns, value, after)
                if call is not None:
                    after.append(call)
            self._pump()

    def _handle_pickle(
        self,
        worker: _Worker,
        task_id: int,
        item: int,
        status: int,
        took_ns: int,
        data: bytes,
        after: list[Callable[[], object]],
    ) -> Callable[[], object] | None:
        if status in (frames.OK, frames.UNPICKLABLE):
            task = self._dispatcher.finished(task_id, item)
            if task is None:
                return None
            self._busy_ns += took_ns
            if status == frames.OK:
                self._items_done += 1
            else:
                self._items_failed += 1
            call: Callable[[], object] | None = task.sink.take(task, item, status, data, took_ns, worker.index)
            return call
        if status in (frames.RAISED, frames.UNDECODABLE):
            if status == frames.RAISED:
                self._busy_ns += took_ns
                orders = self._dispatcher.failed(task_id, item)
            else:
                orders = self._dispatcher.undecodable(task_id)
            for order in orders:
                if isinstance(order, Failed):
                    self._items_failed += 1
                    call = order.task.sink.take(order.task, order.item, status, data, took_ns, worker.index)
                    if call is not None:
                        after.append(call)
                elif isinstance(order, Split):
                    after.append(partial(order.task.sink.split, order.task))
        elif status == frames.READY:
            self._dispatcher.worker_ready(worker.index)
        elif status == frames.LEAVING:
            worker.leaving = True
            self._dispatcher.worker_leaving(worker.index)
        elif status == frames.INIT_FAILED:
            error, name, text = load_failure(data)
            reason = PoolBroken(
                f"the initializer of pool {self.name!r} raised {name}: {error if error is not None else ''}"
            )
            reason.__cause__ = RemoteTraceback(text)
            self._break(reason, after)
        return None

    # Deaths

    def _sight(self, worker: _Worker, unbegun: tuple[int, ...] = ()) -> Sight:
        task, item, started_ns, _, _ = self._tasks.status(worker.index)
        return Sight(worker.index, unbegun, task, item, started_ns)

    def _bury(self, worker: _Worker, after: list[Callable[[], object]]) -> None:
        """The worker is dead: read its ring to the end, then settle what it leaves."""
        records: list[tuple[int, int, int, int, bool, int, Any]] = []
        try:
            while worker.ring.take(records):
                self._handle(worker, records, after)
                records.clear()
        except BrokenRing:
            self._handle(worker, records, after)
        with self._lock:
            certificate = worker.child.status
            if self._workers.get(worker.index) is worker:
                del self._workers[worker.index]
                self._rings = [other.ring for other in self._workers.values()]
            if certificate is not None:
                self._cpu_seconds += certificate.user_seconds + certificate.system_seconds
                self._peak_rss = max(self._peak_rss, certificate.peak_rss_bytes)
            unbegun = tuple(self._tasks.repair(worker.index))
            sight = self._sight(worker, unbegun)
            replace = (
                not self._ended and self._broken is None and not (self._closed and not self._dispatcher.outstanding)
            )
            if not worker.leaving:
                self._died += 1
            for order in self._dispatcher.worker_died(sight, replace=replace):
                if isinstance(order, Failed):
                    self._items_failed += 1
                    error = self._death_of(worker, certificate, order)
                    call = order.task.sink.fail(order.task, order.item, error)
                    if call is not None:
                        after.append(call)
                elif isinstance(order, Split):
                    after.append(partial(order.task.sink.split, order.task))
                elif isinstance(order, Start):
                    self._start_worker(order.worker)
                elif isinstance(order, Broken):
                    how = certificate.describe() if certificate is not None else "died"
                    self._break(
                        PoolBroken(
                            f"pool {self.name!r} gives up: {order.deaths} workers died before they were ready; "
                            f"the last: {how}"
                        ),
                        after,
                    )
            self._tasks.kick()
            self._pump()
        worker.segment.close()
        with self._idle:
            self._idle.notify_all()

    def _death_of(self, worker: _Worker, certificate: Any, order: Failed) -> BaseException:
        what = describe_item(order.task, order.item)
        who = f"worker {worker.index} of pool {self.name!r} (pid {certificate.pid if certificate is not None else '?'})"
        if order.timeout:
            seconds = order.task.timeout_ns / 1e9
            return TaskTimeout(f"{what} ran longer than its timeout of {seconds:g} s; {who} was killed and replaced")
        how = certificate.describe() if certificate is not None else "died"
        return WorkerDied(f"{who} died: {how} while running {what}; its certificate is in .certificate", certificate)

    def _break(self, reason: BaseException, after: list[Callable[[], object]]) -> None:
        """Give up: fail everything that is outstanding, end the workers. Under the lock."""
        if self._broken is not None:
            return
        self._broken = reason
        self._closed = True
        self._fail_all(self._why_ended, after)
        for worker in self._workers.values():
            worker.child.kill()

    def _fail_all(self, error: Callable[[], BaseException], after: list[Callable[[], object]]) -> None:
        """Fail every item that has no result. Under the lock."""
        for task in self._dispatcher.tasks():
            self._dispatcher.drop(task)
            for item in range(task.received, task.count):
                task.received = item + 1
                call = task.sink.fail(task, item, error())
                if call is not None:
                    after.append(call)

    # Deadlines

    def _watch_deadlines(self) -> int | None:
        """Kill what runs too long; returns when to look again (ns)."""
        if not self._dispatcher.timed:
            return None
        with self._lock:
            sights = [self._sight(worker) for worker in self._workers.values()]
            kills, again = self._dispatcher.overdue(now_ns(), sights)
            for kill in kills:
                self._kill_overdue(kill)
            if kills and again is not None:  # not dead yet, or it would not stop at once
                again = min(again, now_ns() + RETRY_KILL_NS)
            self._watched_until = again
        return again

    def _kill_overdue(self, kill: Kill) -> None:
        """Kill a worker for what it runs, and for nothing else: it is stopped first, and looked at again."""
        worker = self._workers.get(kill.sight.worker)
        if worker is None or not _pause(worker.child):
            return
        sight = self._sight(worker)
        if (sight.task, sight.item, sight.started_ns) == (kill.sight.task, kill.sight.item, kill.sight.started_ns):
            self._dispatcher.sentence(sight)
            worker.child.kill()
        else:  # it was done in the last moment
            worker.child.signal(signal.SIGCONT)

    # Cancelling and asking

    def cancel(self, future: Future[Any]) -> bool:
        """Take back a future's task if no worker has begun it."""
        with self._lock:
            task: Task | None = future._task
            if task is None:
                return False
            if task.ticket >= 0:
                if not self._tasks.withdraw(task.ticket):
                    return False
                self._dispatcher.withdrawn(task)
            if not self._dispatcher.cancel(task):
                return False
            self._pump()
            return True

    def running(self, future: Future[Any]) -> bool:
        """Whether a worker has the future's task."""
        with self._lock:
            task: Task | None = future._task
            return task is not None and any(self._tasks.status(index)[0] == task.id for index in self._workers)

    def stats(self) -> Stats:
        """A snapshot, for people and for programs that watch."""
        with self._lock:
            pids = [worker.child.pid for worker in self._workers.values() if worker.child.started]
            peak = max([self._peak_rss, *map(_peak_rss_bytes, pids)])
            return Stats(
                name=self.name,
                workers=len(self._workers),
                pids=tuple(pids),
                tasks_pending=self._dispatcher.outstanding,
                items_done=self._items_done,
                items_failed=self._items_failed,
                workers_started=self._started,
                workers_died=self._died,
                worker_seconds=self._busy_ns / 1e9,
                worker_cpu_seconds=self._cpu_seconds,
                worker_peak_rss_bytes=peak,
            )

    def load(self) -> tuple[int, int]:
        """(workers, those that run something now)."""
        indices = tuple(self._workers)
        return len(indices), sum(self._tasks.status(index)[0] != 0 for index in indices)

    # Ending

    @property
    def state(self) -> str:
        """In one word, for people."""
        if self._broken is not None:
            return "broken"
        return "ended" if self._ended else "closed" if self._closed else "running"

    def abandon(self) -> bool:
        """From a finalizer, so without locks: the collector thread terminates. False when there is nothing to end."""
        if self._ended or self._closed or self._collector is None or self._pid != os.getpid():
            return False
        self._abandoned = True
        self._tasks.alarm()
        return True

    @property
    def closed(self) -> bool:
        """Whether new tasks are refused."""
        return self._closed

    @property
    def broken(self) -> BaseException | None:
        """Why the engine gave up, if it did."""
        return self._broken

    def close(self) -> None:
        """Take no new tasks; those that are there are done."""
        with self._lock:
            self._closed = True
            nothing_left = not self._dispatcher.outstanding
        if nothing_left:
            self._stop_workers()

    def _stop_workers(self) -> None:
        for index in tuple(self._workers):
            self._tasks.stop(index)

    def cancel_all(self) -> None:
        """Cancel every call that no worker has begun. Chunks of maps go on: their consumers wait for them."""
        for task in self._dispatcher.tasks():
            cancel = getattr(task.sink, "cancel", None)
            if cancel is not None:
                cancel()

    def finish_unattended(self) -> None:
        """From a finalizer, so without locks: nobody submits any more; what is there is done, then the workers end."""
        if self._ended or self._collector is None or self._pid != os.getpid():
            return
        self._closed = True
        self._unattended = True
        self._tasks.alarm()

    def join(self, timeout: float | None = None) -> bool:
        """After `close`: wait until all tasks are done, then end the workers in order; False at the timeout."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._collector is not None and not self.wait(self._nothing_left, self._idle_condition, deadline):
            return False
        self._end(kill=False)
        return True

    def _nothing_left(self) -> bool:
        return not self._dispatcher.outstanding or self._ended

    def _idle_condition(self) -> threading.Condition:
        return self._idle

    def terminate(self) -> None:
        """Kill the workers, fail what is outstanding, free everything. Prompt, whatever the workers do."""
        with self._lock:
            self._closed = True
            after: list[Callable[[], object]] = []
            self._fail_all(self._why_ended, after)
            for worker in self._workers.values():
                worker.child.kill()
        self._end(kill=True)
        _call_all(after)

    def _end(self, *, kill: bool) -> None:
        """Stop the workers and give everything back; the second call does nothing."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._closed = True
            children = [worker.child for worker in self._workers.values()]
        if not kill:
            self._stop_workers()
        deadline = time.monotonic() + STOP_GRACE
        for child in children:
            if child.wait(max(0.0, deadline - time.monotonic())) is None:
                child.kill()
        for child in children:
            child.wait(STOP_GRACE)
        collector = self._collector
        self._tasks.alarm()
        if collector is not None and collector is not threading.current_thread():
            while collector.is_alive():  # an alarm before it slept is lost on it
                self._tasks.alarm()
                collector.join(0.01)
        after: list[Callable[[], object]] = []
        if self._collecting.acquire(timeout=1.0):
            try:
                while self._dead:
                    self._bury(self._dead.popleft(), after)
            finally:
                self._collecting.release()
        _call_all(after)
        with self._lock:
            self._workers.clear()
            self._rings = []
            self._segment.close()
            self._spool.close()
        with self._idle:
            self._idle.notify_all()


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


def describe_item(task: Task, item: int) -> str:
    """What ran, for messages: `task 41 resize('a.png')`."""
    arguments = task.sink.arguments(task, item)
    shown = ", ".join(
        [shorten(value) for value in arguments[0]] + [f"{k}={shorten(v)}" for k, v in arguments[1].items()]
    )
    return f"task {task.id} {task.function.name}({shown})"


def _call_all(calls: list[Callable[[], object]]) -> None:
    for call in calls:
        call()
