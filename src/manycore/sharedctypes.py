"""Values and arrays of C types in shared memory: multiprocessing.sharedctypes, nameless; and `Atomic`.

    Value, Array          a ctypes object and an `RLock` that guards it
    RawValue, RawArray    the ctypes object alone
    Atomic                a number that needs no lock

The memory is a cell or a segment of memfd pages: it can be sent to processes that already run, inside any
pickle that honours the reducers of multiprocessing, and is gone with its last user.

If a process dies: holding the lock of a value, the next to take it is told (`OwnerDied`), since the object may
    be half changed. An atomic is always whole.
Unlike multiprocessing.sharedctypes: no file in a temporary folder; `value` goes through the lock without a
    Python frame; a plain ctypes object of a type that is also shared still goes by value.
"""

from __future__ import annotations

import ctypes
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from manycore._memory.cells import Cell, allocate
from manycore._native.shared import ATOMIC_BYTES, Field, Guarded
from manycore._native.shared import Atomic as _Atomic
from manycore.synchronize import RLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Array", "Atomic", "RawArray", "RawValue", "Value", "copy", "synchronized"]

typecode_to_type: dict[Any, Any] = {
    "c": ctypes.c_char,
    "u": ctypes.c_wchar,
    "b": ctypes.c_byte,
    "B": ctypes.c_ubyte,
    "h": ctypes.c_short,
    "H": ctypes.c_ushort,
    "i": ctypes.c_int,
    "I": ctypes.c_uint,
    "l": ctypes.c_long,
    "L": ctypes.c_ulong,
    "q": ctypes.c_longlong,
    "Q": ctypes.c_ulonglong,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}


class BufferWrapper:
    """A number of zeroed bytes in shared memory.

    Args:
        size: Bytes.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"Size {size:n} out of range")
        self._cell: Cell = allocate(max(1, size))
        self._size = size

    def create_memoryview(self) -> memoryview:
        """The bytes, writable."""
        return self._cell.buffer[: self._size]


# ---- ctypes objects ----


def _new_value(type_: Any) -> Any:
    return rebuild_ctype(type_, BufferWrapper(ctypes.sizeof(type_)), None)


def RawValue(typecode_or_type: Any, *args: Any) -> Any:  # noqa: N802
    """A ctypes object in shared memory, without a lock.

    Args:
        typecode_or_type: A ctypes type, or the letter of one as in the module `array`.
        args: For its constructor.
    """
    obj = _new_value(typecode_to_type.get(typecode_or_type, typecode_or_type))
    obj.__init__(*args)
    return obj


def RawArray(typecode_or_type: Any, size_or_initializer: Any) -> Any:  # noqa: N802
    """A ctypes array in shared memory, without a lock.

    Args:
        typecode_or_type: The type of its elements, or the letter of one as in the module `array`.
        size_or_initializer: How many elements, all zero; or the elements.
    """
    type_ = typecode_to_type.get(typecode_or_type, typecode_or_type)
    if isinstance(size_or_initializer, int):
        return _new_value(type_ * size_or_initializer)
    result = _new_value(type_ * len(size_or_initializer))
    result.__init__(*size_or_initializer)
    return result


def _lock_for(lock: Any, ctx: Any) -> Any:
    if lock in (True, None):
        return RLock() if ctx is None else ctx.RLock()
    if not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire'")
    return lock


def Value(typecode_or_type: Any, *args: Any, lock: Any = True, ctx: Any = None) -> Any:  # noqa: N802
    """A ctypes object in shared memory, behind a lock.

    Args:
        typecode_or_type: A ctypes type, or the letter of one as in the module `array`.
        args: For its constructor.
        lock: The lock; True for a new `RLock`, False for none.
        ctx: The context that makes the lock.
    """
    obj = RawValue(typecode_or_type, *args)
    return obj if lock is False else synchronized(obj, _lock_for(lock, ctx), ctx=ctx)


def Array(typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True, ctx: Any = None) -> Any:  # noqa: N802
    """A ctypes array in shared memory, behind a lock. Arguments as `RawArray` and `Value`."""
    obj = RawArray(typecode_or_type, size_or_initializer)
    return obj if lock is False else synchronized(obj, _lock_for(lock, ctx), ctx=ctx)


def copy(obj: Any) -> Any:
    """A copy of a ctypes object, in shared memory of its own."""
    new_obj = _new_value(type(obj))
    ctypes.pointer(new_obj)[0] = obj
    return new_obj


def synchronized(obj: Any, lock: Any = None, ctx: Any = None) -> Any:
    """Put a ctypes object behind a lock.

    Args:
        obj: The object; it is in shared memory, or nobody else will see its changes.
        lock: The lock; a new `RLock` by default.
        ctx: The context that makes the lock.
    """
    if isinstance(obj, Guarded):
        raise AssertionError("object already synchronized")  # noqa: TRY004  (as the standard library)
    if isinstance(obj, ctypes._SimpleCData):
        return Synchronized(obj, lock, ctx)
    if isinstance(obj, ctypes.Array):
        return (SynchronizedString if obj._type_ is ctypes.c_char else SynchronizedArray)(obj, lock, ctx)
    cls = type(obj)
    wrapper = _wrappers.get(cls)
    if wrapper is None:
        fields = {field[0]: Field(field[0]) for field in cls._fields_}
        wrapper = _wrappers[cls] = type(f"Synchronized{cls.__name__}", (SynchronizedBase,), fields)
    return wrapper(obj, lock, ctx)


# ctypes structure -> the class of its synchronized wrappers
_wrappers: WeakKeyDictionary[type, Any] = WeakKeyDictionary()


# The numbers that are read and written without going through ctypes, where they are in memory of ours.
_PLAIN = {
    ctypes.c_int: "i",
    ctypes.c_uint: "I",
    ctypes.c_long: "l",
    ctypes.c_ulong: "L",
    ctypes.c_longlong: "q",
    ctypes.c_double: "d",
}


class SynchronizedBase(Guarded):
    """A ctypes object and the lock that guards it.

    Args:
        obj: The object.
        lock: The lock; a new `RLock` by default.
        ctx: The context that makes the lock.
    """

    def __init__(self, obj: Any, lock: Any = None, ctx: Any = None) -> None:
        lock = lock or _lock_for(None, ctx)
        code = _PLAIN.get(type(obj), "")
        if code and isinstance(getattr(obj, "_wrapper", None), BufferWrapper):
            self._guard(obj, lock, ctypes.addressof(obj), code)
        else:
            self._guard(obj, lock)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _resynchronized, (_Sent(self._obj), self._lock)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} wrapper for {self._obj}>"


class Synchronized(SynchronizedBase):
    """A single value behind a lock. `value += 1` reads and writes: hold `get_lock()` around it, or use `Atomic`."""

    value = Field("value")


class SynchronizedArray(SynchronizedBase):
    """An array behind a lock."""

    def __len__(self) -> int:
        return len(self._obj)

    def __getitem__(self, index: Any) -> Any:
        with self:
            return self._obj[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        with self:
            self._obj[index] = value

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self._obj)):
            yield self[index]


class SynchronizedString(SynchronizedArray):
    """An array of bytes behind a lock, also as a string of bytes."""

    value = Field("value")
    raw = Field("raw")


# ---- sending ----


def reduce_ctype(obj: Any) -> Any:
    """The reducer of all types that were ever shared: by handle what is in shared memory, the rest by value.

    There is one reducer a type, and the standard library registers its own when it shares an object of the
    same type: a raw object of ours can then be sent to new processes only, until another of ours is made.
    """
    wrapper = getattr(obj, "_wrapper", None)
    if wrapper is None:
        return obj.__reduce_ex__(2)
    if not isinstance(wrapper, BufferWrapper):
        from multiprocessing import sharedctypes

        return sharedctypes.reduce_ctype(obj)  # type: ignore[attr-defined]  # one of the standard library's
    if isinstance(obj, ctypes.Array):
        return rebuild_ctype, (obj._type_, wrapper, obj._length_)
    return rebuild_ctype, (type(obj), wrapper, None)


def rebuild_ctype(type_: Any, wrapper: BufferWrapper, length: int | None) -> Any:
    """The ctypes object over a piece of shared memory."""
    if length is not None:
        type_ = type_ * length
    ForkingPickler.register(type_, reduce_ctype)
    obj = type_.from_buffer(wrapper.create_memoryview())
    obj._wrapper = wrapper
    return obj


class _Sent:
    """Carries a ctypes object through any pickle, also one that does not know the reducers of multiprocessing."""

    def __init__(self, obj: Any) -> None:
        self.obj = obj

    def __reduce__(self) -> Any:
        return reduce_ctype(self.obj)


def _resynchronized(obj: Any, lock: Any) -> Any:
    return synchronized(obj, lock)


# ---- atomics ----


class Atomic(_Atomic):
    """A number in shared memory: each operation is one step, for all processes, without a lock.

    Args:
        value: An int (64 bits, signed), a float or a bool; its type is that of the number for ever.
        ctx: Accepted for symmetry with `Value`.

    Process-safety: all methods, in all processes that have it.
    If a process dies: its operation has happened or has not; nobody waits for it.
    Memory effects: each operation is sequentially consistent.
    """

    __slots__ = ()

    def __init__(self, value: float = 0, *, ctx: object = None) -> None:  # noqa: ARG002
        self._make(allocate(ATOMIC_BYTES), value)

    @classmethod
    def _over(cls, cell: Cell, kind: type) -> Atomic:
        self = cls.__new__(cls)
        self._join(cell, kind)
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rebuild_atomic, (type(self), self.cell, self.kind.__name__)

    @property
    def value(self) -> Any:
        """The value; assigning stores. For `value += 1` there is `add`."""
        return self.load()

    @value.setter
    def value(self, value: float) -> None:
        self.store(value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.load()!r})"


_KINDS = {"int": int, "float": float, "bool": bool}


def _rebuild_atomic(cls: type[Atomic], cell: Cell, kind: str) -> Atomic:
    return cls._over(cell, _KINDS[kind])
