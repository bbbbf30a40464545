"""A child, as the process that launched it sees it."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from manycore._launch.certificate import Certificate
from manycore._launch.flag import Flag

if TYPE_CHECKING:
    from manycore._launch.parent import Launcher

_PATIENCE_S = 0.5  # that a request goes unanswered until the zygote is looked at: somebody may have stopped it

# ioctl(pidfd, PIDFD_GET_INFO): linux/pidfd.h, Linux 6.15 for the exit code of a process that somebody else reaped
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO_BYTES = 64
_EXIT_CODE_OFFSET = 60


class Child:
    """A process that `launch` started, or is about to.

    States, each reached at most once and in this order:
        requested -> started (its pid and pidfd are known) -> ended (`status` is known)
        requested -> ended                                   it never started: `error` says why

    Invariants:
        `_started` is set before `_ended`, and both before `on_exit` is called
        `pidfd` is open from `_started` on until this object is collected, so it never means another process

    **If a process dies:** the child: `status` is set, whoever reaps it. Its zygote: nothing changes. The
    process that owns this object: the child is killed by the kernel. **Process-safety:** a fork of the owner
    may ask for `pid` and `sentinel`, and wait; exit codes are told to the owner alone.
    """

    def __init__(self, launcher: Launcher, launch_id: int, title: str, on_exit: Callable[[Child], None] | None) -> None:
        self.launch_id = launch_id
        self.title = title
        self.error: OSError | None = None
        self._launcher = launcher
        self._on_exit = on_exit
        self._pid = 0
        self._pidfd = -1
        self._status: Certificate | None = None
        self._words: tuple[str | None, str | None] = None, None  # its stacks, Python's and native
        self._killed = False  # by us, so that the out-of-memory killer is not asked about
        self._started = Flag()
        self._ended = Flag()

    def __repr__(self) -> str:
        state = "ended" if self._ended.is_set() else "started" if self._started.is_set() else "requested"
        return f"<Child {self.title!r} pid={self._pid or '?'} {state}>"

    _close = staticmethod(os.close)  # at the interpreter's end the module's globals go before the last objects

    def __del__(self) -> None:
        if self._pidfd >= 0:
            self._close(self._pidfd)

    @property
    def pid(self) -> int:
        """Its process id; waits until that is known.

        Raises:
            LaunchError: It could not be started.
        """
        self.wait_started()
        if self.error is not None:
            raise self.error
        return self._pid

    @property
    def sentinel(self) -> int:
        """A pidfd: ready to read when the process has ended. Waits until the process has started."""
        self.wait_started()
        if self.error is not None:
            raise self.error
        return self._pidfd

    @property
    def started(self) -> bool:
        """Whether its pid is known, or it is known that it never will be."""
        return self._started.is_set()

    @property
    def status(self) -> Certificate | None:
        """How it ended, or None while it has not.

        A child whose `sentinel` is ready may need a moment more until its exit code is known; this waits for it.
        """
        if not self._ended.is_set() and self._pidfd >= 0 and is_ready(self._pidfd):
            self._wait(self._ended, None)
        return self._status

    @property
    def exitcode(self) -> int | None:
        """That of `status`, which the kernel may tell before the zygote; None while it runs, or if nobody knows."""
        if not self._ended.is_set() and self._pidfd >= 0 and is_ready(self._pidfd):
            code = exit_code_from_kernel(self._pid, self._pidfd)
            if code is not None:
                bury(self._pid)
                return code
        status = self.status
        return None if status is None else status.exitcode

    def wait_started(self, timeout: float | None = None) -> bool:
        """Wait until the process runs, or is known never to run.

        Args:
            timeout: In seconds; None waits as long as it takes.

        Returns:
            False if the timeout passed.
        """
        return self._wait(self._started, timeout)

    def wait(self, timeout: float | None = None) -> Certificate | None:
        """Wait until the process has ended.

        Args:
            timeout: In seconds; None waits as long as it takes.

        Returns:
            How it ended, or None if the timeout passed.
        """
        self._wait(self._ended, timeout)
        return self._status

    def wait_ended(self, timeout: float | None = None) -> bool:
        """As `wait`, but return as soon as the process has ended, though `status` may not be known yet.

        Returns:
            False if the timeout passed.
        """
        if self._ended.is_set():
            return True
        if self._pidfd < 0:
            return self._wait(self._ended, timeout)
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(None if timeout is None else max(0, timeout) * 1000))

    def _wait(self, event: Flag, timeout: float | None) -> bool:
        if event.is_set():
            return True
        if self._launcher.owner_pid == os.getpid():
            if event is self._started and (timeout is None or timeout > _PATIENCE_S):
                if event.wait(_PATIENCE_S):
                    return True
                self._launcher.continue_zygote()
                timeout = None if timeout is None else timeout - _PATIENCE_S
            return event.wait(timeout)
        return self._wait_as_stranger(event, timeout)

    def _wait_as_stranger(self, event: Flag, timeout: float | None) -> bool:
        """In a fork of the owner, where nobody is told: the pidfd shows the end, the kernel may know the code."""
        if event is self._started or self._pidfd < 0:
            return self._pidfd >= 0
        if not self.wait_ended(timeout):
            return False
        self._status = Certificate(self._pid, self.title, exit_code_from_kernel(self._pid, self._pidfd))
        event.set()
        return True

    def signal(self, signum: int) -> None:
        """Send a signal to the process; nothing happens if it has ended."""
        self.wait_started()
        if self._pidfd < 0 or self._ended.is_set():
            return
        try:
            signal.pidfd_send_signal(self._pidfd, signum)
        except ProcessLookupError:
            pass

    def kill(self) -> None:
        """End the process and its process group at once, stopped ones and those that ignore signals included."""
        self._killed = True
        self.wait_started()
        if self._pidfd < 0 or self._ended.is_set():
            return
        self._launcher.own_group(self)
        if not is_ready(self._pidfd):  # alive, so the number of its group is its own
            try:
                os.killpg(self._pid, signal.SIGKILL)
            except OSError:
                pass
        self.signal(signal.SIGKILL)

    def terminate(self, grace: float | None = None) -> None:
        """Ask the process to end, and make it, with its process group, after a time.

        Args:
            grace: Seconds from SIGTERM to SIGKILL; None sends only SIGTERM.
        """
        if grace is not None:
            self.wait_started()
            self._launcher.own_group(self)
        self.signal(signal.SIGTERM)
        if grace is None:
            return
        self.signal(signal.SIGCONT)  # a stopped process takes no signal but SIGKILL and this one
        if self.wait(grace) is None:
            self.kill()
            self.wait()

    # -- called by the launcher's thread, or under its lock -----------------------------------------------

    def _set_started(self, pid: int, pidfd: int) -> None:
        self._pid = pid
        self._pidfd = pidfd
        self._started.set()

    def _set_ended(self, status: Certificate, error: OSError | None = None) -> Callable[[Child], None] | None:
        """Record the end.

        Returns:
            `on_exit` on the first call only.
        """
        if self._ended.is_set():
            return None
        self._status = status
        self.error = error
        self._started.set()
        self._ended.set()
        callback, self._on_exit = self._on_exit, None
        return callback


def bury(pid: int) -> None:
    """Say that a child is dead to the locks of this process, so that those who wait for what it holds go on at once.

    A process that has not loaded them has none.
    """
    locks = sys.modules.get("manycore._native.sync")
    if locks is not None:
        locks.bury(pid)


def is_ready(pidfd: int) -> bool:
    """Whether the process has ended."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def exit_code_from_kernel(pid: int, pidfd: int, patience: float = 0.0) -> int | None:
    """The exit code of an ended process that is not our child, as `multiprocessing` counts: minus the signal.

    Args:
        pid: Its number.
        pidfd: What keeps the number from meaning another process.
        patience: Seconds that may pass until whoever is its parent has reaped it.

    Returns:
        The exit code, or None where the kernel does not tell (before Linux 6.15, once it is reaped).
    """
    deadline = time.monotonic() + patience
    while True:
        code = _from_zombie(pid, pidfd)
        if code is None:
            code = _from_pidfd(pidfd)
        if code is not None or time.monotonic() >= deadline:
            return None if code is None else os.waitstatus_to_exitcode(code)
        select.poll().poll(1)


def _from_zombie(pid: int, pidfd: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        code = int(fields[52 - 3])  # exit_code is field 52 of proc(5), the state 3
        hidden = code == 0 and os.stat(f"/proc/{pid}").st_uid != os.geteuid()  # others are told 0
        signal.pidfd_send_signal(pidfd, 0)  # still not reaped, so the number was its own
    except OSError:
        return None
    return None if hidden or fields[0] != b"Z" else code


def _from_pidfd(pidfd: int) -> int | None:
    info = bytearray(_PIDFD_INFO_BYTES)
    info[:8] = _PIDFD_INFO_EXIT.to_bytes(8, "little")
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError as error:
        if error.errno in {errno.ENOTTY, errno.EINVAL, errno.ESRCH}:
            return None
        raise
    if not int.from_bytes(info[:8], "little") & _PIDFD_INFO_EXIT:
        return None
    return int.from_bytes(info[_EXIT_CODE_OFFSET:], "little", signed=True)
