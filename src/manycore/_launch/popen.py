"""How each start method starts a `Process`, with the interface of `multiprocessing`'s Popen classes.

    zygote      ZygotePopen      launch(); the process object travels through the codec
    fork        ForkPopen        the standard's, watched by pidfd
    spawn       SpawnPopen       the standard's, watched by pidfd
    forkserver  ForkServerPopen  the standard's, watched by pidfd

If a process dies: its pidfd is ready, whoever holds copies of its pipes, and whoever reaps it. If
    somebody else has reaped it, the kernel is asked for its exit code (Linux 6.15). Its certificate has what
    wait4 told; processor time and memory are 0 where somebody else was told, which with "forkserver" is always so.
Unlike multiprocessing: the sentinel is a pidfd and not the end of a pipe, which a grandchild can hold
    open; a child that is reaped by others is seen to have ended.
"""

from __future__ import annotations

import errno
import marshal
import os
import select
import signal
import threading
import time
from multiprocessing import context as _std_context
from multiprocessing import forkserver, popen_fork, popen_forkserver, popen_spawn_posix, process, util
from typing import TYPE_CHECKING, Any

from manycore import errors
from manycore._launch import folder, launcher, main_module, oom, titles, tree, unguarded, watch
from manycore._launch.bootstrap import InheritedFd
from manycore._launch.certificate import Certificate
from manycore._launch.child import bury, exit_code_from_kernel, is_ready
from manycore._launch.handle import own_modules
from manycore._memory import codec
from manycore._memory.modules import loaded

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess

__all__ = ["ForkPopen", "ForkServerPopen", "SpawnPopen", "ZygotePopen"]

UNKNOWN_EXIT_CODE = 255  # what multiprocessing says of a child whose exit code nobody could learn
_ENTRY = "manycore._launch.bootstrap:main"
_SERVER_ENDS_S = 2.0  # for a fork server that takes no more requests
_REAP_GRACE_S = 0.2  # for whoever reaps a child that is not ours


class ZygotePopen:
    """A process of the zygote's."""

    method = "zygote"
    DupFd = InheritedFd

    def __init__(self, process_obj: Any) -> None:
        unguarded.check()
        util._flush_std_streams()  # type: ignore[attr-defined]
        self.returncode: int | None = None
        self._fds: list[int] = []
        _std_context.set_spawning_popen(self)  # type: ignore[arg-type]
        try:
            body = codec.dumps(process_obj, roots=("process",))
        finally:
            _std_context.set_spawning_popen(None)
        parent = os.pidfd_open(os.getpid())
        tracker = _tracker_fd()
        try:
            fds = [parent, *self._fds] if tracker is None else [parent, tracker, *self._fds]
            launcher.run_first_at_exit()
            launcher.preload(*own_modules(type(process_obj)))
            head = marshal.dumps({**_preparation(process_obj), "tracker": tracker is not None})
            payload = len(head).to_bytes(4, "little") + head + body
            on_death = process_obj._on_death
            on_exit: Any = None if on_death is None else lambda _: on_death(process_obj)
            title = titles.of_process(process_obj)
            self.child = launcher.launch(_ENTRY, payload, fds, title=title, on_exit=on_exit, linger=True)
        finally:
            os.close(parent)
        self.pid = self.child.pid
        self.sentinel = self.child.sentinel

    def duplicate_for_child(self, fd: int) -> int:
        """Pass `fd` to the child; what is returned is its place there."""
        self._fds.append(fd)
        return len(self._fds) - 1

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """The exit code, or None while the process runs; `flag` 0 waits for it."""
        return self.wait(0.0 if flag == os.WNOHANG else None)

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, or None if it runs for `timeout` seconds more."""
        if self.returncode is None and self.child.wait_ended(timeout):
            code = self.child.exitcode
            self.returncode = UNKNOWN_EXIT_CODE if code is None else code
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.child.signal(signal.SIGTERM)

    def interrupt(self) -> None:
        """Send SIGINT."""
        self.child.signal(signal.SIGINT)

    def resume(self) -> None:
        """Continue the process if it is stopped: then it takes no other signal but SIGKILL."""
        self.child.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process and its process group."""
        self.child.kill()

    def end(self, grace: float) -> None:
        """SIGTERM, and SIGKILL for the process group after `grace` seconds."""
        self.child.terminate(grace)

    def close(self) -> None:
        """Nothing: the pidfd closes with the object."""

    def certificate(self) -> Certificate | None:
        """How it ended."""
        return self.child.status


def _preparation(process_obj: BaseProcess) -> dict[str, Any]:
    logger = util._logger  # type: ignore[attr-defined]
    return {
        "name": str(process_obj.name),
        "authkey": bytes(process.current_process().authkey),
        "log_to_stderr": util._log_to_stderr,  # type: ignore[attr-defined]
        "log_level": None if logger is None else logger.getEffectiveLevel(),
        "main": codec.describe_main(),
        "where": main_module.describe(process_obj.name, getattr(process_obj, "_target", None)),
    }


def _tracker_fd() -> int | None:
    """The standard resource tracker's pipe, if there is one: what a child makes is then tracked with what we made."""
    tracker = loaded("multiprocessing.resource_tracker")
    return None if tracker is None else tracker._resource_tracker._fd


class _Watched:
    """What the standard Popen classes get: a pidfd for their sentinel, and the truth about the exit code."""

    pid: int
    returncode: int | None
    sentinel: int
    _pidfd = -1
    _certificate: Certificate | None = None
    _born = 0.0
    _killed = False  # by us, so that the out-of-memory killer is not asked about

    def _prepare(self, process_obj: Any) -> None:
        """Called before the process is started."""
        unguarded.check()
        self._words = process_obj._words
        self._title = titles.of_process(process_obj)
        self._lock = threading.Lock()  # the end is learned once, by whichever thread
        self._born = time.monotonic()
        oom.current()

    def _watch(self, process_obj: Any) -> None:
        """Called once the process has started."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError:  # it has ended and somebody else reaped it, or no descriptor is left: the pipe must do
            pass
        else:
            self._pidfd = self.sentinel = pidfd
            self._close_pidfd = util.Finalize(self, os.close, (pidfd,))
        on_death = process_obj._on_death
        if on_death is not None:
            watch.shared().watch_copy(self.sentinel, lambda: self._tell(process_obj, on_death))

    def _tell(self, process_obj: Any, on_death: Callable[[Any], object]) -> None:
        if self.poll() is None:  # seldom; else nothing is to wait for a descriptor that is closed meanwhile
            self.poll(0)
        on_death(process_obj)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """The exit code, or None while the process runs; `flag` 0 waits for it."""
        if self.returncode is None:
            if flag == 0:
                self._wait_for_pidfd(None)
            with self._lock:
                if self.returncode is None:
                    self._learn(flag)
        return self.returncode

    def _learn(self, flag: int) -> None:
        """Set `returncode` if the process has ended."""
        try:
            pid, status, usage = os.wait4(self.pid, flag)
        except ChildProcessError:  # somebody else reaps it
            self._ask_kernel()
        else:
            if pid == self.pid:
                code = os.waitstatus_to_exitcode(status)
                self._end(code, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024)

    def _ask_kernel(self) -> None:
        if self._pidfd < 0:
            self._end(None)
        elif is_ready(self._pidfd):
            self._end(exit_code_from_kernel(self.pid, self._pidfd, _REAP_GRACE_S))

    def _end(self, code: int | None, user: float = 0.0, system: float = 0.0, peak: int = 0) -> None:
        wall = time.monotonic() - self._born
        killed = code == -signal.SIGKILL and not self._killed and oom.current().has_killed()
        stacks = self._words.get(self.pid) if code is not None and code < 0 else (None, None)
        self._certificate = Certificate(self.pid, self._title, code, user, system, peak, wall, killed, *stacks)
        bury(self.pid)
        self.returncode = UNKNOWN_EXIT_CODE if code is None else code

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, or None if it runs for `timeout` seconds more."""
        if self.returncode is None and not self._wait_for_pidfd(timeout):
            return None
        return self.poll(os.WNOHANG if timeout == 0.0 else 0)

    def _wait_for_pidfd(self, timeout: float | None) -> bool:
        if self._pidfd < 0:
            return True
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(None if timeout is None else max(0.0, timeout) * 1000))

    def interrupt(self) -> None:
        """Send SIGINT."""
        self._send_signal(signal.SIGINT)

    def resume(self) -> None:
        """Continue the process if it is stopped: then it takes no other signal but SIGKILL."""
        self._send_signal(signal.SIGCONT)

    def _send_signal(self, sig: int) -> None:
        if sig == signal.SIGKILL:
            self._killed = True
        if self.returncode is None:
            try:
                if self._pidfd >= 0:
                    signal.pidfd_send_signal(self._pidfd, sig)
                else:
                    os.kill(self.pid, sig)
            except ProcessLookupError:
                pass

    def end(self, grace: float) -> None:
        """SIGTERM, and SIGKILL for the process and those below it after `grace` seconds."""
        below = tree.hold(tree.descendants(self.pid))
        self._send_signal(signal.SIGTERM)
        self.resume()
        if self.wait(grace) is None:
            below += tree.hold(tree.descendants(self.pid))
            self._send_signal(signal.SIGKILL)
            self.wait()
        tree.kill(below)

    def close(self) -> None:
        """Close what belongs to this object."""
        if self._pidfd >= 0:
            self._close_pidfd()
            self._pidfd = -1
        super().close()  # type: ignore[misc]

    def certificate(self) -> Certificate | None:
        """How it ended."""
        self.poll()
        return self._certificate


class ForkPopen(_Watched, popen_fork.Popen):
    """The standard "fork".

    The child waits until its pidfd is open here, for where SIGCHLD is ignored nothing of it remains when it ends.
    """

    def _launch(self, process_obj: BaseProcess) -> None:
        self._gate = os.pipe2(os.O_CLOEXEC)
        self._prepare(process_obj)
        try:
            super()._launch(_Gated(self, process_obj))  # type: ignore[misc]
            self._watch(process_obj)
            os.write(self._gate[1], b"!")
        finally:
            for fd in self._gate:
                os.close(fd)


class _Gated:
    """Stands before a process object in a forked child."""

    def __init__(self, popen: ForkPopen, process_obj: BaseProcess) -> None:
        self._popen = popen
        self._process_obj = process_obj

    def _bootstrap(self, parent_sentinel: int) -> int:
        gate, write = self._popen._gate
        os.close(write)
        os.read(gate, 1)
        os.close(gate)
        return self._process_obj._bootstrap(parent_sentinel=parent_sentinel)  # type: ignore[attr-defined,no-any-return]


class SpawnPopen(_Watched, popen_spawn_posix.Popen):
    """The standard "spawn"."""

    def _launch(self, process_obj: BaseProcess) -> None:
        self._prepare(process_obj)
        super()._launch(process_obj)  # type: ignore[misc]
        self._watch(process_obj)


def _forget_forkserver() -> None:
    """In a fork: the server is the parent's; this process starts its own when it needs one."""
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
    fresh = type(server)()
    fresh._preload_modules = server._preload_modules
    vars(server).clear()
    vars(server).update(vars(fresh))


os.register_at_fork(after_in_child=_forget_forkserver)


def _wait_for_server() -> None:
    """For the end of a fork server, which ends by each error; who comes next begins with another."""
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is None:
        return
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.poll(_SERVER_ENDS_S * 1000)
    os.close(pidfd)


class ForkServerPopen(_Watched, popen_forkserver.Popen):
    """The standard "forkserver", whose server reports exit codes through a pipe."""

    def _launch(self, process_obj: BaseProcess) -> None:
        self._prepare(process_obj)
        folder.path()  # where the server listens
        try:
            try:
                super()._launch(process_obj)  # type: ignore[misc]
            except ConnectionRefusedError:
                _wait_for_server()
                self._fds: list[int] = []
                super()._launch(process_obj)  # type: ignore[misc]
        except (EOFError, ConnectionError, BlockingIOError) as error:
            if not isinstance(error, BlockingIOError):
                _wait_for_server()
            problem = f"the fork server could not start the process: {str(error) or 'no answer'}"
            raise errors.LaunchError(errno.EAGAIN, problem) from error
        self._report = self.sentinel
        self._watch(process_obj)

    def _learn(self, flag: int) -> None:
        if self._pidfd >= 0 and not is_ready(self._pidfd):
            return  # it runs, whatever has become of the server
        poller = select.poll()
        poller.register(self._report, select.POLLIN)
        if poller.poll(_REAP_GRACE_S * 1000 if self._pidfd >= 0 else None if flag == 0 else 0):
            try:
                self._end(forkserver.read_signed(self._report))
                return
            except (OSError, EOFError):  # the server was killed
                pass
        elif self._pidfd < 0:
            return
        self._ask_kernel()
