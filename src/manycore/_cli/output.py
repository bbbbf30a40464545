"""Where the lines of `manycore map` go, and in which order.

    the collecting thread                        the writer's thread
    InOrder.put(index, lines) -> Output.write ==> write(2), at the latest 0.1 s later
                                                 looks whether the reader of a pipe is still there

    -o FILE: FILE.partial is written, locked; at the end fsync and rename. FILE is never half a file.

Invariants:
    Only the writer's thread writes, so that no signal, whose handler runs in the main thread, cuts a line in two.
    What waits to be written is bounded (`_MOST_WAITING_BYTES`): who produces faster than the reader reads waits.
    What waits for its turn is bounded in memory (`_MOST_HELD_BYTES`); beyond, it is in a nameless temporary file.
    So one slow item holds back the lines after it, and never a worker.
If this process dies: FILE is as it was before; FILE.partial has whole lines, and perhaps the beginning of one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import struct
import sys
import tempfile
import threading
import time
from array import array
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from manycore._cli.exits import FAILED, CommandError

if TYPE_CHECKING:
    from collections.abc import Callable

    from manycore._cli.ending import Ending

__all__ = ["InOrder", "Output"]

_REST_S = 0.02  # from one write to the next, so that short lines go together; a person does not notice it
_LOOK_INTERVAL_S = 0.1  # for a reader that went away
_FLUSH_BYTES = 64 << 10  # a pipe's capacity
_MOST_WAITING_BYTES = 4 << 20
_MOST_HELD_BYTES = 32 << 20
_PIECE_BYTES = select.PIPE_BUF  # after POLLOUT a pipe takes this much without blocking
_HEAD = struct.Struct("=qq")  # of an entry on disk: its bytes, its indices


class Output:
    """Standard output or a file; a thread writes to it.

    Args:
        path: The file, or None for standard output, which then belongs to the results alone: whatever else
            this process or its workers print there goes to standard error.
        ending: Told when writing fails; the main thread is then sent SIGPIPE, so that it looks.

    Attributes:
        error: Why writing failed, if it did.
        partial: The name under which lines are written until the end; None where that is not a new file.

    Raises:
        CommandError: The file cannot be written, or somebody else is writing it.
    """

    def __init__(self, path: str | None, ending: Ending) -> None:
        self._ending = ending
        self.error: OSError | None = None
        self.partial: str | None = None
        self._is_empty = True  # nothing was ever to be written
        self._final = ""
        self._name = path if path is not None else "standard output"
        self._fd = _take_standard_output() if path is None else self._open(path)
        mode = os.fstat(self._fd).st_mode
        self._is_stream = not stat.S_ISREG(mode)
        self._around: Callable[[], AbstractContextManager[None]] = nullcontext
        self._ready = threading.Condition()  # guards the four fields below
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._closing = False
        self._give_up_at = float("inf")  # on the monotonic clock, in seconds
        self._thread = threading.Thread(target=self._run, name="manycore-output", daemon=True)
        self._thread.start()

    @property
    def is_terminal(self) -> bool:
        """Whether a person sees the results come."""
        return os.isatty(self._fd)

    def share_terminal(self, around: Callable[[], AbstractContextManager[None]]) -> None:
        """Write within `around()`, which clears the progress bar where both are on one terminal."""
        if self.is_terminal:
            self._around = around

    def write(self, lines: bytes) -> None:
        """Have whole lines written; waits while too much is waiting.

        Raises:
            OSError: It cannot be written.
            Ended: A signal came while this waited; the lines will be written.
        """
        with self._ready:
            if self.error is not None:
                raise self.error
            self._is_empty = False
            before = self._waiting_bytes
            self._waiting.append(lines)
            self._waiting_bytes += len(lines)
            if not before or before < _FLUSH_BYTES <= self._waiting_bytes:
                self._ready.notify_all()
            if self._waiting_bytes > _MOST_WAITING_BYTES:
                self._wait_for_the_reader()

    def hurry(self, timeout: float) -> None:
        """From now on wait `timeout` seconds at most for a reader of a pipe, and for no signal."""
        self._give_up_at = time.monotonic() + timeout

    def _wait_for_the_reader(self) -> None:
        if self._give_up_at < float("inf"):
            while self._waiting_bytes > _MOST_WAITING_BYTES and self.error is None:
                if self._is_stream and time.monotonic() >= self._give_up_at:
                    self._ending.check()
                self._ready.wait(_LOOK_INTERVAL_S)
            return
        self._ending.raises = True
        try:
            self._ending.check()
            while self._waiting_bytes > _MOST_WAITING_BYTES and self.error is None:
                self._ready.wait()
        finally:
            self._ending.raises = False

    def finish(self) -> None:
        """Write what waits; give the file its name."""
        self._drain(None)
        if self.error is not None:
            raise self.error
        if self.partial is not None:
            try:
                if self._is_empty:
                    os.ftruncate(self._fd, 0)
                os.fsync(self._fd)
                os.replace(self.partial, self._final)
                _sync_folder(os.path.dirname(self._final))
            except OSError as error:
                self.error = error
                raise
        os.close(self._fd)

    def keep(self, timeout: float) -> str:
        """Write what waits, for at most `timeout` seconds, and leave the file under its partial name.

        Returns:
            The name of the file that has the finished lines; empty where there is none.
        """
        self._drain(timeout)
        kept = ""
        if self.partial is not None:
            if not self._is_empty:
                kept = self.partial
            elif not os.fstat(self._fd).st_size:  # else it is what an earlier run has kept
                os.unlink(self.partial)
        if not self._thread.is_alive():
            os.close(self._fd)
        return kept

    def describe(self, error: OSError) -> CommandError:
        """The error that ends the command when its output cannot be written."""
        kept = self.keep(0.0)
        hint = f"; what was written is in {kept}" if kept else ""
        return CommandError(f"cannot write {self._name}: {error.strerror or error}{hint}", FAILED)

    def _open(self, path: str) -> int:
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            permissions = None
        except OSError as error:
            raise CommandError(f"cannot write {path!r}: {error.strerror}") from None
        else:
            if stat.S_ISDIR(mode):
                raise CommandError(f"cannot write {path!r}: it is a folder")
            if not stat.S_ISREG(mode):
                return self._open_fd(path, path, os.O_WRONLY)
            if not os.access(path, os.W_OK):
                raise CommandError(f"cannot write {path!r}: Permission denied")
            permissions = stat.S_IMODE(mode)
        self._final = os.path.realpath(path)  # the file that a link means is replaced, and not the link
        self.partial = f"{path if self._final == os.path.abspath(path) else self._final}.partial"
        fd = self._open_fd(path, self.partial, os.O_WRONLY | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise CommandError(f"another process is writing {self.partial!r}") from None
        if permissions is not None:
            os.fchmod(fd, permissions)
        return fd

    @staticmethod
    def _open_fd(path: str, actual: str, flags: int) -> int:
        try:
            return os.open(actual, flags | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise CommandError(f"cannot write {path!r}: {error.strerror}") from None

    def _drain(self, timeout: float | None) -> None:
        with self._ready:
            self._closing = True
            if timeout is not None:
                self._give_up_at = time.monotonic() + timeout
            self._ready.notify_all()
        self._thread.join(None if timeout is None else timeout + _LOOK_INTERVAL_S)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        rested_at = 0.0  # from then on what comes is written at once: lines that come seldom do not wait for more
        untouched = self.partial is not None  # what an earlier run has kept goes when there is something better
        try:
            while True:
                with self._ready:
                    if not self._waiting_bytes and not self._closing:
                        self._ready.wait(_LOOK_INTERVAL_S)
                    while 0 < self._waiting_bytes < _FLUSH_BYTES and not self._closing:
                        rest = rested_at - time.monotonic()
                        if rest <= 0:
                            break
                        self._ready.wait(rest)
                    data = b"".join(self._waiting)
                    self._waiting.clear()
                    self._waiting_bytes = 0
                    closing = self._closing
                    self._ready.notify_all()
                if data:
                    if untouched:
                        os.ftruncate(self._fd, 0)
                        untouched = False
                    with self._around():
                        self._write_all(data, poll)
                    rested_at = time.monotonic() + _REST_S
                elif closing:
                    return
                elif self._is_stream and any(event & select.POLLERR for _, event in poll.poll(0)):
                    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        except OSError as error:
            with self._ready:
                self.error = error
                self._ready.notify_all()
            self._ending.note(error)
            if not self._closing:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGPIPE)

    def _write_all(self, data: bytes, poll: select.poll) -> None:
        view = memoryview(data)
        while view:
            if self._is_stream:
                while not poll.poll(int(_LOOK_INTERVAL_S * 1000)):
                    if time.monotonic() >= self._give_up_at:
                        return
                view = view[os.write(self._fd, view[:_PIECE_BYTES]) :]
            else:
                view = view[os.write(self._fd, view) :]


def _take_standard_output() -> int:
    """Take descriptor 1 away from everybody else; what they write there goes to standard error."""
    if sys.stdout is None:
        raise CommandError("cannot write standard output: it is closed", FAILED)
    sys.stdout.flush()
    fd = os.dup(1)
    os.dup2(2, 1)
    return fd


def _sync_folder(path: str) -> None:
    """Make a rename in a folder last."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class InOrder:
    """Passes lines on in the order of their indices. What comes together is put together.

    Args:
        write: Where lines go.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._next = 0  # Invariant: every line before it has been passed on, and no other
        self._held: dict[int, tuple[bytes, int]] = {}
        self._held_bytes = 0
        # Lines that were put on disk: where each begins, by its index less `_base`; -1 for none.
        self._spill: Any = None
        self._base = 0
        self._offsets = array("q")
        self._spilled = 0

    def put(self, index: int, lines: bytes, count: int = 1) -> None:
        """Take the lines of `count` indices from this one on; no lines only give up their turn."""
        if index != self._next:
            self._held[index] = lines, count
            self._held_bytes += len(lines)
            if self._held_bytes > _MOST_HELD_BYTES:
                self._put_on_disk()
            return
        self._pass_on(lines, count)
        while True:
            following = self._held.pop(self._next, None)
            if following is not None:
                self._held_bytes -= len(following[0])
            else:
                following = self._take_from_disk(self._next)
                if following is None:
                    return
            self._pass_on(*following)

    def put_rest(self) -> None:
        """Pass on all that is held, past the gaps of what never finished."""
        spilled = (self._base + place for place, offset in enumerate(self._offsets) if offset >= 0)
        for index in sorted([*self._held, *spilled]):
            entry = self._held.pop(index, None) or self._take_from_disk(index)
            if entry is not None and entry[0]:
                self._write(entry[0])

    def _pass_on(self, lines: bytes, count: int) -> None:
        self._next += count
        if lines:
            self._write(lines)

    def _put_on_disk(self) -> None:
        if self._spill is None:
            self._spill = tempfile.TemporaryFile(prefix="manycore-")  # noqa: SIM115  (closed when empty, or with us)
            self._base = self._next
        offset = self._spill.seek(0, os.SEEK_END)
        for index, (lines, count) in self._held.items():
            place = index - self._base
            if place >= len(self._offsets):
                self._offsets.extend([-1] * (place + 1 - len(self._offsets)))
            self._offsets[place] = offset
            self._spill.write(_HEAD.pack(len(lines), count) + lines)
            offset += _HEAD.size + len(lines)
        self._spilled += len(self._held)
        self._held.clear()
        self._held_bytes = 0

    def _take_from_disk(self, index: int) -> tuple[bytes, int] | None:
        place = index - self._base
        if not 0 <= place < len(self._offsets) or self._offsets[place] < 0:
            return None
        self._spill.seek(self._offsets[place])
        length, count = _HEAD.unpack(self._spill.read(_HEAD.size))
        lines: bytes = self._spill.read(length)
        self._offsets[place] = -1
        self._spilled -= 1
        if self._spilled == 0:
            self._spill.close()
            self._spill = None
            del self._offsets[:]
        return lines, count
