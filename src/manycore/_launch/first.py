"""The first zygote of a process, executed while the launcher that it is for is still to be imported.

    begin()    zygote executed . . . . . . . . . . starts, imports
               launcher, engine imported  ->  take()  ->  the launcher asks what it likes

Both take as long as the other, on a core each. So this module, and what it imports, import little.

Invariant: what `begin` has made belongs to this module until the launcher has taken it, and then to the launcher.
If a process dies: the zygote: the launcher sees that when it looks, and executes another. This one: the zygote ends
with it, launcher or not. A fork of this one closes what it has of both.
"""

from __future__ import annotations

import os
import sys

from manycore._launch.handle import Anchors, Zygote
from manycore._memory.modules import loaded
from manycore._native.step import Mutex

__all__ = ["begin", "ensure_executed", "ensure_started", "take"]

_lock = Mutex()
_found: tuple[Anchors, Zygote] | None = None
_hooked = False


def begin() -> None:
    """Execute a zygote, unless there is a launcher, which does that, or will in a moment."""
    global _found, _hooked
    with _lock:  # under which the launcher takes what is there
        if _found is not None or "manycore._launch.launcher" in sys.modules:
            return
        if not _hooked:
            os.register_at_fork(after_in_child=_forget)
            _hooked = True
        anchors = None
        try:
            anchors = Anchors()
            _found = anchors, Zygote(anchors)
        except OSError:  # the launcher will say so
            if anchors is not None:
                anchors.close()


def take() -> tuple[Anchors, Zygote | None]:
    """For the launcher, once: what all its zygotes are tied to this process by, and the first one if there is one."""
    global _found
    with _lock:
        found, _found = _found, None
    return (Anchors(), None) if found is None else found


def ensure_started() -> None:
    """Start the zygote now, without waiting for it, so that the first launch need not."""
    begin()
    from manycore._launch import launcher

    launcher.current().ensure_started()


def ensure_executed() -> None:
    """Have a zygote where nothing may ever be launched: without the launcher, and so without its thread, if it can be.

    Raises:
        OSError: None can be started.
    """
    begin()
    launcher = loaded("manycore._launch.launcher")
    if launcher is not None:
        launcher.current().ensure_started()


def _forget() -> None:
    """In a fork of this process: nothing of it is ours; its descriptors must not stay open here."""
    global _found, _lock
    _lock = Mutex()
    found, _found = _found, None
    if found is not None:
        anchors, zygote = found
        zygote.close()
        anchors.close()
