"""The Python stacks of a running process, also of one that is stuck in C with the interpreter lock held.

`faulthandler` is registered for one signal and writes into a memfd that the process holds. Its handler
runs in C, needs no lock, and so answers whatever the interpreter is doing; the reader finds the memfd
among the process's descriptors by its name, and knows that the dump is whole when the signal is
neither pending nor blocked, as it is while the handler runs.

Children of a zygote have all this from their fork; `install` is for others.

If a process dies: the reader sees it by its pidfd, and takes what there is.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import time

from manycore._launch import wire
from manycore._memory.memfd import create_memfd

__all__ = ["answers", "install", "read"]

_NAME = "/memfd:manycore-stacks"
_POLL_MS = 2

_fd = -1


def install() -> None:
    """Have this process answer `read`, if it does not."""
    global _fd
    if _handles(os.getpid()):
        return
    _fd = create_memfd("manycore-stacks")
    faulthandler.register(wire.STACK_SIGNAL, file=_fd, all_threads=True)


def read(pid: int, timeout: float = 2.0) -> str:
    """The Python stacks of all threads of `pid` now.

    Args:
        pid: A process of this user that manycore started.
        timeout: Seconds to wait for the answer. A stopped process gives none.

    Raises:
        LookupError: There is no such process, or it is not one that answers.
        TimeoutError: It has not answered.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise LookupError(f"process {pid}: {error.strerror}") from None
    try:
        file = _open(pid)
        try:
            return _ask(pid, pidfd, file, timeout)
        finally:
            os.close(file)
    finally:
        os.close(pidfd)


def answers(pid: int) -> bool:
    """Whether `pid` is a process that `read` can ask."""
    try:
        return _find(pid) is not None
    except OSError:
        return False


def _open(pid: int) -> int:
    try:
        path = _find(pid)
        if path is not None:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LookupError(f"process {pid}: {error.strerror}") from None
    raise LookupError(f"process {pid} is not one that manycore started, and so does not answer")


def _find(pid: int) -> str | None:
    """The memfd into which a process writes its stacks."""
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        try:
            if os.readlink(f"{folder}/{name}").startswith(_NAME) and _handles(pid):
                return f"{folder}/{name}"
        except OSError:  # closed meanwhile
            continue
    return None


def _ask(pid: int, pidfd: int, file: int, timeout: float) -> str:
    before = os.fstat(file).st_size
    signal.pidfd_send_signal(pidfd, wire.STACK_SIGNAL)
    deadline = time.monotonic() + timeout
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    while True:
        ended = bool(poller.poll(_POLL_MS))
        after = os.fstat(file).st_size
        if ended or (after > before and not _is_busy(pid)):
            return os.pread(file, os.fstat(file).st_size - before, before).decode("utf-8", "replace")
        if time.monotonic() >= deadline:
            raise TimeoutError(f"process {pid} has not written its stacks within {timeout:g} s{_why(pid)}")


def _why(pid: int) -> str:
    """What keeps a process from answering, if it can be seen."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
    if state in "tT":
        return ": it is stopped"
    if _mask(f"/proc/{pid}/status", "ShdPnd") & _mask(f"/proc/{pid}/status", "SigBlk") & 1 << (wire.STACK_SIGNAL - 1):
        return f": its threads block signal {wire.STACK_SIGNAL}"
    return ": it is stuck in the kernel" if state == "D" else ""


def _handles(pid: int) -> bool:
    """Whether a handler is installed, so that the signal does not end the process."""
    return bool(_mask(f"/proc/{pid}/status", "SigCgt") & 1 << (wire.STACK_SIGNAL - 1))


def _is_busy(pid: int) -> bool:
    bit = 1 << (wire.STACK_SIGNAL - 1)
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    if _mask(f"/proc/{pid}/status", "ShdPnd") & bit:
        return True
    return any(
        _mask(f"/proc/{pid}/task/{task}/status", field) & bit for task in tasks for field in ("SigPnd", "SigBlk")
    )


def _mask(path: str, field: str) -> int:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(field):
                    return int(line.partition(":")[2], 16)
    except (OSError, ValueError):
        pass
    return 0
