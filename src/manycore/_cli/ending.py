"""What asks a run to end early: Ctrl-C, SIGTERM, SIGHUP, and an output that cannot be written.

A signal is only noted, and the run looks at the note several times a second: so no exception comes up in the
middle of the engine's or the output's bookkeeping, and nothing that was finished is lost. Only where this process
waits for its own input or output, which may take for ever, does the signal raise at once (`Ending.raises`).

Invariants:
    `cause` is the first reason; later ones change nothing.
    A second Ctrl-C, `_PATIENCE_S` after the first, ends the process on the spot: the kernel ends its workers.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import TYPE_CHECKING

from manycore._cli.exits import INTERRUPTED, TERMINATED

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Ended", "Ending"]

_PATIENCE_S = 2.0  # an orderly end takes less


class Ended(BaseException):
    """The run shall end.

    Attributes:
        word: What happened, for the closing line.
        status: The exit status.
    """

    def __init__(self, word: str, status: int) -> None:
        super().__init__(word)
        self.word = word
        self.status = status


class Ending:
    """The note.

    Attributes:
        cause: Why the run shall end; None while it shall go on.
        raises: Set where a signal shall raise at once, and only there.
    """

    def __init__(self) -> None:
        self.cause: Ended | OSError | None = None
        self.raises = False
        self._noted_at = 0.0

    def watch(self) -> None:
        """Take over this process's signals, for the rest of its life."""
        signal.signal(signal.SIGPIPE, self._on_wake_up)
        handlers = {
            signal.SIGINT: self._on_interrupt,
            signal.SIGTERM: self._on_terminate,
            signal.SIGHUP: self._on_terminate,
        }
        for signum, handler in handlers.items():
            if signal.getsignal(signum) is not signal.SIG_IGN:  # as nohup and a shell's & leave them
                signal.signal(signum, handler)

    def note(self, cause: Ended | OSError) -> None:
        """Note why the run shall end, unless that is known already. Any thread may call this."""
        if self.cause is None:
            self.cause = cause
            self._noted_at = time.monotonic()

    def check(self) -> None:
        """Raise the cause, if there is one."""
        if self.cause is not None:
            raise self.cause

    def wait(self, poller: select.poll) -> None:
        """Wait for one of its descriptors. A signal raises at once."""
        self.raises = True
        try:
            self.check()
            poller.poll()
        finally:
            self.raises = False

    def _on_wake_up(self, _signum: int, _frame: FrameType | None) -> None:
        if self.raises:
            self.check()

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self.cause is not None and time.monotonic() - self._noted_at > _PATIENCE_S:
            os._exit(INTERRUPTED)
        self.note(Ended("interrupted", INTERRUPTED))
        self._on_wake_up(signum, frame)

    def _on_terminate(self, signum: int, frame: FrameType | None) -> None:
        self.note(Ended("terminated", TERMINATED))
        self._on_wake_up(signum, frame)
