"""Receiving: definitions and globals are laid down, functions and classes are rebuilt.

The functions without an underscore are named in pickles: they rebuild, in the receiver, what
`by_value` took apart in the sender.

Invariants:
    a definition is registered before its state is read, so cycles end
    `_pending` and `_held` are touched only under the lock of `namespaces`
"""

from __future__ import annotations

import _pickle as pickle  # the same, without `re` and what else `pickle` imports
import functools
import marshal
import sys
import types
from collections.abc import Callable
from importlib import import_module

from manycore._memory.classes import fill_class, make_class, make_enum
from manycore._memory.namespaces import (
    Namespace,
    Token,
    find,
    lock,
    objects,
    own_class,
    own_origin,
    received,
    receiving_namespace,
    register,
)

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any

_CODE_CACHE_SIZE = 1024  # code objects rebuilt from bytes; a miss costs a few microseconds

_LAST_BYTES = 65536  # a larger table is not kept for comparison with the next

NO_STATE = (None,) * 8

# The table last laid down, and what it defined. The next message often brings the same; another table in between may
# have bound the same names anew, so that one is all that may be skipped.
_last: tuple[bytes, list[Any]] = (b"", [])


class Definition(tuple[Token, int, str, bytes, bytes]):
    """(token, hash, readable name, pickled skeleton, pickled state)."""

    __slots__ = ()


_held: list[list[Any]] = []  # per message being installed: what was built for it, until its body is read
_pending: dict[Token, Definition] = {}  # definitions of messages being installed, not yet begun


class Import:
    """A module as a global's value, with the submodules that are reached through it."""

    __slots__ = ("name", "submodules")

    def __init__(self, name: str, submodules: tuple[str, ...]) -> None:
        self.name = name
        self.submodules = submodules

    def __reduce__(self) -> Any:
        return import_it, (self.name, self.submodules)


def import_it(name: str, submodules: tuple[str, ...]) -> types.ModuleType:
    module = import_module(name)
    for each in submodules:
        import_module(each)
    return module


def shipped_module(key: str) -> types.ModuleType | None:
    """The module that stands here for a shipped one."""
    if key == "__main__":
        return sys.modules[key]
    return receiving_namespace(key, {"__name__": key}).module or sys.modules.get(key)


_codes: dict[bytes, types.CodeType] = {}


def function_over(
    key: str | Token, shipped: bool, code: bytes, name: str, closure: tuple[Any, ...] | None
) -> types.FunctionType:
    space = vars(import_module(key)) if not shipped else receiving_namespace(key, {}).globals  # type: ignore[arg-type]
    rebuilt = _codes.get(code)
    if rebuilt is None:
        if len(_codes) >= _CODE_CACHE_SIZE:
            _codes.clear()
        rebuilt = _codes[code] = marshal.loads(code)  # noqa: S302
    return types.FunctionType(rebuilt, space, name, None, closure)


def fill_function(function: types.FunctionType, state: tuple[Any, ...] | None) -> None:
    defaults, keyword_defaults, attributes, doc, module, annotations, qualname, parameters = state or NO_STATE
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


def empty_cell() -> types.CellType:
    return types.CellType()


def fill_cell(cell: types.CellType, state: tuple[Any]) -> None:
    cell.cell_contents = state[0]


def reduce_cell(cell: types.CellType) -> Any:
    """How a closure's variable is pickled: first empty, so that a function may refer to itself."""
    try:
        return empty_cell, (), (cell.cell_contents,), None, None, fill_cell
    except ValueError:
        return empty_cell, ()


def defined(token: Token, module: str, qualname: str) -> Any:
    """The class or function that `token` stands for; built now when it came with this message."""
    reference = objects.get(token)
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
            return objects[token]()
        own = own_class(kind, arguments)
        if own is not None:
            _pending.pop(token, None)
            register(own, token)
            _held[-1].append(own)
            received[token] = digest
            return own
        made = _MAKERS[kind](*arguments)
        if isinstance(value, types.FunctionType):  # it changed in place in the sender
            value.__code__ = made.__code__
        else:
            value = made
            register(value, token)
    _pending.pop(token, None)
    _held[-1].append(value)
    received[token] = digest
    if isinstance(value, type):
        fill_class(value, pickle.loads(state))
    elif isinstance(value, types.FunctionType):
        contents, rest = pickle.loads(state)
        for cell, content in zip(value.__closure__ or (), contents, strict=True):
            if content:
                cell.cell_contents = content[0]
        fill_function(value, rest)
    return value


def _function_definition(key: str | Token, shipped: bool, code: bytes, name: str, cells: int) -> types.FunctionType:
    return function_over(key, shipped, code, name, tuple(types.CellType() for _ in range(cells)) or None)


def lru_cache(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


_MAKERS: dict[str, Callable[..., Any]] = {
    "class": make_class, "enum": make_enum, "function": _function_definition, "lru": lru_cache,
}  # fmt: skip


def install(table: bytes | memoryview) -> list[Any]:
    """Lays down the definitions and globals that precede a message's body.

    Returns:
        What must be kept alive until the body has been read: definitions are registered by weak reference.
    """
    global _last
    if table == _last[0]:  # and everything it brought is still held
        return _last[1]
    definitions, spaces = pickle.loads(table)
    with lock:
        mine = own_origin()
        wanted = []
        for each in definitions:
            token, digest = each[0], each[1]
            reference = objects.get(token)
            known = token[0] == mine or received.get(token) == digest
            if known and reference is not None and reference() is not None:
                continue
            _pending[token] = Definition(each)
            wanted.append(each)
        held: list[Any] = []
        _held.append(held)
        try:
            later = []
            for key, own, globals_ in spaces:
                space = receiving_namespace(key, own)
                for name, (digest, data, rank) in globals_.items():
                    if not _wants(space, name, digest):
                        continue
                    if rank == 0:
                        _bind(space, name, digest, data)
                    else:
                        later.append((space, name, digest, data))
            for token, _, qualname, *_ in wanted:
                if token in _pending:
                    defined(token, "", qualname)
            for step in later:
                _bind(*step)
        finally:
            _held.pop()
            for token, *_ in wanted:
                _pending.pop(token, None)
        if len(table) <= _LAST_BYTES and all(token[0] != mine for token, *_ in definitions):
            held += [objects[token]() for token, *_ in definitions]
            _last = (bytes(table), held)
        else:
            _last = (b"", [])
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
