"""The end of a program by Ctrl-C: it has said so with one traceback, and another key press has nothing to add.

At its end the interpreter joins the program's threads; a Ctrl-C that comes then is printed, swallowed, and the exit
handlers go on to wait for children as if there had been none. So from then on it is noted as well.

If a process dies: nothing is kept here.
"""

from __future__ import annotations

import signal
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

__all__ = ["heed_no_other", "hush", "is_interrupted", "note_at_the_end"]

_noted = False
_expected = False  # that the interpreter calls `_listen` at its end, and it has not: a Ctrl-C came between


def is_interrupted() -> bool:
    """Whether the program ends by Ctrl-C, which its children have not seen."""
    kind = getattr(sys, "last_type", None)
    return _noted or (isinstance(kind, type) and issubclass(kind, KeyboardInterrupt))


def note_at_the_end() -> None:
    """Note a Ctrl-C that comes while the interpreter joins the program's threads."""
    global _expected
    try:
        threading._register_atexit(_listen)  # type: ignore[attr-defined]
        _expected = True
    except (AttributeError, RuntimeError):  # it joins them already; or it has no such function any more
        pass


def _listen() -> None:
    global _expected
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note)
    _expected = False  # last: a Ctrl-C that comes before is known by it, one that comes later by `_note`


def _note(signum: int, frame: FrameType | None) -> None:
    global _noted
    _noted = True
    signal.default_int_handler(signum, frame)


def hush(came: bool) -> bool:
    """At exit: if the program ends by Ctrl-C, another one is not to be heard; whether it does.

    Args:
        came: One has come just now.
    """
    global _noted
    _noted = _noted or came or _expected
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
