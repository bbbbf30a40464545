"""What has which name in this process, and which token; and what a piece of code reads.

Three tables tell by-value pickling where things belong:
    names       can a receiver import this module? which namespace does this code run over?
    tokens      the identity of a class or named function, the same in every process
    code        the globals that it names, and its bytes

Invariants:
    tokens[id(x)] = (weak reference to x, t)   <=>   objects[t] = weak reference to x
    a namespace's record of a name is what was last received for it, bound or not
If a process dies: nothing is shared.
"""

from __future__ import annotations

import builtins
import marshal
import os
import sys
import threading
import types
import weakref
from collections.abc import Callable
from functools import cache

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any

Token = tuple[int, int]

MARK = "__manycore_namespace__"  # the key under which an exec'd namespace carries its Namespace
_GLOBAL_OPERATIONS = ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
# Set by the interpreter for each namespace; or the names of the machinery, not of the user.
PRIVATE_GLOBALS = frozenset(
    ("__builtins__", "__name__", "__file__", "__spec__", "__loader__", "__package__", "__cached__", "__path__", MARK)
)

# Guards minting and installing. Re-entrant, because installing runs the user's code, which may pickle.
lock = threading.RLock()
tokens: dict[int, tuple[weakref.ref[Any], Token]] = {}
objects: dict[Token, weakref.ref[Any]] = {}
received: dict[Token, int] = {}  # hash of the definition last received; only for tokens of other processes
_origin = 0
_origin_pid = 0
_minted = 0
main_is_kept = True  # this process has a `__main__` of its own: it is a program, or a fork of one, or imported it anew
memories: dict[Token, Any] = {}  # definitions as last pickled here


class Namespace:
    """One dict of globals that shipped code runs over, and what messages have bound in it."""

    __slots__ = ("__weakref__", "globals", "key", "module", "records")

    def __init__(self, key: str | Token, globals_: dict[str, Any], module: types.ModuleType | None = None) -> None:
        self.key = key
        self.module = module  # whose dict `globals` is, where it may be in no table of the interpreter's
        self.globals = globals_
        globals_.setdefault("__builtins__", builtins)  # functions of 3.12 and later look for it there
        self.records: dict[str, tuple[int, Any]] = {}  # name -> (hash, value) as last received


_named: dict[str, Namespace] = {}  # of modules
_anonymous: weakref.WeakValueDictionary[Token, Namespace] = weakref.WeakValueDictionary()  # of exec'd dicts
_importable: dict[str, tuple[int, bool]] = {}  # module name -> (id of the module, verdict)


def become_worker(main: dict[str, Any] | None = None) -> None:
    """Makes this process a receiver: gives it a fresh `__main__`, in which what comes from the parent lives.

    Args:
        main: What the parent's `__main__` says of itself (see `describe_main`).
    """
    global main_is_kept
    main_is_kept = False
    module = types.ModuleType("__main__")
    module.__dict__.update(main or {})
    module.__dict__["__name__"] = "__main__"
    module.__dict__.setdefault("__builtins__", builtins)
    sys.modules["__main__"] = module
    with lock:
        _named.pop("__main__", None)


def keep_main() -> None:
    """Makes this process a receiver whose `__main__` is the parent's, forked or imported anew.

    A class of it stays the one that it is here, under the parent's token.
    """
    global main_is_kept
    main_is_kept = True


def own_class(kind: str, parts: list[Any]) -> type | None:
    """The class that a definition describes, where this process's own `__main__` has it.

    That a class goes by its name, as the standard library has it, is what makes a class of a forked or spawned process,
    which has tokens of its own, the program's.
    """
    if not main_is_kept or kind not in {"class", "enum"}:
        return None
    module, qualname = (parts[3].get("__module__"), parts[3].get("__qualname__")) if kind == "class" else parts[3:5]
    if module not in {"__main__", "__mp_main__"} or not isinstance(qualname, str):
        return None
    value = find("__main__", qualname)
    return value if isinstance(value, type) else None


def describe_main() -> dict[str, Any]:
    """What a worker's `__main__` is to say of itself as the parent's does: the argument of `become_worker`."""
    main = sys.modules.get("__main__")
    names = ("__file__", "__doc__", "__package__")
    return {name: value for name in names if isinstance(value := getattr(main, name, None), str)}


# Tokens


def _forget(identity: int, token: Token) -> Callable[[object], None]:
    def collected(_: object) -> None:
        tokens.pop(identity, None)
        objects.pop(token, None)
        received.pop(token, None)
        memories.pop(token, None)

    return collected


def register(value: Any, token: Token) -> None:
    """Lets `token` stand for `value`, as long as it lives."""
    reference = weakref.ref(value, _forget(id(value), token))
    tokens[id(value)] = (reference, token)
    objects[token] = reference


def _new_token() -> Token:
    global _origin, _origin_pid, _minted
    pid = os.getpid()
    if _origin_pid != pid:  # the first token, or the first after a fork
        _origin, _origin_pid = int.from_bytes(os.urandom(8), "little"), pid
    _minted += 1
    return (_origin, _minted)


def token_of(value: Any) -> Token:
    """The token that stands for `value`; minted when it has none."""
    entry = tokens.get(id(value))
    if entry is not None and entry[0]() is value:
        return entry[1]
    with lock:
        token = _new_token()
        register(value, token)
    return token


# What can be imported by name


def importable(name: str) -> bool:
    """Whether a process with this one's `sys.path` would find, under `name`, the module that is loaded here."""
    module = sys.modules.get(name)
    if module is None:
        return False
    cached = _importable.get(name)
    if cached is not None and cached[0] == id(module):
        return cached[1]
    if getattr(getattr(module, "__spec__", None), "_initializing", False):
        return False  # for now: who imports it would run what it has only begun, and ask for this again
    verdict = _is_importable(name, module)
    _importable[name] = (id(module), verdict)
    return verdict


def _is_importable(name: str, module: types.ModuleType) -> bool:
    if name in ("__main__", "__mp_main__") or not isinstance(module, types.ModuleType):
        return False
    if name in sys.builtin_module_names or name in sys.stdlib_module_names:
        return True
    cloudpickle = sys.modules.get("cloudpickle")
    if cloudpickle is not None and name.partition(".")[0] in cloudpickle.list_registry_pickle_by_value():
        return False
    parent, _, _ = name.rpartition(".")
    if parent:
        if not importable(parent):
            return False
        path = getattr(sys.modules[parent], "__path__", None)
        if path is None:  # such as `os.path`: its parent's import makes it
            return True
    else:
        path = None
    origin = getattr(module, "__file__", None)
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except Exception:
            continue
        if spec is not None:
            return origin is None or spec.origin is None or _same_file(origin, spec.origin)
    return bool(parent)  # made by its package's import


def _same_file(one: str, other: str) -> bool:
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def find(module: str | None, qualname: str) -> Any:
    """What `qualname` names in the loaded module, or None."""
    found: Any = sys.modules.get(module or "")
    if found is None or "<" in qualname:
        return None
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def namespace_of(globals_: dict[str, Any]) -> Namespace | str:
    """The namespace over which code with these globals runs; the module's bare name when it can be imported.

    A second `__main__` stands in for the first for a time: a script that `runpy` or a notebook's `%run` runs. Its names
    are its own, then and afterwards, though functions of both may be sent to one receiver.
    """
    name = globals_.get("__name__")
    main = _named.get("__main__") if name == "__main__" else None
    if main is not None and main.globals is globals_:
        return main
    if isinstance(name, str) and main is None:
        module = sys.modules.get(name)
        if module is not None and getattr(module, "__dict__", None) is globals_:
            if importable(name):
                return name
            space = _named.get(name)
            if space is None or space.globals is not globals_:
                space = _named[name] = Namespace(name, globals_)
            return space
    space = globals_.get(MARK)
    if type(space) is not Namespace or space.globals is not globals_:  # none yet, or that of the dict this is a copy of
        with lock:
            space = globals_[MARK] = Namespace(_new_token(), globals_)
            _anonymous[space.key] = space  # type: ignore[index]
    return space


def _fresh_globals(names: dict[str, Any]) -> dict[str, Any]:
    return {"__builtins__": builtins, **names}


def own_origin() -> int | None:
    """The first half of the tokens that this process mints, when it has minted any."""
    return _origin if _origin_pid == os.getpid() else None


def receiving_namespace(key: str | Token, names: dict[str, Any]) -> Namespace:
    """The namespace for code that came with this key; `names` is what a new one says of itself."""
    if isinstance(key, tuple):
        space = _anonymous.get(key)
        if space is None:
            space = Namespace(key, _fresh_globals(names))
            space.globals[MARK] = space
            _anonymous[key] = space
        return space
    module = sys.modules.get(key)
    space = _named.get(key)
    if space is None or (module is not None and key == "__main__" and space.globals is not module.__dict__):
        if module is None:
            module = types.ModuleType(key)
            module.__dict__.update(_fresh_globals(names))
            sys.modules[key] = module
        elif importable(key):  # another module of that name is at home here: stay apart from it
            module = types.ModuleType(key)
            module.__dict__.update(_fresh_globals(names))
        space = _named[key] = Namespace(key, module.__dict__, module)
    return space


# What code reads


@cache
def _operations() -> tuple[frozenset[int], int, int]:
    """Those that name a global; LOAD_GLOBAL, whose argument carries a flag in the lowest bit; EXTENDED_ARG."""
    from opcode import opmap  # here, for a worker seldom asks

    of_globals = frozenset(opmap[name] for name in _GLOBAL_OPERATIONS if name in opmap)
    return of_globals, opmap["LOAD_GLOBAL"], opmap["EXTENDED_ARG"]


_reads: dict[int, tuple[weakref.ref[types.CodeType], tuple[tuple[str, ...], frozenset[str], bytes]]] = {}


def analyse(code: types.CodeType) -> tuple[tuple[str, ...], frozenset[str], bytes]:
    """The globals that `code` names, all its names (attributes too), and its marshalled bytes; remembered.

    Remembering is needed for more than speed: marshalling depends on reference counts, so the bytes of
    one code object are not always the same.
    """
    entry = _reads.get(id(code))
    if entry is not None and entry[0]() is code:
        return entry[1]
    of_globals, load_global, extended_argument = _operations()
    globals_: dict[str, None] = {}
    names: set[str] = set()
    stack = [code]
    while stack:
        current = stack.pop()
        stack.extend(constant for constant in current.co_consts if isinstance(constant, types.CodeType))
        names.update(current.co_names)
        operations = current.co_code
        extended = 0
        for at in range(0, len(operations), 2):
            operation = operations[at]
            argument = operations[at + 1] | extended
            extended = argument << 8 if operation == extended_argument else 0
            if operation in of_globals:
                globals_[current.co_names[argument >> 1 if operation == load_global else argument]] = None
    result = (tuple(globals_), frozenset(names), marshal.dumps(code))
    identity = id(code)
    _reads[identity] = (weakref.ref(code, lambda _: _reads.pop(identity, None) and None), result)
    return result
