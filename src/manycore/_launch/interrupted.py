"""The end of a program by Ctrl-C: it has said so with one traceback, and another key press has nothing to add.

If a process dies: nothing is kept here.
"""

from __future__ import annotations

import signal
import sys
import threading

__all__ = ["heed_no_other", "hush", "is_interrupted"]


def is_interrupted() -> bool:
    """Whether the program ends by Ctrl-C, which its children have not seen."""
    kind = getattr(sys, "last_type", None)
    return isinstance(kind, type) and issubclass(kind, KeyboardInterrupt)


def hush() -> bool:
    """At exit: if the program ends by Ctrl-C, another one is not to be heard; whether it does."""
    interrupted = is_interrupted()
    if interrupted:
        heed_no_other()
    return interrupted


def heed_no_other() -> None:
    """Have no Ctrl-C heard from now on. One that was noted comes to this handler, too."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _nothing)


def _nothing(_signum: int, _frame: object) -> None:
    pass
