"""Forked parties for the tests of synchronisation: children that say when they are ready, and that can be killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any


class Party:
    """A forked child that runs `work(*args, self)`; it exits with 0 if that returns true, and 1 otherwise.

    `say` in the child makes the next `heard` in the parent return.
    """

    def __init__(self, work: Callable[..., Any], *args: Any) -> None:
        self._read, self._write = os.pipe()
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                code = 0 if work(*args, self) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(self._write)

    def say(self) -> None:
        os.write(self._write, b"x")

    def heard(self) -> None:
        assert os.read(self._read, 1) == b"x", "the party died before it said anything"

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.join()

    def join(self, limit: float = 20.0) -> int:
        """The exit code, or minus the signal."""
        if self.status is None:
            end = time.monotonic() + limit
            pidfd = os.pidfd_open(self.pid)
            import select

            ready, _, _ = select.select([pidfd], [], [], max(0.0, end - time.monotonic()))
            os.close(pidfd)
            if not ready:
                os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._read)
            assert ready, "the party hung"
        return self.status

    def sleeps(self) -> None:
        """Return once the child's main thread sleeps in the kernel: it is in the wait that it was sent into."""
        end = time.monotonic() + 20
        while True:
            with open(f"/proc/{self.pid}/stat", encoding="ascii") as file:
                state = file.read().rsplit(")", 1)[1].split()[0]
            if state == "S":
                return
            assert time.monotonic() < end, f"the party is in state {state}"
            time.sleep(0.001)  # polls another process; nothing depends on how long
