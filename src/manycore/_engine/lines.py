"""A worker's standard output and error: whole lines, each in one piece, whoever else writes there.

    print -> TextIOWrapper -> LineWriter: keeps what is no whole line yet
                                 lock (pipes and sockets) -> write -> unlock

A pipe takes at most PIPE_BUF bytes at once for certain; a longer line goes in several steps while its reader is slow,
and another process's line could come between. So writers to a pipe or a socket lock it, with a record lock: the kernel
holds it, for the file itself, so it is the same for all workers of all pools, and it is gone with its holder.
Terminals and files take a write of any length in one piece by themselves.

Invariants:
    what is written ends with a newline, unless it was flushed before its line was whole, or the line is longer than
    LONGEST.
If a process dies: a whole line that was printed has been written; of a line that is longer than PIPE_BUF, as far as the
    reader had come. What was no whole line is lost.
"""

from __future__ import annotations

import fcntl
import io
import os
import select
import stat
import sys
import time
from _thread import RLock

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["LONGEST", "LineWriter", "write_whole_lines"]

LONGEST: Final = 1 << 20  # bytes of a line that are kept until it is whole; a longer one goes in parts

# How long a writer waits for the others, who wait for the reader: when one of them has been stopped, this long.
_PATIENCE: Final = 1.0  # seconds
_NAP: Final = 0.0005  # between two looks


class LineWriter(io.BufferedIOBase):
    """Writes whole lines to a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = bytearray()
        # Guards _pending, and the order of this process's lines. Reentrant: a signal's handler may print.
        self._threads = RLock()
        mode = os.fstat(fd).st_mode
        self._shared = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)

    def write(self, data: Any, /) -> int:
        """Take bytes, and write all lines that are whole now."""
        with memoryview(data) as view:
            piece = view.tobytes()
        end = piece.rfind(b"\n") + 1
        with self._threads:
            self._pending += piece[:end] if end else piece
            if end or len(self._pending) > LONGEST:
                whole, self._pending = self._pending, bytearray(piece[end:] if end else b"")
                self._put(whole)
        return len(piece)

    def flush(self) -> None:
        """Write what there is, also if it is no whole line."""
        with self._threads:
            whole, self._pending = self._pending, bytearray()
            if whole:
                self._put(whole)

    def _put(self, data: bytearray) -> None:
        locked = self._shared and self._lock()
        try:
            with memoryview(data) as rest:
                done = 0
                while done < len(rest):
                    try:
                        done += os.write(self._fd, rest[done:])
                    except BlockingIOError:
                        select.select([], [self._fd], [])
        finally:
            if locked:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _lock(self) -> bool:
        end = 0.0
        while True:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except (BlockingIOError, PermissionError):
                now = time.monotonic()
                end = end or now + _PATIENCE
                if now > end:
                    return False
                time.sleep(_NAP)
            except OSError:  # a file that knows no locks
                return False

    def after_fork(self) -> None:
        """In a child that a task has forked: no thread of the worker's is there to give the lock back."""
        self._threads = RLock()

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._fd)


def write_whole_lines() -> None:
    """From now on `sys.stdout` and `sys.stderr` of this process write whole lines."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        try:
            if stream.fileno() != fd:
                continue  # somebody has put another in its place
            stream.flush()
            writer: Any = LineWriter(fd)
        except (OSError, ValueError):  # it is closed
            continue
        # write_through: each piece of text comes here at once, and here it waits for the rest of its line
        whole = io.TextIOWrapper(writer, stream.encoding, stream.errors, newline="\n", write_through=True)
        setattr(sys, name, whole)
        setattr(sys, f"__{name}__", whole)
        os.register_at_fork(after_in_child=writer.after_fork)
