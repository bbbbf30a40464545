"""`Group`: a block that does not end while a process that was started in it runs.

      with Group() as g:        watcher thread
          g.start(f, 1)    -->  sentinel ready: exit code 0, or the first failure: cancel the rest
          g.start(f, 2)         the deadline: cancel all
      (waits here)         <--  no process runs any more

If a process dies: its group cancels the others, and raises `WorkerDied` where the block ends.
Unlike a list of processes that are joined in turn: a failure is seen at once, whichever process fails.
Source: trio's nurseries.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from manycore import context as _context
from manycore._engine.aftermath import sleep_on
from manycore._launch.arguments import seconds
from manycore._launch.watch import Watcher
from manycore.errors import TimeoutError, WorkerDied

__all__ = ["Group"]

_GRACE_S = 2.0  # from SIGTERM to SIGKILL; what a process needs to put its things in order


class Group:
    """Processes that live and die together.

    Args:
        timeout: Seconds that the block may take; then its processes are stopped and it raises `TimeoutError`.
        grace: Seconds that a process has from SIGTERM to SIGKILL when it is stopped.
        context: How processes are started: the context of a start method, or None for the default.
        name: For titles and errors.

    Raises:
        BaseException: Where the block ends: what the block itself raised, or what a process raised
            (`WorkerDied` if it died). Failures of several processes come as an `ExceptionGroup`.

    **If a process dies:** the others are stopped, and the block raises `WorkerDied`. **Process-safety:** for the
    process that made it alone; its threads may share it.
    """

    def __init__(
        self, *, timeout: float | None = None, grace: float = _GRACE_S, context: Any = None, name: str = "group"
    ) -> None:
        self.name = name
        self._grace = seconds("grace", grace)
        self._timeout = None if timeout is None else seconds("timeout", timeout)
        self._context = _context.get_context() if context is None else context
        # _lock guards the fields below it. The watcher's thread takes it too; nothing blocks under it.
        self._lock = threading.Condition()
        self._running: set[Any] = set()
        self._processes: list[Any] = []
        self._errors: list[Exception] = []
        self._cancelled = False
        self._late: list[str] | None = None  # the processes that ran when the deadline came, if it has
        self._watcher: Watcher | None = None

    def __enter__(self) -> Self:
        self._watcher = Watcher(f"manycore-{self.name}")
        if self._timeout is not None:
            self._watcher.after(self._timeout, self._expire)
        return self

    @property
    def processes(self) -> list[Any]:
        """The processes, in the order of their start."""
        with self._lock:
            return list(self._processes)

    @property
    def cancelled(self) -> bool:
        """Whether the processes were told to stop: by `cancel`, by a failure or by the deadline."""
        with self._lock:
            return self._cancelled

    def start(self, target: Callable[..., object], /, *args: Any, **kwargs: Any) -> Any:
        """Start a process that calls `target(*args, **kwargs)`.

        Returns:
            The process; its `result()` is what `target` returned.

        Raises:
            RuntimeError: The block has not begun, has ended, or was cancelled.
        """
        name = f"{self.name}-{getattr(target, '__name__', 'process')}-{len(self._processes) + 1}"
        return self.add(self._context.Process(target=target, args=args, kwargs=kwargs, name=name, result=True))

    def add(self, process: Any) -> Any:
        """Start a process object that was made elsewhere, as one of this group."""
        with self._lock:
            watcher = self._watcher
            if watcher is None:
                raise RuntimeError(f"{self.name}: processes are started within its block")
            if self._cancelled:
                raise RuntimeError(f"{self.name} was cancelled")
            self._running.add(process)  # from here on the block waits for it
            self._processes.append(process)
        try:
            process.start()
        except BaseException:
            with self._lock:
                self._running.discard(process)
                self._processes.remove(process)
                self._lock.notify_all()
            raise
        popen = process._popen  # what knows its end, also once the process object is closed
        watcher.watch_copy(popen.sentinel, lambda: self._ended(process, popen))
        if self.cancelled:  # meanwhile
            process.terminate()
        return process

    def cancel(self) -> None:
        """Stop every process: SIGTERM, and SIGKILL when `grace` has passed. The block then ends without an error."""
        with self._lock:
            if self._cancelled:
                return
            self._cancelled = True
            running = list(self._running)
            watcher = self._watcher
        for process in running:
            _signal(process, signal.SIGTERM)
        if watcher is not None:
            watcher.after(self._grace, self._kill)

    # -- in the watcher's thread --------------------------------------------------------------------------

    def _ended(self, process: Any, popen: Any) -> None:
        code = popen.poll()  # in most cases; and so nothing waits for a descriptor that is closed meanwhile
        if code is None:
            code = popen.wait()
        failed = False
        error = None if code == 0 else _error_of(process, popen, code)
        with self._lock:
            if error is not None:
                failed = not self._cancelled
                # Once a failure has stopped the rest, an end by signal or `sys.exit` is obedience.
                if failed or (self._errors and not isinstance(error, WorkerDied)):
                    self._errors.append(error)
        if failed:
            self.cancel()
        with self._lock:
            self._running.discard(process)
            self._lock.notify_all()

    def _expire(self) -> None:
        with self._lock:
            if not self._cancelled:
                self._late = [process.name for process in self._processes if process in self._running]
        self.cancel()

    def _kill(self) -> None:
        with self._lock:
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGKILL)

    # -- the end of the block -----------------------------------------------------------------------------

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        interrupt: KeyboardInterrupt | None = None
        times = 0 if error is None else 1  # that the processes were told to end
        while True:
            try:
                if times == 1:
                    self.cancel()
                elif times:  # Ctrl-C once more: no grace, and no second traceback
                    self._kill()
                self._wait()
                if self._watcher is not None:
                    self._watcher.close()
                break
            except KeyboardInterrupt as again:
                interrupt = interrupt or again
                times += 1
        self._watcher = None
        if interrupt is not None and not isinstance(error, KeyboardInterrupt):
            raise interrupt
        if error is not None:
            return
        if self._late is not None:
            who = ", ".join(self._late) or "no process"
            raise TimeoutError(f"{self.name}: stopped after {self._timeout:g} s, when {who} still ran")
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            raise ExceptionGroup(f"{self.name}: {len(self._errors)} processes failed", self._errors)

    def _wait(self) -> None:
        while not sleep_on(self._lock, lambda: not self._running, None):
            pass


def _error_of(process: Any, popen: Any, code: int | None) -> Exception:
    """Why it failed; of a process without a result, how it ended is all that is known, of a standard one less."""
    outcome = getattr(process, "_outcome", None)
    try:
        if outcome is not None:
            outcome.claim(process.name, popen)
    except Exception as error:
        return error
    certificate = popen.certificate() if hasattr(popen, "certificate") else None
    how = certificate.describe() if certificate is not None else f"exit code {code}"
    return WorkerDied(f"{process.name} (pid {popen.pid}) died: {how}", certificate)


def _signal(process: Any, signum: int) -> None:
    """SIGTERM or SIGKILL; a stopped process is continued, so that it can end."""
    try:
        if process.is_alive():
            if signum == signal.SIGKILL:
                process.kill()
            else:
                process.terminate()
                process._popen.resume()
    except (AttributeError, ValueError):  # not started yet: `add` sees to it; or closed
        pass
