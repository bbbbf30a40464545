"""What a worker is to `multiprocessing`: its name, its parent, and the key that it shows to managers.

A worker does not import `multiprocessing`, which costs more than all else that it imports. So a finder waits for
the first import of `multiprocessing.process`, by a task or by an argument that is a manager's proxy, sets what
`current_process()` and `parent_process()` say, and leaves.

If a process dies: nothing is shared.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["Identity", "assume", "of_workers"]

_PROCESS: Final = "multiprocessing.process"


Identity = tuple[str, int, bytes]
"""The parent's name and pid, and the authentication key."""


def of_workers() -> Identity | None:
    """The identity that this process gives its workers; None while it has no key to share."""
    process = sys.modules.get(_PROCESS)
    if process is None:
        return None
    current = process.current_process()
    return (current.name, os.getpid(), bytes(current.authkey))


def assume(name: str, identity: Identity | None) -> None:
    """Make `current_process()` say so, now or when something here first asks."""
    if identity is None:
        return
    waiting = _Finder(name, identity)
    process = sys.modules.get(_PROCESS)
    if process is None:
        sys.meta_path.insert(0, waiting)
    else:
        waiting.introduce(process)


class _Finder:
    """Finds one module as the others would, and has the identity set once it has run."""

    def __init__(self, name: str, identity: Identity) -> None:
        self._name = name
        self._identity = identity

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

    def introduce(self, process: Any) -> None:
        """Sets what `multiprocessing.process` says of this process."""
        current = process.current_process()
        current.name = self._name
        parent_name, parent_pid, current.authkey = self._identity
        try:
            sentinel = os.pidfd_open(parent_pid)
        except OSError:  # it is gone, and this process is about to be
            return
        parent = process._ParentProcess(parent_name, parent_pid, sentinel)
        process._parent_process = parent
