"""What pools give: results of calls and of maps, and the ways to take a map's.

AsyncResult, MapResult   a call, or a map that nobody consumes while it runs
IMapIterator, outcomes   a map that is consumed step by step
gather                   a map that is consumed at once
"""

from __future__ import annotations

import builtins
import contextlib
import threading
import time
from concurrent.futures._base import CANCELLED_AND_NOTIFIED
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from manycore import errors
from manycore._engine.future import Future
from manycore._engine.outcomes import Failure, Outcome
from manycore._launch.flag import Flag
from manycore._native.step import NESTED, inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from manycore._engine.background import BackgroundRun
    from manycore._engine.local import Engine
    from manycore._engine.mapping import MapRun
    from manycore._engine.outcomes import Block

__all__ = [
    "AsyncResult",
    "Callbacks",
    "IMapIterator",
    "MapIterator",
    "MapResult",
    "OnError",
    "add_results",
    "gather",
    "outcomes",
    "reporter_of",
]

T = TypeVar("T")
OnError = Literal["raise", "collect", "skip"]


class AsyncResult(Future[T]):
    """The result of `apply_async`: `multiprocessing.pool.AsyncResult`, which can also be awaited.

    As there, it is ready when its callback has returned.
    """

    __slots__ = ()

    _callback: Callbacks | None = None

    def ready(self) -> bool:
        """Whether the call is over."""
        return self.done() and (self._callback is None or self._callback.wait(0))

    def successful(self) -> bool:
        """Whether the call returned, rather than raised.

        Raises:
            ValueError: It is not over.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return not self.cancelled() and self.exception() is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call is over, or `timeout` seconds have passed."""
        if self._callback is None:
            if not self.done():
                with contextlib.suppress(builtins.TimeoutError):
                    self._wait(timeout)
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self.done():
            with contextlib.suppress(builtins.TimeoutError):
                self._wait(timeout)
        if self.done():
            if self._owner is not None:  # a callback may wait for a result whose own is this thread's next to call
                self._owner.call_after()
                if not self._callback.wait(0):
                    self._owner.step_aside()
            self._callback.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def get(self, timeout: float | None = None) -> T:
        """What the call returned; its exception is raised here.

        Args:
            timeout: Seconds to wait at the most; None waits as long as it takes.

        Raises:
            multiprocessing.TimeoutError: It was not over in time. It goes on.
        """
        self.wait(timeout)
        if not self.ready():
            raise errors.TimeoutError(f"no result within {timeout} s; the call goes on")
        return self.result()


class CallingResult(AsyncResult[T]):
    """One that has callbacks to call."""

    __slots__ = ("_callback",)


class MapResult(AsyncResult[list[T]]):
    """The result of `map_async` and `starmap_async`."""

    __slots__ = ("_callback", "_run")

    _run: BackgroundRun

    def cancel(self, *, running: bool = False) -> bool:
        """End the map: nothing more is sent, and what no worker has begun is taken back.

        Args:
            running: Also the items that run: their workers are killed, and replaced.

        Returns:
            Whether it is cancelled; False when it was over.
        """
        if not self.done():
            self._run.abandon(running=running)
            for callback in self._finish(CANCELLED_AND_NOTIFIED, None, None, None):
                self._call(callback)
        return self.cancelled()


class IMapIterator:
    """Results of `imap`, as they come. `next(timeout)` bounds one step; `async for` takes them in an event loop.

    An iterator that is dropped reads no more of the input and sends nothing more.
    """

    def __init__(self, run: MapRun, on_error: OnError) -> None:
        self._run = run
        self._on_error = on_error
        run.start()

    def __iter__(self) -> Self:
        return self

    def next(self, timeout: float | None = None) -> Any:
        """The next result.

        Args:
            timeout: Seconds to wait at the most; None waits as long as it takes.

        Raises:
            StopIteration: There are no more.
            multiprocessing.TimeoutError: There was none in time; another call may get it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                outcome = self._run.next_outcome(deadline)
            except builtins.TimeoutError:
                raise errors.TimeoutError(f"no result within {timeout} s") from None
            if outcome is None:
                self.close()
                raise StopIteration
            place, given = self._give(outcome)
            if given:
                return place

    def _give(self, outcome: Outcome) -> tuple[Any, bool]:
        """What to give for an outcome, and whether to give anything."""
        if outcome.error is None or self._on_error == "raise":
            return outcome.give(), True
        if self._on_error == "collect":
            return Failure(outcome.index, outcome.item, outcome.error), True
        return None, False

    def __next__(self) -> Any:
        return self.next()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while True:
            outcome = await _awaiting().next_outcome(self._run)
            if outcome is None:
                self.close()
                raise StopAsyncIteration
            place, given = self._give(outcome)
            if given:
                return place

    def close(self) -> None:
        """Read and send nothing more."""
        self._run.abandon()

    def __del__(self) -> None:
        run = getattr(self, "_run", None)
        if run is not None:
            run.forget()


class MapIterator:
    """The results of an executor's `map`: an iterator, and an asynchronous one.

    Args:
        results: Gives the results.
        run: The map.
        deadline: When waiting for the next result raises TimeoutError; on `time.monotonic`.
    """

    __slots__ = ("_deadline", "_results", "_run")

    def __init__(self, results: Iterator[Any], run: MapRun, deadline: float | None) -> None:
        self._results = results
        self._run = run
        self._deadline = deadline

    def __iter__(self) -> Iterator[Any]:
        return self._results

    def __next__(self) -> Any:
        return next(self._results)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        outcome = await _awaiting().next_outcome(self._run, self._deadline)
        if outcome is None:
            self._run.forget()
            raise StopAsyncIteration
        return outcome.give()

    def close(self) -> None:
        """Read and send nothing more."""
        self._run.abandon()


def _awaiting() -> Any:
    """What waits in event loops; it imports asyncio, which a program without one has no use for."""
    return import_module("manycore._engine.awaiting")


class Callbacks:
    """Tells the callbacks of `apply_async` and `map_async` of a future's end."""

    __slots__ = ("_called", "_caller", "callback", "error_callback")

    def __init__(
        self, callback: Callable[[Any], object] | None, error_callback: Callable[[BaseException], object] | None
    ) -> None:
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable, not {callback!r}")
        if error_callback is not None and not callable(error_callback):
            raise TypeError(f"error_callback must be callable, not {error_callback!r}")
        self.callback = callback
        self.error_callback = error_callback
        self._caller = 0
        self._called = Flag()  # set when they have returned

    def __call__(self, future: Future[Any]) -> None:
        self._caller = threading.get_ident()
        try:
            if future.cancelled():
                return
            error = future.exception()
            if error is None:
                if self.callback is not None:
                    self.callback(future.result())
            elif self.error_callback is not None:
                self.error_callback(error)
        finally:
            self._called.set()

    def wait(self, timeout: float | None) -> bool:
        """Whether they have returned, within `timeout` seconds. For them, who may ask too, it is as if they had."""
        if self._called.is_set() or self._caller == threading.get_ident():
            return True
        if timeout != 0 and inside():
            raise RuntimeError(NESTED)
        return self._called.wait(timeout)


def outcomes(run: MapRun) -> Iterator[Outcome]:
    """What became of each item of a run; dropping the iterator ends the reading and sending."""
    try:
        while (outcome := run.next_outcome()) is not None:
            yield outcome
    finally:
        run.forget()


def gather(run: MapRun, on_error: OnError) -> list[Any]:
    """All results of a run, in order. With on_error="raise", a whole run's first error is raised when it is over.

    KeyboardInterrupt ends the items that run as well, with their workers.
    """
    __tracebackhide__ = True  # IPython, notebooks and pytest leave such frames out
    results: list[Any] = []
    try:
        while (block := run.next_block()) is not None:
            add_results(run, block, results, on_error)
        failure = run.take_failure()
        if failure is not None:
            raise failure
    except BaseException as error:
        run.abandon(running=isinstance(error, KeyboardInterrupt))  # Ctrl-C means also what runs: nobody awaits it now
        raise
    finally:
        failure = None  # no cycle with its traceback, which may hold much
    return results


def add_results(run: MapRun, block: Block, results: list[Any], on_error: OnError) -> None:
    """Add a block's results to those before it; there are none any more once a whole run has failed."""
    __tracebackhide__ = True
    if run.failed:
        results.clear()
    elif block.status is None:
        results += block.values
    else:
        for outcome in run.outcomes(block):
            if outcome.error is None:
                results.append(outcome.result)
            elif on_error == "raise":
                run.heed(outcome)
            elif on_error == "collect":
                results.append(Failure(outcome.index, outcome.item, outcome.error))


def reporter_of(progress: Any, total: int | None, engine: Engine) -> Any:
    """What is told of a map's progress; None where nobody is to be."""
    if not progress:
        return None
    start_progress = import_module("manycore._observe.progress").start_progress  # most maps show none
    return start_progress(progress, total=total, status=engine.load)
