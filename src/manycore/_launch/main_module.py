"""The `__main__` of a zygote's child, for those who pickle by reference.

manycore's own codec sends what belongs to `__main__` by value, so a child need not run the program. The
standard library's queues, pipes and executor send a name, "function f of `__main__`", and expect the child to
have it. When one of them asks for a name that is not there, the program's file is run once as "spawn" would
run it, under the name `__mp_main__`, and what it defines is added. Nobody else's question does that.

A program without a file (`-c`, standard input, a notebook) cannot be run again. What its functions and classes were
when the process started then goes along by value, to those processes that run code of the standard library's: its
executor's and its pool's workers.

Source: the meaning is `multiprocessing.spawn`'s.
"""

from __future__ import annotations

import os
import sys
import threading
import types
from multiprocessing import process

from manycore._memory import codec

TYPE_CHECKING = False  # every process imports this module, so it imports little itself
if TYPE_CHECKING:
    from typing import Any

__all__ = ["describe", "install"]

_ASKERS = ("multiprocessing.", "concurrent.futures.", "manycore.connection", "manycore.queues", "manycore.managers")
_lock = threading.RLock()
_where: dict[str, Any] = {}


def describe(name: str, target: Any) -> dict[str, Any]:
    """In the parent: how its main module can be run again, or else what it defines.

    Args:
        name: The process's.
        target: What the process calls.
    """
    from multiprocessing import spawn

    data = spawn.get_preparation_data(name)
    where: dict[str, Any] = {key: data[key] for key in ("init_main_from_name", "init_main_from_path") if key in data}
    if not os.path.isfile(where.get("init_main_from_path", __file__)):  # "<stdin>"
        del where["init_main_from_path"]
    if not where and str(getattr(target, "__module__", "")).startswith(_ASKERS[:2]):
        where["definitions"] = _definitions()
    return where


def _definitions() -> dict[str, bytes]:
    found = {}
    for name, value in list(vars(sys.modules["__main__"]).items()):
        if isinstance(value, (type, types.FunctionType)) and value.__module__ == "__main__":
            try:
                found[name] = codec.dumps(value)
            except Exception:  # it refers to what cannot be pickled: whoever asks for it is told that it is not there
                continue
    return found


class _Main(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        asker = sys._getframe(1).f_globals.get("__name__", "")
        if _where and not name.startswith("__") and str(asker).startswith(_ASKERS):
            _run(self)
            if name in vars(self):
                return vars(self)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def install(where: dict[str, Any]) -> None:
    """In the child: make its `__main__` one that can be completed.

    Args:
        where: What `describe` said in the parent.
    """
    _where.clear()
    _where.update(where)
    sys.modules["__main__"].__class__ = _Main


def _run(main: types.ModuleType) -> None:
    with _lock:
        if not _where:
            return
        where = dict(_where)
        _where.clear()
        if "definitions" in where:
            for name, data in where["definitions"].items():
                vars(main).setdefault(name, codec.loads(data))
            return
        import runpy

        current = process.current_process()
        current._inheriting = True  # type: ignore[attr-defined]  # so that a program without a guard starts nothing
        try:
            if "init_main_from_name" in where:
                found = runpy.run_module(where["init_main_from_name"], run_name="__mp_main__", alter_sys=True)
            else:
                found = runpy.run_path(where["init_main_from_path"], run_name="__mp_main__")
        finally:
            del current._inheriting  # type: ignore[attr-defined]
        module = types.ModuleType("__mp_main__")
        vars(module).update(found)
        sys.modules["__mp_main__"] = module
        for name, value in found.items():
            vars(main).setdefault(name, value)
