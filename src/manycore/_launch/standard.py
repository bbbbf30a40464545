"""Children of the standard start methods, with the interface of `Child`: for pools that are told how to start workers.

    caller's thread                     the watcher's thread (daemon, one a process)
    launch_standard() -> Popen          pidfd ready -> exit code, certificate, on_exit

A child calls the same entry with the same payload and descriptors as a zygote's would. It keeps the `__main__`
that its start method gives it: the parent's as it was ("fork"), or one imported anew ("spawn", "forkserver").

If a process dies: the child: `status` is set, whoever reaps it, and what it started is killed. This process: the
    lifeline kills the child.
Unlike multiprocessing: a child leads a process group, which ends with it, and so is no daemonic process, which
    may not have children; Ctrl-C is the parent's alone.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from multiprocessing import process, reduction
from typing import TYPE_CHECKING, Any, Final

from manycore._launch import popen, stacks, titles, unguarded, watch
from manycore._launch.flag import Flag
from manycore._launch.last_words import LastWords
from manycore._launch.lifeline import Tie
from manycore._memory import codec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from manycore._launch.certificate import Certificate

__all__ = ["METHODS", "StandardChild", "launch_standard"]

METHODS: Final = {"fork": popen.ForkPopen, "spawn": popen.SpawnPopen, "forkserver": popen.ForkServerPopen}


class _Fds:
    """Descriptors on their way into a child."""

    def __init__(self, fds: Sequence[int]) -> None:
        self.fds = list(fds)

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, tuple(reduction.DupFd(fd) for fd in self.fds)


def _arrived(*handles: Any) -> _Fds:
    return _Fds([handle.detach() for handle in handles])


class _Process(process.BaseProcess):
    """What the child runs."""

    _on_death = None

    def __init__(self, method: str, entry: str, payload: Any, fds: Sequence[int], title: str) -> None:
        super().__init__(name=title, daemon=False)  # whose code may start standard processes
        self._start_method = method  # of the processes that it starts
        self._tie = Tie()
        self._words = LastWords()
        self._entry = entry
        self._payload = payload
        self._fds = _Fds(fds)

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        os.setpgid(0, 0)
        self._tie.arm(at_once=True, leads=True)
        titles.show(self.name)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for signum in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        stacks.install()
        code: int = super()._bootstrap(parent_sentinel)  # type: ignore[misc]
        return code

    def run(self) -> None:
        fds = [os.dup(fd) for fd in self._fds.fds]  # after a fork, others here think that these are theirs
        self._words.listen(always=True)
        codec.keep_main()
        module, _, function = self._entry.partition(":")
        sys.exit(getattr(importlib.import_module(module), function)(self._payload, fds))


class StandardChild:
    """A process that `launch_standard` started; see `Child`, whose interface this is.

    **If a process dies:** as with `Child`.
    """

    error: OSError | None = None
    started = True

    def __init__(
        self,
        method: str,
        entry: str,
        payload: Any,
        fds: Sequence[int],
        title: str,
        on_exit: Callable[[Any], None] | None,
    ) -> None:
        self.title = title
        self._on_exit = on_exit
        self._status: Certificate | None = None
        self._ended = Flag()
        self._popen = METHODS[method](_Process(method, entry, payload, fds, title))
        self.pid: int = self._popen.pid
        self.sentinel: int = self._popen.sentinel
        watch.shared().watch(self.sentinel, self._on_end)

    def __repr__(self) -> str:
        return f"<StandardChild {self.title!r} pid={self.pid} {'ended' if self._ended.is_set() else 'started'}>"

    @property
    def status(self) -> Certificate | None:
        """How it ended, or None while it has not."""
        return self._status

    @property
    def unguarded(self) -> bool:
        """Whether it ended since the program's main module, which it imports first, starts processes."""
        return self._status is not None and self._status.exitcode == unguarded.EXIT_CODE

    def wait_started(self, timeout: float | None = None) -> bool:  # noqa: ARG002
        """True: these start before `launch_standard` returns."""
        return True

    def wait(self, timeout: float | None = None) -> Certificate | None:
        """How it ended, or None if it runs for `timeout` seconds more."""
        self._ended.wait(timeout)
        return self._status

    def signal(self, signum: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        if not self._ended.is_set():
            self._popen._send_signal(signum)

    def kill(self) -> None:
        """End the process and its process group at once."""
        if not self._ended.is_set():
            _kill_group(self.pid, self.sentinel)
            self.signal(signal.SIGKILL)

    def terminate(self, grace: float) -> None:
        """SIGTERM, and `kill` if it has not ended after `grace` seconds."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        if self.wait(grace) is None:
            self.kill()

    def _on_end(self) -> None:
        _kill_group(self.pid, self.sentinel)
        self._popen.wait()
        certificate = self._popen.certificate()
        if certificate is not None:
            self._status = certificate._replace(title=self.title)
        self._ended.set()
        if self._on_exit is not None:
            self._on_exit(self)
        self._popen.close()


def launch_standard(
    method: str,
    entry: str,
    payload: Any,
    fds: Sequence[int] = (),
    *,
    title: str = "",
    on_exit: Callable[[Any], None] | None = None,
) -> StandardChild:
    """Start a process by one of the standard methods, as `manycore._launch.launch` does from a zygote.

    Args:
        method: "fork", "spawn" or "forkserver".
        entry: "package.module:function"; called as `function(payload, fds)`; returns the exit code.
        payload: Any number of bytes; for "fork", which copies nothing, any object.
        fds: Descriptors that the process gets duplicates of.
        title: The process's name, for messages.
        on_exit: Called with the child once its status is known, in the shared watcher's thread.

    Raises:
        OSError: It could not be started.
    """
    return StandardChild(method, entry, payload, fds, title, on_exit)


def _kill_group(pid: int, pidfd: int) -> None:
    """SIGKILL for the process group that `pid` leads, while the number is surely its own."""
    try:
        signal.pidfd_send_signal(pidfd, 0)  # nobody has reaped it
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
