"""A thread that calls back when a descriptor is ready or a time has come; one a group or supervisor, and a shared one.

Invariants:
    callbacks run in the watcher's thread, one at a time, none after `close` has returned
    a descriptor is watched once: its callback is called at most one time
Locks: `_lock` guards what other threads add; no callback runs under it.
If a process dies: its pidfd is ready. A fork of this process has no watcher.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import select
import sys
import threading
import time
from collections.abc import Callable

from manycore._native.step import Mutex

__all__ = ["Watcher", "shared"]


class Watcher:
    """See the module.

    Args:
        name: The thread's.
    """

    def __init__(self, name: str) -> None:
        self._lock = Mutex()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._times: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def watch(self, fd: int, callback: Callable[[], object]) -> None:
        """Call back once when `fd` is ready to read. It must stay open until then."""
        with self._lock:
            self._callbacks[fd] = callback
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)

    def watch_copy(self, fd: int, callback: Callable[[], object]) -> None:
        """As `watch`, with a duplicate of `fd`, which may be closed before."""
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)

        def call() -> None:
            os.close(copy)
            callback()

        self.watch(copy, call)

    def after(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call back once when `seconds` have passed."""
        with self._lock:
            heapq.heappush(self._times, (time.monotonic() + seconds, next(self._count), callback))
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread. From a callback, it ends when that returns."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.eventfd_write(self._wake, 1)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closed:
                with self._lock:
                    patience = max(0.0, self._times[0][0] - time.monotonic()) if self._times else None
                events = self._epoll.poll(patience)
                self._call([fd for fd, _ in events])
        finally:
            with self._lock:
                self._closed = True
                self._epoll.close()
                os.close(self._wake)

    def _call(self, fds: list[int]) -> None:
        """Keeps no callback, nor what it holds, until the next one is due."""
        with self._lock:
            ready = self._take(fds)
        for callback in ready:
            try:
                if not self._is_closed():
                    callback()
            except BaseException:
                sys.excepthook(*sys.exc_info())

    def _is_closed(self) -> bool:
        return self._closed

    def _take(self, fds: list[int]) -> list[Callable[[], object]]:
        ready = []
        for fd in fds:
            if fd == self._wake:
                os.eventfd_read(self._wake)
            else:
                self._epoll.unregister(fd)
                ready.append(self._callbacks.pop(fd))
        now = time.monotonic()
        while self._times and self._times[0][0] <= now:
            ready.append(heapq.heappop(self._times)[2])
        return ready


_shared: Watcher | None = None
_shared_lock = Mutex()
_hooked = False


def shared() -> Watcher:
    """One for all of this process, made at the first call."""
    global _shared, _hooked
    with _shared_lock:
        if _shared is None:
            _shared = Watcher("manycore-watcher")
            if not _hooked:
                _hooked = True
                os.register_at_fork(after_in_child=_forget)
        return _shared


def _forget() -> None:
    """In a fork: the thread is not there."""
    global _shared, _shared_lock
    _shared = None
    _shared_lock = Mutex()
