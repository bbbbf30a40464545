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

A global that cannot be pickled goes by reference where a module that the receiver can import has it,
under any name: a logger, say, of which every process has its own.

Identity. A token (process, number) stands for one class or named function everywhere. The process
that minted it always gets its own object back; any other has one object per token. So a class of
`__main__` is one class per worker, and an instance that returns is of the caller's own class.

A nested function, a lambda, a closure goes inline, in the body, with its cells: closures of one
message that share a variable share it in the receiver. When its module can be imported, the receiver
runs it over the imported module's globals, and nothing else travels.

Pickling again what has not changed would cost tens of microseconds, so definitions are remembered,
and so are whole functions (`Shipment.memo`). A memory is good while everything that it was made from
is the same object, or, for a class, while the interpreter's version of the class is the same. Values
that can change in place (a list, an instance) are pickled again each time; a *global* of more than
64 KiB, only when its content is no longer the same (`content`).

    namespaces  what has which name, and which token; what code reads
    by_value    sending
    classes     a class taken apart, and put together
    rebuild     receiving

Invariants:
    a call's shipment is its own; memories are replaced, never changed
    a memory holds no strong reference to a function, a class or a namespace
If a process dies: nothing is shared; every table here is private to its process.
Unlike cloudpickle: one namespace for a module instead of one for each function; a definition is
    rebuilt only when it has changed; shared closure cells stay shared; the receiver imports nothing
    that is not the standard library's.
"""

from __future__ import annotations

import _pickle as pickle  # the same, without `re` and what else `pickle` imports
import functools
import operator
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator

from manycore._memory import rebuild
from manycore._memory.classes import HEAP_TYPE, class_parts, own_functions
from manycore._memory.namespaces import (
    MARK,
    PRIVATE_GLOBALS,
    Namespace,
    Token,
    analyse,
    find,
    importable,
    memories,
    namespace_of,
    received,
    token_of,
    tokens,
)
from manycore._memory.rebuild import Definition, Import
from manycore._native.codec import Unchanged, type_version

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Pickle(Protocol):
        """Pickles a part of a message; buffers go into the list where there is one."""

        def __call__(
            self, shipment: Shipment, value: Any, inline: frozenset[int], buffers: list[Any] | None = None, /
        ) -> bytes: ...


_LARGE_BYTES = 65536  # of a global that pickles to more it is remembered what it held
_ATOMS = frozenset((int, float, complex, bool, str, bytes, type(None), type(...), type(NotImplemented), range))
_BY_IDENTITY = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, functools._lru_cache_wrapper)
# Parts of a class that change only by being replaced, which the version of the class tells.
_CLASS_PARTS = (
    staticmethod, classmethod, property, functools.cached_property, types.MemberDescriptorType,
    types.GetSetDescriptorType, types.WrapperDescriptorType, types.MethodDescriptorType,
)  # fmt: skip
# The tables of messages that name the same definitions, as instances of one class do: (table, what it is good for).
_tables: dict[tuple[Token, ...], tuple[bytes, _Checks]] = {}
_TABLES = 64  # of at most _LARGE_BYTES each
_UNSTABLE = object()
_MISSING = object()


def stamp(value: Any) -> Any:
    """What tells later whether a name still has this value: the value, a weak reference, or `_UNSTABLE`."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if isinstance(value, _BY_IDENTITY):
        try:
            return weakref.ref(value)
        except TypeError:
            return _UNSTABLE
    if kind in (tuple, frozenset) and all(type(part) in _ATOMS for part in value):
        return value
    return _UNSTABLE


class _Memory:
    """A definition as it was last pickled, what it needed, and what tells whether it has changed."""

    __slots__ = ("definition", "log", "version")

    def __init__(self, version: tuple[Any, ...], definition: Definition, log: list[tuple[Any, ...]]) -> None:
        self.version = version
        self.definition = definition
        self.log = log


def _unchanged(version: tuple[Any, ...], value: Any) -> bool:
    """Whether a definition's version is still that; by identity, for 1 equals True and 1.0."""
    if isinstance(value, type):
        return bool(version[0] == type_version(value))
    now = _version(value)
    return now is not None and all(map(operator.is_, version, now))


class _Checks:
    """Whether the globals that were read, and the definitions that were sent, are what they were."""

    __slots__ = ("_globals", "_versions")

    def __init__(self, globals_: list[tuple[Namespace, str, Any]], versions: list[tuple[Any, tuple[Any, ...]]]) -> None:
        spaces: dict[int, tuple[weakref.ref[Namespace], list[tuple[str, Any]]]] = {}
        for space, name, stamped in globals_:
            spaces.setdefault(id(space), (weakref.ref(space), []))[1].append((name, stamped))
        self._globals = list(spaces.values())
        self._versions = [(weakref.ref(value), version) for value, version in versions]

    def __bool__(self) -> bool:
        return bool(self._globals or self._versions)

    def hold(self) -> bool:
        """Whether all are unchanged."""
        for reference, names in self._globals:
            space = reference()
            if space is None:
                return False
            globals_ = space.globals
            for name, stamped in names:
                value = globals_.get(name, _MISSING)
                if value is not stamped and not (
                    (type(stamped) is weakref.ref and stamped() is value)
                    or (type(stamped) is _Content and stamped.is_of(value))
                ):
                    return False
        for reference, version in self._versions:
            value = reference()
            if value is None or not _unchanged(version, value):
                return False
        return True


class Memo:
    """A pickled function, and what tells whether pickling it again would give the same.

    Good for any function of the same code, unless the function has a token, which makes it one of a kind.
    """

    __slots__ = ("data", "good_for", "single")

    def __init__(self, function: types.FunctionType, data: bytes, checks: _Checks, home: Any, *, single: bool) -> None:
        self.data = data
        self.single = single
        # Whether pickling a function now would give these bytes.
        self.good_for = Unchanged(
            weakref.ref(function.__code__),
            weakref.ref(home),
            function.__defaults__,
            [stamp(cell.cell_contents) for cell in function.__closure__ or ()],
            weakref.ref(function) if single else None,
            checks.hold if checks else None,
        )


class Shipment:
    """The definitions and globals that one message needs; filled while the message is being pickled.

    Args:
        pickle_part: Pickles a part of the message (a global's value, a definition's state) on its own.
        to_parent: The receiver is the process that this one's objects came from, so what it sent needs no definition.
        main_is_there: The receiver has this process's `__main__`, so what of it cannot be pickled stays away.
    """

    __slots__ = (
        "_checks", "_log", "_pending", "_pickle", "_roots", "_versions",
        "definitions", "inlined", "main_is_there", "spaces", "stable", "to_parent",
    )  # fmt: skip

    def __init__(self, pickle_part: Pickle, *, to_parent: bool = False, main_is_there: bool = False) -> None:
        self._pickle = pickle_part
        self.to_parent = to_parent
        self.main_is_there = main_is_there
        self.definitions: dict[Token, Any] = {}
        self.spaces: dict[str | Token, tuple[Namespace, dict[str, tuple[int, bytes, int] | None]]] = {}
        self._pending: list[tuple[Any, ...]] = []
        self._log: list[tuple[Any, ...]] | None = None  # what the definition being pickled needs
        self._checks: list[tuple[Namespace, str, Any]] = []  # the globals read, and what they were
        self._versions: list[tuple[Any, tuple[Any, ...]]] = []  # the definitions sent, and what they were
        self._roots: list[Token] | None = []  # the definitions that the body names; None if it needs more than those
        self.inlined = False  # a function went in full
        self.stable = True  # nothing was met that may change without being bound anew

    def __bool__(self) -> bool:
        return bool(self.definitions or self.spaces)

    def memo(self, function: types.FunctionType, data: bytes) -> Memo | None:
        """A memory of this message, which is `function` alone; None where it may change unseen."""
        if not self.stable or function.__dict__ or function.__kwdefaults__:
            return None
        home = namespace_of(function.__globals__)
        if isinstance(home, str):
            return Memo(function, data, self._checked(), sys.modules[home], single=False)
        return Memo(function, data, self._checked(), home, single=id(function) in tokens)

    def _checked(self) -> _Checks:
        return _Checks(self._checks, self._versions)

    # Reduce values

    def reduce_function(self, function: types.FunctionType, inline: frozenset[int]) -> Any:
        """How a function is pickled: a reduce value, or NotImplemented for a bare reference."""
        named = self._by_name(function, function, inline)
        return self._inline(function) if named is None else named

    def reduce_wrapper(self, value: Any, inline: frozenset[int]) -> Any:
        """How a wrapper made by `functools.lru_cache` is pickled: it keeps one cache per process when it has a name."""
        named = self._by_name(value, value.__wrapped__, inline)
        return (rebuild.lru_cache, (value.__wrapped__, value.cache_parameters())) if named is None else named

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
            space = namespace_of(vars(sys.modules[module]))
            if isinstance(space, Namespace) and "." not in qualname:
                return self._defined(cls, space, qualname)
        elif not cls.__flags__ & HEAP_TYPE:
            return NotImplemented  # a static type under another name: only a reference can be right
        return self._defined(cls, None, qualname)

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
            space = namespace_of(function.__globals__)
            if isinstance(space, Namespace):
                return self._defined(value, space, qualname)
        return None

    def _defined(self, value: Any, space: Namespace | None, name: str) -> Any:
        token = token_of(value)
        reference = (token, value.__module__, value.__qualname__)
        if self.to_parent and token in received:
            return rebuild.defined, reference
        if self._roots is not None:
            self._roots.append(token)
        if self._log is not None:
            self._log.append(("definition", weakref.ref(value), None if space is None else weakref.ref(space), name))
        if token not in self.definitions:
            self.definitions[token] = None
            self._pending.append((self._define, token, value))
            if space is not None:
                self.need(space, (name,), frozenset())
        return rebuild.defined, reference

    def _inline(self, function: types.FunctionType) -> Any:
        self.inlined = True
        space = namespace_of(function.__globals__)
        read, names, code = analyse(function.__code__)
        if isinstance(space, str):
            key: str | Token = space
            shipped = False
        else:
            self._roots = None
            self.need(space, read, names)
            key, shipped = space.key, True
        if self.stable:
            self.stable = self._is_stable(function)
        state = _function_state(function)
        arguments = (key, shipped, code, function.__name__, function.__closure__)
        if state is None:
            return rebuild.function_over, arguments
        return rebuild.function_over, arguments, state, None, None, rebuild.fill_function

    @staticmethod
    def _is_stable(function: types.FunctionType) -> bool:
        if function.__kwdefaults__ or function.__dict__:
            return False
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:
                return False
            if stamp(value) is _UNSTABLE:
                return False
            if isinstance(value, types.FunctionType) and value.__closure__:
                return False  # whose variables may change
        for default in function.__defaults__ or ():
            stamped = stamp(default)
            if stamped is _UNSTABLE or type(stamped) is weakref.ref:  # a memory would hold it strongly
                return False
        return True

    # What is needed besides

    def need(self, space: Namespace, read: Iterable[str], names: frozenset[str]) -> None:
        """Notes that shipped code reads these globals of `space`; `names` are all names in that code."""
        if self._log is not None:
            self._log.append(("globals", weakref.ref(space), tuple(read), names))
        entry = self.spaces.get(space.key)
        if entry is None:
            entry = self.spaces[space.key] = (space, {})
        for name in read:
            if name in entry[1] or name in PRIVATE_GLOBALS:
                continue
            if name not in space.globals:
                self._checks.append((space, name, _MISSING))
                continue
            entry[1][name] = None
            self._pending.append((self._pickle_global, space, entry[1], name, names))

    def need_module(self, module: types.ModuleType) -> None:
        """Notes that a module is used as a value, so that all of it is needed when it is a shipped one."""
        space = namespace_of(vars(module))
        if isinstance(space, str) or space.key == "__main__":
            return
        self.stable, self._roots = False, None
        entry = self.spaces.setdefault(space.key, (space, {}))
        for name in [*space.globals]:
            if name not in entry[1] and name not in PRIVATE_GLOBALS:
                entry[1][name] = None
                self._pending.append((self._try_global, space, entry[1], name, frozenset()))

    def close(self) -> bytes:
        """Pickles what was noted, and what that needs in turn. Returns the table that precedes the body."""
        roots, self._roots = self._roots, None
        if roots is None or self.to_parent:
            return self._table()
        key = tuple(roots)
        known = _tables.get(key)
        if known is not None and known[1].hold():
            return known[0]
        table = self._table()
        if self.stable and len(table) <= _LARGE_BYTES:
            if len(_tables) >= _TABLES:
                _tables.clear()
            _tables[key] = (table, self._checked())
        return table

    def _table(self) -> bytes:
        while self._pending:
            step, *arguments = self._pending.pop()
            step(*arguments)
        spaces = []
        for key, (space, globals_) in self.spaces.items():
            own = {
                name: space.globals[name]
                for name in ("__name__", "__file__", "__doc__", "__package__")
                if isinstance(space.globals.get(name), str)
            }
            spaces.append((key, own, {name: value for name, value in globals_.items() if value is not None}))
        return pickle.dumps(([tuple(each) for each in self.definitions.values()], spaces), 5)

    def _define(self, token: Token, value: Any) -> None:
        memory = memories.get(token)
        if memory is not None and _unchanged(memory.version, value):
            self._versions.append((value, memory.version))
            self._replay(memory)
            return
        version = _version(value)
        inline = frozenset(own_functions(value))
        stable, self._log = self.stable, []
        try:
            if isinstance(value, type):
                skeleton_value, state_value = class_parts(value)
            elif isinstance(value, types.FunctionType):
                skeleton_value, state_value = self._function_parts(value)
            else:
                skeleton_value, state_value = ("lru", value.__wrapped__, value.cache_parameters()), None
            skeleton = self._pickle(self, skeleton_value, inline)
            state = self._pickle(self, state_value, inline)
        except Exception as error:
            error.add_note(f"while pickling {value.__module__}.{value.__qualname__} by value")
            raise
        finally:
            log, self._log = self._log, None
        known = received.get(token)
        digest = hash((skeleton, state)) if known is None else known
        definition = Definition((token, digest, value.__qualname__, skeleton, state))
        self.definitions[token] = definition
        self.stable = stable and version is not None
        if version is not None:
            self._versions.append((value, version))
            memories[token] = _Memory(version, definition, log)

    def _replay(self, memory: _Memory) -> None:
        self.definitions[memory.definition[0]] = memory.definition
        for kind, reference, what, names in memory.log:
            referent = reference()
            if referent is None:
                continue
            if kind == "globals":
                self.need(referent, what, names)
            else:
                self._defined(referent, None if what is None else what(), names)

    def _function_parts(self, function: types.FunctionType) -> tuple[Any, Any]:
        made = self._inline(function)
        *arguments, closure = made[1]
        contents: list[tuple[Any, ...]] = []
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
        value = space.globals.get(name, MARK)
        if value is MARK:
            return
        record = space.records.get(name)
        unchanged = record is not None and record[1] is value
        if unchanged and self.to_parent:
            del into[name]
            return
        stamped = stamp(value)
        if isinstance(value, types.ModuleType) and importable(value.__name__):
            data = pickle.dumps(Import(value.__name__, tuple(_submodules(value, names))), 5)
            rank = 0
        else:
            try:
                data = self._pickle(self, value, frozenset())
            except Exception as error:
                if optional:
                    return
                if self.main_is_there and space.key == "__main__":
                    self.stable = False
                    del into[name]
                    return
                source = _source(value, name)
                if source is None:
                    error.add_note(f"while pickling the global {name!r} of {space.globals.get('__name__', '?')}")
                    raise
                data, stamped = self._pickle(self, source, frozenset()), value
            rank = 0 if isinstance(value, _BY_IDENTITY) else 1
        if stamped is _UNSTABLE:
            if len(data) > _LARGE_BYTES and not self.to_parent:
                stamped = _content(name, value, functools.partial(_pickle_alone, self._pickle))
            else:
                self.stable = False
        self._checks.append((space, name, stamped))
        into[name] = (record[0] if unchanged and record is not None else hash(data), data, rank)

    def _try_global(self, space: Namespace, into: dict[str, Any], name: str, names: frozenset[str]) -> None:
        self._pickle_global(space, into, name, names, optional=True)


_Content: Any = None  # the class; a worker seldom needs it


def _content(name: str, value: Any, pickle_it: Callable[[Any, list[Any]], bytes]) -> Any:
    global _Content
    if _Content is None:
        from manycore._memory.content import Content as _Content
    return _Content(name, value, pickle_it)


def _pickle_alone(pickle_part: Pickle, value: Any, buffers: list[Any]) -> bytes:
    return pickle_part(Shipment(pickle_part), value, frozenset(), buffers)


def _version(value: Any) -> tuple[Any, ...] | None:
    """Objects that stay the same while a definition's bytes do; None where nothing tells."""
    if isinstance(value, type):
        number = type_version(value)
        if not number:
            return None
        for name, part in vars(value).items():
            if not (name[:2] == "__" or isinstance(part, _CLASS_PARTS) or stamp(part) is not _UNSTABLE):
                return None
        return (number,)
    if isinstance(value, types.FunctionType):
        if value.__closure__ or not Shipment._is_stable(value):
            return None
        return (value.__code__, value.__defaults__, value.__doc__, value.__qualname__)
    return ()


class _Attribute:
    """What another process finds in a module: pickles as a reference."""

    def __init__(self, module: types.ModuleType, name: str) -> None:
        self._where = (module, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, self._where


def _source(value: Any, name: str) -> _Attribute | None:
    """Where a receiver can import a global from that cannot be pickled, such as a logger; None where it cannot."""
    loaded: tuple[Any, ...] = tuple(sys.modules.values())
    spaces = [
        (module, object.__getattribute__(module, "__dict__"))  # of a lazy module too, which is left asleep
        for module in loaded
        if isinstance(module, types.ModuleType)
    ]
    candidates: tuple[Callable[[dict[str, Any]], tuple[str, ...]], ...] = (lambda _: (name,), tuple)
    for names in candidates:  # its own name first, then others: it may have been imported "as"
        for module, space in spaces:
            for each in names(space):
                if space.get(each) is value and importable(module.__name__):
                    return _Attribute(module, each)
    return None


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
    return None if state == rebuild.NO_STATE else state
