"""The code of the modules that children import: read by their zygote, run by each of them.

    child, at its end:     which modules it loaded, from which files -> its memfd      loaded()
    zygote, when idle:     find each, read or compile it; nothing of it is run         Codes.learn()
    child, at an import:   are path, folders and file as they were? then that code     Codes.find_spec()

An import looks through the folders of the path, reads a file and makes objects of it. For a small module that takes
longer than to run it; and where nothing can be written beside the module, each child would compile it.

A module comes into being as ever: by the standard loader, with the same attributes; only its code is there already.
What finds it stands right before what searches the path's folders (`PathFinder`), and leaves it to that whenever
anything is not as it was: the path up to the module's folder, the identity and the time of change of each folder, the
file; who stands between the two, what may import from folders, how the standard loader gets code; the user.

Invariants:
    no code of a caller's runs in the zygote, nothing is written there, and it reads only where its own path leads to
    what is found here is found once a process: a second import of the same module goes the usual way
If a process dies: as in `habits.py`, which carries what is told.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import FileFinder, ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import CodeType

__all__ = ["Codes", "loaded"]

_MOST_BYTES = 8 << 20  # of sources: their code takes about as much, and each fork has to map it
_MOST_FILE_BYTES = 128 << 10  # of one: compiled, where it must be, in less than 0.1 s, in which no death is reported


def loaded(names: Iterable[str]) -> list[tuple[str, str]]:
    """In a child: which of these modules it loaded from source files in the usual way, and from which.

    What stands in `sys.modules` may be anything; nothing of it is called.
    """
    found = []
    for name in names:
        module = sys.modules.get(name)
        spec = vars(module).get("__spec__") if type(module) is ModuleType else None
        if type(spec) is ModuleSpec and type(spec.loader) is SourceFileLoader:
            origin = spec.origin
            if type(name) is str and spec.name == name and type(origin) is str:
                found.append((name, origin))
    return found


class _Known:
    __slots__ = ("code", "file", "folders", "origin", "spec")

    def __init__(self, spec: ModuleSpec, origin: str, code: CodeType, folders: list[str], file: object) -> None:
        self.spec = spec
        self.origin = origin
        self.code = code
        self.folders = [(folder, _folder(folder)) for folder in folders]  # of the path, up to the module's
        self.file = file


class Codes:
    """What a zygote knows; in `sys.meta_path` from the first on, and so in its children."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._bytes = 0
        self._ways: object = None
        self._user = os.geteuid()

    def learn(self, name: str, origin: str) -> bool:
        """In the zygote: have a module's code at hand, if `origin` is where the path leads to, by the usual means.

        Returns:
            Whether it is; what cannot be found, read or compiled is left to the children.
        """
        try:
            known = self._find(name, origin)
        except Exception:  # or a warning that the program has made one
            return False
        if known is None:
            return False
        self._known[name] = known
        if self not in sys.meta_path:
            self._ways = _ways()
            sys.meta_path.insert(sys.meta_path.index(PathFinder), self)
        return True

    def _find(self, name: str, origin: str) -> _Known | None:
        parent, _, tail = name.rpartition(".")
        package = os.path.dirname(origin) if os.path.basename(origin) == "__init__.py" else ""
        home = os.path.dirname(package or origin)
        path = self._path_of(parent) if parent else sys.path
        folders = list(path[: path.index(home) + 1]) if home in path else []
        file = _file(origin)
        if not folders or file is None or file[-1] > min(_MOST_FILE_BYTES, _MOST_BYTES - self._bytes):
            return None
        if PathFinder not in sys.meta_path:
            return None
        for folder in folders:  # one of that name may become a package, and its folder would not show that
            if os.path.lexists(os.path.join(folder, tail)) and not (package and folder == home):
                return None
        spec = PathFinder.find_spec(name, path if parent else None)
        if spec is None or type(spec.loader) is not SourceFileLoader or spec.origin != origin:
            return None
        if any(type(sys.path_importer_cache.get(folder)) not in {FileFinder, type(None)} for folder in folders):
            return None
        writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a child may, as whoever it is by then
        try:
            code = spec.loader.get_code(name)
        finally:
            sys.dont_write_bytecode = writes
        if code is None or _file(origin) != file:
            return None
        spec.cached  # noqa: B018  # it is worked out here, for all
        self._bytes += file[-1]
        return _Known(spec, origin, code, [*folders, package] if package else folders, file)

    def _path_of(self, package: str) -> list[str]:
        known = self._known.get(package)
        path = known.spec.submodule_search_locations if known is not None else None
        if path is None and package in sys.modules:
            path = getattr(sys.modules[package], "__path__", None)
        return path if type(path) is list else []

    def find_spec(self, name: str, path: Sequence[str] | None = None, _target: object = None) -> ModuleSpec | None:
        """For the import system: how to load a module whose code is here; None for others."""
        known = self._known.pop(name, None)
        if known is None or os.geteuid() != self._user or _ways() != self._ways:
            return None
        spec, code, file, origin = known.spec, known.code, known.file, known.origin
        folders = [folder for folder, _ in known.folders]
        if spec.submodule_search_locations is not None:
            folders.pop()  # its own
        if list(sys.path if path is None else path)[: len(folders)] != folders or self._is_preceded():
            return None
        if any(_folder(folder) != was for folder, was in known.folders) or _file(origin) != file:
            return None
        loader = spec.loader

        def get_code(fullname: str) -> CodeType | None:
            del loader.get_code  # type: ignore[union-attr]  # whoever asks again wants what is in the file then
            if _file(origin) == file:
                return code
            found: CodeType | None = loader.get_code(fullname)  # type: ignore[union-attr]
            return found

        loader.get_code = get_code  # type: ignore[union-attr]
        return spec

    def _is_preceded(self) -> bool:
        """Whether another would be asked between this and what searches folders, or that is not there."""
        finders = sys.meta_path
        place = finders.index(self)
        return finders[place + 1 : place + 2] != [PathFinder]


def _ways() -> object:
    """What decides who imports from a folder, and how the standard loader comes to a module's code."""
    loader = SourceFileLoader
    return (*sys.path_hooks, loader.get_code, loader.source_to_code, loader.get_data, loader.exec_module)


def _folder(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError:  # it is not there
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _file(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
