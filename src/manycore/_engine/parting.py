"""What parts engines from their workers without their doing: a fork, and the interpreter's end.

    fork              the child's engines are closed: their workers are the parent's
    interpreter's end no worker is started any more; then the launcher kills all that are left. What is finalized later,
                      when no thread of ours runs any more, finds nothing left to end

If a process dies: nothing is left of this.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

from manycore._launch import launcher

if TYPE_CHECKING:
    from manycore._engine.local import Engine

__all__ = ["engines"]

engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _after_fork() -> None:
    for engine in tuple(engines):
        engine.disown()


def _at_exit() -> None:
    for engine in tuple(engines):
        engine.leave()


os.register_at_fork(after_in_child=_after_fork)
launcher.before_end(_at_exit)
