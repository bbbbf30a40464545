"""Modules that somebody else may have imported, or may be importing at this moment."""

from __future__ import annotations

import sys
from importlib import import_module

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any

__all__ = ["loaded"]


def loaded(name: str) -> Any:
    """The module of this name where it has been imported, else None.

    `sys.modules` also shows a module that another thread has only begun to import, with half of its names: that
    import's end is waited for here.
    """
    module = sys.modules.get(name)
    if module is not None and getattr(getattr(module, "__spec__", None), "_initializing", False):
        module = import_module(name)
    return module
