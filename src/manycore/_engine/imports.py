"""Something to be done once a module is imported here, so that a worker need not import it to do so.

A finder waits for the first import of the module, has it found as the others would find it, and is told when its code
has run. A module that nobody imports costs nothing.

If a process dies: nothing is shared.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder

from manycore._memory.modules import loaded

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

__all__ = ["when_imported"]


def when_imported(name: str, call: Callable[[Any], object]) -> None:
    """Call `call(module)`: now if the module is there, else as soon as its first import has run its code."""
    module = loaded(name)
    if module is None:
        sys.meta_path.insert(0, _Finder(name, call))
    else:
        call(module)


class _Finder:
    """Finds one module as the others would, once."""

    def __init__(self, name: str, call: Callable[[Any], object]) -> None:
        self._name = name
        self._call = call

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        loader: Any = spec.loader if spec is not None else None
        if loader is not None:
            run, call = loader.exec_module, self._call

            def run_and_call(module: ModuleType) -> None:
                run(module)
                call(module)

            loader.exec_module = run_and_call
        return spec
