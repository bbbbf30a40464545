"""How the workers of a pool are started. A module of its own, which a pool needs before it imports the engine."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing is imported while the zygote starts
if TYPE_CHECKING:
    from typing import Any

__all__ = ["START_METHODS", "start_method_of"]

START_METHODS = ("zygote", "fork", "spawn", "forkserver")


def start_method_of(context: Any) -> str:
    """How a pool that is made with `context` starts its workers.

    Args:
        context: A context of this package's or of `multiprocessing`'s; None is the program's own choice
            (`set_start_method`), or "zygote".

    Raises:
        TypeError: It is no context.
        ValueError: Its start method is unknown here.
    """
    if context is None:
        context = sys.modules.get("manycore.context")
        if context is None:  # nobody has chosen
            return START_METHODS[0]
    get_start_method = getattr(context, "get_start_method", None)
    if get_start_method is None:
        raise TypeError(f"a context is wanted, such as get_context('fork'), not {context!r}")
    method = get_start_method(allow_none=True) or START_METHODS[0]
    if method not in START_METHODS:
        raise ValueError(f"workers start by one of {', '.join(START_METHODS)}; {context!r} has {method!r}")
    return str(method)
