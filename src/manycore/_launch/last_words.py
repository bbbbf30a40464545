"""What a process said when a fatal signal ended it: `faulthandler`'s report, in a memfd that outlives the process.

Children of a zygote write into the memfd that answers `stacks`, and the zygote reads it. For the other start
methods the parent makes one for each process, which travels with the process object; it is the parent that reads.

A program that has switched `faulthandler` on in such a child, or had it on when it forked, keeps its own.
"""

from __future__ import annotations

import faulthandler
import os

from manycore._memory.memfd import create_memfd

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any

__all__ = ["LastWords", "read"]

_listening: LastWords | None = None  # in a child: what keeps the descriptor open that faulthandler writes to

_MAX_BYTES = 16 * 1024  # of a report; faulthandler's for a hundred threads is longer than anyone reads
_START = "Fatal Python error"


def read(fd: int) -> str:
    """The report in a memfd, behind whatever else was written there; "" if there is none."""
    size = os.fstat(fd).st_size
    text = os.pread(fd, 4 * _MAX_BYTES, max(0, size - 4 * _MAX_BYTES)).decode("utf-8", "replace")
    return text[text.rfind(_START) :][:_MAX_BYTES] if _START in text else ""


class LastWords:
    """A place for one report, made by the parent."""

    _fd = -1
    _close = staticmethod(os.close)  # at the interpreter's end the module's globals go before the last objects

    def __init__(self, fd: int | None = None) -> None:
        self._fd = create_memfd("manycore-last-words") if fd is None else fd

    def __del__(self) -> None:
        if self._fd >= 0:
            self._close(self._fd)

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing import reduction

        return _rebuild, (reduction.DupFd(self._fd),)

    def listen(self, always: bool = False) -> None:
        """In the child: have `faulthandler` write here, unless it is on already.

        Args:
            always: Also if it is.
        """
        global _listening
        if always or not faulthandler.is_enabled():
            faulthandler.enable(self._fd)
            _listening = self

    def get(self) -> str:
        """In the parent, once the process has ended."""
        return read(self._fd)


def _rebuild(handle: Any) -> LastWords:
    return LastWords(handle.detach())
