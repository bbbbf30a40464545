"""The parent's side of its workers' logs: their records go to this program's own handlers.

    whoever drains a result ring                   the log thread, one a process, from the first record on
    post(): into a queue, no more       ======>    logger of that name: its level, its filters, its handlers
                                                   heard + 1 on the worker's page: so much more may it send

Handlers are the user's code, and may be slow, block, or wait for results: so none is called where results are drained.
A handler that blocks for ever costs the records that come after it and nothing else: each worker sends AHEAD records
(log_source.py) at the most before it waits, and then gives them up.

Invariants:
    the queue holds at most AHEAD records of each worker that lives or has lived since the handlers went on.
If a process dies: a worker: what it had sent is handled. The parent: what is in the queue is lost.
Unlike `logging.handlers.QueueHandler`: no set-up, no queue without bound, and the levels of this process hold.
"""

from __future__ import annotations

import marshal
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal

from manycore._engine.aftermath import condition_of, sleep_on
from manycore._native.step import Mutex

if TYPE_CHECKING:
    from manycore._native.ring import TaskRing

__all__ = ["END_SECONDS", "catch_up", "level_of", "post", "warn"]

# How long a result, and the end of a pool, wait for the records that came before to be handled: mostly it is
# microseconds, and a handler that takes longer is waited for once by each.
CATCH_UP_SECONDS: Final = 0.5
END_SECONDS: Final = 1.0

_WARNING: Final = 30  # `logging.WARNING`; a pool that starts waits for every import, and its workers for it


class _Sink:
    def __init__(self) -> None:
        self._queue: deque[tuple[TaskRing | None, int, bytes]] = deque()
        self._changed = condition_of(Mutex())  # guards the counts; the queue needs no lock
        self._posted = self._handled = 0
        self._stuck_at: dict[float, int] = {}  # by a wait's bound: what had been handled when somebody gave up
        self._thread: threading.Thread | None = None

    def post(self, tasks: TaskRing | None, worker: int, data: bytes) -> None:
        self._queue.append((tasks, worker, data))
        with self._changed:
            self._posted += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="manycore-logs", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def catch_up(self, timeout: float) -> None:
        if threading.current_thread() is self._thread:
            return
        posted, deadline = self._posted, time.monotonic() + timeout
        while self._handled < posted and self._handled != self._stuck_at.get(timeout):
            if not sleep_on(self._changed, lambda: self._handled >= posted, deadline) and time.monotonic() >= deadline:
                self._stuck_at[timeout] = self._handled

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue))
            while self._queue:
                tasks, worker, data = self._queue.popleft()
                try:
                    _handle(data)
                except Exception:  # a handler's own; those of the standard library tell of theirs
                    _tell_trouble()
                if tasks is not None:
                    tasks.hear(worker)
                del tasks, data  # not to be kept until the next record comes
                with self._changed:
                    self._handled += 1
                    self._changed.notify_all()


def _tell_trouble() -> None:
    import logging

    if logging.lastResort is None:
        return
    record = logging.makeLogRecord({"name": "manycore", "levelno": logging.ERROR, "levelname": "ERROR"})
    record.msg = "a handler of logging raised for a worker's record"
    logging.lastResort.handle(record)


def _handle(data: bytes) -> None:
    import logging

    state: dict[str, Any] = marshal.loads(data)  # noqa: S302  # from our own worker
    lost = state.pop("manycore_lost", 0)
    record = logging.makeLogRecord(state)
    if lost:
        where = f"worker {state['manycore_worker']} of pool {state['manycore_pool']!r}"
        text = f"{lost} log records of {where} were lost: the handlers here are slower than it logs"
        note = {**state, "name": "manycore", "levelno": logging.WARNING, "levelname": "WARNING", "msg": text}
        logging.getLogger("manycore").handle(logging.makeLogRecord(note))
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def level_of(logs: bool | int | str) -> int | Literal[False] | None:
    """What a pool's `logs` asks for: False for nothing, None for the parent's levels, or a level of its own.

    Raises:
        ValueError, TypeError: There is no such level.
    """
    if logs is False:
        return False
    if logs is True:
        return None
    import logging

    level: int = logging._checkLevel(logs)  # type: ignore[attr-defined]
    return level


_sink = _Sink()


def post(tasks: TaskRing, worker: int, data: bytes) -> None:
    """Have a worker's record handled. Takes no time, whatever the handlers do."""
    _sink.post(tasks, worker, data)


def warn(text: str, pool: str, worker: int) -> None:
    """Have a warning of this process's own handled, of logger "manycore". Takes no time, whatever the handlers do."""
    state = {"name": "manycore", "levelno": _WARNING, "levelname": "WARNING", "msg": text}
    _sink.post(None, worker, marshal.dumps({**state, "manycore_pool": pool, "manycore_worker": worker}))


def catch_up(timeout: float = CATCH_UP_SECONDS) -> None:
    """Wait until what was posted before is handled, or `timeout` seconds have passed. Without locks."""
    _sink.catch_up(timeout)


def _after_fork() -> None:
    global _sink
    _sink = _Sink()


os.register_at_fork(after_in_child=_after_fork)
