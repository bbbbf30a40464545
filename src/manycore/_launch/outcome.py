"""What the function of a process returned or raised, on its way to the parent.

It is written into a memfd, not a pipe: any size fits, the child never waits for a reader, and a child
that is killed half-way has left nothing, since the length is written last.
"""

from __future__ import annotations

import os
from multiprocessing import reduction

from manycore._memory import codec
from manycore._memory.memfd import create_memfd

TYPE_CHECKING = False  # every process imports this module, so it imports little itself
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Outcome"]

_HEAD_BYTES = 8


class Outcome:
    """A place for one outcome, which travels to the child with the process object."""

    _fd = -1
    _close = staticmethod(os.close)  # at the interpreter's end the module's globals go before the last objects

    def __init__(self, fd: int | None = None) -> None:
        self._fd = create_memfd("manycore-outcome") if fd is None else fd

    def __del__(self) -> None:
        if self._fd >= 0:
            self._close(self._fd)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (reduction.DupFd(self._fd),)

    def put(self, value: Any) -> None:
        """Record what the function returned.

        Raises:
            ResultPicklingError: It cannot be pickled.
        """
        self._write(codec.dumps((True, value, ""), to_parent=True, roots=("", "result")))

    def put_exception(self, error: BaseException) -> None:
        """Record what the function raised, or at least its text."""
        import traceback

        text = "".join(traceback.format_exception(error))
        try:
            data = codec.dumps((False, error, text), to_parent=True)
            codec.loads(data)  # many an exception can be pickled but not rebuilt
        except BaseException:
            data = codec.dumps((False, None, text), to_parent=True)
        self._write(data)

    def _write(self, data: bytes) -> None:
        view, offset = memoryview(data), _HEAD_BYTES
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written
        os.pwrite(self._fd, len(data).to_bytes(_HEAD_BYTES, "little"), 0)

    def get(self) -> tuple[bool, Any, str] | None:
        """(True, value, "") or (False, exception or None, its traceback); None if there is none."""
        size = int.from_bytes(os.pread(self._fd, _HEAD_BYTES, 0), "little")
        if not size:
            return None
        data, offset = bytearray(), _HEAD_BYTES
        while len(data) < size:
            data += os.pread(self._fd, size - len(data), offset + len(data))
        found: tuple[bool, Any, str] = codec.loads(bytes(data))
        return found

    def claim(self, name: str, popen: Any) -> Any:
        """What a process that has ended returned; its object may be closed by now.

        Args:
            name: The process's.
            popen: What started it.

        Raises:
            Exception: What it raised; `WorkerDied` if it came to neither.
        """
        from manycore import errors

        found = self.get()
        if found is None:
            certificate = popen.certificate()
            how = certificate.describe() if certificate is not None else f"exit code {popen.returncode}"
            raise errors.WorkerDied(f"{name} (pid {popen.pid}) died: {how}, before it had a result", certificate)
        ok, value, text = found
        if ok:
            return value
        if value is None:
            raise errors.ResultPicklingError(f"{name} raised what cannot be pickled:\n{text}")
        raise value from errors.RemoteTraceback(text)


def _rebuild(handle: Any) -> Outcome:
    return Outcome(handle.detach())
