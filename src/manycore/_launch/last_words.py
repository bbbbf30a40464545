"""What a process said when a fatal signal ended it: its native stack, then `faulthandler`'s report.

It is in a memfd that outlives the process; `_native/c/crash.h` has the first half.

Children of a zygote write into the memfd that answers `stacks`, and the zygote reads it. For the other start
methods the parent makes one for each process, which travels with the process object; it is the parent that reads.

A program that has switched `faulthandler` on in such a child, or had it on when it forked, keeps its own.
"""

from __future__ import annotations

import faulthandler
import os

from manycore._memory.memfd import create_memfd
from manycore._native import process as _native

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any

__all__ = ["LastWords", "read"]

_listening: LastWords | None = None  # in a child: what keeps the descriptor open that faulthandler writes to

_MAX_BYTES = 16 * 1024  # of a report; faulthandler's for a hundred threads is longer than anyone reads
_START = "Fatal Python error"
_NATIVE_START = "Native stack of {pid} (most recent call first):\n"


def read(fd: int, pid: int) -> tuple[str | None, str | None]:
    """What is in a memfd behind whatever else was written there: `faulthandler`'s report and the native stack."""
    size = os.fstat(fd).st_size
    text = os.pread(fd, 4 * _MAX_BYTES, max(0, size - 4 * _MAX_BYTES)).decode("utf-8", "replace")
    report = text[text.rfind(_START) :][:_MAX_BYTES] if _START in text else None
    _, found, rest = text.rpartition(_NATIVE_START.format(pid=pid))  # one of its forks may have had its own
    frames = []
    for line in rest.splitlines(keepends=True) if found else ():
        if not line.startswith("  "):
            break
        frames.append(line)
    return report, "".join(frames)[:_MAX_BYTES] or None


class LastWords:
    """A place for one report, made by the parent."""

    _fd = -1
    _close = staticmethod(os.close)  # at the interpreter's end the module's globals go before the last objects

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = create_memfd("manycore-last-words")
            _native.load_crash_teller()  # here, for the process may be a fork
        self._fd = fd

    def __del__(self) -> None:
        if self._fd >= 0:
            self._close(self._fd)

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing import reduction

        return _rebuild, (reduction.DupFd(self._fd),)

    def listen(self, always: bool = False) -> None:
        """In the child: have the last words written here, unless `faulthandler` is on already.

        Args:
            always: Also if it is.
        """
        global _listening
        if always or not faulthandler.is_enabled():
            faulthandler.enable(self._fd)
            _native.tell_crashes(self._fd)
            _listening = self

    def get(self, pid: int) -> tuple[str | None, str | None]:
        """In the parent, once the process has ended: `read`."""
        return read(self._fd, pid)


def _rebuild(handle: Any) -> LastWords:
    return LastWords(handle.detach())
