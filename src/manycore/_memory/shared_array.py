"""NumPy arrays that live in a segment: every process that has one sees the same elements.

A `SharedArray` is an `ndarray` whose memory is a segment's. Slices of it are too, and travel as what they are: a
segment and where in it. What is computed from it (`a + 1`, `a.copy()`) is an ordinary array.

If a process dies: what it had written is there. Its lock, if it held it, goes to the next who wants it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import index
from typing import Any, Self

import numpy as np

from manycore._memory.segment import Segment

__all__ = ["SharedArray"]


class SharedArray(np.ndarray[Any, np.dtype[Any]]):
    """A writable array in shared memory; send it anywhere, nothing has to be closed or unlinked.

    Args:
        shape: Of the array.
        dtype: Any but those that hold Python objects, which mean nothing in another process.
        order: "C" or "F".
        lock: True makes a lock that travels with the array (`array.lock`); or a lock of one's own; False none.
        values: What to fill it with, broadcast to the shape; zeros by default.

    Attributes:
        lock: The lock, or None. Nothing takes it by itself: `with array.lock: array += 1`.

    Raises:
        TypeError: A dtype with Python objects in it.
        OSError: Not that much memory.

    Process-safety: elements are read and written without a lock; whoever needs more takes `lock`.
    """

    lock: Any
    _segment: Segment | None

    make_lock: Callable[[], Any] | None = None  # set by who can make one: locks live above this floor

    def __new__(
        cls,
        shape: int | tuple[int, ...],
        dtype: Any = float,
        *,
        order: Any = "C",
        lock: Any = False,
        values: Any = None,
    ) -> Self:
        dtype = np.dtype(dtype)
        if dtype.hasobject:
            raise TypeError(f"an array of {dtype} holds references to this process's objects and cannot be shared")
        shape = tuple(map(index, shape)) if isinstance(shape, (tuple, list)) else (index(shape),)
        if any(extent < 0 for extent in shape):
            raise ValueError(f"shape must have no negative extent, as {shape} has")
        count = math.prod(shape)
        segment = Segment.create(max(1, count * dtype.itemsize), "manycore:array")
        self = super().__new__(cls, shape, dtype, buffer=segment.buffer, order=order)
        self._segment = segment
        if lock is True:
            if cls.make_lock is None:
                raise TypeError("lock=True needs manycore.shared_memory")
            lock = cls.make_lock()
        self.lock = lock or None
        if values is not None:
            self[...] = values
        return self

    def __array_finalize__(self, source: Any) -> None:
        self.lock = None
        self._segment = None
        segment = getattr(source, "_segment", None)
        if segment is not None:
            start = self.__array_interface__["data"][0]
            first = np.frombuffer(segment.buffer, np.uint8).__array_interface__["data"][0]
            if first <= start < first + segment.size:
                self._segment = segment
                self.lock = source.lock

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        if array is self:
            return self
        plain = array.view(np.ndarray)
        return plain[()] if return_scalar or plain.ndim == 0 else plain

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._segment is None:
            return self.view(np.ndarray).__reduce_ex__(protocol)
        first = np.frombuffer(self._segment.buffer, np.uint8).__array_interface__["data"][0]
        offset = self.__array_interface__["data"][0] - first
        state = (self._segment, offset, self.dtype, self.shape, self.strides, self.flags.writeable, self.lock)
        return _receive, (type(self), *state)

    def __reduce__(self) -> Any:
        return self.__reduce_ex__(4)


def _receive(
    cls: type[SharedArray],
    segment: Segment,
    offset: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    writeable: bool,
    lock: Any,
) -> SharedArray:
    array: SharedArray = np.ndarray.__new__(cls, shape, dtype, segment.buffer, offset, strides)
    array._segment = segment
    array.lock = lock
    array.flags.writeable = writeable
    return array
