"""Memory between processes: the standard names, and what they lack.

    SharedMemory, ShareableList   named, as in `multiprocessing.shared_memory`
    share(object)                 an immutable copy placed once: tasks get the object itself
    SharedArray(shape, dtype)     a writable NumPy array that every process sees

The last two have no names: nothing to unlink, nothing to clean up, and nothing is left when everybody is
killed. They can be sent to processes that run already.

Unlike multiprocessing.shared_memory: a process that only attaches is not made responsible, so that its exit
    never destroys what others use; and where the memory is not there, creation fails with an OSError instead of
    a later access with SIGBUS.
If a process dies: named memory that its creator did not unlink is removed by the standard resource tracker when
    the whole tree of processes is gone.
"""

from __future__ import annotations

import _posixshmem  # type: ignore[import-not-found]
import errno
import mmap
import os
import secrets
import types
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing import shared_memory as _standard
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from manycore._memory.available import require_bytes
from manycore._memory.sealed import Sealed
from manycore._native.mapping import allocate

if TYPE_CHECKING:
    from manycore._memory.shared_array import SharedArray

__all__ = ["ShareableList", "Shared", "SharedArray", "SharedMemory", "share"]

T = TypeVar("T")

_SHM_NAME_PREFIX = "/psm_"  # as the standard library's, so that tools that look for them find these too
_CHECKED_BYTES = 8 << 20


def _make_filename() -> str:
    """A new name; called as the standard library calls it, since tests replace it."""
    return _SHM_NAME_PREFIX + secrets.token_hex(4)


class SharedMemory(_standard.SharedMemory):
    """Named shared memory: the interface of `multiprocessing.shared_memory.SharedMemory`.

    Args:
        name: Its name; a new one is made up for `create` by default.
        create: Make it; otherwise it must exist.
        size: Bytes, to create it.
        track: Whether the resource tracker unlinks what this process created when its tree of processes is gone.
            Attaching never makes a process responsible.

    Raises:
        FileExistsError: `create`, and the name is taken.
        FileNotFoundError: Not `create`, and there is none.
        OSError: ENOSPC where there is not that much memory.

    Process-safety: sent to another process it arrives attached to the same memory.
    """

    if TYPE_CHECKING:  # of the standard class, which does not show them
        _mode: int
        _prepend_leading_slash: bool

    def __init__(self, name: str | None = None, create: bool = False, size: int = 0, *, track: bool = True) -> None:
        if not size >= 0:
            raise ValueError("'size' must be a positive integer")
        if create and size == 0:
            raise ValueError("'size' must be a positive number different from zero")
        if name is None and not create:
            raise ValueError("'name' can only be None if create=True")
        self._flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0)
        self._track = create and track  # as CPython from 3.13 on calls it
        if name is None:
            while True:
                name = _make_filename()
                try:
                    self._fd = _posixshmem.shm_open(name, self._flags, mode=self._mode)
                    break
                except FileExistsError:
                    continue
        else:
            name = "/" + name if self._prepend_leading_slash else name
            self._fd = _posixshmem.shm_open(name, self._flags, mode=self._mode)
        self._name = name
        try:
            if create:
                if size >= _CHECKED_BYTES:
                    require_bytes(size)
                allocate(self._fd, 0, size)
            self._mmap = mmap.mmap(self._fd, os.fstat(self._fd).st_size)
            if self._track:
                resource_tracker.register(self._name, "shared_memory")  # may start the tracker, which takes descriptors
        except (OSError, ValueError) as error:
            if create:
                _posixshmem.shm_unlink(name)
            self.close()
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.ENOMEM, errno.EFBIG}:
                message = f"cannot create shared memory {name!r} of {size} bytes: {error.strerror}"
                raise OSError(error.errno, message) from error
            raise
        self._size = os.fstat(self._fd).st_size
        self._buf = memoryview(self._mmap)

    def unlink(self) -> None:
        """Remove the name. The memory lives on where it is still open; unlinking twice is an error."""
        if not self._name:
            return
        _posixshmem.shm_unlink(self._name)
        if not self._track and resource_tracker._resource_tracker._fd is None:  # type: ignore[attr-defined]
            return
        # Who unlinks may not be who created: registering first makes sure that there is something to take back.
        resource_tracker.register(self._name, "shared_memory")
        resource_tracker.unregister(self._name, "shared_memory")


def _with_our_memory(function: Any) -> Any:
    """The standard library's function, with `SharedMemory` meaning ours."""
    namespace = {**function.__globals__, "SharedMemory": SharedMemory}
    return types.FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
    )


class ShareableList(_standard.ShareableList):  # type: ignore[type-arg]
    """A list of fixed length in named shared memory: the interface of the standard `ShareableList`."""

    __init__ = _with_our_memory(_standard.ShareableList.__init__)
    __init__.__kwdefaults__ = _standard.ShareableList.__init__.__kwdefaults__


class Shared(Sealed, Generic[T]):
    """What `share` returns: a handle. Tasks that get it as an argument see the object itself.

    Keep it as long as the object is wanted; when it goes, so does the memory (once nobody uses it).

    Attributes:
        size: Bytes of shared memory.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def get(self) -> T:
            """The object, as every receiver gets it: its arrays are read-only views of the shared memory."""


def share(value: T) -> Shared[T]:
    """Place an immutable copy of an object in shared memory, once, for any number of tasks.

    Args:
        value: Anything that can be pickled. Its large buffers (NumPy arrays, ...) are not copied again.

    Returns:
        A handle. Passed to a task, or sent to any process, it arrives as the object itself, its arrays read-only,
        in microseconds whatever its size; a process unpickles it at most once. `.get()` gives it here.

    Raises:
        OSError: Not that much memory.

    Example:
        table = manycore.share(large_array)
        manycore.map(functools.partial(look_up, table), keys)
    """
    return Shared(value)


def _make_lock() -> Any:
    from manycore.synchronize import RLock

    return RLock()


def __getattr__(name: str) -> Any:
    if name == "SharedArray":
        try:
            from manycore._memory.shared_array import SharedArray
        except ImportError as error:
            return _needs_numpy(error)
        SharedArray.make_lock = cast("Callable[[], Any]", staticmethod(_make_lock))
        globals()[name] = SharedArray
        return SharedArray
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _needs_numpy(why: ImportError) -> type:
    """In its place where there is no NumPy: who takes all names (`import *`, an inspector) wants no array."""

    class SharedArray:
        """A NumPy array that every process sees; NumPy is not installed."""

        def __init__(self, *_args: Any, **_kwargs: Any) -> None:
            raise ImportError("SharedArray needs NumPy: pip install numpy") from why

    return SharedArray
