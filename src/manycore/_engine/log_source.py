"""A worker's side of its logs: records and warnings, on their way to the parent's handlers.

    logging.Handler -> a plain dict -> marshal -> a record of the worker's result ring -> parent: log_sink.py
    warnings.showwarning ^

`logging` is not imported for it: once a task's code has imported it, its root logger gets the one handler, and its
levels become what the parent's were when the worker was started. A record that meets another handler on its way, one
that an initializer or a task has put there, is not sent: it has been handled. The handlers that a forked worker has
inherited are the parent's, and are taken off.

What cannot be sent at once (the parent's handlers are slow) holds the task that logs up, for PATIENCE at the most; what
is lost after that is counted, and the next record that can be sent says so.

If a process dies: a record is in the ring as a whole or not at all: one is lost at the most.
A process that a task forks has the handler and not the ring: its warnings and errors go to standard error.
"""

from __future__ import annotations

import functools
import marshal
import os
import sys
import time

from manycore._engine import frames, here
from manycore._engine.imports import when_imported
from manycore._native.ring import now_ns

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any, Final

    from manycore._native.ring import ResultRing, TaskRing

__all__ = ["Levels", "LogSource", "forward", "parents_levels"]

Levels = tuple[int, int, dict[str, int]]
"""What the parent's `logging` lets pass: the root's level, `logging.disable`'s, and those of named loggers."""

AHEAD: Final = 1000  # records that a worker may have sent and the parent not handled: some 300 KB
PATIENCE_NS: Final = 2_000_000_000  # how long a record waits for room
LONGEST: Final = 6000  # characters of a message or a traceback: a record must fit into one piece of the ring
WARNING: Final = 30  # logging.WARNING


class LogSource:
    """Sends a worker's records.

    Args:
        index: The worker's.
        pool: Its pool's name.
        tasks, results: Its rings.
    """

    def __init__(self, index: int, pool: str, tasks: TaskRing, results: ResultRing) -> None:
        self._index = index
        self._pool = pool
        self._tasks = tasks
        self._results = results
        self._pid = os.getpid()
        self._sent = 0
        self._lost = 0
        self._stuck_at = -1  # what had been handled when a record was given up; until that changes, none waits

    def is_here(self) -> bool:
        """Whether this is the worker, and not a child of it."""
        return os.getpid() == self._pid

    def send(self, state: dict[str, Any]) -> None:
        """Send a record's attributes. From any thread."""
        task = here.current_task()
        state["manycore_pool"] = self._pool
        state["manycore_worker"] = self._index
        state["manycore_task"] = None if task is None else task.id
        state["manycore_function"] = None if task is None else task.function
        if state.get("processName", "MainProcess") == "MainProcess":
            state["processName"] = f"PoolWorker-{self._index + 1}"
        if self._lost:
            state["manycore_lost"] = self._lost
        data = _dump(state)
        end = now_ns() + PATIENCE_NS
        while not self._offer(data):
            heard = self._tasks.heard(self._index)
            if heard == self._stuck_at or now_ns() > end:
                self._stuck_at = heard
                self._lost += 1
                return
            self._tasks.notify(True)
            time.sleep(0.001)
        self._lost = 0
        self._tasks.notify(True)

    def _offer(self, data: bytes) -> bool:
        if self._sent - self._tasks.heard(self._index) >= AHEAD:
            return False
        if not self._results.offer(0, 0, frames.LOG, data):
            return False
        self._sent += 1
        return True


def _dump(state: dict[str, Any]) -> bytes:
    """A record's attributes as bytes; what is not plain becomes its `repr`, what is too long is cut."""
    try:
        data = marshal.dumps(state)
        if len(data) <= 4 * LONGEST:
            return data
    except ValueError:
        pass
    return marshal.dumps({str(name): _plain(value) for name, value in state.items()})


def _plain(value: Any) -> Any:
    if type(value) not in (str, int, float, bool, type(None)):
        try:
            value = repr(value)
        except Exception as error:
            value = f"<{type(value).__qualname__}, whose repr raised {type(error).__name__}>"
    if type(value) is str and len(value) > LONGEST:
        value = f"{value[:LONGEST]}... ({len(value) - LONGEST} characters more)"
    return value


def forward(source: LogSource, levels: Levels | None, only: int | None, forked: bool) -> None:
    """Send this process's records and warnings from now on.

    Args:
        source: Where to.
        levels: The parent's, where it has any.
        only: Send what has this level or a higher one, whatever the parent's levels were.
        forked: Whether this process was forked from the parent.
    """
    if forked and "logging" in sys.modules:
        _take_off(sys.modules["logging"])
    when_imported("logging", functools.partial(_attach, source, levels, only))
    when_imported("warnings", functools.partial(_attach_warnings, source))


def _take_off(logging: Any) -> None:
    """Take all handlers off all loggers, so that all records come to the root's; the parent's loggers stop them."""
    for logger in (logging.root, *tuple(logging.root.manager.loggerDict.values())):
        if isinstance(logger, logging.Logger):
            logger.handlers = [handler for handler in logger.handlers if type(handler) is logging.NullHandler]
            logger.propagate = True


def _is_handled(logging: Any, record: Any, own: Any) -> bool:
    """Whether the record has met another handler on its way to the root."""
    logger = logging.getLogger(record.name)
    while logger is not None:
        for handler in logger.handlers:
            if handler is not own and type(handler) is not logging.NullHandler and record.levelno >= handler.level:
                return True
        logger = logger.parent if logger.propagate else None
    return False


def _attach(source: LogSource, levels: Levels | None, only: int | None, logging: Any) -> None:
    root = logging.root

    class Forwarder(logging.Handler):  # type: ignore[misc]
        """Sends what nobody else here takes."""

        def emit(self, record: Any) -> None:
            if _is_handled(logging, record, self):
                return
            if not source.is_here():
                if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                    logging.lastResort.handle(record)
                return
            try:
                source.send(_state(logging, record))
            except Exception:
                self.handleError(record)

    handler = Forwarder()
    root.addHandler(handler)
    if only is not None:
        root.setLevel(only)
    elif levels is not None:
        level, disabled, named = levels
        root.setLevel(level)
        logging.disable(disabled)
        for name, level in named.items():
            logging.getLogger(name).setLevel(level)
    configure = logging.basicConfig

    @functools.wraps(configure)
    def basic_config(**options: Any) -> None:
        """As logging's: a root logger that has our handler alone counts as one without."""
        if root.handlers == [handler]:
            root.removeHandler(handler)
        configure(**options)

    logging.basicConfig = basic_config


def _state(logging: Any, record: Any) -> dict[str, Any]:
    """A record's attributes, its message and its traceback being text."""
    state = dict(record.__dict__)
    try:
        state["msg"] = record.getMessage()
    except Exception as error:
        state["msg"] = f"{record.msg!r} % {record.args!r} ({type(error).__name__}: {error})"
    state["args"] = None
    if record.exc_info and not record.exc_text:
        state["exc_text"] = logging._defaultFormatter.formatException(record.exc_info)
    state["exc_info"] = None
    return state


def _attach_warnings(source: LogSource, warnings: Any) -> None:
    show = warnings.showwarning

    @functools.wraps(show)
    def send(
        message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None
    ) -> None:
        """As warnings.showwarning, to the parent's logger "py.warnings"."""
        if file is not None or not source.is_here():
            show(message, category, filename, lineno, file, line)
            return
        text = warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n")
        module = os.path.basename(filename).partition(".")[0]
        now = time.time()
        source.send(
            {
                "name": "py.warnings",
                "levelno": WARNING,
                "levelname": "WARNING",
                "msg": text,
                "args": None,
                "pathname": filename,
                "filename": os.path.basename(filename),
                "module": module,
                "lineno": lineno,
                "created": now,
                "msecs": now % 1 * 1000,
                "process": os.getpid(),
                "category": category.__name__,
            }
        )

    warnings.showwarning = send


def parents_levels() -> Levels | None:
    """In the parent: what its `logging` lets pass now; None while it has not imported it."""
    logging = sys.modules.get("logging")
    if logging is None or not hasattr(logging, "root"):
        return None
    manager = logging.root.manager
    named = {
        name: logger.level
        for name, logger in tuple(manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and logger.level
    }
    return logging.root.level, manager.disable, named
