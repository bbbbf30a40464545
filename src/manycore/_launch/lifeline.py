"""Ties a process of a standard start method to its parent, so that it cannot outlive it.

The parent holds the only write end of a pipe. The child asks the kernel, on open files of its own of the
read end, for signals when that write end closes:

    a daemon     SIGKILL; and the same when the thread that started it ends, if that is the main thread,
                 which ends with the process
    any other    a signal whose handler, in C, starts a timer that ends in SIGKILL, so that the child has a
                 moment to see its parent's end; and SIGCONT, so that a stopped one runs the handler

All this works in a child that is stopped or stuck in C; a daemon's also in one that has closed all its
descriptors. What a child forks is tied as the child is, and goes with it when that leads a process group; what it
executes beside itself is not, where it leads none, for nothing of this outlives `execve`.

If a process dies: the parent: the kernel kills the child. A fork of the parent holds no write end.
Unlike multiprocessing: there, a parent that is killed leaves its processes behind.
"""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import reduction
from typing import Any

from manycore._launch import wire
from manycore._memory import keeper
from manycore._native import process as _native
from manycore._native.process import arm
from manycore._native.step import Mutex

__all__ = ["Tie"]

_LINGER_S = 0.3  # as for the zygote's children

_read = _write = -1
_hooked = False
_tied: tuple[int, tuple[int, int], bool] | None = None  # of a child: its open file, which pipe that is, `at_once`
_lock = Mutex()


class Tie:
    """Made by the parent for one child, travels with the process object, and is armed in the child."""

    def __init__(self, fd: int = -1, follows_thread: bool = False) -> None:
        self._fd = fd if fd >= 0 else _read_end()
        self._follows_thread = follows_thread or (fd < 0 and threading.current_thread() is threading.main_thread())

    def __reduce__(self) -> tuple[Any, ...]:
        end = keeper.client_fd()
        return _rebuild, (reduction.DupFd(self._fd), self._follows_thread, reduction.DupFd(end) if end >= 0 else None)

    def arm(self, at_once: bool, leads: bool = False) -> None:
        """In the child: die with the parent.

        Args:
            at_once: As a daemon; otherwise a moment later.
            leads: The child leads a process group, which dies with it.
        """
        if at_once and self._follows_thread:
            _native.set_parent_death_signal(signal.SIGKILL)
        _tie(self._fd, at_once, -os.getpid() if leads else os.getpid())
        os.close(self._fd)


def _tie(fd: int, at_once: bool, owner: int) -> None:
    """Have the kernel tell `owner`, by open files of its own of the pipe that `fd` reads, when the parent has died."""
    global _tied
    lasting = _open(fd)
    if not at_once:
        _native.end_after(wire.END_SIGNAL, _LINGER_S)
    alive = arm(lasting, owner, signal.SIGKILL if at_once else wire.END_SIGNAL)
    if not at_once:
        alive = arm(_open(fd), owner, signal.SIGCONT) and alive
    if not alive:
        os._exit(1)
    if _tied is None:
        os.register_at_fork(after_in_child=_tie_fork)
    _tied = lasting, _pipe_of(lasting), at_once


def _tie_fork() -> None:
    """In a fork of a child."""
    if _tied is not None:
        fd, pipe, at_once = _tied
        try:
            if _pipe_of(fd) == pipe:  # else it was closed, and its number is another file's
                _tie(fd, at_once, os.getpid())
        except OSError:
            pass


def _open(fd: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _pipe_of(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _rebuild(handle: Any, follows_thread: bool, end: Any) -> Tie:
    if end is not None:
        keeper.connect(end.detach())
    return Tie(handle.detach(), follows_thread)


def _read_end() -> int:
    global _read, _write, _hooked
    with _lock:
        if _read < 0:
            _read, _write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            if not _hooked:
                os.register_at_fork(after_in_child=_forget)
                _hooked = True
        return _read


def _forget() -> None:
    """In a fork: the write end is the parent's alone; the read end stays, for a process object may need it."""
    global _read, _write, _lock
    if _write >= 0:
        os.close(_write)
    _read = _write = -1
    _lock = Mutex()
