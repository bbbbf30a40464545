"""What children import again and again, so that the zygote has it before it forks the next.

    child, at its end:     the modules that it had to import -> its memfd      tell()
    zygote, as it reaps:   memfd -> names                                      read()
    zygote, when idle:     import them, one by one, for the children to come   learn()
    zygote, at its start:  import what nearly all modules do, if the parent has     learn_usual()
    zygote, before a spare:  list the folders of a new path                         look_into()

With the modules goes, where the zygote asks, to which pages the child wrote (`pages.py`).

A function's module often imports `typing` or `json`; that takes a child longer than all else that it does. Only
modules of the standard library and of this package are imported: they start no threads and do the same wherever they
are imported. Of a caller's modules the code is read (`codes.py`); they are imported if the caller says so (`preload`).

Invariants:
    no code of a caller's runs in the zygote: it imports with the standard library's path alone
    what an `import` means does not change: a child tells only if every standard name that it imported was the standard
        module, so nothing is learned where a module of the caller's has such a name
If a process dies: a child: it has told nothing, or all, in one write. The zygote: the next one learns anew.
"""

from __future__ import annotations

import marshal
import os
import sys
from importlib.machinery import PathFinder
from itertools import islice

from manycore._launch import codes, pages, wire

__all__ = ["learn", "learn_usual", "look_into", "read", "tell"]

_MARK = b"\nmanycore habits:"
_MAX_BYTES = 64 * 1024  # of names; the whole standard library has 20 KB of them
_OURS = "manycore"
_HOME = os.path.dirname(getattr(os, "__file__", "")) or "/nowhere"  # frozen into a program, it has no file
# These do something when they are imported: a browser, a text, the terminal, a window. Nor ours that import others'.
_NOT_ALONE = frozenset(
    {"antigravity", "idlelib", "readline", "rlcompleter", "test", "this", "tkinter", "turtle", "turtledemo"}
)
_NOT_OURS = "manycore._cli"
_NOBODY = "manycore no module has this name"
_MOST_LEARNED = 3000  # modules: then it is enough
_OVERHEAD_BYTES = 32  # of two strings in a tuple, as `marshal` writes them; a name is seldom longer in UTF-8

learned: set[str] = set()  # in a zygote: the modules that children have told; in a child: what it need not tell


def tell(known: int, asked: bool) -> None:
    """In a child, at its end: note what it imported, and where it wrote.

    Args:
        known: How many modules it had from its zygote.
        asked: Whether the zygote wants to know which pages it wrote to.
    """
    new = [name for name in list(islice(sys.modules, known, None)) if name not in learned]
    names = _imported(new) if new else []
    written = pages.written() if asked else b""
    files: list[tuple[str, str]] = []
    room = _MAX_BYTES // 2
    if new and len(learned) < _MOST_LEARNED:
        for name, origin in codes.loaded(name for name in new if not _is_ours(name)):
            room -= len(name) + len(origin) + _OVERHEAD_BYTES
            if room < 0:
                break
            files.append((name, origin))
    if not names and not files and not written:
        return
    data = _MARK + marshal.dumps((names, files, written))
    if len(data) > _MAX_BYTES:
        return
    try:
        if "memfd:manycore-stacks" in os.readlink(f"/proc/self/fd/{wire.STACK_FD}"):  # not another's by now
            os.write(wire.STACK_FD, data)
    except OSError:
        pass


def _is_ours(name: str) -> bool:
    """Whether a module has a name of the standard library's or of this package's."""
    top = name.partition(".")[0]
    return top == _OURS or top in sys.stdlib_module_names


def _imported(new: list[str]) -> list[str]:
    names: list[str] = []
    for name in new:
        top = name.partition(".")[0]
        if top == _OURS:
            if not name.startswith(_NOT_OURS):
                names.append(name)
        elif top in sys.stdlib_module_names:
            spec = getattr(sys.modules[name], "__spec__", None)
            if spec is None:  # made by its module, as `typing.io` is
                continue
            if top in _NOT_ALONE or not _is_standard(spec.origin):
                return []
            names.append(name)
    return names


def _is_standard(origin: str | None) -> bool:
    """Whether a module comes from the standard library's folder, or from the interpreter itself."""
    return origin in {"built-in", "frozen"} or (origin is not None and _is_in_home(origin))


def _is_in_home(path: str) -> bool:
    return path.startswith(_HOME + os.sep) and not path.startswith(
        (os.path.join(_HOME, "site-packages"), os.path.join(_HOME, "dist-packages"))
    )


def read(fd: int) -> tuple[list[str], list[tuple[str, str]], bytes]:
    """In the zygote: what a child that has ended told in its memfd.

    Returns:
        The modules that are to be imported; those whose code is to be read, each with its file; runs of pages.
    """
    size = os.fstat(fd).st_size
    if not size:
        return [], [], b""
    _, mark, data = os.pread(fd, _MAX_BYTES, max(0, size - _MAX_BYTES)).rpartition(_MARK)
    try:
        names, files, written = marshal.loads(data) if mark else ([], [], b"")  # noqa: S302  # from our own child
    except (ValueError, EOFError, TypeError):  # something else was written there
        return [], [], b""
    return names, files, written


def learn_usual(names: list[str]) -> None:
    """In a new zygote: import what nearly every module has whose functions children run, while the parent is busy."""
    for name in names:
        spec = PathFinder.find_spec(name)
        if spec is not None and _is_standard(spec.origin):
            learn(name)


def look_into(folders: list[str]) -> None:
    """In the zygote: have the import system list the folders of a path, as every child would at its first import.

    It does so again where a folder has changed since.
    """
    PathFinder.find_spec(_NOBODY, folders)


def learn(name: str) -> None:
    """In the zygote: import a module; what fails here is left to the children."""
    if name in sys.modules:
        return
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if entry == _HOME or _is_in_home(entry)]
    try:
        __import__(name)
    except Exception:  # or a warning that the program has made one
        pass
    finally:
        sys.path[:] = path
