"""What a worker is to `multiprocessing`: its name, its parent, and the key that it shows to managers.

A worker does not import `multiprocessing`, which costs more than all else that it imports. What `current_process()`
and `parent_process()` say is set once `multiprocessing.process` is imported, by a task or by an argument that is a
manager's proxy. The same holds for a parent that has not imported it: the key that its workers got becomes its own.

If a process dies: nothing is shared.
"""

from __future__ import annotations

import os
import sys
from functools import partial

from manycore._engine.imports import when_imported
from manycore._memory.modules import loaded

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["Identity", "assume", "of_workers"]

_PROCESS: Final = "multiprocessing.process"


Identity = tuple[str, int, bytes]
"""The parent's name and pid, and the authentication key."""


# This process's name and key, while it has not imported `multiprocessing` and so has none there: what it was told as a
# worker, or, once it has workers of its own, a key made for them, which `multiprocessing` takes over if it comes.
_own: tuple[str, bytes] | None = None


def of_workers() -> Identity:
    """The identity that this process gives its workers."""
    global _own
    process = loaded(_PROCESS)
    if process is not None:
        current = process.current_process()
        return (current.name, os.getpid(), bytes(current.authkey))
    if _own is None:
        key = os.urandom(32)
        _own = ("MainProcess", key)
        when_imported(_PROCESS, partial(_share_key, key))
    return (_own[0], os.getpid(), _own[1])


def _share_key(key: bytes, process: Any) -> None:
    process.current_process().authkey = key


def assume(name: str, identity: Identity) -> None:
    """Make `current_process()` say so, now or when something here first asks."""
    global _own
    if _PROCESS not in sys.modules:
        _own = (name, identity[2])
    when_imported(_PROCESS, partial(_introduce, name, identity))


def _introduce(name: str, identity: Identity, process: Any) -> None:
    """Sets what `multiprocessing.process` says of this process."""
    current = process.current_process()
    current.name = name
    parent_name, parent_pid, current.authkey = identity
    try:
        sentinel = os.pidfd_open(parent_pid)
    except OSError:  # it is gone, and this process is about to be
        return
    process._parent_process = process._ParentProcess(parent_name, parent_pid, sentinel)
