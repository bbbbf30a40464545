"""Nameless shared memory that any running process of this user can be sent.

A segment is a memfd: pages without a name, which the kernel frees when the last process that holds
them is gone, however it went. There is nothing to unlink and nothing to track.

    creator                                     receiver
    memfd_create, fallocate, seal
    pickle: (pid, descriptor, device, inode) => known inode: the mapping that is there
                                                else open /proc/PID/fd/N, compare inodes, map

Invariants:
    every page of a segment exists from its creation on, so no reader can meet SIGBUS;
    its size never changes (sealed), so a mapping of it is valid for ever;
    a process maps a segment once: equal inodes are the same `Segment` object.
In flight: a handle names its sender's descriptor, so what was pickled must stay open until it is received.
    Who knows when that is collects it (`collecting`); the last things that were sent are kept open for half a
    minute besides, a bounded number of them. A receiver that will load a pickle later claims what it names when
    it arrives (`Claim`): from then on its sender may go. And a sender that is not the root of its tree of processes
    gives a duplicate to the tree's keeper (`keeper.py`), where the receiver asks when the sender is gone.
If a process dies:
    in `create`: the kernel frees the memory with the descriptor.
    the sender, before the handle is received: the keeper has it; where there is none, the receiver gets a clear
        OSError.
Unlike multiprocessing.shared_memory: no name, so no resource tracker and no leak; a full machine is an
    OSError at creation, not a SIGBUS at some later write.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections import deque
from weakref import WeakValueDictionary

from manycore._memory import keeper
from manycore._memory.available import require_bytes
from manycore._memory.memfd import create_memfd
from manycore._memory.modules import loaded
from manycore._native.mapping import Mapping, allocate

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["Claim", "Segment", "collecting", "create_memfd", "forget_in_flight", "receive_fd", "seal", "send_fd"]

# Above this size a request is compared with the memory that is left, which takes some 50 us: the kernel
# itself refuses a memfd nothing, and lets its out-of-memory killer choose a victim later.
_CHECKED_BYTES = 8 << 20

# (device, inode) -> the one segment of this process over that memory
_known: WeakValueDictionary[tuple[int, int], Segment] = WeakValueDictionary()
_known_lock = threading.RLock()  # guards the step from "not in _known" to "in _known"; re-entered by a finalizer


def seal(fd: int, more: int = 0) -> None:
    """Fix a memfd's size for ever, and whatever `more` (F_SEAL_*) says. What cannot be sealed is left as it is."""
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | more)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EPERM}:
            raise


class Segment:
    """A fixed number of bytes shared between processes. Made by `create` or `from_fd`.

    Attributes:
        fd: The descriptor; -1 once closed.
        size: Bytes.
        buffer: The bytes, writable; valid as long as any view of it exists.

    Process-safety: the object may be sent to any running process of the same user, and is inherited by
        forked ones. What is in the bytes is the business of who shares them.
    """

    __slots__ = ("__weakref__", "buffer", "fd", "inode", "size")

    def __init__(self, fd: int, size: int, inode: tuple[int, int]) -> None:
        self.fd = fd
        self.size = size
        self.inode = inode
        self.buffer = memoryview(Mapping(fd, size))

    @classmethod
    def create(cls, size: int, name: str = "manycore") -> Segment:
        """New, zeroed memory.

        Args:
            size: Bytes, at least 1.
            name: What /proc/PID/maps shows.

        Raises:
            OSError: ENOSPC or EFBIG where there is not that much memory, EMFILE at the descriptor limit.
        """
        if size < 1:
            raise ValueError(f"a segment has at least 1 byte, not {size}")
        if size >= _CHECKED_BYTES:
            require_bytes(size)
        fd = create_memfd(name)
        try:
            try:
                allocate(fd, 0, size)
            except OSError as error:
                message = f"cannot give {size} bytes to shared memory {name!r}: {error.strerror}"
                raise OSError(error.errno, message) from error
            seal(fd)
            return cls._adopt(fd, size)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def from_fd(cls, fd: int, *, size: int | None = None) -> Segment:
        """The segment of a descriptor that came from elsewhere; takes the descriptor over.

        Args:
            fd: A descriptor of a segment. It is closed here when this process has the segment already.
            size: Bytes; asked of the system by default.
        """
        try:
            return cls._adopt(fd, size)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def _adopt(cls, fd: int, size: int | None) -> Segment:
        status = os.fstat(fd)
        inode = (status.st_dev, status.st_ino)
        with _known_lock:
            known = _known.get(inode)
            if known is not None and known.fd >= 0:
                if known.fd != fd:
                    os.close(fd)
                return known
            segment = cls(fd, status.st_size if size is None else size, inode)
            _known[inode] = segment
            return segment

    def close(self) -> None:
        """Give up the descriptor. Views of `buffer` stay valid; the pages go when the last of them does."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        self.buffer = memoryview(b"")

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound here: modules are emptied before
        fd = getattr(self, "fd", -1)
        if fd >= 0:
            self.fd = -1
            close(fd)

    def handle(self) -> tuple[int, int, int, int]:
        """(pid, descriptor, device, inode): what a `Claim` is made of."""
        return (os.getpid(), self.fd, *self.inode)

    def __reduce__(self) -> tuple[Callable[..., Segment], tuple[Any, ...]]:
        if self.fd < 0:
            raise ValueError("a closed segment cannot be sent")
        return _receive, (self.inode, self.size, send_fd(self.fd, self, self.size))

    def __repr__(self) -> str:
        return f"<Segment of {self.size} bytes, fd {self.fd}>"


# What was sent, and must stay open a while: (when to forget it, the object, its bytes), oldest first. The bounds are
# what a careless sender costs; who is slower than that to receive gets a clear error.
_IN_FLIGHT_SECONDS = 30.0
_IN_FLIGHT_MOST = 256
_IN_FLIGHT_BYTES = 256 << 20
_in_flight: deque[tuple[float, object, int]] = deque()
_in_flight_bytes = 0

_collector = threading.local()  # .kept: the list of the innermost `collecting` of this thread


class collecting:  # noqa: N801  (used as a function; contextlib is not imported on a worker's way)
    """What this thread pickles inside the block goes into `kept`, to be held until it has been received."""

    def __init__(self, kept: list[object]) -> None:
        self._kept = kept

    def __enter__(self) -> None:
        self._before = getattr(_collector, "kept", None)
        _collector.kept = self._kept

    def __exit__(self, *_: object) -> None:
        _collector.kept = self._before


def _keep_in_flight(owner: object, size: int) -> None:
    global _in_flight_bytes
    kept = getattr(_collector, "kept", None)
    if kept is not None:
        kept.append(owner)
    now = time.monotonic()
    dropped = []  # their finalizers run when nothing here is half done
    with _known_lock:
        _in_flight.append((now + _IN_FLIGHT_SECONDS, owner, size))
        _in_flight_bytes += size
        while _in_flight and (
            _in_flight[0][0] < now or len(_in_flight) > _IN_FLIGHT_MOST or _in_flight_bytes > _IN_FLIGHT_BYTES
        ):
            dropped.append(_in_flight.popleft())
            _in_flight_bytes -= dropped[-1][2]


def forget_in_flight() -> None:
    """Stop holding what was sent, whether it has been received or not."""
    global _in_flight_bytes
    with _known_lock:
        dropped = list(_in_flight)
        _in_flight.clear()
        _in_flight_bytes = 0
    del dropped


def _after_fork_in_child() -> None:
    global _known_lock
    _known_lock = threading.RLock()
    _collector.__dict__.clear()
    forget_in_flight()


os.register_at_fork(after_in_child=_after_fork_in_child)


def send_fd(fd: int, owner: object, size: int = 0) -> tuple[int, int] | Any:
    """What stands for a descriptor in a pickle: `receive_fd` makes a descriptor of it in the process that loads it.

    While a process of the standard library is being started, its own way is taken (the descriptor is
    inherited); else any running process of this user opens it through this one's descriptor table.

    Args:
        fd: The descriptor.
        owner: Who keeps it open.
        size: Bytes that the owner holds.
    """
    context = loaded("multiprocessing.context")  # not loaded: nobody is spawning
    if context is not None and context.get_spawning_popen() is not None:
        from multiprocessing.reduction import DupFd

        return DupFd(fd)
    _keep_in_flight(owner, size)
    keeper.keep(fd, size)
    return os.getpid(), fd


# inode -> descriptors that claims hold open
_claimed: dict[tuple[int, int], list[int]] = {}


class Claim:
    """Holds what a pickle names open from the pickle's arrival until it is loaded, whatever becomes of its sender.

    Args:
        handles: (pid, descriptor, device, inode), as `Segment.handle` gives them. Those that are gone already are
            left out: the load will say so.
    """

    __slots__ = ("_fds",)

    def __init__(self, handles: Iterable[tuple[int, int, int, int]]) -> None:
        self._fds: list[tuple[tuple[int, int], int]] = []
        for pid, number, device, inode in handles:
            try:
                fd = receive_fd((pid, number), (device, inode))
            except OSError:
                continue
            self._fds.append(((device, inode), fd))
            _claimed.setdefault((device, inode), []).append(fd)

    def __del__(
        self, close: Callable[[int], None] = os.close, claimed: dict[tuple[int, int], list[int]] = _claimed
    ) -> None:  # bound here, since modules are emptied before the last objects go
        for inode, fd in self._fds:
            fds = claimed.get(inode, [])
            if fd in fds:
                fds.remove(fd)
                if not fds:
                    claimed.pop(inode, None)
            close(fd)


def receive_fd(handle: tuple[int, int] | Any, inode: tuple[int, int], mode: int = os.O_RDWR) -> int:
    """A descriptor of this process for what `send_fd` gave.

    Args:
        handle: What `send_fd` gave.
        inode: (device, inode) of the file that was sent; anything else under that number is refused.
        mode: os.O_RDONLY or os.O_RDWR.

    Raises:
        OSError: The sender is gone, or has closed what it sent; or the descriptor limit is reached.
    """
    if not isinstance(handle, tuple):
        fd: int = handle.detach()
        pid = os.getppid()
    else:
        pid, number = handle
        try:
            fd = os.open(f"/proc/{pid}/fd/{number}", mode | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            return _receive_held(pid, inode, mode)
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) != inode:
        os.close(fd)
        return _receive_held(pid, inode, mode)
    return fd


def _receive_held(pid: int, inode: tuple[int, int], mode: int) -> int:
    """What a claim of this process holds, or the keeper of its tree."""
    claimed = _claimed.get(inode)
    if claimed:
        return os.dup(claimed[-1])
    kept = keeper.find(inode)
    if kept < 0:
        raise _gone(pid)
    try:
        return os.open(f"/proc/self/fd/{kept}", mode | os.O_CLOEXEC)
    finally:
        os.close(kept)


def _gone(pid: int) -> OSError:
    return OSError(
        errno.ESTALE,
        f"the shared memory was sent by process {pid}, which has exited or closed it: "
        "keep the object alive in the sender until it has been received",
    )


def _receive(inode: tuple[int, int], size: int, handle: tuple[int, int] | Any) -> Segment:
    known = _known.get(inode)
    if known is not None and known.fd >= 0 and isinstance(handle, tuple):
        return known
    return Segment.from_fd(receive_fd(handle, inode), size=size)
