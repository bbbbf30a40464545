"""Who collects results: whoever waits for one, else the collector thread.

    a thread in `wait`      takes the turn as the foreground: drains the rings, sleeps on the bell, drains
    the collector thread    does so when nobody waits; looks at the deadlines; calls what others have left to it

A drain settles all records and buries all who have died (`settlement.py`). What it asks to have called is called by
whoever comes out of it, without locks (`aftermath.py`).

Invariants:
    one thread at a time has the turn; whoever drains has it and the lock
    a drain that was interrupted is known by `_draining`, and the next one mends what it left
If a process dies: a worker: the next drain buries it.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from importlib import import_module
from typing import TYPE_CHECKING, Final

from manycore import errors
from manycore._engine import log_sink
from manycore._engine.aftermath import condition_of, lock_of, sleep_on, wake
from manycore._engine.calls import Line
from manycore._launch.flag import Flag
from manycore._native.ring import SHIELD, TaskRing, Turn, now_ns
from manycore._native.step import NESTED, Mutex, inside
from manycore.errors import PoolClosed

if TYPE_CHECKING:
    from collections.abc import Callable

    from manycore._engine.aftermath import Aftermath
    from manycore._engine.dispatch import Dispatcher
    from manycore._engine.mapping import MapRun
    from manycore._engine.outbox import Outbox
    from manycore._engine.settlement import Settlement
    from manycore._engine.workforce import Workforce

__all__ = ["Collecting"]

# How long a thread that wants to collect waits for the collector, which is done in microseconds.
DRAIN_SECONDS: Final = 0.00005

# When the collector imports what errors of deaths are made of, which takes 15 ms: not before a program that only wants
# a result soon has it.
SETTLED_NS: Final = 100_000_000

# How long a wait goes on until an ending engine is over, which is for ever in a callback of the thread that ends it.
LAST_SECONDS: Final = 5.0


class Collecting(Line):
    """The part of an engine that collects."""

    _tasks: TaskRing
    _turn: Turn
    _workforce: Workforce
    _settlement: Settlement
    _dispatcher: Dispatcher
    _after: Aftermath
    _lock: Mutex
    outbox: Outbox
    _abandoned: bool
    _unattended: bool
    _ended: bool
    _parted: str
    name: str

    if TYPE_CHECKING:

        def terminate(self) -> None: ...
        def _end(self, *, kill: bool) -> None: ...

    def __init__(self) -> None:
        self._broken: BaseException | None = None
        self._watched_until: int | None = None  # ns; when the collector looks at the deadlines next
        self._runs: dict[int, weakref.ref[MapRun]] = {}  # by id: maps that will send more
        self._draining = False  # left standing by a drain that was interrupted
        self._torn = False  # and the result that it had in its hands is still to be looked for
        self._idle = condition_of(Mutex())  # notified when nothing is outstanding, and at the end
        self._over = Flag()  # set once everything has been given back
        self._ender = 0  # the thread that ends the engine, or has ended it

    def wait(
        self, ready: Callable[[], bool], condition: Callable[[], threading.Condition], deadline: float | None
    ) -> bool:
        """Collect results until `ready()`; False at the deadline.

        Args:
            ready: Becomes true by what is collected.
            condition: Notified when `ready` may have become true; for the time that another thread collects.
            deadline: On `time.monotonic`; None = never.

        Raises:
            RuntimeError: This thread is in the middle of a step, which nobody else could end.
        """
        if inside() and not ready():
            raise RuntimeError(NESTED)
        deadline_ns = None if deadline is None else int(deadline * 1e9)
        while not ready():
            if self._parted:  # at the interpreter's end its other threads wait on, and say nothing
                self._over.wait(0.0 if SHIELD.main else LAST_SECONDS)
                raise PoolClosed(self._parted)
            if self._ended:  # what was submitted in the last moment fails before it is over
                self.call_after()
                if self._ender == threading.get_ident():  # in the middle of that, or after it
                    return ready()
                self._over.wait(LAST_SECONDS if deadline is None else min(LAST_SECONDS, deadline - time.monotonic()))
                return ready()
            with self._turn as mine:
                if mine:
                    self._collect_until(ready, deadline_ns)
            self.call_after()
            if self._settlement.logged:  # what a task has logged is there before its result
                self._settlement.logged = False
                log_sink.catch_up()
            if ready():
                if SHIELD.main:
                    self._after.catch_up(deadline)
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
            if mine:
                continue
            if self._turn.foreground:
                sleep_on(condition(), ready, deadline)
            else:
                time.sleep(DRAIN_SECONDS)  # the collector is at it
        return True

    def step_aside(self) -> None:
        """If this thread has the turn, as in a handler that came while it collected, give it up: it waits otherwise."""
        self._turn.abandon()

    def _collect_until(self, ready: Callable[[], bool], deadline_ns: int | None) -> None:
        """As the foreground: drain until `ready()`, until there is something to call, or until the deadline."""
        tasks, workforce = self._tasks, self._workforce
        while not self._ended:
            alarms = self._turn.alarms()
            if alarms is None:
                return
            self._drain()
            if self._after.due or ready():
                return
            if not tasks.wait(workforce.rings, alarms, deadline_ns, self._turn):
                self._drain()
                return

    def _collect_forever(self) -> None:
        """The collector thread."""
        tasks, turn = self._tasks, self._turn
        alarms = 0
        settled: int | None = now_ns() + SETTLED_NS
        while not self._ended:
            try:
                again = self._look_again()
            except Exception as error:  # as below
                self._give_up(error)
                again = None
            if settled is not None:
                again = settled if again is None else min(again, settled)
            tasks.wait_background(self._workforce.rings, alarms, again)
            alarms = tasks.alarms()
            if settled is not None and now_ns() >= settled:
                settled = None
                try:
                    import_module("manycore._standard_errors")  # so that the first death is told as soon as any other
                except Exception:  # the interpreter is ending
                    pass
            if self._abandoned:
                self.terminate()
                return
            if self._unattended and self._nothing_left():
                self._end(kill=False)
                return
            if turn.take():
                try:
                    self._drain()
                except Exception as error:  # a bug of ours, or a ring that a task has written into: no hang at least
                    self._give_up(error)
                finally:
                    turn.give()
            try:
                self.call_after()
            except BaseException:  # a callback's: it is told, and the collector goes on
                sys.excepthook(*sys.exc_info())

    def call_after(self) -> None:
        """Call what results and deaths asked for; without locks."""
        if self._after.call() and self._turn.foreground:
            self._tasks.alarm()  # what it waits for may be there now

    def _drain(self) -> None:
        """Settle all records and all deaths. Whose turn it is."""
        interrupted, self._draining, asked = self._draining, True, self._after.asked
        with self._lock:
            for worker in tuple(self._workforce.workers.values()):
                if worker.inbox or not worker.ring.empty():
                    self._settlement.empty(worker)
            if self._workforce.dead or interrupted or self._torn or self._settlement.reason is not None:
                with SHIELD:
                    self._bury_and_mend(interrupted)
            self.pump()
        self._settlement.litter.clear()
        if self._after.asked != asked and SHIELD.main:
            self._tasks.alarm()  # the collector calls that
        if self._unattended and self._nothing_left():
            self._tasks.alarm()  # the collector ends what nobody attends to
            with lock_of(self._idle):
                wake(self._idle)
        self._draining = False

    def _bury_and_mend(self, interrupted: bool) -> None:
        dead = self._workforce.dead
        while dead:
            self._settlement.bury(dead[0], self._goes_on)
            dead.popleft()
            self._unmanned = self._dispatcher.vacant
        if self._settlement.reason is not None:
            self._break(self._settlement.reason)
        if interrupted or self._torn:
            self._torn = not self._settlement.reconcile()
            if self._torn:
                self._tasks.alarm()

    def _nothing_left(self) -> bool:
        return not (self._dispatcher.outstanding or self._settlement.owed or (self._runs and self._broken is None))

    def _break(self, reason: BaseException) -> None:
        """Give up: fail everything that is outstanding, end the workers."""
        if self._broken is None:
            self._broken = reason
            self._closed = True
            self._fail_all()
            self._workforce.kill()

    def _give_up(self, error: Exception) -> None:
        reason = errors.PoolBroken(f"pool {self.name!r} gives up: {error!r}")
        reason.__cause__ = error
        with self._lock:
            self._break(reason)

    def _goes_on(self) -> bool:
        """Whether a dead worker's place is to be filled."""
        needed = not self._closed or self._dispatcher.outstanding > 0
        return needed and not self._ended and self._broken is None and self._settlement.reason is None

    def _fail_all(self, error: BaseException | None = None) -> None:
        """Fail every item that has no result."""
        error = self._broken or error or PoolClosed(f"pool {self.name!r} was terminated")
        for task in self._dispatcher.tasks():
            self._settlement.fail(task, error)

    # Deadlines

    def _watch(self, until_ns: int) -> None:
        """The collector must look at the deadlines by then."""
        if self._watched_until is None or until_ns < self._watched_until:
            self._watched_until = until_ns
            self._tasks.alarm()

    def _look_again(self) -> int | None:
        """What the collector does before it sleeps; returns when to do it again (ns)."""
        again, rest = self._watch_deadlines(), self.outbox.tend()
        return min(again, rest) if again is not None and rest is not None else again if rest is None else rest

    def _watch_deadlines(self) -> int | None:
        """Do what is due: end what runs too long, go on with what has waited; returns when to look again (ns)."""
        with self._lock:
            self._watched_until = self._settlement.tick(fill=self._goes_on())
            self.pump()
            return self._watched_until
