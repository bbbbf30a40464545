"""The parent's side of launching: one zygote, one table of children, one thread that learns of deaths.

      any thread                      the reaper thread (daemon)
      launch()  -> request -> socket
                                      socket:  STARTED -> pid, pidfd;  EXITED -> status, on_exit
                                      pidfds:  a death that the zygote did not report in time
                                      zygote's pidfd and end of file: replace it

Invariants, under `_lock`:
    a child is in `_children` from its request until its end is known
    a request is kept until its child is STARTED or ended, so that a new zygote can be given it; a child says
        STARTED before it runs anything, so nothing runs twice
    `_waiting` is in the order of the calls, and while it is not empty nothing overtakes it
Locks: `_lock` guards all the fields below it; nothing that can block, and no callback, runs under it.
If a process dies:
    the zygote: what it and its children still sent is read to the end of file, then it is replaced and
        gets the requests that were not STARTED. The children go on; their exit codes come from the kernel.
    the zygote again and again, before it has started anything: requests fail with LaunchError.
    a fork of this process: it starts with no launcher, and makes its own when it needs one.
"""

from __future__ import annotations

import _socket
import array
import errno
import marshal
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from manycore._launch import first, oom, wire
from manycore._launch.certificate import Certificate
from manycore._launch.child import Child, bury, exit_code_from_kernel
from manycore._launch.handle import (
    Request,
    Zygote,
    ended_fd,
    high,
    is_stopped,
    launch_error,
    memfd,
    standard,
    warn_of_preload,
)
from manycore._memory import keeper
from manycore._memory.modules import loaded
from manycore._native.step import Mutex

__all__ = ["Launcher"]

_REPORT_GRACE_S = 0.05  # from a child's death to asking the kernel instead of the zygote; preloading can hold that up
_ORPHAN_GRACE_S = 0.2  # for init to reap the child of a dead zygote, which is when the kernel tells its exit code
_RETRY_S = 0.005  # when the kernel has no room for more descriptors in flight
_END_S = 2.0  # for the zygote to kill all that is left, at exit
_TERMINATE_S = 1.0  # from SIGTERM to SIGKILL for the children of a program that Ctrl-C ends
_ZYGOTE_DEATHS = 3  # in a row without a child started: then it is of no use to try again
_ZYGOTE_KILLS = 20  # the same for zygotes that somebody killed, about as many as start in a second
_IMPORTING_MAIN = """\
A process was about to be started while this one, itself started by the method "spawn" or "forkserver", still
imports the program's main module. With these methods the part of the program that starts processes must stand
under

    if __name__ == "__main__":

The start method "zygote", which is the default, needs no such line."""


class Launcher:
    """See the module. One a process: `launcher.current()`."""

    def __init__(self) -> None:
        self.owner_pid = os.getpid()
        self._lock = Mutex()
        self._zygote: Zygote | None = None
        self._children: dict[int, Child] = {}
        self._by_pidfd: dict[int, Child] = {}
        self._requests: dict[int, Request] = {}
        self._asked: dict[int, Request] = {}  # by pid: what a spare was asked for
        self._waiting: deque[Request] = deque()
        self._overdue: dict[int, tuple[float, Child]] = {}  # by launch id: dead, but not yet reported; the deadline
        self._preloads: list[str] = []
        self._unsent_preloads: list[str] = []
        self._next_id = 1
        self._deaths = 0  # of zygotes in a row without a child started, by their own fault
        self._kills = 0  # the same, by somebody's signal
        self._ending = False
        self._blocked = False  # requests wait for room in the socket, so the reaper polls for it
        self._anchors, self._first = first.take()  # what all zygotes are tied by, and one that is there already
        self._wake = high(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self._oom = oom.current()
        self._thread: threading.Thread | None = None

    # -- called by any thread ----------------------------------------------------------------------------

    def launch(
        self,
        entry: str,
        payload: bytes,
        fds: Sequence[int],
        title: str,
        on_exit: Callable[[Child], None] | None,
        linger: bool,
    ) -> Child:
        process = loaded("multiprocessing.process")
        if process is not None and getattr(process.current_process(), "_inheriting", False):
            raise RuntimeError(_IMPORTING_MAIN)
        if len(fds) > wire.MAX_FDS:
            raise ValueError(f"a child can be given {wire.MAX_FDS} descriptors, not {len(fds)}")
        with self._lock:
            child = Child(self, self._next_id, title, on_exit)
            request = Request(child, entry, payload, fds, linger)
            try:
                self._ensure_zygote()
            except OSError as error:
                request.close()
                raise launch_error(f"no zygote can be started: {error}", error.errno) from error
            self._next_id += 1
            self._children[child.launch_id] = child
            self._requests[child.launch_id] = request
            self._waiting.append(request)
            self._send_waiting()
        return child

    def ensure_started(self) -> None:
        with self._lock:
            self._ensure_zygote()

    def preload(self, modules: Sequence[str]) -> None:
        with self._lock:
            new = [name for name in modules if name not in self._preloads]
            self._preloads += new
            self._unsent_preloads += new
            if self._zygote is not None:
                self._send_waiting()

    def own_group(self, child: Child) -> None:
        """Have the child's process group end with it, also when it exits by itself."""
        with self._lock:
            if self._zygote is not None:
                self._send(self._zygote.socket, (wire.OWN_GROUP, child.launch_id), [])

    def continue_zygote(self) -> None:
        """Continue the zygote, if somebody has stopped it."""
        with self._lock:
            if self._zygote is not None and is_stopped(self._zygote.pid):
                os.kill(self._zygote.pid, signal.SIGCONT)

    def terminate_all(self) -> None:
        """Ask every child to end, and make those that have not after a moment."""
        with self._lock:
            children = list(self._children.values())
        for child in children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + _TERMINATE_S
        for child in children:
            if child.wait(max(0.0, deadline - time.monotonic())) is None:
                child.kill()

    def end(self) -> None:
        """Kill every child and the zygote, wait for that, and close what is open."""
        with self._lock:
            self._ending = True
            zygote = self._zygote
            if zygote is not None:
                try:
                    zygote.socket.send(marshal.dumps((wire.END,)))
                except OSError:  # no room, or no zygote
                    zygote.socket.shutdown(_socket.SHUT_WR)
            self._wake_reaper()
        self.continue_zygote()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_END_S)
            if thread.is_alive() and zygote is not None and zygote.pidfd >= 0:
                signal.pidfd_send_signal(zygote.pidfd, signal.SIGKILL)
                thread.join()
        if zygote is not None:
            try:
                os.waitpid(zygote.pid, 0)
            except ChildProcessError:
                pass
        self.close()

    def close(self) -> None:
        """Close every descriptor of this object's own."""
        self._epoll.close()
        os.close(self._wake)
        self._anchors.close()
        for zygote in (self._first, self._zygote):
            if zygote is not None:
                zygote.close()

    # -- under the lock ------------------------------------------------------------------------------------

    def _ensure_zygote(self) -> None:
        if self._zygote is not None:
            return
        if self._ending:
            raise OSError(errno.ESHUTDOWN, "the interpreter is ending")
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="manycore-reaper", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # what it says of EAGAIN
                raise OSError(errno.EAGAIN, f"{error} (RLIMIT_NPROC, or a control group's limit)") from None
            self._thread = thread
        zygote, self._first = self._first or Zygote(self._anchors), None
        self._zygote = zygote
        self._unsent_preloads = list(self._preloads)
        self._epoll.register(zygote.socket.fileno(), select.EPOLLIN)
        if zygote.pidfd >= 0:
            self._epoll.register(zygote.pidfd, select.EPOLLIN)
        self._wake_reaper()
        if self._unsent_preloads:
            self._send_waiting()

    def _send_waiting(self) -> None:
        """Send what waits, as far as the socket takes it."""
        zygote = self._zygote
        if zygote is None:
            return
        sent = True
        if self._unsent_preloads:
            zygote.told += 1
            record: tuple[Any, ...] = (wire.PRELOAD, self._unsent_preloads, zygote.fresh_context(), zygote.told)
            sent = self._send(zygote.socket, record, [])
            if sent:
                self._unsent_preloads = []
            else:
                zygote.context = None
        while sent and self._waiting:
            request = self._waiting[0]
            context = zygote.fresh_context()
            open_fds, mask = standard()
            child = request.child
            what = (request.entry, request.payload, child.title)
            record = (wire.LAUNCH, child.launch_id, *what, mask, request.linger)
            fds = [*open_fds, *request.fds]
            if context is None and (spare := zygote.spare()) is not None:
                source, pid = spare
                if self._send(source, (*record, zygote.told, pid), fds):
                    self._asked[pid] = request
                    self._waiting.popleft()
                    continue
            zygote.told += context is not None
            sent = self._send(zygote.socket, (*record, zygote.told, context), fds)
            if sent:
                self._waiting.popleft()
            elif context is not None:
                zygote.context = None
        if self._blocked == sent:
            self._blocked = not sent
            self._epoll.modify(zygote.socket.fileno(), select.EPOLLIN if sent else select.EPOLLIN | select.EPOLLOUT)
            if not sent:
                self._wake_reaper()

    def _send(self, to: _socket.socket, record: tuple[Any, ...], fds: list[int]) -> bool:
        """Send one record to the zygote or a spare, if there is room for it."""
        data = marshal.dumps(record)
        body = -1
        try:
            if len(data) > wire.MAX_RECORD_BYTES:  # a large environment
                body = memfd(data)
                fds = [body, *fds]
                data = marshal.dumps((wire.LONG, record[1] if record[0] == wire.LAUNCH else 0))
            ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
            to.sendmsg([data], ancillary)
        except OSError:  # no room, too many descriptors in flight: later. A broken pipe: the next zygote gets it
            return False
        finally:
            if body >= 0:
                os.close(body)
        return True

    def _wake_reaper(self) -> None:
        os.eventfd_write(self._wake, 1)

    # -- the reaper thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        calls: list[tuple[Callable[[Child], None], Child]] = []
        while not self._ending or self._zygote is not None or self._children:
            events = self._epoll.poll(self._patience())
            with self._lock:
                self._handle(events, calls)
            for callback, child in calls:
                try:
                    callback(child)
                except BaseException:
                    sys.excepthook(*sys.exc_info())
            calls.clear()

    def _patience(self) -> float | None:
        times = [deadline for deadline, _ in self._overdue.values()]
        zygote = self._zygote
        if zygote is not None and (over_at := zygote.over_at()) is not None:
            times.append(over_at)
        if self._blocked:
            times.append(time.monotonic() + _RETRY_S)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _handle(self, events: list[tuple[int, int]], calls: list[tuple[Callable[[Child], None], Child]]) -> None:
        now = time.monotonic()
        zygote = self._zygote
        at_end = False
        for fd, _ in events:
            if fd == self._wake:
                os.eventfd_read(self._wake)
            elif zygote is not None and fd == zygote.pidfd:
                self._epoll.unregister(fd)
                zygote.dead_since = now
                zygote.hang_up()
            elif fd in self._by_pidfd:
                child = self._by_pidfd.pop(fd)
                self._epoll.unregister(fd)
                bury(child._pid)
                self._overdue[child.launch_id] = (now + _REPORT_GRACE_S, child)
        if zygote is not None:
            at_end = self._receive(zygote, calls)
            if at_end and not zygote.silent_since:
                zygote.silent_since = now
            over_at = zygote.over_at()
            if over_at is not None and now >= over_at:
                self._replace(zygote, calls)
            elif self._blocked or self._waiting:
                self._send_waiting()
        for deadline, child in list(self._overdue.values()):
            if now >= deadline:
                patience = 0.0 if self._zygote is zygote and not at_end else _ORPHAN_GRACE_S
                code = exit_code_from_kernel(child._pid, child._pidfd, patience)
                self._finish(child, Certificate(child._pid, child.title, code, oom=self._oom_of(child, code)), calls)

    def _receive(self, zygote: Zygote, calls: list[tuple[Callable[[Child], None], Child]]) -> bool:
        """Take every report there is.

        Returns:
            Whether the zygote has closed its end.
        """
        while True:
            try:
                record, ancillary, _, _ = zygote.socket.recvmsg(
                    wire.MAX_RECORD_BYTES, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return False
            except ConnectionResetError:  # it left requests unread; what it had sent comes behind this error
                continue
            except OSError:
                return True
            if not record:
                return True
            pidfd = -1
            for level, kind, data in ancillary:
                if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS and len(data) >= 4:
                    pidfd = int.from_bytes(data[:4], sys.byteorder)
            if record[0] == wire.EXITED:
                self._exited(memoryview(record)[wire.NUMBERS_AT :].cast("d"), calls)
                continue
            if record[0] == wire.GONE:
                self._gone(zygote, int(memoryview(record)[wire.NUMBERS_AT :].cast("d")[0]))
                continue
            report = marshal.loads(record)  # noqa: S302  # from our own zygote
            if report[0] == wire.STARTED:
                self._started(report[1], report[2], pidfd)
            elif report[0] == wire.WORDS:
                child = self._children.get(report[1])
                if child is not None:
                    child._words = report[2:]
            elif report[0] == wire.FAILED:
                zygote.context = None  # it may not have taken that over
                self._fail(report[1], launch_error(report[3], report[2]), calls)
            elif report[0] == wire.PRELOAD_FAILED:
                if report[1] in self._preloads:  # no zygote need try again
                    self._preloads.remove(report[1])
                self._deaths = 0  # should this one end itself for that, it is no fault of the rest
                warn_of_preload(report[1], report[2])

    def _started(self, launch_id: int, pid: int, pidfd: int) -> None:
        self._deaths = self._kills = 0
        self._asked.pop(pid, None)
        self._forget_request(launch_id)
        child = self._children.get(launch_id)
        if child is None:
            if pidfd >= 0:
                os.close(pidfd)
            return
        if pidfd < 0:  # no descriptor was left, on one side or the other
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                pidfd = -1
        child._set_started(pid, pidfd)
        if pidfd >= 0:
            self._by_pidfd[pidfd] = child
            self._epoll.register(pidfd, select.EPOLLIN)

    def _gone(self, zygote: Zygote, pid: int) -> None:
        """A spare has ended; what it was asked for, if anything, it has not begun."""
        zygote.forget(pid)
        request = self._asked.pop(pid, None)
        if request is not None and request.child.launch_id in self._requests:
            self._waiting.appendleft(request)

    def _exited(self, report: memoryview[float], calls: list[tuple[Callable[[Child], None], Child]]) -> None:
        launch_id, pid, how, peak = (int(report[n]) for n in (0, 1, 2, 5))
        user, system, wall = report[3], report[4], report[6]
        self._asked.pop(pid, None)
        child = self._children.get(launch_id)
        if child is None:
            return
        if not child._started.is_set():
            self._forget_request(launch_id)
            child._set_started(pid, ended_fd())
        code = os.waitstatus_to_exitcode(how)
        oom = self._oom_of(child, code)
        status = Certificate(pid, child.title, code, user, system, peak, wall, oom, *child._words)
        self._finish(child, status, calls)

    def _oom_of(self, child: Child, code: int | None) -> bool | None:
        if code != -signal.SIGKILL or child._killed:
            return False
        return self._oom.has_killed()

    def _finish(
        self,
        child: Child,
        status: Certificate,
        calls: list[tuple[Callable[[Child], None], Child]],
        error: OSError | None = None,
    ) -> None:
        self._children.pop(child.launch_id, None)
        self._overdue.pop(child.launch_id, None)
        if self._by_pidfd.pop(child._pidfd, None) is not None:
            self._epoll.unregister(child._pidfd)
            bury(child._pid)
        callback = child._set_ended(status, error)
        if callback is not None:
            calls.append((callback, child))

    def _fail(self, launch_id: int, error: OSError, calls: list[tuple[Callable[[Child], None], Child]]) -> None:
        self._forget_request(launch_id)
        child = self._children.get(launch_id)
        if child is not None:
            self._finish(child, Certificate(0, child.title, None, note=str(error)), calls, error)

    def _forget_request(self, launch_id: int) -> None:
        request = self._requests.pop(launch_id, None)
        if request is not None:
            request.close()

    def _replace(self, zygote: Zygote, calls: list[tuple[Callable[[Child], None], Child]]) -> None:
        """Put another zygote in the place of one whose last word has been read."""
        self._epoll.unregister(zygote.socket.fileno())
        if zygote.pidfd >= 0 and not zygote.dead_since:
            self._epoll.unregister(zygote.pidfd)
        code = zygote.close()
        self._zygote = None
        self._asked.clear()
        self._blocked = False
        if code in {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP}:  # somebody's doing, and no fault of its own
            self._kills += 1
        else:
            self._deaths += 1
            if self._deaths > 1 and self._preloads:  # it may be what it imports
                warn_of_preload(", ".join(self._preloads), "the zygote died twice")
                self._preloads.clear()
        self._waiting = deque(self._requests[launch_id] for launch_id in sorted(self._requests))
        for child in self._by_pidfd.values():  # at the latest now, for the zygote will not report
            if self._ending:
                self._overdue[child.launch_id] = (time.monotonic(), child)
        guards = keeper.is_root() and keeper.told_folders()  # which somebody is to remove if this process is killed
        if not self._waiting and not guards:
            return
        problem = f"the zygote died {self._deaths + self._kills} times in a row before it started a process"
        if self._ending:
            problem = "the interpreter is ending"
        elif self._deaths < _ZYGOTE_DEATHS and self._kills < _ZYGOTE_KILLS:
            try:
                self._ensure_zygote()
                self._send_waiting()
                return
            except OSError as error:
                problem = f"no zygote can be started: {error}"
        self._deaths = self._kills = 0
        self._waiting.clear()
        for launch_id in list(self._requests):
            self._fail(launch_id, launch_error(problem, errno.ECHILD), calls)
