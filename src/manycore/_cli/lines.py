"""Lines of a file, a pipe or a terminal, as they are there.

A pipe may have nothing for hours (`tail -f`), and results must not wait for its next line: `Lines.batch` gives what
is there now, and an empty list where that is nothing; then `Lines.awaited` is what to wait for.
"""

from __future__ import annotations

import os
import select
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO

    from manycore._cli.ending import Ending

__all__ = ["Lines"]

_BATCH_BYTES = 16 << 10  # of a file's lines that are read together
_PIPE_BYTES = 64 << 10  # what a pipe holds
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Lines:
    """The lines of an open file, with their ends.

    Args:
        file: Where they come from; nobody else reads from it.
        ending: Ends a wait.

    Attributes:
        bytes_read: How much was read so far.
        awaited: The descriptor of a pipe that had no line at the last look; else None.
    """

    def __init__(self, file: BinaryIO, ending: Ending) -> None:
        self.bytes_read = 0
        self.awaited: int | None = None
        self._file = file
        self._ending = ending
        self._is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        self._beginning: list[bytes] = []  # of a line whose end has not come
        self._at_end = False
        self._poll = select.poll()
        if not self._is_regular:
            self._poll.register(file, select.POLLIN)

    def batch(self) -> list[bytes] | None:
        """The lines that are there, at least one; none where none has come yet; None at the end."""
        at_start = not self.bytes_read
        lines = self._file.readlines(_BATCH_BYTES) if self._is_regular else self._take_from_pipe()
        if at_start and lines:
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        if self._is_regular:
            self.bytes_read += sum(map(len, lines))
            return lines or None
        return lines or (None if self._at_end else lines)

    def wait(self) -> list[bytes] | None:
        """As `batch`, but waits for lines.

        Raises:
            Ended: A signal came meanwhile.
        """
        while (lines := self.batch()) == []:
            self._ending.wait(self._poll)
        return lines

    def _take_from_pipe(self) -> list[bytes]:
        if self._at_end:
            return []
        self.awaited = self._file.fileno()
        if not self._poll.poll(0):
            return []
        data = os.read(self._file.fileno(), _PIPE_BYTES)
        self.bytes_read += len(data)
        if not data:
            self._at_end = True
            self.awaited = None
            last = b"".join(self._beginning)
            self._beginning.clear()
            return [last] if last else []
        *lines, rest = data.split(b"\n")
        if not lines:
            self._beginning.append(rest)
            return []
        self.awaited = None
        lines[0] = b"".join([*self._beginning, lines[0]])
        self._beginning = [rest] if rest else []
        return [line + b"\n" for line in lines]
