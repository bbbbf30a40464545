"""`supervise` and `Supervisor`: long-lived processes that are started again when they end, within a budget.

If a process dies: it is started again as its `restart` says ("always", "on-failure", "never"); with the
    strategy "all_for_one" its siblings are stopped, last first, and all are started again, in order.
    More than `max_restarts` restarts in `within` seconds: all are stopped, and `wait` raises. So it is where
    `backoff` raises, or a process cannot be started again: then `wait` raises that error.
Source: Erlang/OTP's supervisors.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.process import _children  # type: ignore[attr-defined]
from types import TracebackType
from typing import Any, Literal, Self

from manycore import context as _context
from manycore._engine.aftermath import sleep_on
from manycore._launch.arguments import integer, seconds
from manycore._launch.watch import Watcher
from manycore._native.ring import SHIELD
from manycore.errors import RestartLimitExceeded

__all__ = ["Supervisor", "supervise"]

_GRACE_S = 2.0  # from SIGTERM to SIGKILL
_MAX_BACKOFF_S = 60.0

Restart = Literal["on-failure", "always", "never"]


class _Child:
    """One place in a supervisor: what is run there, and the process that runs it now."""

    def __init__(self, target: Callable[..., object], args: Any, kwargs: Any, restart: Restart, name: str) -> None:
        self.target = target
        self.args = args
        self.kwargs = kwargs
        self.restart = restart
        self.name = name
        self.process: Any = None
        self.popen: Any = None  # what knows its end, also once the process object is closed
        self.finished = False  # it ended, and is not to be started again
        self.stopping = False  # its end was asked for


class Supervisor:
    """Keeps processes running.

    Args:
        strategy: "one_for_one" starts again what ended; "all_for_one" starts all again when one ends.
        restart: What ends is started again: "on-failure" (an exit code that is not 0), "always" or "never".
        max_restarts: The budget: so many restarts within `within` seconds are borne.
        within: Seconds.
        backoff: Seconds before a restart; doubled for each further one within `within`. Or who is asked for them,
            with the number of restarts within `within`, from 1.
        grace: Seconds from SIGTERM to SIGKILL for what is stopped.
        context: How processes are started: the context of a start method, or None for the default.

    **If a process dies:** see the module. **Process-safety:** for the process that made it alone; its threads
    may share it.
    """

    def __init__(
        self,
        *,
        strategy: Literal["one_for_one", "all_for_one"] = "one_for_one",
        restart: Restart = "on-failure",
        max_restarts: int = 3,
        within: float = 5.0,
        backoff: float | Callable[[int], float] = 0.0,
        grace: float = _GRACE_S,
        context: Any = None,
    ) -> None:
        if strategy not in {"one_for_one", "all_for_one"}:
            raise ValueError(f"strategy must be 'one_for_one' or 'all_for_one', not {strategy!r}")
        self._strategy = strategy
        self._restart = _checked(restart)
        self._max_restarts = integer("max_restarts", max_restarts, least=0)
        self._within = math.inf if within == math.inf else seconds("within", within)
        if not self._within:
            raise ValueError(f"within must be more than 0 seconds, not {within!r}")
        self._backoff = backoff if callable(backoff) else seconds("backoff", backoff)
        self._grace = seconds("grace", grace)
        self._context = _context.get_context() if context is None else context
        self._restarts: deque[float] = deque()
        self._total = 0
        # _lock guards the fields above and below; processes are started under it, so that a stop sees them all.
        self._lock = threading.Condition(threading.RLock())
        self._children: list[_Child] = []
        self._error: BaseException | None = None
        self._stopped = False
        self._watcher = Watcher("manycore-supervisor")

    @property
    def processes(self) -> list[Any]:
        """The processes that run now, or did last, in the order of their places."""
        with self._lock:
            return [child.process for child in self._children]

    @property
    def restarts(self) -> int:
        """How many processes have been started again."""
        return self._total

    def start(self, target: Callable[..., object], /, *args: Any, restart: Restart | None = None, **kwargs: Any) -> Any:
        """Start a process that calls `target(*args, **kwargs)`, and keep it running.

        Args:
            target: What it calls.
            args: For `target`.
            restart: As for the supervisor, for this process alone.
            kwargs: For `target`.

        Returns:
            The process that runs first.
        """
        with self._lock:
            if self._stopped:
                raise RuntimeError("the supervisor has been stopped")
            name = f"{getattr(target, '__name__', 'process')}-{len(self._children) + 1}"
            child = _Child(target, args, kwargs, self._restart if restart is None else _checked(restart), name)
            self._launch(child)
            self._children.append(child)
            return child.process

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no process runs and none will be started again.

        Args:
            timeout: In seconds; None waits as long as it takes.

        Returns:
            False if the timeout passed.

        Raises:
            RestartLimitExceeded: The budget was used up; its cause is the last failure.
            BaseException: What `backoff` raised, or what kept a process from being started again.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        done = False
        while not done:
            done = sleep_on(self._lock, self._is_over, deadline)
            if deadline is not None and time.monotonic() >= deadline:
                break
        with SHIELD, self._lock:
            if self._error is not None:
                raise self._error
        return done

    def stop(self) -> None:
        """Stop every process, last first, and start none again."""
        with self._lock:
            self._stopped = True
            children = list(self._children)
        self._watcher.close()
        self._end(children)
        with self._lock:
            self._lock.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                try:
                    if error is None and interrupt is None:
                        self.wait()
                finally:
                    self.stop()
                break
            except KeyboardInterrupt as again:  # once more: no grace, and no second traceback
                if interrupt is not None or error is not None:
                    self._grace = 0.0
                interrupt = interrupt or again
        if interrupt is not None and not isinstance(error, KeyboardInterrupt):
            raise interrupt

    def _is_over(self) -> bool:
        if not self._stopped:
            for child in self._children:
                if not child.finished:
                    return False
        return True

    def _launch(self, child: _Child) -> None:
        child.stopping = False
        process = self._context.Process(
            target=child.target, args=child.args, kwargs=child.kwargs, name=child.name, result=True
        )
        process.start()
        popen = process._popen
        child.process, child.popen = process, popen
        self._watcher.watch_copy(popen.sentinel, lambda: self._ended(child, process, popen))

    # -- in the watcher's thread --------------------------------------------------------------------------

    def _ended(self, child: _Child, process: Any, popen: Any) -> None:
        _wait_for(process, popen)
        with self._lock:
            if self._stopped or child.stopping:
                return
            if child.restart == "never" or (child.restart == "on-failure" and popen.returncode == 0):
                child.finished = True
                self._lock.notify_all()
                return
            now = time.monotonic()
            self._restarts.append(now)
            while self._restarts[0] < now - self._within:
                self._restarts.popleft()
            count = len(self._restarts)
            siblings = [child]
            if self._strategy == "all_for_one":
                siblings = [other for other in self._children if not other.finished or other is child]
            for other in siblings:
                other.stopping = True
        if count > self._max_restarts:
            self._give_up(child, self._budget_is_used_up(child))
            return
        self._end([other for other in siblings if other is not child])
        try:
            delay = self._delay(count)
        except BaseException as error:
            self._give_up(child, error)
            return
        self._watcher.after(delay, lambda: self._start_again(siblings))

    def _delay(self, count: int) -> float:
        if callable(self._backoff):
            return seconds("what backoff() returned", self._backoff(count))
        return min(self._backoff * 2.0 ** min(count - 1, 64), _MAX_BACKOFF_S)

    def _start_again(self, children: list[_Child]) -> None:
        for child in children:
            with self._lock:
                if self._stopped:
                    return
                try:
                    self._launch(child)
                    self._total += 1
                    continue
                except BaseException as error:
                    problem = error
            self._give_up(child, problem)
            return

    def _budget_is_used_up(self, child: _Child) -> RestartLimitExceeded:
        certificate = child.popen.certificate()
        how = f"exit code {child.popen.returncode}" if certificate is None else certificate.describe()
        error = RestartLimitExceeded(
            f"{child.name} (pid {child.popen.pid}) ended ({how}) and was not started again: "
            f"more than {self._max_restarts} restarts in {self._within:g} s"
        )
        try:
            child.process._outcome.claim(child.name, child.popen)
        except Exception as failure:
            error.__cause__ = failure
        return error

    def _give_up(self, child: _Child, error: BaseException) -> None:
        """End all, outside the lock, since that can take the grace."""
        self._end([other for other in self._children if other is not child])
        with self._lock:
            self._stopped = True
            self._error = error
            self._watcher.close()
            self._lock.notify_all()

    def _end(self, children: list[_Child]) -> None:
        for child in reversed(children):
            if child.popen.poll() is None:
                child.popen.end(self._grace)
            _wait_for(child.process, child.popen)


def _wait_for(process: Any, popen: Any) -> None:
    """`process.join()`, also of one that the user closes meanwhile."""
    if popen.poll() is None:  # in most cases it has; and so nothing waits for a descriptor that is closed meanwhile
        popen.wait()
    _children.discard(process)


def supervise(
    target: Callable[..., object],
    /,
    *args: Any,
    restart: Restart = "on-failure",
    max_restarts: int = 3,
    within: float = 5.0,
    backoff: float | Callable[[int], float] = 0.0,
    grace: float = _GRACE_S,
    context: Any = None,
) -> Supervisor:
    """Start a process that calls `target(*args)`, and start it again when it ends.

    Args:
        target: What it calls.
        args: For `target`.
        restart: When: "on-failure" (an exit code that is not 0), "always" or "never".
        max_restarts: The budget: so many restarts within `within` seconds are borne.
        within: Seconds.
        backoff: Seconds before a restart; doubled for each further one within `within`. Or who is asked for them,
            with the number of restarts within `within`, from 1.
        grace: Seconds from SIGTERM to SIGKILL when it is stopped.
        context: How it is started: the context of a start method, or None for the default.

    Returns:
        Its supervisor: `wait()` waits for its end for good, `stop()` makes that; also a context manager.
    """
    supervisor = Supervisor(
        restart=restart, max_restarts=max_restarts, within=within, backoff=backoff, grace=grace, context=context
    )
    try:
        supervisor.start(target, *args)
    except BaseException:
        supervisor.stop()
        raise
    return supervisor


def _checked(restart: Restart) -> Restart:
    if restart not in {"on-failure", "always", "never"}:
        raise ValueError(f"restart must be 'on-failure', 'always' or 'never', not {restart!r}")
    return restart
