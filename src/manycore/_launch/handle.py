"""A zygote as its parent sees it: its process, its socket, what it has been told; and the requests for it.

It imports little, for the first zygote is executed before all else is imported (`first.py`).
"""

from __future__ import annotations

# The same as `signal`, but without its enumerations, whose import takes longer than all others here.
import _signal  # type: ignore[import-not-found]
import _socket
import fcntl
import os
import sys

from manycore import _launch
from manycore._launch import interpreter, wire
from manycore._memory import keeper
from manycore._memory.memfd import create_memfd

TYPE_CHECKING = False  # typing is imported while the first zygote starts
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from manycore._launch.child import Child

__all__ = [
    "Anchors",
    "Request",
    "Slot",
    "Zygote",
    "ended_fd",
    "high",
    "is_stopped",
    "launch_error",
    "memfd",
    "own_modules",
    "standard",
    "warn_of_preload",
]

_DRAIN_S = 1.0  # for the end of file after a zygote's death; longer only if a child was stopped before STARTED
_STATUS_S = 0.2  # from that to the death: a process that is killed closes its descriptors before it can be reaped
_LOWEST_FD = wire.KEPT_FD + 1  # ours stay clear of the numbers that programs use by number


class Request:
    """A launch that has not been STARTED. Owns duplicates of the caller's descriptors."""

    __slots__ = ("child", "entry", "fds", "linger", "payload")

    def __init__(self, child: Child, entry: str, payload: bytes, fds: Sequence[int], linger: bool) -> None:
        self.child = child
        self.linger = linger
        self.entry = entry
        self.payload: bytes | None = payload
        self.fds: list[int] = []
        try:
            if len(payload) > wire.MAX_INLINE_BYTES:
                self.fds.append(memfd(payload))
                self.payload = None
            self.fds += [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST_FD) for fd in fds]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


class Slot:
    """The parent's end of a place for a spare, and which spare is there, as far as is known."""

    def __init__(self) -> None:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        fd, self.theirs = _both_high(ours.detach(), theirs.detach())
        self.socket = _socket.socket(fileno=fd)
        self.socket.setblocking(False)
        self.generation = 0
        self.pid = 0  # 0: none, or one that was asked
        self.born = 0  # ns

    def look(self) -> int | None:
        """How often the zygote had been told of what children take over when it made the spare; None without one."""
        try:
            while said := self.socket.recv(wire.MAX_RECORD_BYTES):
                self.generation, self.pid, self.born = memoryview(said).cast("Q")
        except OSError:  # nothing more, or the zygote is gone
            pass
        return self.generation if self.pid else None


class Anchors:
    """What all zygotes of this process, one after the other, and their children are tied to it by.

    Attributes:
        lifeline, lifeline_write: The two ends of the pipe that shows children the end of this process.
        keeper, kept: Both ends of the keeper's sockets, where this process is its tree's root; else -1.
    """

    def __init__(self) -> None:
        self._owner_pid = os.getpid()
        self.lifeline, self.lifeline_write = _both_high(*os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
        self.keeper = self.kept = -1
        try:
            if keeper.client_fd() < 0:
                self.keeper, self.kept = _both_high(*keeper.pair())
                keeper.connect(self.keeper, self._owner_pid, _start)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close them. A fork keeps its end of the keeper's sockets, and so reaches the keeper."""
        for fd in (self.lifeline, self.lifeline_write):
            os.close(fd)
        if self.kept >= 0:
            os.close(self.kept)
            if self._owner_pid == os.getpid():
                keeper.disconnect()
                os.close(self.keeper)


class Zygote:
    """One zygote of this process, and what it was told."""

    def __init__(self, anchors: Anchors) -> None:
        pid = os.getpid()
        opened: list[int] = []
        self.pipe_write = -1
        self._slots: list[Slot] = []
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            opened.append(high(theirs.detach()))
            opened.append(high(os.pidfd_open(pid)))
            read, self.pipe_write = _both_high(*os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
            opened.append(read)
            places: dict[int, int] = {}
            for end, pen in zip(wire.SLOT_FDS, wire.PEN_FDS, strict=True):
                slot = Slot()
                self._slots.append(slot)
                opened.append(slot.theirs)
                places |= {end: slot.theirs, pen: slot.socket.fileno()}
            keepers = {
                target: fd
                for target, fd in ((wire.KEEPER_FD, keeper.client_fd()), (wire.KEPT_FD, anchors.kept))
                if fd >= 0
            }
            executable, argv = interpreter.command(pid, len(keepers))
            actions: list[Any] = [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0) for n in _closed_standard()]
            given = {
                wire.CONTROL_FD: opened[0],
                wire.LIFELINE_FD: anchors.lifeline,
                wire.PARENT_FD: opened[1],
                wire.LIFELINE_WRITE_FD: anchors.lifeline_write,
                wire.PARENT_PIPE_FD: opened[2],
                **places,
                **keepers,
            }
            actions += [(os.POSIX_SPAWN_DUP2, source, target) for target, source in given.items()]
            self.pid = os.posix_spawn(
                executable,
                argv,
                os.environ,
                file_actions=actions,
                setpgroup=0,  # Ctrl-C is for the parent
                setsigmask=[],
                setsigdef=[_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGUSR1, _signal.SIGUSR2],
            )
        except BaseException:
            ours.close()
            self.hang_up()
            if self.pipe_write >= 0:
                os.close(self.pipe_write)
            raise
        finally:
            for fd in opened:
                os.close(fd)
        self.socket = ours
        self.socket.setblocking(False)
        if anchors.kept >= 0:
            keeper.tell_folders_again()
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:  # already dead, and reaped by somebody else
            self.pidfd = -1
            self.hang_up()
        self.told = 0  # counts what it was told of what children take over; it says with each spare what that knows
        self.context: tuple[Any, ...] | None = None
        self.dead_since = 0.0  # it has ended, as its pidfd says
        self.silent_since = 0.0  # its socket has

    def over_at(self) -> float | None:
        """When no more is to be awaited of it: both its last word, and what it exited with, or a moment later."""
        if self.silent_since and (self.dead_since or self.pidfd < 0):
            return self.silent_since
        if self.silent_since:
            return self.silent_since + _STATUS_S
        return self.dead_since + _DRAIN_S if self.dead_since else None

    def spare(self) -> tuple[_socket.socket, int] | None:
        """A spare that may be asked once, by its socket, with its pid: the one that has had longest to get ready."""
        known = [slot for slot in self._slots if slot.look() == self.told]
        if not known:
            return None
        slot = min(known, key=lambda slot: slot.born)
        pid, slot.pid = slot.pid, 0
        return slot.socket, pid

    def forget(self, pid: int) -> None:
        """A spare has ended, and is not to be asked; what was said of it is there by now."""
        for slot in self._slots:
            if slot.look() is not None and slot.pid == pid:
                slot.pid = 0

    def hang_up(self) -> None:
        """Have the spares end that are not asked for anything."""
        for slot in self._slots:
            slot.socket.close()
        self._slots.clear()

    def close(self) -> int | None:
        """Let go of it.

        Returns:
            What it exited with, or minus the signal that ended it; None if it lives or nobody knows.
        """
        self.socket.close()
        self.hang_up()
        os.close(self.pipe_write)
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return None
        return os.waitstatus_to_exitcode(status) if pid else None

    def fresh_context(self) -> tuple[Any, ...] | None:
        """What children take over beside descriptors and limits, if it changed since the last request."""
        try:
            cwd = os.getcwd()
        except OSError:
            cwd = None
        environment = os.environ._data  # type: ignore[attr-defined]  # the encoded pairs, without a copy
        context = (
            cwd,
            environment,
            interpreter.import_path(),
            [str(argument) for argument in getattr(sys, "argv", [])],
            _umask(),
        )
        if context == self.context:
            return None
        self.context = (cwd, dict(environment), *context[2:])
        return self.context


def _start() -> None:
    _launch.ensure_started()


def _umask() -> int:
    """This process's umask; asking the kernel with umask(2) would set it for a moment, in all threads."""
    with open("/proc/self/status", "rb", buffering=0) as file:
        text = file.read(512)
    return int(text.partition(b"\nUmask:")[2].split(None, 1)[0], 8)


def high(fd: int) -> int:
    """Move a descriptor of ours out of the low numbers."""
    if fd >= _LOWEST_FD:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST_FD)
    finally:
        os.close(fd)


def _both_high(one: int, other: int) -> tuple[int, int]:
    """The same for two; neither is left open where that cannot be."""
    left, moved = [other, one], []
    try:
        while left:
            moved.append(high(left.pop()))
    except OSError:
        for fd in (*left, *moved):
            os.close(fd)
        raise
    return moved[0], moved[1]


def memfd(data: bytes) -> int:
    """A memfd that holds `data`."""
    fd = create_memfd("manycore-payload")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def standard() -> tuple[list[int], int]:
    """Which of 0, 1 and 2 are open, and the same as a bit mask."""
    closed = _closed_standard()
    present = [number for number in range(3) if number not in closed]
    return present, sum(1 << number for number in present)


def _closed_standard() -> list[int]:
    closed = []
    for number in range(3):
        try:
            fcntl.fcntl(number, fcntl.F_GETFD)
        except OSError:
            closed.append(number)
    return closed


def own_modules(cls: type) -> list[str]:
    """The modules of this package that a process object needs: the zygote imports them once for all."""
    names = {base.__module__ for base in cls.__mro__}
    return ["manycore._launch.bootstrap", *sorted(name for name in names if name.startswith("manycore."))]


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped a process (SIGSTOP, or a debugger)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in {b"T", b"t"}
    except OSError:
        return False


def launch_error(text: str, number: int | None) -> OSError:
    """What a launch that failed raises."""
    from manycore.errors import LaunchError

    return LaunchError(number, text)


def ended_fd() -> int:
    """A descriptor that is ready to read for ever, as the pidfd of a process that has ended."""
    try:
        return os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError:
        return -1


def warn_of_preload(module: str, text: str) -> None:
    """Say that a module was not imported in the zygote."""
    import warnings

    from manycore.errors import ManycoreWarning

    try:
        warnings.warn(
            f"cannot preload {module}: {text}", ManycoreWarning, stacklevel=100
        )  # no line led here: none is shown
    except ManycoreWarning:  # warnings are errors, and there is no caller to raise it in
        sys.excepthook(*sys.exc_info())
