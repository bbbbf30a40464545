"""The launcher of this process: made at its first use, forgotten in a fork, ended with the interpreter.

      launch()  preload()  shutdown()        any thread
      at a fork                   the child closes the descriptors; it makes a launcher of its own when it needs one
      at the interpreter's end    what `before_end` was given, then `shutdown`

If a process dies: see `parent.py`. This one: its zygote and its children end with it.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from manycore._launch.arguments import module_names
from manycore._launch.parent import Launcher
from manycore._memory.modules import loaded
from manycore._native.process import End
from manycore._native.step import Mutex

if TYPE_CHECKING:
    from manycore._launch.child import Child

__all__ = ["Launcher", "before_end", "current", "launch", "preload", "shutdown"]

_current: Launcher | None = None
_current_lock = Mutex()


def current() -> Launcher:
    """The launcher of this process, made at the first call."""
    global _current
    if _current is None:
        with _current_lock:
            if _current is None:
                _current = Launcher()
                _hook()
    return _current


@functools.cache
def _hook() -> None:
    """Once: what is called at a fork and at the end."""
    os.register_at_fork(after_in_child=_forget)
    atexit.register(_at_exit)
    _end.watch(threading)


def run_first_at_exit() -> None:
    """Make this module's exit handler run before those registered until now, `multiprocessing`'s above all."""
    _hook()
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)


def _forget() -> None:
    """In a fork of this process: nothing of the launcher is ours; only its descriptors must not stay open here."""
    global _current, _current_lock
    launcher, _current = _current, None
    _current_lock = Mutex()
    if launcher is None:
        return
    launcher.close()


def shutdown() -> None:
    """Kill every child that was launched, and the zygote, and wait until they are gone; a later launch begins anew."""
    global _current
    launcher, _current = _current, None
    if launcher is not None:
        launcher.end()


def _stop() -> None:
    """What the program's last Ctrl-C was to end; no child has seen it. This takes a bounded time."""
    if _current is not None:
        _current.terminate_all()


def _wait() -> None:
    """For the processes that the interpreter is to wait for; ours may be among them."""
    util = loaded("multiprocessing.util")
    if util is not None:
        util._exit_function()


_before_end: list[Callable[[], object]] = []


def before_end(call: Callable[[], object]) -> None:
    """Have this called at the interpreter's end, before what was launched is killed."""
    _hook()
    _before_end.append(call)


def _finish() -> None:
    for call in _before_end:
        call()
    shutdown()


_end = End(_stop, _wait, _finish)
_at_exit = _end.at_exit


def launch(
    entry: str,
    payload: bytes,
    fds: Sequence[int] = (),
    *,
    title: str = "",
    on_exit: Callable[[Child], None] | None = None,
    linger: bool = False,
) -> Child:
    """Start a process that calls a function; return at once.

    The process is a clean one: it has this process's directory, environment, path, arguments and standard
    descriptors as they are now, and nothing else of it. SIGINT is ignored in it, SIGTERM ends it, and
    it leads a process group of its own. It ends with this process, whatever happens.

    Args:
        entry: "package.module:function"; called as `function(payload, fds)`. What it returns, if it is an int, is
            the exit code; `SystemExit` and other exceptions end it as they end an interpreter.
        payload: Any number of bytes.
        fds: Descriptors that the process gets duplicates of; the caller keeps, and may close, its own.
        title: What `ps` shows.
        on_exit: Called with the child once its end is certain and its status known, in the reaper thread.
        linger: When this process dies, the child has a moment to notice before it is killed; else it has none.

    Raises:
        LaunchError: No zygote could be started. What goes wrong later is in the child's `error`.
    """
    return current().launch(entry, payload, fds, title, on_exit, linger)


def preload(*modules: str) -> None:
    """Import modules in the zygote, so that every process to come has them at no cost.

    What cannot be imported there is reported as a `ManycoreWarning`.

    Raises:
        TypeError: A name is no str.
    """
    current().preload(module_names("modules", modules))
