"""`select`: wait for several things at once, of whatever kind.

    queue, channel                there is an item, or it was shut down: `get` does not wait
    channel.sending(item)         the item has been sent
    channel.receiving()           an item has been received, and is in `.item`
    event                         it is set, or was set meanwhile
    future, AsyncResult           it is over (any `concurrent.futures.Future`)
    process                       it has ended
    connection, socket, a number  there is something to read, or the other side is gone

Each source is asked once; when nothing is ready, this thread sleeps in one `poll` of a bell (`_memory/bells.py`) and
of the descriptors. There is no thread behind it, and nothing is looked at again before something has changed.

"Ready" is what it was when `select` looked: where several take from one queue, `get` may find it empty after all, so
take with `get_nowait`. `sending` and `receiving` do what they wait for, and so leave no gap.

Invariants:
    a call returns at most one source that does something (sending, receiving), and then that one alone
    the order in which sources are asked begins with another at each call, so none is always behind the others
    the timeout bounds the whole call, by the monotonic clock
If a process dies: one that waits is nothing to the others. One that was to wake this one, and had not yet, delays
    it for a quarter of a second.
Unlike multiprocessing.connection.wait: queues, events and futures, and not only what has a descriptor.
Source: Go's `select`, Plan 9's `alt`.
"""

from __future__ import annotations

import itertools
import math
import select as _poll
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from manycore._memory import bells
from manycore._memory.bells import Bell, Case

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["select"]

_turn = itertools.count()
_READABLE = _poll.POLLIN | _poll.POLLPRI
_LONGEST_POLL_S = 86_400.0  # poll's milliseconds are an int


class _Descriptor(Case):
    """Something with a descriptor; whether it is ready, `poll` says."""

    __slots__ = ("fd",)

    def __init__(self, source: Any, fd: int) -> None:
        super().__init__(source)
        self.fd = fd


# future -> the bells of those who wait for it. A callback cannot be taken back, so each future gets one at most.
_awaited: weakref.WeakKeyDictionary[Any, set[Bell]] = weakref.WeakKeyDictionary()
_awaited_lock = threading.RLock()  # guards it; re-entered when a future is over already, and when one is finalized


class _Future(Case):
    """A future; its callback rings."""

    __slots__ = ("bell",)

    bell: Bell

    def ready(self) -> bool:
        """Whether it is over."""
        return bool(self.source.done())

    def watch(self, bell: Bell) -> bool:
        """Have the bell rung by the future's callback."""
        self.bell = bell
        with _awaited_lock:
            waiting = _awaited.get(self.source)
            if waiting is None:
                waiting = _awaited[self.source] = set()
                first = True
            else:
                first = False
            waiting.add(bell)
        if first:
            self.source.add_done_callback(_is_over)
        return True

    def unwatch(self) -> None:
        """Have it rung no more."""
        with _awaited_lock:
            waiting = _awaited.get(self.source)
            if waiting is not None:
                waiting.discard(self.bell)


def _is_over(future: Any) -> None:
    with _awaited_lock:
        for bell in _awaited.pop(future, ()):
            bell.ring()


def _case_of(source: Any) -> Case:
    make = getattr(source, "_select_case", None)
    if make is not None:
        case: Case = make()
        return case
    if hasattr(source, "add_done_callback") and hasattr(source, "done"):
        return _Future(source)
    if isinstance(source, int) and not isinstance(source, bool):
        return _Descriptor(source, source)
    if hasattr(source, "fileno"):
        return _Descriptor(source, source.fileno())
    if hasattr(source, "sentinel"):
        return _Descriptor(source, source.sentinel)
    raise TypeError(
        f"cannot wait for {source!r}: a queue, channel, event, future, process, connection, or what has fileno()"
    )


class _Waiter:
    """One call of `select`."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = cases
        self.poller: Any = None
        self.descriptors = [case.fd for case in cases if isinstance(case, _Descriptor)]
        if self.descriptors:
            self.poller = _poll.poll()
            for fd in self.descriptors:
                self.poller.register(fd, _READABLE)

    def look(self) -> list[Any]:
        """What is ready, in order."""
        open_now = {fd for fd, _ in self.poller.poll(0)} if self.descriptors else ()
        found = []
        for case in self.cases:
            if isinstance(case, _Descriptor):
                if case.fd in open_now:
                    found.append(case.source)
            elif case.performs and found:
                continue
            elif case.ready():
                found.append(case.source)
                if case.performs:
                    break
        return found

    def wait(self, deadline: float | None) -> list[Any]:
        """Sleeps until something is ready, or the time has come."""
        watched: list[Case] = []
        period = bells.LOOK_SECONDS
        with bells.borrow() as bell:
            if self.poller is None:
                self.poller = _poll.poll()
            self.poller.register(bell.fd, _READABLE)
            try:
                for case in self.cases:
                    if isinstance(case, _Descriptor):
                        continue
                    watched.append(case)
                    if not case.watch(bell):
                        period = bells.LOOK_OFTEN_SECONDS
                if not watched:
                    period = _LONGEST_POLL_S
                while True:
                    for case in watched:
                        case.arm()
                    found = self.look()
                    if found:
                        return found
                    left = period if deadline is None else min(period, deadline - time.monotonic())
                    if left <= 0:
                        return []
                    self.poller.poll(left * 1000 + 1)
                    bell.empty()
            finally:
                for case in watched:
                    case.unwatch()


def select(*sources: Any, timeout: float | None = None) -> list[Any]:
    """Wait until one of several things is ready.

    Args:
        sources: Queues, channels and their cases, events, futures, processes, connections, and whatever has
            `fileno()` or is a descriptor.
        timeout: Seconds to wait at most; 0 looks and returns, None waits as long as it takes.

    Returns:
        The sources that are ready; empty when the time was up. Which comes first changes from call to call. A
        channel's `sending` or `receiving` comes alone, and has been done.

    Raises:
        TypeError: One of them is nothing to wait for.
        ValueError: There are none, or one of them is closed here.

    Process-safety: any number of threads and processes may wait for the same things.
    If a process dies: those that wait for the same things notice nothing.
    """
    if not sources:
        raise ValueError("select() needs something to wait for")
    if timeout is not None and math.isnan(timeout):
        raise ValueError("a timeout is a number of seconds, not nan")
    deadline = None if timeout is None else time.monotonic() + timeout
    first = next(_turn) % len(sources)
    waiter = _Waiter([_case_of(source) for source in (*sources[first:], *sources[:first])])
    found = waiter.look()
    if found or (timeout is not None and timeout <= 0):
        return found
    return waiter.wait(deadline)
