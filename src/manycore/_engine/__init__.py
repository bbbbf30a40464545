"""The engine under both pools: see README.md."""

from __future__ import annotations

from importlib import import_module

from manycore import _launch

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any


def bring(names: dict[str, str], into: dict[str, Any], *, start_zygote: bool = True) -> None:
    """Import parts of the engine, while the zygote starts and imports what workers need on another core.

    Args:
        names: Each with the module of this folder that has it.
        into: The namespace that they are for.
        start_zygote: Whether workers are to come from the zygote.
    """
    missing = [name for name in names if name not in into]
    if missing and start_zygote:
        _launch.ensure_started()
        _launch.preload("manycore._engine.worker")
    for name in missing:
        into[name] = getattr(import_module(f"{__name__}.{names[name]}"), name)
