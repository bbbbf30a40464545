"""A process's line to an actor: the calls that it has made, and the results that come.

      any thread                                              the actor's process
      call: number, pickle, put      ==>  the actor's queue   ==>  take, call
      result: takes what has come    <==  this process's own  <==  put

Who waits, collects: a thread in `result()` takes what has come, for all threads. A thread of the line's own does it
where nobody waits and somebody wants to be told: `add_done_callback`, `await`, `concurrent.futures.wait`.

Invariants:
    calls of this process are put in the order of their numbers, so a fence's answer says that all calls before it
        were taken
    a future is resolved once, by who takes its number out of `_pending`
    callbacks run without locks
If a process dies:
    the actor: its launcher puts a notice into every caller's queue, behind all that the dead had put. Where a
        successor comes, a fence tells which calls were in the hands of the dead: those fail.
    the actor's launcher: the actor dies with it; a thread that waits looks every PATIENCE seconds.
Locks, in this order: `_turn` (who takes results), `_lock` (numbers, and putting), a future's condition.
A forked child has no line: it makes its own.
"""

from __future__ import annotations

import os
import pickle
import random
import select
import threading
import time
import weakref
from collections import deque
from concurrent.futures._base import FINISHED
from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

from manycore._engine.future import Future
from manycore._memory import codec
from manycore._native.codec import is_plain
from manycore._stage import FENCE, HELLO, NOTICE, OVER, READY, Member, Packed, Records
from manycore.errors import ActorClosed, ActorDied, ResultLost
from manycore.queues import ShutDown

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ActorFuture", "Line"]

# How long a waiting thread sleeps before it looks whether the actor's launcher lives. A look costs 2 us.
PATIENCE: Final = 0.2  # seconds

_lines: weakref.WeakSet[Line] = weakref.WeakSet()


class ActorFuture(Future[Any]):
    """The result of a call to an actor. A `concurrent.futures.Future` that can also be awaited."""

    __slots__ = ("name",)
    _owner: Any

    def __init__(self, line: Line, name: str) -> None:
        super().__init__()
        self._owner = line
        self.name = name

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        """Whoever asks for it wants to be told."""
        condition = super()._condition
        if not super().done():
            self._owner.attend(self)
        return condition

    def done(self) -> bool:
        """Whether the call is over: with a result, an exception, or cancelled."""
        if not super().done() and self._owner is not None:
            self._owner.look()
        return super().done()

    def result(self, timeout: float | None = None) -> Any:
        """What the call returned; its exception is raised here, with the remote traceback as its cause.

        Args:
            timeout: Seconds to wait at the most; None waits as long as it takes.

        Raises:
            TimeoutError: It was not done in time. It goes on.
            manycore.ActorDied: The actor's process died with this call in its hands.
        """
        if self._state != FINISHED:
            self._wait(timeout)
        return super().result(timeout)

    def _wait(self, timeout: float | None) -> None:
        if not self._owner.wait_for(self, None if timeout is None else time.monotonic() + timeout):
            raise TimeoutError(f"no result within {timeout} s")

    def over(self) -> bool:
        """Whether it is resolved; takes nothing."""
        return super().done()

    def settle(self, record: tuple[Any, ...]) -> list[Callable[[Any], object]]:
        """The actor's answer."""
        if len(record) == 2:
            return self._finish(FINISHED, record[1], None, None)
        return self._finish(FINISHED, None, None, (record[1], record[2], f"{self.name}() of actor {self._owner.name}"))

    def abandon(self, error: BaseException) -> list[Callable[[Any], object]]:
        """There will be no answer."""
        return self._finish(FINISHED, None, error, None)


class _Fence:
    def __init__(self, error: Callable[[], BaseException]) -> None:
        self.error = error


class Line:
    """See the module.

    Args:
        calls: The actor's queue.
        members: Where callers leave their names for the actor's launcher.
        launcher: Its pid; 0 where it is this process.
        name: The actor's, for messages.
    """

    def __init__(self, calls: Records, members: Records, launcher: int, name: str) -> None:
        self.calls = calls
        self.members = members
        self.name = name
        self.number = random.SystemRandom().getrandbits(62)
        self.replies = Records()
        self.ready: bytes | None = None  # once the object is made; the failure, where it could not be
        self.forked = False
        self._launcher = os.pidfd_open(launcher) if launcher else -1
        self._pending: dict[int, ActorFuture | _Fence] = {}
        self._next = 1
        self._end: Callable[[], BaseException] | None = None  # why nothing more is answered
        self._lock = threading.RLock()
        self._turn = threading.Lock()
        self._sleepers: deque[ActorFuture] = deque()  # threads wait for these, and may be told to take the turn
        self._after: deque[Callable[[], object]] = deque()  # to be called without locks
        self._attended: set[ActorFuture] = set()  # somebody wants to be told of these
        self._wanted = threading.Event()
        self._collector: threading.Thread | None = None
        _lines.add(self)
        if launcher:
            member = self.member()
            try:
                members.put(member)
                calls.put((self.number, NOTICE, HELLO, member, {}))
            except ShutDown:
                self._end = partial(ActorClosed, f"actor {name} is no more")

    def member(self) -> Member:
        """How the actor, or its launcher, finds the queue of results."""
        device, inode = self.replies._inode
        return (self.number, os.getpid(), self.replies._fd, device, inode)

    def __del__(self) -> None:
        if self._launcher >= 0:
            os.close(self._launcher)

    # Calls

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ActorFuture:
        """Make a call.

        Raises:
            TaskPicklingError: An argument cannot be pickled.
            ActorClosed, ActorDied: There is no actor any more.
        """
        future = ActorFuture(self, name)
        packed: tuple[bytes, list[Any]] | None = None
        if not is_plain(args) or not is_plain(kwargs):
            buffers: list[Any] = []
            packed = codec.dumps((args, kwargs), buffers=buffers, roots=("args", "kwargs")), buffers
        try:
            with self._lock:
                ident = self._next
                self._next = ident + 1
                self._pending[ident] = future
                if packed is None:
                    self.calls.put((self.number, ident, name, args, kwargs))
                else:
                    self.calls.put(Packed((self.number, ident, name), *packed))
        except BaseException as error:
            self._pending.pop(ident, None)
            if isinstance(error, ShutDown):
                raise self._why() from None
            raise
        return future

    def _why(self) -> BaseException:
        """Why there is no actor any more: it is in the queue of results, or about to be."""
        deadline = time.monotonic() + PATIENCE
        while self._end is None and time.monotonic() < deadline and not self.forked:
            if self._turn.acquire(timeout=PATIENCE):
                try:
                    self._take(PATIENCE / 10)
                finally:
                    self._turn.release()
                    self._pass_on()
        end = self._end
        return ActorClosed(f"actor {self.name} is closed") if end is None else end()

    # Results

    def await_ready(self) -> None:
        """Wait until the object is made, or is not (see `ready`).

        Raises:
            ActorDied: The process died first.
        """
        while self.ready is None:
            if self._end is not None:
                raise self._end()
            with self._turn:
                self._take(None)

    def look(self) -> None:
        """Take what has come, unless somebody does."""
        if not self.forked and self._turn.acquire(False):
            try:
                self._take(0)
            finally:
                self._turn.release()
                self._pass_on()
        self.call_after()

    def wait_for(self, future: ActorFuture, deadline: float | None) -> bool:
        """Collect until the future is resolved; False at the deadline (`time.monotonic`)."""
        while not future.over():
            if self.forked:
                raise ActorClosed("this call was made by the process that this one was forked from")
            if self._turn.acquire(False):
                try:
                    self._collect(future, deadline)
                finally:
                    self._turn.release()
                    self._pass_on()
                self.call_after()
            else:
                guard = Future._condition.fget(future)  # type: ignore[attr-defined]
                with guard:
                    self._sleepers.append(future)
                    if not future.over() and self._turn.locked():
                        guard.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if deadline is not None and time.monotonic() >= deadline:
                return future.over()
        return True

    def _collect(self, future: ActorFuture, deadline: float | None) -> None:
        while not future.over() and not self._after:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            self._take(left)

    def _take(self, timeout: float | None) -> None:
        """Settle what has come, waiting for it at most `timeout` seconds or PATIENCE. Whose turn it is."""
        if self._launcher >= 0 and (timeout is None or timeout > PATIENCE):
            timeout = PATIENCE
        try:
            try:
                records = self.replies.get_many(None, timeout)
            except Empty:
                if self._launcher >= 0 and select.select([self._launcher], [], [], 0)[0]:
                    self._finish(
                        partial(ActorDied, f"actor {self.name} is gone: the process that launched it has died")
                    )
                return
            for record in records:
                self._settle(record)
        except BaseException:  # an interrupt: results that were taken may be lost in this frame
            self._fence(partial(ResultLost, "the result was lost: its collection was interrupted"))
            raise

    def _settle(self, record: tuple[Any, ...]) -> None:
        ident = record[0]
        if ident == NOTICE:
            self._notice(record[1], record[2])
            return
        future = self._pending.pop(ident, None)
        if type(future) is ActorFuture:
            if callbacks := future.settle(record):
                self._after.append(partial(future._call_all, callbacks))
            self._attended.discard(future)
        elif type(future) is _Fence:
            self._fail(ident, future.error)

    def _notice(self, kind: str, data: bytes) -> None:
        if kind == READY:
            if self.ready is None:
                self.ready = data
            return
        error = partial(*pickle.loads(data))
        if kind == OVER:
            self._finish(error)
        else:
            self._fence(error)

    def _fence(self, error: Callable[[], BaseException]) -> None:
        """Fail with `error` what was called before now and is not answered before the actor takes what comes now."""
        if not self._pending or self.forked:
            return
        with self._lock:
            ident = self._next
            self._next = ident + 1
            self._pending[ident] = _Fence(error)
            try:
                self.calls.put((self.number, ident, FENCE, (), {}))
            except ShutDown:  # a notice that it is over is coming
                self._pending.pop(ident, None)

    def _fail(self, before: int, error: Callable[[], BaseException]) -> None:
        """Fail the calls before a number."""
        for ident in [ident for ident in tuple(self._pending) if ident < before]:
            future = self._pending.pop(ident, None)
            if type(future) is ActorFuture:
                if callbacks := future.abandon(error()):
                    self._after.append(partial(future._call_all, callbacks))
                self._attended.discard(future)

    def _finish(self, error: Callable[[], BaseException]) -> None:
        self._end = error
        with self._lock:
            before = self._next
        self._fail(before, error)

    def _pass_on(self) -> None:
        """The turn is free: somebody who still waits may want it."""
        while self._sleepers:
            try:
                future = self._sleepers.popleft()
            except IndexError:
                return
            if not future.over():
                guard = Future._condition.fget(future)  # type: ignore[attr-defined]
                with guard:
                    guard.notify_all()
                return

    def step_aside(self) -> None:
        """Nothing: who waits here collects for itself."""

    def call_after(self) -> None:
        after = self._after
        while after:
            try:
                call = after.popleft()
            except IndexError:  # another thread had the last one
                return
            call()

    # Where nobody waits

    def attend(self, future: ActorFuture) -> None:
        """Somebody wants to be told when this one is resolved."""
        if self.forked:
            return
        self._attended.add(future)
        if future.over():
            self._attended.discard(future)
            return
        self._wanted.set()
        if self._collector is None:
            with self._lock:
                if self._collector is None:
                    self._collector = threading.Thread(
                        target=_attend_forever,
                        args=(weakref.ref(self, partial(_wake, self._wanted)), self._wanted),
                        daemon=True,
                        name=f"manycore actor {self.name}",
                    )
                    self._collector.start()

    def collect_attended(self) -> None:
        """In the line's own thread: until nobody wants to be told of anything."""
        while self._attended and not self.forked:
            with self._turn:
                while self._attended and not self._after:
                    self._take(PATIENCE)
            self._pass_on()
            self.call_after()

    def cancel(self, _future: Any, *, running: bool = False) -> bool:  # noqa: ARG002
        """A call that was made is not taken back."""
        return False

    def running(self, _future: Any) -> bool:
        """Nobody knows."""
        return False


def _attend_forever(line: weakref.ref[Line], wanted: threading.Event) -> None:
    """The line's own thread; ends when the line is gone."""
    while True:
        wanted.wait()
        wanted.clear()
        here = line()
        if here is None or here.forked:
            return
        here.collect_attended()
        del here


def _wake(wanted: threading.Event, _gone: object) -> None:
    wanted.set()


def _after_fork() -> None:
    for line in tuple(_lines):
        line.forked = True
    _lines.clear()


os.register_at_fork(after_in_child=_after_fork)
