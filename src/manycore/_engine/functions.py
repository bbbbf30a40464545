"""Functions are sent once: the table of those that the workers of an engine can load.

A function is pickled into the spool, and a task names it by its place there. One that can be imported by name
never changes, so it is pickled once for ever. Any other is pickled at each call of `get`, because what it
captures may have changed; when the bytes are the same as before, so is the place, and the workers keep what they
have loaded.
"""

from __future__ import annotations

import functools
from types import BuiltinFunctionType, FunctionType

from manycore._engine import frames
from manycore._memory import codec
from manycore._native.step import Mutex

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from manycore._engine.spool import Range, Spool

__all__ = ["Function", "FunctionTable", "name_of"]

# Functions that the table keeps for the next call, beside those that tasks still use.
KEPT: Final = 512

# And their bytes: a partial object can hold a table of any size.
KEPT_BYTES: Final = 64 << 20

# Kinds of callables that have a name of their own and compare by identity.
_NAMED: Final = frozenset((FunctionType, BuiltinFunctionType, type))


def name_of(function: Any) -> str:
    """What messages call a callable."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(name).replace("<locals>.", "")


class Function:
    """A function that workers can load.

    Attributes:
        name: For messages.
        place: Where its pickle is.
        flags: How a chunk of it is called: frames.CHUNK, with frames.STAR when each item is a tuple of arguments.
        head: The header of a frame that begins at its first item.
    """

    __slots__ = ("flags", "head", "name", "place")

    def __init__(self, name: str, place: Range, flags: int) -> None:
        self.name = name
        self.place = place
        self.flags = flags
        self.head = self.head_from(0)

    def head_from(self, item: int) -> bytes:
        """The header of a frame that begins at `item`."""
        return frames.HEADER.pack(self.place.offset, self.place.length, item)


class FunctionTable:
    """The functions of one engine. A place that neither a task nor the last KEPT calls name is given back.

    Args:
        spool: Where their pickles go.
        main_is_there: Workers have this process's `__main__`; see `codec.dump_function`.
    """

    def __init__(self, spool: Spool, *, main_is_there: bool = False) -> None:
        self._spool = spool
        self._main_is_there = main_is_there
        self.sent_bytes = 0
        self._lock = Mutex()  # guards the tables; nothing is acquired under it
        self._by_name: dict[tuple[Any, int], Function] = {}  # importable functions, which never change
        self.known: dict[Any, Function] = {}  # those of them that are called, for who looks here first
        self._by_bytes: dict[bytes, Range] = {}  # in order of use
        self._bytes = 0  # of its keys
        # The last called one that went by value: whether another is the same, and what that one then is.
        self.last_by_value: tuple[Callable[[Any], bool], Function] | None = None
        self._last: tuple[bytes, Function] | tuple[None, None] = (None, None)

    def get(self, function: Callable[..., Any], flags: int = frames.CHUNK) -> Function:
        """A function for a task, sent first when it is new.

        Args:
            function: Any callable.
            flags: How a chunk of it is called.

        Raises:
            TypeError: It is not callable.
            TaskPicklingError: It cannot be pickled.
        """
        named = type(function) in _NAMED
        if named:
            known = self._by_name.get((function, flags))
            if known is not None:
                return known
        elif not callable(function):
            raise TypeError(f"{function!r} is not callable")
        data = codec.dump_function(function, main_is_there=self._main_is_there)
        last_data, last = self._last
        if last is not None and data is last_data and last.flags == flags:  # nothing that it captures has changed
            return last
        found = Function(name_of(function), self.place(data), flags)
        self._last = (data, found)
        if named and codec.is_importable(function):
            self._by_name[(function, flags)] = found
            if flags == frames.CHUNK:
                self.known[function] = found
        elif type(function) is FunctionType and flags == frames.CHUNK:
            memo = codec.memo_of(function)
            self.last_by_value = (memo.good_for, found) if memo is not None and memo.data is data else None
        return found

    def place(self, data: bytes) -> Range:
        """Where these bytes are, sent first when they are new."""
        with self._lock:
            place = self._by_bytes.pop(data, None)
            if place is None:
                place = self._spool.put(data)
                self.sent_bytes += len(data)
                self._bytes += len(data)
            self._by_bytes[data] = place
            while len(self._by_bytes) > 1 and (len(self._by_bytes) > KEPT or self._bytes > KEPT_BYTES):
                oldest = next(iter(self._by_bytes))
                self._bytes -= len(oldest)
                del self._by_bytes[oldest]
        return place
