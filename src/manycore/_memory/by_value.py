"""Functions and classes that cannot be imported by name: how they travel, and where they live.

A *shipped* module is one that a receiver cannot import: `__main__`, a module loaded from a path, the
namespace of an `exec`. All else goes by reference. A message that holds something of a shipped
module is an envelope of three parts, of which the first two are laid down before the third is read:

    definitions   classes, and functions with a name of their own, each under a token
    globals       per namespace: name -> (hash, pickled value)
    body          the value itself; it names definitions by token

Namespaces. Every function of a shipped module is rebuilt over *one* dict per receiver and module: for
`__main__`, the receiver's own `__main__`. So what an initializer sets with `global`, tasks read:

    model = None
    def initialize(path):
        global model
        model = load(path)          # sets the worker's __main__.model
    def work(item):
        return model.predict(item)  # reads it, though the parent's `model` is None

The globals that shipped code names (transitively) are compared by hash and laid down one by one. In
the receiver, a name is bound
    - when the receiver has no such name;
    - when it was bound from a message, still is what was bound, and its pickled bytes have changed
      since (a helper redefined in a notebook, a constant assigned anew);
and is left alone
    - when its bytes have not changed (so what a worker changed in place stays changed);
    - when the receiver's own code bound the name (the initializer above).
Each global is pickled on its own: two globals that share a part do not share it in the receiver.

Identity. A token (process, number) stands for one class or named function everywhere. The process
that minted it always gets its own object back; any other has one object per token. So a class of
`__main__` is one class per worker, and an instance that returns is of the caller's own class.

A nested function, a lambda, a closure goes inline, in the body, with its cells: closures of one
message that share a variable share it in the receiver. When its module can be imported, the receiver
runs it over the imported module's globals, and nothing else travels.

Invariants:
    _tokens[id(x)] = (weakref of x, t)   <=>   _objects[t] = weakref of x
    a definition is registered before its state is read, so cycles end
    a namespace's record of a name is what was last received for it, bound or not
If a process dies: nothing is shared; every table here is private to its process.
Unlike cloudpickle: one namespace for a module instead of one for each function; a definition is
    rebuilt only when it has changed; shared closure cells stay shared; no third-party import in the receiver.
"""

from __future__ import annotations

import enum
import functools
import marshal
import os
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from opcode import opmap
from typing import Any

Token = tuple[int, int]
Pickle = Callable[["Shipment", Any, frozenset[int]], bytes]

_MARK = "__manycore_namespace__"  # the key under which an exec'd namespace carries its Namespace
_GLOBAL_OPERATIONS = frozenset(
    opmap[name]
    for name in ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
    if name in opmap
)
_LOAD_GLOBAL = opmap["LOAD_GLOBAL"]  # its argument carries a flag in the lowest bit
_EXTENDED_ARGUMENT = opmap["EXTENDED_ARG"]
_CODE_CACHE_SIZE = 1024  # code objects rebuilt from bytes; a miss costs a few microseconds
# Set by the interpreter for each namespace; or the names of the machinery, not of the user.
_PRIVATE_GLOBALS = frozenset(
    ("__builtins__", "__name__", "__file__", "__spec__", "__loader__", "__package__", "__cached__", "__path__", _MARK)
)

# Guards minting and installing. Re-entrant, because installing runs the user's code, which may pickle.
_lock = threading.RLock()
_tokens: dict[int, tuple[weakref.ref[Any], Token]] = {}
_objects: dict[Token, weakref.ref[Any]] = {}
_received: dict[Token, int] = {}  # hash of the definition last received; only for tokens of other processes
_held: list[list[Any]] = []  # per message being installed: what was built for it, until its body is read
_pending: dict[Token, Definition] = {}  # definitions of messages being installed, not yet begun
_origin = 0
_origin_pid = 0
_minted = 0
_is_worker = False


class Definition(tuple[Token, int, str, bytes, bytes]):
    """(token, hash, readable name, pickled skeleton, pickled state)."""

    __slots__ = ()


class Namespace:
    """One dict of globals that shipped code runs over, and what messages have bound in it."""

    __slots__ = ("__weakref__", "globals", "key", "records")

    def __init__(self, key: str | Token, globals_: dict[str, Any]) -> None:
        self.key = key
        self.globals = globals_
        self.records: dict[str, tuple[int, Any]] = {}  # name -> (hash, value) as last received


_named: dict[str, Namespace] = {}  # of modules
_anonymous: weakref.WeakValueDictionary[Token, Namespace] = weakref.WeakValueDictionary()  # of exec'd dicts
_importable: dict[str, tuple[int, bool]] = {}  # module name -> (id of the module, verdict)


def become_worker(main: dict[str, Any] | None = None) -> None:
    """Makes this process a receiver: gives it a fresh `__main__`, in which what comes from the parent lives.

    Args:
        main: What the parent's `__main__` says of itself (see `describe_main`).
    """
    global _is_worker
    module = types.ModuleType("__main__")
    module.__dict__.update(main or {})
    module.__dict__["__name__"] = "__main__"
    module.__dict__.setdefault("__builtins__", __builtins__)
    sys.modules["__main__"] = module
    with _lock:
        _named.pop("__main__", None)
    _is_worker = True


def describe_main() -> dict[str, Any]:
    """What a worker's `__main__` is to say of itself as the parent's does: the argument of `become_worker`."""
    main = sys.modules.get("__main__")
    names = ("__file__", "__doc__", "__package__")
    return {name: value for name in names if isinstance(value := getattr(main, name, None), str)}


# Tokens


def _forget(identity: int, token: Token) -> Callable[[object], None]:
    def collected(_: object) -> None:
        _tokens.pop(identity, None)
        _objects.pop(token, None)
        _received.pop(token, None)

    return collected


def _register(value: Any, token: Token) -> None:
    reference = weakref.ref(value, _forget(id(value), token))
    _tokens[id(value)] = (reference, token)
    _objects[token] = reference


def _new_token() -> Token:
    global _origin, _origin_pid, _minted
    pid = os.getpid()
    if _origin_pid != pid:  # the first token, or the first after a fork
        _origin, _origin_pid = int.from_bytes(os.urandom(8), "little"), pid
    _minted += 1
    return (_origin, _minted)


def _token(value: Any) -> Token:
    entry = _tokens.get(id(value))
    if entry is not None and entry[0]() is value:
        return entry[1]
    with _lock:
        token = _new_token()
        _register(value, token)
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


def _namespace_of(globals_: dict[str, Any]) -> Namespace | str:
    """The namespace over which code with these globals runs; the module's bare name when it can be imported."""
    name = globals_.get("__name__")
    if isinstance(name, str):
        module = sys.modules.get(name)
        if module is not None and getattr(module, "__dict__", None) is globals_:
            if importable(name):
                return name
            space = _named.get(name)
            if space is None or space.globals is not globals_:
                space = _named[name] = Namespace(name, globals_)
            return space
    space = globals_.get(_MARK)
    if type(space) is not Namespace or space.globals is not globals_:  # none yet, or that of the dict this is a copy of
        with _lock:
            space = globals_[_MARK] = Namespace(_new_token(), globals_)
            _anonymous[space.key] = space  # type: ignore[index]
    return space


def _receiving_namespace(key: str | Token, names: dict[str, Any]) -> Namespace:
    if isinstance(key, tuple):
        space = _anonymous.get(key)
        if space is None:
            space = Namespace(key, dict(names))
            space.globals[_MARK] = space
            _anonymous[key] = space
        return space
    module = sys.modules.get(key)
    space = _named.get(key)
    if space is None or (module is not None and key == "__main__" and space.globals is not module.__dict__):
        if module is None:
            module = types.ModuleType(key)
            module.__dict__.update(names)
            sys.modules[key] = module
        elif importable(key):  # another module of that name is at home here: stay apart from it
            module = types.ModuleType(key)
            module.__dict__.update(names)
        space = _named[key] = Namespace(key, module.__dict__)
    return space


# What code reads

_reads: dict[int, tuple[weakref.ref[types.CodeType], tuple[tuple[str, ...], frozenset[str], bytes]]] = {}


def _analyse(code: types.CodeType) -> tuple[tuple[str, ...], frozenset[str], bytes]:
    """The globals that `code` names, all its names (attributes too), and its marshalled bytes; remembered.

    Remembering is needed for more than speed: marshalling depends on reference counts, so the bytes of
    one code object are not always the same.
    """
    entry = _reads.get(id(code))
    if entry is not None and entry[0]() is code:
        return entry[1]
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
            extended = argument << 8 if operation == _EXTENDED_ARGUMENT else 0
            if operation in _GLOBAL_OPERATIONS:
                globals_[current.co_names[argument >> 1 if operation == _LOAD_GLOBAL else argument]] = None
    result = (tuple(globals_), frozenset(names), marshal.dumps(code))
    identity = id(code)
    _reads[identity] = (weakref.ref(code, lambda _: _reads.pop(identity, None) and None), result)
    return result


# Sending


class Shipment:
    """The definitions and globals that one message needs; filled while the message is being pickled.

    Args:
        pickle_part: Pickles a part of the message (a global's value, a definition's state) on its own.
        to_parent: The receiver is the process that this one's objects came from, so what it sent needs no definition.
    """

    __slots__ = ("_done", "_pending", "_pickle", "definitions", "spaces", "to_parent")

    def __init__(self, pickle_part: Pickle, *, to_parent: bool = False) -> None:
        self._pickle = pickle_part
        self.to_parent = to_parent
        self.definitions: dict[Token, Any] = {}
        self.spaces: dict[str | Token, tuple[Namespace, dict[str, tuple[int, bytes, int] | None]]] = {}
        self._pending: list[tuple[Any, ...]] = []

    def __bool__(self) -> bool:
        return bool(self.definitions or self.spaces)

    def reduce_function(self, function: types.FunctionType, inline: frozenset[int]) -> Any:
        """How a function is pickled: a reduce value, or NotImplemented for a bare reference."""
        named = self._by_name(function, function, inline)
        return self._inline(function) if named is None else named

    def reduce_class(self, cls: type) -> Any:
        """How a class is pickled: a reduce value, or NotImplemented for a bare reference."""
        module, qualname = cls.__module__, cls.__qualname__
        if module == "builtins":
            if find(module, qualname) is cls:
                return NotImplemented
            for name, each in vars(types).items():  # such as `mappingproxy`, which only `types` names
                if each is cls:
                    return getattr, (types, name)
        found = find(module, qualname)
        if found is cls:
            if importable(module):
                return NotImplemented
            space = _namespace_of(vars(sys.modules[module]))
            if isinstance(space, Namespace) and "." not in qualname:
                return self._defined(cls, space, qualname)
        elif not cls.__flags__ & _HEAP_TYPE:
            return NotImplemented  # a static type under another name: only a reference can be right
        return self._defined(cls, None, qualname)

    def reduce_object(self, value: Any, inline: frozenset[int]) -> Any:
        """How a wrapper made by `functools.lru_cache` is pickled: it keeps one cache per process when it has a name."""
        named = self._by_name(value, value.__wrapped__, inline)
        return (_lru_cache, (value.__wrapped__, value.cache_parameters())) if named is None else named

    def _by_name(self, value: Any, function: Any, inline: frozenset[int]) -> Any:
        """How a function, or the wrapper of one, is pickled when it has a name of its own; else None."""
        if id(value) in inline:
            return None
        module, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
        if find(module, qualname) is value:
            if importable(module):  # type: ignore[arg-type]
                return NotImplemented
            owner, _, name = qualname.rpartition(".")
            if owner:
                return getattr, (find(module, owner), name)
        if isinstance(function, types.FunctionType) and function.__globals__.get(qualname) is value:
            space = _namespace_of(function.__globals__)
            if isinstance(space, Namespace):
                return self._defined(value, space, qualname)
        return None

    def _defined(self, value: Any, space: Namespace | None, name: str) -> Any:
        token = _token(value)
        if self.to_parent and token in _received:
            return _defined, (token, value.__module__, value.__qualname__)
        if token not in self.definitions:
            self.definitions[token] = None
            self._pending.append((self._define, token, value))
            if space is not None:
                self.need(space, (name,), frozenset())
        return _defined, (token, value.__module__, value.__qualname__)

    def _inline(self, function: types.FunctionType) -> Any:
        space = _namespace_of(function.__globals__)
        read, names, code = _analyse(function.__code__)
        if isinstance(space, str):
            key: str | Token | None = space
            shipped = False
        else:
            self.need(space, read, names)
            key, shipped = space.key, True
        state = _function_state(function)
        arguments = (key, shipped, code, function.__name__, function.__closure__)
        if state is None:
            return _function, arguments
        return _function, arguments, state, None, None, _fill_function

    def need(self, space: Namespace, read: Iterable[str], names: frozenset[str]) -> None:
        """Notes that shipped code reads these globals of `space`; `names` are all names in that code."""
        entry = self.spaces.get(space.key)
        if entry is None:
            entry = self.spaces[space.key] = (space, {})
        for name in read:
            if name in entry[1] or name in _PRIVATE_GLOBALS or name not in space.globals:
                continue
            entry[1][name] = None
            self._pending.append((self._pickle_global, space, entry[1], name, names))

    def need_module(self, module: types.ModuleType) -> Namespace | None:
        """Notes that a shipped module is used as a value, so that all of it is needed; None when it can be imported."""
        space = _namespace_of(vars(module))
        if not isinstance(space, Namespace):
            return None
        if space.key != "__main__":
            entry = self.spaces.setdefault(space.key, (space, {}))
            for name in [*space.globals]:
                if name not in entry[1] and name not in _PRIVATE_GLOBALS:
                    entry[1][name] = None
                    self._pending.append((self._try_global, space, entry[1], name, frozenset()))
        return space

    def close(self) -> bytes:
        """Pickles what was noted, and what that needs in turn. Returns the table that precedes the body."""
        while self._pending:
            step, *arguments = self._pending.pop()
            step(*arguments)
        spaces = []
        for key, (space, globals_) in self.spaces.items():
            own = {name: space.globals[name] for name in ("__name__", "__file__", "__doc__", "__package__")
                   if isinstance(space.globals.get(name), str)}
            spaces.append((key, own, {name: value for name, value in globals_.items() if value is not None}))
        return pickle.dumps(([tuple(each) for each in self.definitions.values()], spaces), 5)

    def _define(self, token: Token, value: Any) -> None:
        inline = frozenset(_own_functions(value))
        if isinstance(value, type):
            skeleton_value, state_value = _class_parts(value)
        elif isinstance(value, types.FunctionType):
            skeleton_value, state_value = self._function_parts(value)
        else:
            skeleton_value, state_value = ("lru", value.__wrapped__, value.cache_parameters()), None
        try:
            skeleton = self._pickle(self, skeleton_value, inline)
            state = self._pickle(self, state_value, inline)
        except Exception as error:
            error.add_note(f"while pickling {value.__module__}.{value.__qualname__} by value")
            raise
        known = _received.get(token)
        digest = hash(skeleton) ^ hash(state) if known is None else known
        self.definitions[token] = Definition((token, digest, value.__qualname__, skeleton, state))

    def _function_parts(self, function: types.FunctionType) -> tuple[Any, Any]:
        made = self._inline(function)
        *arguments, closure = made[1]
        contents = []
        for cell in closure or ():
            try:
                contents.append((cell.cell_contents,))
            except ValueError:
                contents.append(())
        state = made[2] if len(made) > 2 else None
        return ("function", *arguments, len(contents)), (contents, state)

    def _pickle_global(
        self, space: Namespace, into: dict[str, Any], name: str, names: frozenset[str], *, optional: bool = False
    ) -> None:
        value = space.globals.get(name, _MARK)
        if value is _MARK:
            return
        record = space.records.get(name)
        unchanged = record is not None and record[1] is value
        if unchanged and self.to_parent:
            del into[name]
            return
        if isinstance(value, types.ModuleType) and importable(value.__name__):
            data = pickle.dumps(_Import(value.__name__, tuple(_submodules(value, names))), 5)
            rank = 0
        else:
            try:
                data = self._pickle(self, value, frozenset())
            except Exception as error:
                if optional:
                    return
                error.add_note(f"while pickling the global {name!r} of {space.globals.get('__name__', '?')}")
                raise
            rank = 0 if isinstance(value, (type, types.FunctionType, types.ModuleType, functools._lru_cache_wrapper)) else 1
        into[name] = (record[0] if unchanged and record is not None else hash(data), data, rank)

    def _try_global(self, space: Namespace, into: dict[str, Any], name: str, names: frozenset[str]) -> None:
        self._pickle_global(space, into, name, names, optional=True)


_HEAP_TYPE = 1 << 9


def _submodules(module: types.ModuleType, names: frozenset[str]) -> Iterator[str]:
    """The loaded submodules that code with these names may reach from `module` by attribute."""
    for name in names:
        child = f"{module.__name__}.{name}"
        if child in sys.modules and getattr(module, name, None) is sys.modules[child]:
            yield child
            yield from _submodules(sys.modules[child], names)


def _function_state(function: types.FunctionType) -> tuple[Any, ...] | None:
    annotations = getattr(function, "__annotations__", None) or None
    code = function.__code__
    constants = code.co_consts
    doc = function.__doc__
    if doc is not None and constants and constants[0] is doc:
        doc = None  # the code carries it
    qualname = function.__qualname__
    state = (
        function.__defaults__,
        function.__kwdefaults__,
        function.__dict__ or None,
        doc,
        function.__module__ if function.__module__ != function.__globals__.get("__name__") else None,
        annotations,
        None if qualname == code.co_qualname else qualname,
        getattr(function, "__type_params__", ()) or None,
    )
    return None if state == _NO_STATE else state


_NO_STATE = (None,) * 8


def _own_functions(value: Any) -> Iterator[int]:
    """The ids of the functions that are part of a definition and must not be named through it."""
    yield id(value)
    if not isinstance(value, type):
        return
    for part in vars(value).values():
        for each in (part, getattr(part, "__func__", None), getattr(part, "func", None)):
            if isinstance(each, types.FunctionType):
                yield id(each)
        if isinstance(part, property):
            yield from (id(each) for each in (part.fget, part.fset, part.fdel))


# Classes

# What the interpreter or the metaclass makes anew for each class.
_MADE_ANEW = frozenset(("__weakref__", "__dict__", "__module__", "__slots__", "__orig_bases__", "_abc_impl"))
_ENUM_MADE_ANEW = _MADE_ANEW | frozenset((
    "_member_names_", "_member_map_", "_value2member_map_", "_unhashable_values_", "_hashable_values_",
    "_unhashable_values_map_", "_member_type_", "_value_repr_", "_use_args_", "__new__", "__new_member__",
    "_new_member_", "_generate_next_value_", "_flag_mask_", "_singles_mask_", "_all_bits_", "_boundary_", "_inverted_",
    "__qualname__",
))  # fmt: skip
_ENUM_MEMBER_OWN = frozenset(("_value_", "_name_", "__objclass__", "_sort_order_"))


def _class_parts(cls: type) -> tuple[Any, Any]:
    """What makes an empty class like `cls`, and what fills it."""
    own = vars(cls)
    if isinstance(cls, enum.EnumMeta):
        members = {name: member._value_ for name, member in cls._member_map_.items()}
        made_anew = _ENUM_MADE_ANEW
        details = {
            name: {key: value for key, value in vars(member).items() if key not in _ENUM_MEMBER_OWN}
            for name, member in cls._member_map_.items()
        }
        skeleton: Any = ("enum", type(cls), cls.__name__, cls.__bases__, cls.__module__, cls.__qualname__, members)
        attributes = {key: value for key, value in own.items() if key not in made_anew and key not in members}
        return skeleton, (attributes, [], {name: extra for name, extra in details.items() if extra})
    basic = {key: own[key] for key in ("__slots__", "__orig_bases__") if key in own}
    basic["__module__"], basic["__qualname__"] = cls.__module__, cls.__qualname__
    skip = set(_MADE_ANEW)
    slots = own.get("__slots__", ())
    skip.update((slots,) if isinstance(slots, str) else slots)
    attributes = {
        key: value
        for key, value in own.items()
        if key not in skip and not isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType))
        and type(value).__name__ != "CField"
    }  # fmt: skip
    registry = []
    if "_abc_impl" in own:
        from _abc import _get_dump  # type: ignore[import-not-found]

        registry = [each for reference in _get_dump(cls)[0] if (each := reference()) is not None]
    return ("class", type(cls), cls.__name__, cls.__bases__, basic), (attributes, registry, None)


def _make_class(metaclass: Any, name: str, bases: tuple[type, ...], basic: dict[str, Any]) -> type:
    try:
        return types.new_class(name, bases, {"metaclass": metaclass}, lambda namespace: namespace.update(basic))
    except TypeError:
        pass  # the metaclass or a base wants arguments, or a body: make the class past them
    try:
        return type.__new__(metaclass, name, bases, dict(basic))
    except TypeError:
        cls = type.__new__(metaclass, name, (_Quiet, *bases), dict(basic))
        cls.__bases__ = bases
        return cls


class _Quiet:
    """A first base that keeps `__init_subclass__` of the others from running; taken out again at once."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        pass


def _make_enum(
    metaclass: Any, name: str, bases: tuple[type, ...], module: str, qualname: str, members: dict[str, Any]
) -> type:
    namespace = metaclass.__prepare__(name, bases)
    namespace["__module__"], namespace["__qualname__"] = module, qualname
    for member, value in members.items():
        namespace[member] = value
    made: type = metaclass.__new__(metaclass, name, bases, namespace)
    return made


def _fill_class(cls: type, state: tuple[dict[str, Any], list[type], dict[str, dict[str, Any]] | None]) -> None:
    attributes, registry, members = state
    for name, value in attributes.items():
        try:
            setattr(cls, name, value)
        except (AttributeError, TypeError):
            if not (name.startswith("__") and name.endswith("__")):
                raise
    for each in registry:
        cls.register(each)  # type: ignore[attr-defined]
    for name, extra in (members or {}).items():
        vars(cls._member_map_[name]).update(extra)  # type: ignore[attr-defined]


# Receiving


class _Import:
    """A module as a global's value, with the submodules that are reached through it."""

    __slots__ = ("name", "submodules")

    def __init__(self, name: str, submodules: tuple[str, ...]) -> None:
        self.name = name
        self.submodules = submodules

    def __reduce__(self) -> Any:
        return _import, (self.name, self.submodules)


def _import(name: str, submodules: tuple[str, ...]) -> types.ModuleType:
    module = import_module(name)
    for each in submodules:
        import_module(each)
    return module


def _shipped_module(key: str) -> Any:
    if key == "__main__":
        return sys.modules[key]
    space = _receiving_namespace(key, {"__name__": key})
    module = sys.modules.get(key)
    if module is None or vars(module) is not space.globals:
        module = types.SimpleNamespace()
        module.__dict__ = space.globals  # type: ignore[misc,assignment]
    return module


_codes: dict[bytes, types.CodeType] = {}


def _function(
    key: str | Token, shipped: bool, code: bytes, name: str, closure: tuple[Any, ...] | None
) -> types.FunctionType:
    space = vars(import_module(key)) if not shipped else _receiving_namespace(key, {}).globals  # type: ignore[arg-type]
    rebuilt = _codes.get(code)
    if rebuilt is None:
        if len(_codes) >= _CODE_CACHE_SIZE:
            _codes.clear()
        rebuilt = _codes[code] = marshal.loads(code)  # noqa: S302
    return types.FunctionType(rebuilt, space, name, None, closure)


def _fill_function(function: types.FunctionType, state: tuple[Any, ...] | None) -> None:
    defaults, keyword_defaults, attributes, doc, module, annotations, qualname, parameters = state or _NO_STATE
    function.__defaults__ = defaults
    function.__kwdefaults__ = keyword_defaults
    if attributes:
        function.__dict__.update(attributes)
    if doc is not None:
        function.__doc__ = doc
    if module is not None:
        function.__module__ = module
    if annotations:
        function.__annotations__ = annotations
    if qualname is not None:
        function.__qualname__ = qualname
    if parameters:
        function.__type_params__ = parameters  # type: ignore[attr-defined]


def _cell() -> types.CellType:
    return types.CellType()


def _fill_cell(cell: types.CellType, state: tuple[Any]) -> None:
    cell.cell_contents = state[0]


def reduce_cell(cell: types.CellType) -> Any:
    """How a closure's variable is pickled: first empty, so that a function may refer to itself."""
    try:
        return _cell, (), (cell.cell_contents,), None, None, _fill_cell
    except ValueError:
        return _cell, ()


def _defined(token: Token, module: str, qualname: str) -> Any:
    """The class or function that `token` stands for; built now when it came with this message."""
    reference = _objects.get(token)
    value = reference() if reference is not None else None
    definition = _pending.get(token)
    if definition is not None:
        return _build(definition, value)
    if value is None:
        value = find(module, qualname)
        if value is None:
            message = f"{module}.{qualname} no longer exists in this process, and came without its code"
            raise pickle.UnpicklingError(message)
    return value


def _build(definition: Definition, value: Any) -> Any:
    """Makes or refreshes what `definition` describes.

    Reading the skeleton may come back here for the same token (a class whose base knows its subclasses):
    the inner call then makes the object, and the outer one finds it.
    """
    token, digest, _, skeleton, state = definition
    if not isinstance(value, type):
        kind, *arguments = pickle.loads(skeleton)
        if token not in _pending:
            return _objects[token]()
        made = _MAKERS[kind](*arguments)
        if isinstance(value, types.FunctionType):  # it changed in place in the sender
            value.__code__ = made.__code__
        else:
            value = made
            _register(value, token)
    _pending.pop(token, None)
    _held[-1].append(value)
    _received[token] = digest
    if isinstance(value, type):
        _fill_class(value, pickle.loads(state))
    elif isinstance(value, types.FunctionType):
        contents, rest = pickle.loads(state)
        for cell, content in zip(value.__closure__ or (), contents, strict=True):
            if content:
                cell.cell_contents = content[0]
        _fill_function(value, rest)
    return value


def _function_definition(
    key: str | Token, shipped: bool, code: bytes, name: str, cells: int
) -> types.FunctionType:
    return _function(key, shipped, code, name, tuple(types.CellType() for _ in range(cells)) or None)


def _lru_cache(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


_MAKERS: dict[str, Callable[..., Any]] = {
    "class": _make_class, "enum": _make_enum, "function": _function_definition, "lru": _lru_cache,
}  # fmt: skip


def install(table: bytes | memoryview) -> list[Any]:
    """Lays down the definitions and globals that precede a message's body.

    Returns:
        What must be kept alive until the body has been read: definitions are registered by weak reference.
    """
    definitions, spaces = pickle.loads(table)
    with _lock:
        mine = _origin if _origin_pid == os.getpid() else None
        wanted = []
        for each in definitions:
            token, digest = each[0], each[1]
            reference = _objects.get(token)
            if reference is not None and reference() is not None and (token[0] == mine or _received.get(token) == digest):
                continue
            _pending[token] = Definition(each)
            wanted.append(each)
        held: list[Any] = []
        _held.append(held)
        try:
            later = []
            for key, own, globals_ in spaces:
                space = _receiving_namespace(key, own)
                for name, (digest, data, rank) in globals_.items():
                    if not _wants(space, name, digest):
                        continue
                    if rank == 0:
                        _bind(space, name, digest, data)
                    else:
                        later.append((space, name, digest, data))
            for token, _, qualname, *_ in wanted:
                if token in _pending:
                    _defined(token, "", qualname)
            for step in later:
                _bind(*step)
        finally:
            _held.pop()
            for token, *_ in wanted:
                _pending.pop(token, None)
    return held


def _wants(space: Namespace, name: str, digest: int) -> bool:
    record = space.records.get(name)
    return name not in space.globals or (record is not None and record[0] != digest)


def _bind(space: Namespace, name: str, digest: int, data: bytes) -> None:
    try:
        value = pickle.loads(data)
    except Exception as error:
        error.add_note(f"while rebuilding the global {name!r} of {space.globals.get('__name__', '?')}")
        raise
    record = space.records.get(name)
    if name not in space.globals or (record is not None and space.globals[name] is record[1]):
        space.globals[name] = value
    space.records[name] = (digest, value)
