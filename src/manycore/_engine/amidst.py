"""What a thread is in the middle of with a map: reading its input, or sending its items.

Both run code of the user's and hold no lock, so the handler of a signal that comes amidst may do what it likes, but not
wait for this map: it cannot go on before the handler returns. What would wait for it is called when the thread is done.

Invariants:
    one thread at a time reads, one sends; the same may do both
    taking the reading is a single step: nobody reads whom `busy` does not know
If a process dies: all of it is the parent's.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Amidst"]


class Amidst:
    """The part of a map that knows who reads and who sends."""

    def __init__(self) -> None:
        self._stepper = 0  # the thread that sends, while it does
        self._reader: dict[int, int] = {}  # 0 -> the thread that reads, while it does
        self._later: list[tuple[int, Callable[[], object]]] = []  # by thread: what waits until it is done

    def _begin_reading(self) -> bool:
        """False when somebody reads already, and be it this thread."""
        here = threading.get_ident()
        return not self._reader and self._reader.setdefault(0, here) == here

    def _end_reading(self) -> None:
        self._reader.clear()
        self._leave()

    def busy(self) -> bool:
        """Whether this thread reads or sends, beneath the handler of a signal that has come amidst."""
        here = threading.get_ident()
        return self._stepper == here or self._reader.get(0) == here

    def postpone(self, call: Callable[[], object]) -> bool:
        """Have it called when this thread has read and sent; False, and nothing done, when it does neither."""
        if not self.busy():
            return False
        self._later.append((threading.get_ident(), call))
        return True

    def _leave(self) -> None:
        """This thread has read, or has sent."""
        if self._later and not self.busy():
            here = threading.get_ident()
            calls = [entry for entry in self._later if entry[0] == here]
            self._later = [entry for entry in self._later if entry[0] != here]
            for _, call in calls:
                call()
