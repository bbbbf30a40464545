"""Values to bytes and back: pickle protocol 5, with large buffers out of band and code by value.

      dumps                                             loads
      plain builtin value --------> pickle.dumps -----> first byte 0x80: pickle.loads
      the same with small arrays -> pack -------------> first byte 0x02: unpack (`_native/c/packed.h`)
      anything else --> Pickler --> pickle bytes -----> as a plain value
      code by value --> Pickler --> 0x01 table body --> install(table), pickle.loads(body)
                           |
                           +-> buffers of 64 KiB and more, into the caller's list

What travels by value, and where it lives in the receiver, is told in `by_value`.

Honoured: `copyreg`, `multiprocessing.reduction.ForkingPickler.register`, `__reduce__` and its kin,
`cloudpickle.register_pickle_by_value`.

Invariants:
    a call of `dumps` has its own pickler and shipment: calls may nest and run in many threads
    nothing that `dumps` was given is referenced after it returns, but for the buffers in the caller's list
If a process dies: nothing is shared.
Unlike multiprocessing: functions and classes of `__main__`, lambdas and closures, memoryviews and
    modules are pickled; an error names the part that cannot be.
"""

from __future__ import annotations

import _pickle as pickle  # the same, without `re` and what else `pickle` imports
import io
import types
import weakref
from collections.abc import Callable, Sequence

from manycore._memory import reducers
from manycore._memory.by_value import Memo, Shipment
from manycore._memory.modules import loaded
from manycore._memory.namespaces import become_worker, describe_main, find, importable, keep_main
from manycore._memory.rebuild import install
from manycore._native.codec import PACKED_MARK, is_plain, pack, unpack

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "become_worker",
    "describe_main",
    "dump_function",
    "dumps",
    "is_by_value",
    "is_importable",
    "keep_main",
    "load_function",
    "loads",
    "memo_of",
]

_ENVELOPE = 0x01  # the first byte of a message with code by value; a pickle's is 0x80
_HEAD_BYTES = 9  # that byte, and the length of the table
_REDUCERS = reducers.REDUCERS
_TORCH = ("torch", "torch.storage")


class Pickler(pickle.Pickler):
    """The general pickler: one for each message, or part of a message that is pickled on its own.

    It is made as `pickle.Pickler` is, thousands of times a second, so the rest are attributes with defaults.

    Attributes:
        inline: The ids of functions that are pickled in full here, because they are what is being defined.
        needed: What the message needs besides, once it needs anything; shared by its parts.
        to_parent: As for `Shipment`.
        one_reader: As for `dumps`.
    """

    inline: frozenset[int] = frozenset()
    needed: Shipment | None = None
    to_parent = False
    one_reader = False

    @property
    def shipment(self) -> Shipment:
        """What the message needs besides."""
        if self.needed is None:
            self.needed = Shipment(_pickle_part, to_parent=self.to_parent)
        return self.needed

    def reducer_override(self, value: Any) -> Any:
        """Called by the C pickler for each value that is not of an exact builtin type."""
        kind = type(value)
        reducer = _REDUCERS.get(kind)
        if reducer is None:
            registered = _registered().get(kind)
            if registered is not None:
                if not self.one_reader and kind.__module__ in _TORCH:
                    return _reduce_for_many(value, registered)
                return registered(value)
            if isinstance(value, type):
                return reducers.reduce_class(self, value)
            reducer = reducers.meet(kind)
            if reducer is None:
                if kind.__module__ == "socket" and loaded("multiprocessing.reduction") is None:
                    return _reduce_unregistered(value)
                return NotImplemented
        return reducer(self, value)


def _registered() -> dict[type, Any]:
    """What was registered with `ForkingPickler`; nobody can have, before its module was imported."""
    reduction = loaded("multiprocessing.reduction")
    return reduction.ForkingPickler._extra_reducers if reduction is not None else {}


def _reduce_for_many(value: Any, registered: Callable[[Any], Any]) -> Any:
    """What PyTorch registers can be loaded once."""
    from manycore._memory import tensors

    reducer = tensors.REDUCERS.get(type(value).__qualname__)
    return registered(value) if reducer is None else reducer(value, registered)


def _reduce_unregistered(value: Any) -> Any:
    """Sockets are registered by an import that the program may not have made."""
    import multiprocessing.reduction  # noqa: F401

    reducer = _registered().get(type(value))
    return NotImplemented if reducer is None else reducer(value)


def _pickle_part(shipment: Shipment, value: Any, inline: frozenset[int], buffers: list[Any] | None = None, /) -> bytes:
    if is_plain(value):
        return pickle.dumps(value, 5)
    into = io.BytesIO()
    pickler = Pickler(into, 5, buffer_callback=None if buffers is None else _out_of_band(buffers, 0))
    pickler.needed, pickler.inline = shipment, inline
    pickler.dump(value)
    return into.getvalue()


def dumps(
    value: Any,
    *,
    buffers: list[Any] | None = None,
    to_parent: bool = False,
    roots: Sequence[str] = (),
    least: int = reducers.OUT_OF_BAND_BYTES,
    one_reader: bool = False,
) -> bytes:
    """Pickles a value.

    Args:
        value: Anything.
        buffers: Where buffers of 64 KiB and more go, as flat memoryviews of the caller's memory; None keeps
            them in the bytes. To be handed to `loads` in the same order.
        to_parent: The reader is the process that sent this one its code, so that code goes back by reference.
        roots: For an error's message: names of the first parts of `value`, a tuple or a list; one alone names `value`.
        least: Buffers of fewer bytes stay in the pickle.
        one_reader: The bytes are loaded once at the most, so what can be handed over once may be.

    Returns:
        The bytes.

    Raises:
        TaskPicklingError: A part cannot be pickled; the message says which. The cause is the original error.
        ResultPicklingError: The same, with `to_parent`.
    """
    if is_plain(value):
        return pickle.dumps(value, 5)
    if least == reducers.OUT_OF_BAND_BYTES:
        packed = pack(value, arrays_only=True)
        if packed is not None:
            return packed
    return _dumps(value, None, buffers, roots, least, to_parent=to_parent, one_reader=one_reader)


def _dumps(
    value: Any,
    shipment: Shipment | None,
    buffers: list[Any] | None,
    roots: Sequence[str],
    least: int = reducers.OUT_OF_BAND_BYTES,
    *,
    to_parent: bool = False,
    one_reader: bool = False,
    again: bool = False,
) -> bytes:
    into = io.BytesIO()
    first = 0
    if buffers is None:
        pickler = Pickler(into, 5)
    else:
        first = len(buffers)
        pickler = Pickler(into, 5, buffer_callback=_out_of_band(buffers, least))
    pickler.needed = shipment
    if to_parent:
        pickler.to_parent = True
    if one_reader:
        pickler.one_reader = True
    try:
        pickler.dump(value)
        needed = pickler.needed
        if not needed:
            return into.getvalue()
        table = needed.close()
    except BaseException as error:
        if buffers is not None:
            del buffers[first:]
        if not isinstance(error, Exception) or isinstance(error, MemoryError):
            raise
        if isinstance(error, pickle.PicklingError) and not again and reducers.forget_references():
            options = {"to_parent": to_parent, "one_reader": one_reader, "again": True}
            return _dumps(value, shipment, buffers, roots, least, **options)
        raise _explain(value, error, to_parent, roots) from error
    return b"".join((b"\x01", len(table).to_bytes(8, "little"), table, into.getbuffer()))


def _out_of_band(buffers: list[Any], least: int) -> Callable[[pickle.PickleBuffer], bool]:
    """Tells the pickler which buffers stay in the pickle."""

    def stays(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < least:
            return True
        buffers.append(raw)
        return False

    return stays


def loads(data: bytes | bytearray | memoryview, *, buffers: Sequence[Any] = ()) -> Any:
    """Rebuilds what `dumps` pickled.

    Args:
        data: The bytes.
        buffers: The buffers that `dumps` put out of band, in order; the value keeps those that it needs alive.

    Returns:
        An equal value. A class or function that came from this process is this process's own object.
    """
    mark = data[0]
    if mark != _ENVELOPE:
        if mark == PACKED_MARK:
            return unpack(data)
        return pickle.loads(data, buffers=buffers) if buffers else pickle.loads(data)  # a keyword costs a tenth of a us
    view = memoryview(data)
    body = _HEAD_BYTES + int.from_bytes(view[1:_HEAD_BYTES], "little")
    held = install(view[_HEAD_BYTES:body])
    value = pickle.loads(view[body:], buffers=buffers)
    del held
    return value


def dump_function(function: Callable[..., Any], *, main_is_there: bool = False) -> bytes:
    """Pickles what a task calls: by reference when a worker can import it, else by value.

    Args:
        function: Any callable that can be pickled: a function, a method, a partial, a callable instance, a class.
        main_is_there: The worker has this process's `__main__`, as after a fork: globals of it that cannot be pickled
            are left out, and the worker's own are used.

    Returns:
        The bytes. The very object that the last call for `function` returned, when neither it nor anything
        that it reads has changed since; then this call costs less than a microsecond or two.

    Raises:
        TaskPicklingError: Something that the function holds cannot be pickled.
    """
    memo: Memo | bytes | None
    reference, memo = _functions.get(id(function)) or _NOTHING
    if reference() is function:
        if type(memo) is bytes:
            return memo
        if memo.good_for(function):  # type: ignore[union-attr]
            return memo.data  # type: ignore[union-attr]
    elif type(function) is types.FunctionType:
        reference, memo = _codes.get(id(function.__code__)) or _NOTHING
        if reference() is function.__code__ and memo.good_for(function):
            return memo.data
    shipment = Shipment(_pickle_part, main_is_there=main_is_there)
    data = _dumps(function, shipment, None, ("function",))
    if not shipment and not shipment.inlined:
        if isinstance(function, (types.FunctionType, types.BuiltinFunctionType, type)):
            _remember(_functions, function, data)
    elif isinstance(function, types.FunctionType):
        memo = shipment.memo(function, data)
        if memo is not None and memo.single:
            _remember(_functions, function, memo)
        elif memo is not None:
            _remember(_codes, function.__code__, memo)
    return data


def memo_of(function: types.FunctionType) -> Memo | None:
    """What `dump_function` remembers of a function that went by value; None where it has to look closer."""
    reference, memo = _functions.get(id(function)) or _NOTHING
    if reference() is not function:
        reference, memo = _codes.get(id(function.__code__)) or _NOTHING
        if reference() is not function.__code__:
            return None
    return memo if type(memo) is Memo else None


# By id: what was pickled for a function that goes by reference or has a token, and for code that any function runs.
_functions: dict[int, tuple[weakref.ref[Any], Memo | bytes]] = {}
_codes: dict[int, tuple[weakref.ref[Any], Memo]] = {}
_NOTHING: Any = (lambda: _NOTHING, None)


def _remember(table: dict[int, Any], key: Any, memo: Memo | bytes) -> None:
    identity = id(key)
    table[identity] = (weakref.ref(key, lambda _: table.pop(identity, None) and None), memo)


def load_function(data: bytes | bytearray | memoryview) -> Callable[..., Any]:
    """Rebuilds what `dump_function` pickled."""
    function: Callable[..., Any] = loads(data)
    return function


def is_by_value(data: bytes) -> bool:
    """Whether what `dumps` gave brings code, and the globals that it reads, along."""
    return data[0] == _ENVELOPE


def is_importable(value: Any) -> bool:
    """Whether a function or a class is what another process finds under its module and name."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return isinstance(module, str) and isinstance(name, str) and importable(module) and find(module, name) is value


def _explain(value: Any, error: Exception, to_parent: bool, roots: Sequence[str]) -> Exception:
    from manycore import errors
    from manycore._memory.culprit import find_culprit

    def fails(part: Any) -> Exception | None:
        try:
            pickler = Pickler(io.BytesIO(), 5)
            pickler.to_parent = to_parent
            pickler.dump(part)
            pickler.shipment.close()
        except Exception as failure:
            return failure
        return None

    path, reason = find_culprit(value, error, fails, roots)
    kind = errors.ResultPicklingError if to_parent else errors.TaskPicklingError
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    return kind(f"{path}: {reason}{notes}" if path else f"{reason}{notes}")
