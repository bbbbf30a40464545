"""The worker's loop: claim a task, run it, put its results into the worker's own ring.

    claim -> unpickle -> for each item: begin, call, put -> done -> notify
      |                          |
      the page names the task    the page names the item, so that a death is charged to the right one

The loop keeps nothing between tasks but the functions it has loaded. It imports little, because every worker
pays for what it imports.

While a task runs, the process's title ends with its function's name: some bytes of memory, which `ps` reads.

A life: initializer -> READY -> the loop -> LEAVING -> finalizer -> exit. The finalizer runs at every end but a kill,
for a bounded time: then the kernel ends the process, whatever it hangs in.

A task may fork. Where its function comes to an end in the child too, that process ends: it has no say in the rings.

If a process dies: anywhere here, the parent reads the ring, the slots and the page, in this order (see
    `_native/c/task_ring.h`), and knows which items are done, which one is to blame, and which never began.
"""

from __future__ import annotations

import _pickle as pickle  # the same, without `re` and what else `pickle` imports

# The same as `signal`, but without its enumerations: who waits for a first result waits for every import here.
import _signal as signal  # type: ignore[import-not-found]
import os
import sys
import time
from collections import OrderedDict
from functools import partial

from manycore._engine import frames, here, identity
from manycore._engine.blas import limit_threads
from manycore._engine.cargo import Manifest, unpack, with_claims
from manycore._engine.failure import dump_failure
from manycore._engine.functions import name_of
from manycore._engine.guard import Guard
from manycore._engine.here import CurrentTask, CurrentWorker
from manycore._engine.lines import write_whole_lines
from manycore._engine.log_source import LogSource, forward
from manycore._engine.spool import read_exactly
from manycore._launch.worker import end_fork
from manycore._memory import codec
from manycore._memory.arena import Arena, ArenaFull, ArenaView, default_budget
from manycore._memory.segment import Segment, collecting
from manycore._native import process
from manycore._native.codec import pack
from manycore._native.ring import DECODING, FRAGMENT_BYTES, ResultRing, TaskRing, now_ns

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

__all__ = ["main"]

# The flags of frames that `serve` may take over.
_PLAIN: Final = (frames.CALL, frames.PACKED)

# How long a worker that leaves waits for the parent to claim what it has sent by handle.
LEAVE_NS: Final = 2_000_000_000

# Of a function's name, what the worker's title shows while it runs.
NAME_BYTES: Final = 64

# Functions that a worker keeps loaded. Each costs its code and its closure; a forgotten one is loaded again.
FUNCTIONS_KEPT: Final = 256

# What they may capture together, pickled: a partial object can hold a table of any size.
BYTES_KEPT: Final = 64 << 20

# Policies that a worker keeps ready; a pool has few.
GUARDS_KEPT: Final = 256


class _Functions:
    """The functions that this worker has loaded, by where their pickles are in the spool.

    A function that travels by value brings the globals that it reads along. Where two such functions take turns,
    each is loaded again at its turn, so that each sees the globals that the parent had for it.
    """

    def __init__(self, spool_fd: int) -> None:
        self._spool_fd = spool_fd
        self._loaded: OrderedDict[tuple[int, int], tuple[Callable[..., Any], bytes | None]] = OrderedDict()
        self._bytes = 0  # of the pickles of those that are loaded
        self._last_by_value: tuple[int, int] | None = None

    def get(self, offset: int, length: int) -> Callable[..., Any]:
        key = (offset, length)
        known = self._loaded.get(key)
        if known is not None:
            function, data = known
            if data is not None and key != self._last_by_value:
                function = codec.load_function(data)
                self._last_by_value = key
            return function
        data = read_exactly(self._spool_fd, length, offset)
        function = codec.load_function(data)
        if codec.is_by_value(data):
            self._last_by_value = key
        else:
            data = None
        self._loaded[key] = (function, data)
        self._bytes += length
        while len(self._loaded) > 1 and (len(self._loaded) > FUNCTIONS_KEPT or self._bytes > BYTES_KEPT):
            (_, size), _ = self._loaded.popitem(last=False)
            self._bytes -= size
        return function


class _Crippled(BaseException):
    """A task has closed or replaced this worker's descriptors."""


class _Worker:
    def __init__(self, index: int, tasks: TaskRing, results: ResultRing, fds: list[int], arenas: int) -> None:
        self.index = index
        self.tasks = tasks
        self.results = results
        _, self.spool_fd, self.arguments_fd, _, self.results_fd = fds
        self.files = {fd: _identity(fd) for fd in (self.spool_fd, self.arguments_fd)}
        self.arenas = arenas
        self.sends_handles = False
        self.view: ArenaView | None = None  # of the parent's arena, once a large argument came
        self.arena: Arena | None = None  # our own, once there was a large result
        self.functions = _Functions(self.spool_fd)
        self.head: bytes | None = None  # of the frame that was run last, when it was a plain call
        self.function: Callable[..., Any] | None = None  # of the task that was begun last
        self.title_room = process.title_room()
        self.first = 0  # its item that was begun first
        self.tries = 0  # and how often that one had begun before
        self.guards: dict[tuple[int, int], Guard] = {}  # by where they are in the spool
        self.guard: Guard | None = None  # of the task that was begun last

    def number(self) -> int:
        """The number of the task that is begun; 0 for none."""
        return self.tasks.status(self.index)[0]

    def look(self) -> CurrentTask | None:
        """The task that runs now."""
        task, item, started_ns, _, _ = self.tasks.status(self.index)
        function, guard = self.function, self.guard
        if not task or item == DECODING or function is None:
            return None
        name = name_of(function)
        attempt = self.tries + 1 if item == self.first else 1
        if guard is None:
            return CurrentTask(task, name, name, attempt, None)
        deadline = (started_ns + guard.timeout_ns) / 1e9 if guard.timeout_ns else None
        return CurrentTask(task, guard.name or name, name, attempt, deadline)

    def run(self, max_tasks: int, idle_ns: int) -> bool:
        """Take tasks until told to stop, or until `max_tasks` (0 = no bound) are done.

        Returns:
            Whether it ends because there was none for `idle_ns` (0 = no bound).
        """
        index, tasks, results = self.index, self.tasks, self.results
        claim, wait_task, serve = tasks.claim, tasks.wait_task, results.serve
        done = 0
        leave_ns = 0  # once it has begun to wait, when it ends
        while True:
            if self.head is None or self.function is None:
                claimed = claim(index)
            else:
                most = max_tasks - done if max_tasks else sys.maxsize
                served, claimed = serve(
                    tasks, index, self.head, self.function, most, self.put_raised, self.put_result, self.open_call
                )
                if served:
                    done += served
                    if done == max_tasks:
                        return False
                    leave_ns = 0
            if claimed is not None:
                self.execute(*claimed)
                del claimed
                done += 1
                if done == max_tasks:
                    return False
                leave_ns = 0
            elif tasks.stopped(index):
                return False
            else:
                look_ns = None if self.arena is None else self.arena.tend(now_ns())
                if idle_ns:
                    now = now_ns()
                    leave_ns = leave_ns or now + idle_ns
                    if now >= leave_ns:
                        return True
                    look_ns = leave_ns if look_ns is None else min(look_ns, leave_ns)
                wait_task(index, look_ns, results.empty())

    def execute(self, task: int, tries: int, flags: int, frame: bytes) -> None:
        offset, length, first = frames.HEADER.unpack_from(frame)
        payload: Any
        guard = None
        try:
            function = self.functions.get(offset, length)
            body: bytes | memoryview = memoryview(frame)[frames.HEADER.size :]
            if flags & frames.GUARDED:
                guard = self.get_guard(*frames.WHERE.unpack_from(body))
                body = body[frames.WHERE.size :]
            if flags & frames.SPOOLED:
                where, size = frames.WHERE.unpack(body)
                body = read_exactly(self.spool_fd, size, where)
            payload = self.unpack(body) if flags & frames.PACKED else codec.loads(body)
        except BaseException as error:
            self.put_undecodable(task, first, error)
            return
        if function is not self.function or guard is not self.guard:
            name = (guard.name if guard is not None else "") or name_of(function)
            self.tasks.post(*self.title_room, b" [running %b]" % name.encode("utf-8", "replace")[:NAME_BYTES])
        self.function, self.first, self.tries, self.guard = function, first, tries, guard
        if guard is not None:
            star = bool(flags & frames.STAR)
            calls = [(tuple(args) if star else (args,), {}) for args in payload] if flags & frames.CHUNK else [payload]
            self.run_guarded(guard, task, first, function, calls)
        elif flags & frames.CHUNK:
            star = bool(flags & frames.STAR)
            put_raised, put_result = self.put_raised, self.put_result
            items = payload if type(payload) is list else list(payload)
            awaited = bool(flags & frames.AWAITED)
            took = self.results.run(
                self.tasks, self.index, task, first, function, items, star, awaited, put_raised, put_result
            )
            self.tasks.done(self.index, took, len(items) - first)
        else:
            self.run_call(task, function, *payload)
        self.head = frame[: frames.HEADER.size] if flags in _PLAIN and not tries else None
        self.tasks.notify()

    def put_undecodable(self, task: int, first: int, error: BaseException) -> None:
        """The task cannot be unpickled, or what it needs cannot be reached."""
        self.head = None
        if any(_identity(fd) != file for fd, file in self.files.items()):
            self.results.put(task, first, frames.RETURNED, 0, b"")
            raise _Crippled from None
        self.results.put(task, first, frames.UNDECODABLE, 0, dump_failure(error))
        self.tasks.done(self.index, 0, 0)
        self.tasks.notify()

    def open_call(self, task: int, frame: bytes) -> Any:
        """The arguments of a call that are in a block; None when they cannot be had, which has been told then."""
        try:
            return self.unpack(memoryview(frame)[frames.HEADER.size :])
        except BaseException as error:
            self.put_undecodable(task, 0, error)
            return None

    def run_call(self, task: int, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        started = self.tasks.begin(self.index, 0)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:  # also SystemExit: it is the task that ends, not the worker
            took = now_ns() - started
            self.put_raised(task, 0, took, error)
        else:
            took = now_ns() - started
            if not self.results.put_plain(task, 0, took, result):
                self.put_result(task, 0, took, result)
        self.tasks.done(self.index, took, 1)

    def get_guard(self, offset: int, length: int) -> Guard:
        guard = self.guards.get((offset, length))
        if guard is None:
            if len(self.guards) >= GUARDS_KEPT:
                self.guards.clear()
            guard = Guard(codec.loads(read_exactly(self.spool_fd, length, offset)))
            self.guards[offset, length] = guard
        return guard

    def run_guarded(
        self,
        guard: Guard,
        task: int,
        first: int,
        function: Callable[..., Any],
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]],
    ) -> None:
        """Run a call, or the items of a chunk from `first` on, under a policy."""
        busy_ns = 0
        for item in range(first, len(calls)):
            args, kwargs = calls[item]
            try:
                result = guard.call(partial(self.tasks.begin, self.index, item), function, args, kwargs)
            except BaseException as error:  # also SystemExit: it is the item that ends, not the worker
                self.results.check()
                took = now_ns() - guard.began_ns
                flags = frames.RETRY if guard.retries(error) else 0
                self.results.put(task, item, frames.RAISED, took, dump_failure(error, skip=2), flags)
                error.__traceback__ = None
            else:
                took = now_ns() - guard.began_ns
                if not self.results.put_plain(task, item, took, result):
                    self.put_result(task, item, took, result)
            busy_ns += took
            if item + 1 < len(calls):
                self.tasks.notify()
        self.tasks.done(self.index, busy_ns, len(calls) - first)

    def put_raised(self, task: int, item: int, took_ns: int, error: BaseException) -> None:
        self.results.check()
        self.results.put(task, item, frames.RAISED, took_ns, dump_failure(error))
        error.__traceback__ = None

    def unpack(self, manifest: bytes | memoryview) -> Any:
        """A large payload, out of the parent's arena."""
        if self.view is None:
            self.view = ArenaView(os.dup(self.arguments_fd))
        return unpack(self.view, manifest).open()

    def pack(self, data: bytes, buffers: list[Any]) -> bytes | None:
        """A large result, in this worker's own arena; None when there is no room, so that it goes in pieces."""
        try:
            if self.arena is None:
                self.arena = Arena(default_budget(self.arenas), fd=os.dup(self.results_fd))
            return Manifest(self.arena, data, buffers).forget()
        except (ArenaFull, OSError):
            return None

    def put_result(self, task: int, item: int, took_ns: int, result: Any) -> None:
        self.results.check()
        packed = pack(result)
        if packed is not None and len(packed) <= FRAGMENT_BYTES:
            self.results.put(task, item, frames.OK, took_ns, packed)
            return
        buffers: list[Any] = []
        kept: list[Any] = []  # what is sent by handle: the parent claims it when the record comes
        flags = 0
        try:
            with collecting(kept):
                data = codec.dumps(result, buffers=buffers, to_parent=True)
                if buffers or len(data) > FRAGMENT_BYTES:
                    manifest = self.pack(data, buffers)
                    if manifest is None:
                        kept.clear()
                        data = codec.dumps(result, to_parent=True)
                    else:
                        data, flags = manifest, frames.PACKED
            if kept:
                data, flags = with_claims(kept, data), flags | frames.CLAIMS
                self.sends_handles = True
        except BaseException as error:
            self.results.put(task, item, frames.UNPICKLABLE, took_ns, dump_failure(error))
            error.__traceback__ = None
        else:
            self.results.put(task, item, frames.OK, took_ns, data, flags)

    def leave(self) -> None:
        """Before an exit in order: what was sent by handle must have been claimed."""
        end = now_ns() + LEAVE_NS
        while self.sends_handles and not self.results.empty() and now_ns() < end:
            time.sleep(0.001)


def _identity(fd: int) -> tuple[int, int] | None:
    """Which file a descriptor is of."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def main(payload: bytes | dict[str, Any], fds: list[int]) -> int:
    """A worker's life, in the process that was launched for it; returns its exit code.

    A fork of its parent has the setup as it is, and so its initializer and finalizer: not in pickles.
    """
    setup: dict[str, Any] = payload if isinstance(payload, dict) else pickle.loads(payload)
    index: int = setup["index"]
    tasks_fd, _, _, results_fd, _ = fds
    tasks = TaskRing(Segment.from_fd(tasks_fd).buffer)
    results = ResultRing(Segment.from_fd(results_fd).buffer, bell=tasks)
    os.register_at_fork(after_in_child=partial(results.disown, end_fork))
    if setup["main"] is not None:
        codec.become_worker(setup["main"])
    identity.assume(f"PoolWorker-{index + 1}", setup["identity"])
    write_whole_lines()
    if setup["blas_threads"]:
        limit_threads(setup["blas_threads"])
    worker = _Worker(index, tasks, results, fds, setup["arenas"])
    current = CurrentWorker(index, setup["pool"], setup["cores"], worker.look, worker.number)
    here.become(current, setup["depth"])
    if setup["logs"] is not None:
        forward(LogSource(index, setup["pool"], tasks, results), *setup["logs"])
    initializer, finalizer = setup["initializer"], setup["finalizer"]
    tasks.begin(index, frames.INITIALIZING)
    try:
        if isinstance(finalizer, bytes):
            finalizer = codec.load_function(finalizer)
        if initializer is not None:
            function, arguments = initializer
            if isinstance(function, bytes):
                function, arguments = codec.load_function(function), codec.loads(arguments)
            current.state = function(*arguments)
    except BaseException as error:
        results.check()
        results.put(0, 0, frames.INIT_FAILED, 0, dump_failure(error))
        tasks.notify()
        return 1
    results.put(0, 0, frames.READY, 0, b"")
    tasks.notify()
    idle = False
    try:
        idle = worker.run(setup["max_tasks"], setup["idle_ns"])
    except _Crippled:
        pass  # it has given its task back
    tasks.decline()
    results.put(0, frames.IDLE if idle else 0, frames.LEAVING, 0, b"")
    tasks.notify()
    if finalizer is not None:
        _finalize(finalizer, current.state, setup["finalizer_seconds"])
        results.check()
    worker.leave()
    return 0


def _finalize(finalizer: Callable[[Any], object], state: Any, seconds: float) -> None:
    """Call it, for a bounded time. What it raises is told on standard error, and harms nobody."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        finalizer(state)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    signal.setitimer(signal.ITIMER_REAL, 0)
