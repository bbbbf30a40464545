"""Futures that cost little until somebody looks at them.

`concurrent.futures.Future` makes a lock and a condition for each future, which costs more than the rest of a
small task. Here the condition is made when somebody first asks for it, and a result stays the bytes that came
until somebody wants the object, in whose thread it is then unpickled: a payload that is slow or broken to
unpickle concerns nobody else.

Who waits, collects: `result()` of a future whose engine lives drains the result rings itself.

Invariants:
    `_state` changes under `_condition` where there is one, so that `concurrent.futures.wait`, which holds the
    conditions, never sees it change; where there is none, in one step (`calls.pyx`)
    `_raw` is not None  <=>  the future is FINISHED and nobody has asked for the outcome yet
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING, RUNNING
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from manycore._engine import frames
from manycore._engine.aftermath import condition_of, lock_of, sleep_on, wake
from manycore._engine.calls import Call
from manycore._engine.cargo import Parcel
from manycore._engine.death import describe_call
from manycore._engine.failure import load_failure
from manycore._memory import codec
from manycore._native.ring import SHIELD
from manycore._native.step import NESTED, Mutex, inside
from manycore.errors import RemoteTraceback, ResultLost, ResultPicklingError, TaskPicklingError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from manycore._engine.calls import Task

__all__ = ["Future", "Owner", "outcome_of"]

T = TypeVar("T")

# Seconds for which the locks of who waits for a future are waited for: some turns of the interpreter lock. Collecting
# stands still meanwhile, and who holds them for longer has a handler above.
_MOMENT = 0.02


class Owner(Protocol):
    """What a future wants of the engine that runs its task."""

    name: str

    def wait(
        self, ready: Callable[[], bool], condition: Callable[[], threading.Condition], deadline: float | None
    ) -> bool:
        """Collect results until `ready()`; False at the deadline (`time.monotonic`)."""

    def step_aside(self) -> None:
        """This thread is about to wait in a way that the engine does not know."""

    def call_after(self) -> None:
        """Call what results and deaths asked for; without locks."""

    def cancel(self, future: Future[Any], *, running: bool = False) -> bool:
        """Take the task back if no worker has begun it; if one has and `running`, kill it."""

    def running(self, future: Future[Any]) -> bool:
        """Whether a worker has the task."""


def outcome_of(status: int, data: Any, place: Callable[[], str]) -> tuple[Any, BaseException | None]:
    """Decode a record: (result, None) or (None, exception), which says what `place()` does of where it comes from."""
    if status == frames.OK:
        try:
            return (data.open() if type(data) is Parcel else codec.loads(data)), None
        except BaseException as broken:
            value, exc = f"the result of {place()}", repr(broken)
            error: BaseException = ResultPicklingError(
                f"{value} could not be rebuilt here: {exc}", value=value, exc=exc
            )
            error.__cause__ = broken
            return None, error
    where = place()
    remote, name, text = load_failure(data)
    if status == frames.RAISED and remote is not None:
        remote.__cause__ = RemoteTraceback(f"{where}\n{text}")
        return None, remote
    if status == frames.UNDECODABLE:
        why = f"{name}: {_last_line(text)}"
        error = TaskPicklingError(f"the arguments of {where} could not be rebuilt in the worker: {why}")
    elif status == frames.UNPICKLABLE:
        why = _last_line(text) if name == "manycore.errors.ResultPicklingError" else f"{name}: {_last_line(text)}"
        value = f"the result of {where}"
        error = ResultPicklingError(f"{value} could not be pickled: {why}", value=value, exc=why)
    else:
        value = f"{name}, raised by {where}"
        error = ResultPicklingError(
            f"{where} raised {name}, which could not be pickled there or rebuilt here", value=value, exc=name
        )
    error.__cause__ = RemoteTraceback(text)
    return None, error


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip() and not line.startswith("(")]
    last = lines[-1] if lines else ""
    return last.partition(": ")[2] or last


def _is_held(lock: Any) -> bool:
    """Whether a lock is kept by somebody, and not just for the moment in which another thread looks at a waiter."""
    if not hasattr(lock, "locked"):
        return False
    if SHIELD.main or not lock.acquire(timeout=_MOMENT):
        return bool(lock.locked())
    lock.release()
    return False


def _tell(waiter: Any, add: Callable[[Any], object], future: Any) -> None:
    """Tell who waits in `concurrent.futures.wait` or `as_completed`.

    A handler, or a finalizer, may have come amidst that with the waiter's locks held, in this thread or in another, and
    wait for what this one has locked: then a thread of its own waits for them.
    """
    condition = getattr(getattr(waiter, "event", None), "_cond", None)
    locks = getattr(condition, "_lock", None), getattr(waiter, "lock", None)
    if any(_is_held(lock) for lock in locks):
        threading.Thread(target=add, args=(future,), name="manycore-tell", daemon=True).start()
    else:
        add(future)


class Future(Call, concurrent.futures.Future[T]):
    """The result of a call that runs in another process. A `concurrent.futures.Future` that can also be awaited."""

    __slots__ = ()

    if TYPE_CHECKING:

        def result(self, timeout: float | None = None) -> T: ...

    # What the base class and concurrent.futures.wait and as_completed read.

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        condition = self._cond
        return self._share(condition_of(Mutex(True))) if condition is None else condition

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        if not Call.done(self):  # who asks is about to wait
            if inside(lent=False):
                raise RuntimeError(NESTED)
            if self._owner is not None:
                self._owner.step_aside()
        if self._waiting is None:
            self._waiting = []
        return self._waiting

    @property
    def _done_callbacks(self) -> list[Callable[[Any], object]]:
        if self._callbacks is None:
            self._callbacks = []
        return self._callbacks

    # States

    def running(self) -> bool:
        """Whether a worker has taken the call and is not done with it."""
        if self._state == RUNNING:
            return True
        return self._state == PENDING and self._owner is not None and self._owner.running(self)

    def cancelled(self) -> bool:
        """Whether the call was cancelled before it began."""
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def cancel(self, *, running: bool = False) -> bool:
        """Cancel the call if no worker has begun it; returns whether it is cancelled.

        Args:
            running: Also if one has: that worker is killed, and replaced. If the result is there first, it stays.
        """
        if self.cancelled():
            return True
        if self.done() or (self._owner is not None and not self._owner.cancel(self, running=running)):
            return self.cancelled()
        if self._owner is None:
            return super().cancel()
        return self.cancelled()

    def give_up(self) -> Callable[[], object]:
        """The engine has taken the call back: it is cancelled. Under its locks; returns what to call without them."""
        return partial(self._call_all, self._finish(CANCELLED_AND_NOTIFIED, None, None, None))

    # Resolving: by the engine, or by whoever made a future without one

    def _finish(
        self, state: str, result: Any, exception: BaseException | None, raw: tuple[int, Any, Any] | None
    ) -> list[Callable[[Any], object]]:
        """Move to a final state and wake who waits; returns the callbacks, which the caller runs without locks."""
        if self._settle(state, result, exception, raw, False) is not None:
            return []
        condition = self._condition
        with SHIELD, lock_of(condition):
            if not self._settle(state, result, exception, raw, True):
                return []
            try:
                for waiter in self._waiting or ():
                    if state == CANCELLED_AND_NOTIFIED:
                        _tell(waiter, waiter.add_cancelled, self)
                    elif exception is not None or (raw is not None and raw[0] != frames.OK):
                        _tell(waiter, waiter.add_exception, self)
                    else:
                        _tell(waiter, waiter.add_result, self)
            finally:
                wake(condition)
            callbacks, self._callbacks = self._callbacks, None
        return callbacks or []

    def _call(self, callback: Callable[[Any], object]) -> None:
        try:
            callback(self)
        except KeyboardInterrupt:
            raise
        except BaseException:  # also a SystemExit: it would end whoever happens to collect
            LOGGER.exception("exception calling callback for %r", self)

    def set_result(self, result: T) -> None:
        """For who made this future without an engine: the call is over and gave `result`."""
        if self.done():
            raise concurrent.futures.InvalidStateError(f"{self._state}: {self!r}")
        for callback in self._finish(FINISHED, result, None, None):
            self._call(callback)

    def set_exception(self, exception: BaseException | None) -> None:
        """For who made this future without an engine: the call is over and raised `exception`."""
        if self.done():
            raise concurrent.futures.InvalidStateError(f"{self._state}: {self!r}")
        for callback in self._finish(FINISHED, None, exception, None):
            self._call(callback)

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn(self)` when the call is over; at once when it is. In whichever thread collects the result."""
        with SHIELD, lock_of(self._condition):
            if self._state not in _OVER:
                self._done_callbacks.append(fn)
                if self._owner is not None:
                    self._owner.step_aside()
                return
        self._call(fn)

    # The sink of a call: under the engine's locks

    def take_plain(
        self, _task: Task, _item: int, values: list[Any], _took_ns: int, _worker: int
    ) -> Callable[[], object] | None:
        """The result, as it is."""
        callbacks = self._finish(FINISHED, values[0], None, None)
        return partial(self._call_all, callbacks) if callbacks else None

    def take(
        self, task: Task, _item: int, status: int, data: Any, _took_ns: int, worker: int
    ) -> Callable[[], object] | None:
        """The result or the failure, pickled."""
        place = (task.id, task.policy, task.function, self._arguments, worker)
        callbacks = self._finish(FINISHED, None, None, (status, data, place))
        return partial(self._call_all, callbacks) if callbacks else None

    def fail(self, _task: Task, _item: int, error: BaseException) -> Callable[[], object] | None:
        """There is no result and will be none."""
        callbacks = self._finish(FINISHED, None, error, None)
        return partial(self._call_all, callbacks) if callbacks else None

    def lost(self, _task: Task, error: BaseException) -> Callable[[], object] | None:
        """A result was in the hands of a thread that was interrupted."""
        return self.fail(_task, 0, error)

    def split(self, task: Task) -> None:
        """Nobody else can read its arguments: a call that may be tried again is never sent that way."""
        for callback in self._finish(FINISHED, None, ResultLost(f"task {task.id} cannot be sent again"), None):
            self._call(callback)

    def arguments(self, _task: Task, _item: int) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What the call was given, for messages; None when it was long."""
        return self._arguments

    def _call_all(self, callbacks: list[Callable[[Any], object]]) -> None:
        for callback in callbacks:
            self._call(callback)

    # Outcomes

    def _wait(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._owner is None:
            while not self.done() and (deadline is None or time.monotonic() < deadline):
                sleep_on(self._condition, self.done, deadline)
        else:
            self._owner.wait(self.done, lambda: self._condition, deadline)
        if not self.done():
            raise TimeoutError(f"no result within {timeout} s")

    def _decode(self) -> None:
        raw = self._raw
        if raw is None:
            return
        status, data, where = raw
        result, exception = outcome_of(status, data, partial(self._place, where))
        self._decoded(raw, result, exception)

    def _place(self, where: str | tuple[Any, ...]) -> str:
        """Where the call ran, for messages; most results need none, and so it is a text only here."""
        if isinstance(where, str):
            return where
        *call, worker = where
        pool = f" of pool {self._owner.name!r}" if self._owner is not None else ""
        return f"{describe_call(*call)} on worker {worker}{pool}"

    def _outcome(self, timeout: float | None) -> T:
        """What is left of `result` when the result is not there, or is not one."""
        if self._state != FINISHED:
            if not self.done():
                self._wait(timeout)
            if self.cancelled():
                raise concurrent.futures.CancelledError
        if self._raw is not None:
            self._decode()
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # noqa: PLW0642  (break the cycle with the traceback)
        value: T = self._result
        return value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or None; waits and raises as `result` does."""
        if not self.done():
            self._wait(timeout)
        if self.cancelled():
            raise concurrent.futures.CancelledError
        self._decode()
        return self._exception

    def __await__(self) -> Generator[Any, None, T]:
        result: Generator[Any, None, T] = import_module("manycore._engine.awaiting").result_of(self).__await__()
        return result


_OVER = frozenset((FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED))
