"""Programs that start processes where their main module is imported, by "spawn" and "forkserver" in each process.

The start raises RuntimeError, as the standard library's does. If that ends the process, so does

    a `Process`         with the program's own lines of the traceback, which says what is to be done
    a pool's worker     without a word, and with an exit code by which the pool knows: it raises one error for all

A program that catches the error goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import traceback
from multiprocessing import process
from types import TracebackType

import manycore
from manycore._launch import parent

__all__ = ["EXIT_CODE", "check"]

EXIT_CODE = 231  # of a worker; any that few others use
_FOREIGN = tuple(f"{os.path.dirname(module.__file__ or '')}{os.sep}" for module in (manycore, multiprocessing))
_FOREIGN += (runpy.__file__, "<frozen runpy>", "<string>")


class _UnguardedError(RuntimeError):
    """Shown as what it is a subclass of."""


_UnguardedError.__name__ = _UnguardedError.__qualname__ = "RuntimeError"
_UnguardedError.__module__ = "builtins"


def check() -> None:
    """To be called before a process is started.

    Raises:
        RuntimeError: This process still imports the program's main module.
    """
    if getattr(process.current_process(), "_inheriting", False):
        hook = sys.excepthook

        def show(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
            if kind is _UnguardedError:
                _end(error, where)
            else:
                hook(kind, error, where)

        sys.excepthook = show
        raise _UnguardedError(parent._IMPORTING_MAIN)


def _end(error: BaseException, where: TracebackType | None) -> None:
    """Whether it is a worker its name says, which is all that it has of its pool by now."""
    if process.current_process().name.startswith("manycore: worker "):
        os._exit(EXIT_CODE)
    own = [frame for frame in traceback.extract_tb(where) if not frame.filename.startswith(_FOREIGN)]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(own), f"RuntimeError: {error}\n"]
    sys.stderr.write("".join(lines))
