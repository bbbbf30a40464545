"""What a worker is to `multiprocessing`: its name, its parent, and the key that it shows to managers.

A worker does not import `multiprocessing`, which costs more than all else that it imports. So a finder waits for
the first import of `multiprocessing.process`, by a task or by an argument that is a manager's proxy, sets what
`current_process()` and `parent_process()` say, and leaves. The same holds for a parent that has not imported it: the
key that its workers got becomes its own.

If a process dies: nothing is shared.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
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
    process = sys.modules.get(_PROCESS)
    if process is not None:
        current = process.current_process()
        return (current.name, os.getpid(), bytes(current.authkey))
    if _own is None:
        key = os.urandom(32)
        _own = ("MainProcess", key)
        sys.meta_path.insert(0, _Finder(partial(_share_key, key)))
    return (_own[0], os.getpid(), _own[1])


def _share_key(key: bytes, process: Any) -> None:
    process.current_process().authkey = key


def assume(name: str, identity: Identity) -> None:
    """Make `current_process()` say so, now or when something here first asks."""
    global _own
    process = sys.modules.get(_PROCESS)
    if process is None:
        _own = (name, identity[2])
        sys.meta_path.insert(0, _Finder(partial(_introduce, name, identity)))
    else:
        _introduce(name, identity, process)


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


class _Finder:
    """Finds one module as the others would, and has something told to it once it has run."""

    def __init__(self, introduce: Callable[[Any], object]) -> None:
        self.introduce = introduce

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _PROCESS:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        loader: Any = spec.loader if spec is not None else None
        if loader is not None:
            run = loader.exec_module

            def run_and_introduce(module: ModuleType) -> None:
                run(module)
                self.introduce(module)

            loader.exec_module = run_and_introduce
        return spec
