"""What a process is called where processes are listed: by `ps`, by `manycore ps`, in certificates.

A zygote's children have room for a title from their fork (`interpreter.py`). Those of the other start methods
have their program's command line, or that of a fork server, and make room for themselves.
"""

from __future__ import annotations

from manycore._native import process as _native

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any

__all__ = ["of_process", "show"]

_ROOM_BYTES = 512  # as a zygote's


def of_process(process_obj: Any) -> str:
    """The title of a `Process`, by which its program and what it runs are known."""
    target = getattr(process_obj, "_target", None)
    what = getattr(target, "__qualname__", None) or type(process_obj).__qualname__
    return f"manycore: process {process_obj.name!r} of {process_obj._parent_pid} [{what}]"


def show(title: str) -> None:
    """Call this process so. Where the kernel gives no more room, as much is shown as the command line was long."""
    try:
        if _native.find_title_area() < _ROOM_BYTES:
            _make_room()
            _native.find_title_area()
        _native.set_title(title.encode("utf-8", "replace"))
    except OSError:
        pass


def _make_room() -> None:
    from manycore._native.title import make_room

    try:
        make_room(_ROOM_BYTES)
    except OSError:
        pass
