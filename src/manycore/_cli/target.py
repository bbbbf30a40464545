"""Which function `manycore map` means.

    package.module:name     imported as `python -c "import package.module"` would, from the current folder too
    path/to/file.py:name    imported as `python path/to/file.py` would: the file's folder comes first on sys.path
    ...:Class.method        attributes may be dotted

A file is imported under its own name where it can be (so that it is one module, however it is reached). Where its
name is no identifier, or already means another module, it is loaded from its path under a name of its own, and its
folder comes last on sys.path, so that it hides nothing; a worker then does the same.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import keyword
import os
import sys
import traceback
from typing import TYPE_CHECKING

from manycore._cli.exits import CommandError
from manycore._cli.task import Target, load_module, own_frames

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["import_or_explain", "resolve"]

_SOURCE_SUFFIX = ".py"
_SUGGESTED = 3  # names shown where one is wrong


def resolve(text: str) -> Target:
    """Find the function that FUNCTION names, and make sure that it can be called.

    The module is imported in this process, so that what is wrong with it is said once and before any worker starts.

    Raises:
        CommandError: There is no such module, file or function; the module failed to import; or what it names
            cannot be called. One line, after the traceback of the user's own module where there is one.
    """
    place, colon, attributes = text.rpartition(":")
    if not colon or not place or not attributes:
        raise CommandError(f"FUNCTION is 'module:name' or 'file.py:name', not {text!r}{_missing_colon(text)}")
    is_file = place.endswith(_SOURCE_SUFFIX) or os.sep in place
    target = _from_file(place, attributes) if is_file else _from_module(place, attributes)
    module = _import(target, place)
    function: object = module
    for depth, name in enumerate(attributes.split(".")):
        try:
            function = getattr(function, name)
        except AttributeError:
            owner = ".".join([place, *attributes.split(".")[:depth]])
            raise CommandError(f"there is no {name!r} in {owner}{_near(name, function)}") from None
    if not callable(function):
        raise CommandError(f"{text} is of type {type(function).__name__}, which cannot be called")
    if inspect.iscoroutinefunction(function):
        raise CommandError(f"{text} is an async function; give a function that calls asyncio.run on it")
    return target


def import_or_explain(name: str) -> None:
    """Import a module by name, for `--preload`."""
    _put_first(os.getcwd())
    _import(Target(name, "", None), name)


def _missing_colon(text: str) -> str:
    stem, dot, name = text.rpartition(".")
    if not dot or name == "py" or os.sep in name:
        return ""
    return f"; did you mean '{stem}:{name}'?"


def _from_module(place: str, attributes: str) -> Target:
    _put_first(os.getcwd())
    return Target(place, attributes, None)


def _from_file(place: str, attributes: str) -> Target:
    path = os.path.abspath(place)
    if not os.path.exists(path):
        raise CommandError(f"there is no file {place!r}{_near_file(place)}")
    if not os.path.isfile(path):
        raise CommandError(f"{place!r} is not a file")
    folder, filename = os.path.split(path)
    stem = filename.removesuffix(_SOURCE_SUFFIX)
    importable = filename.endswith(_SOURCE_SUFFIX) and stem.isidentifier() and not keyword.iskeyword(stem)
    if importable and not _means_another(stem, path):
        _put_first(folder)
        return Target(stem, attributes, None)
    if folder not in sys.path:
        sys.path.append(folder)  # its neighbours can be imported; this file, by its name, must hide nothing
    digest = hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()
    name = "".join(letter if letter.isidentifier() or letter.isdigit() else "_" for letter in stem)
    return Target(f"_{name}_{digest}", attributes, path)


def _means_another(stem: str, path: str) -> bool:
    """Whether `import stem` finds something else than this file, or would hide something else from others."""
    if stem in sys.stdlib_module_names or stem in sys.builtin_module_names or stem in sys.modules:
        return True
    try:
        spec = importlib.util.find_spec(stem)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    return spec.origin is None or not os.path.exists(spec.origin) or not os.path.samefile(spec.origin, path)


def _put_first(folder: str) -> None:
    """Make `folder` the first place where modules are sought, as Python does for a script's folder."""
    if sys.path and sys.path[0] == folder:
        return
    sys.path.insert(0, folder)


def _import(target: Target, place: str) -> ModuleType:
    try:
        return load_module(target)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if target.path is None and (target.module == missing or target.module.startswith(f"{missing}.")):
            raise CommandError(f"there is no module {missing!r}{_near_module(missing)}") from None
        raise _failed(place, error) from None
    except BaseException as error:  # the user's module runs here: it may raise anything, SystemExit too
        raise _failed(place, error) from None


def _failed(place: str, error: BaseException) -> CommandError:
    """The error that tells of a module which cannot be imported: its own traceback, once, and one line."""
    exception = traceback.TracebackException(type(error), error, own_frames(error.__traceback__))
    hint = ""
    if "attempted relative import with no known parent" in str(error):
        hint = "; name it as a module of its package, 'package.module:name'"
    reason = str(error).partition("\n")[0]
    message = f"cannot import {place}: {type(error).__name__}{': ' if reason else ''}{reason}{hint}"
    return CommandError(message, detail="".join(exception.format()))


def _quoted(names: list[str]) -> str:
    return f"; did you mean {' or '.join(repr(name) for name in names)}?" if names else ""


def _near(name: str, owner: object) -> str:
    """Suggest the callables of `owner` that are called nearly so; or say which there are."""
    names = [entry for entry in dir(owner) if not entry.startswith("_") and callable(getattr(owner, entry, None))]
    near = difflib.get_close_matches(name, names, n=_SUGGESTED)
    if near:
        return _quoted(near)
    if inspect.ismodule(owner):
        names = [entry for entry in names if getattr(getattr(owner, entry), "__module__", None) == owner.__name__]
    return f"; it has {', '.join(names[:_SUGGESTED])}{', ...' if len(names) > _SUGGESTED else ''}" if names else ""


def _near_file(place: str) -> str:
    folder, filename = os.path.split(place)
    try:
        entries = os.listdir(folder or ".")
    except OSError:
        return ""
    sources = [entry for entry in entries if entry.endswith(_SOURCE_SUFFIX)]
    near = difflib.get_close_matches(filename, sources, n=1)
    return _quoted([os.path.join(folder, entry) for entry in near])


def _near_module(missing: str) -> str:
    parent, _, name = missing.rpartition(".")
    if os.path.exists(f"{missing.replace('.', os.sep)}{_SOURCE_SUFFIX}"):
        return ""
    if parent:
        return ""
    try:
        here = [entry.removesuffix(_SOURCE_SUFFIX) for entry in os.listdir(".") if entry.endswith(_SOURCE_SUFFIX)]
    except OSError:
        here = []
    return _quoted(difflib.get_close_matches(name, [*here, *sys.stdlib_module_names], n=1))
