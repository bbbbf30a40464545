"""Keeps what is in flight open when its sender goes: a process that outlives the senders holds a duplicate.

    sender                            keeper: the root's zygote              receiver, when the sender is gone
    KEEP (descriptor)  ------------>  holds it for a while
    the pickle  ----------------------------------------------------------->
                                                          <----------------  FIND (inode, a socket to answer on)
                                      the descriptor      ---------------->
    FOLDER (path)      ------------>  notes it: at the tree's end it removes that (`_launch/folder.py`)

There is one pair of sockets a tree of processes. Its root makes it; its zygote reads one end; everybody below has
the other, through their zygotes, however deep. The root itself keeps nothing there: its end is the tree's end.

Invariants:
    a KEEP is in the socket before the pickle can be in anybody's hands, and a socket is read in order: whoever has
        a pickle and asks, asks behind the KEEP, even if the keeper has not read it yet;
    only a pickle that names a descriptor costs anything, some 5 us in its sender;
    what is held is bounded, by number, bytes and time; the latest is always held.
If a process dies:
    the sender: what it had sent can be found, for the time below.
    the keeper: what it held is lost, what it had not read is not; the root's next zygote goes on, and is told of the
        root's folders again.
    the root: everything below it ends.
Not covered: receivers that do not belong to the tree; senders that were started by "spawn", "forkserver" or "fork"
before their parent had a zygote. They get a clear OSError.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import struct
import time

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Keeper",
    "client_fd",
    "connect",
    "disconnect",
    "find",
    "is_root",
    "keep",
    "pair",
    "tell_folder",
    "tell_folders_again",
    "told_folders",
]

_KEEP, _FIND, _FOLDER = 1, 2, 3
_RECORD = struct.Struct("<QQQQ")  # kind; KEEP: bytes; FIND and FOLDER: device, inode; behind a FOLDER's: its path
_MOST_PATH_BYTES = 4096

# What the keeper holds. Small things, as most handles are, can wait long in a queue; large ones are memory.
_MOST = 1024  # descriptors, and as many folders
_MOST_BYTES = 256 << 20  # beside the latest
_SMALL_BYTES = 1 << 20
_SMALL_SECONDS = 600.0
_LARGE_SECONDS = 30.0  # as long as a living sender holds what it dropped (segment.py)

_AGAIN_SECONDS = 5.0  # what was given to the keeper is not given again before
_ROOM_SECONDS = 0.25  # to wait for a keeper that does something else; in vain, then not again for the time above
_ANSWER_SECONDS = 5.0  # for a keeper that is busy importing, or was stopped
_LOOK_SECONDS = 0.1  # after which the root looks whether there still is one
_MOST_REMEMBERED = 256

_fd = -1  # this process's end of the pair
_inode = (0, 0)  # of that end: programs that close every descriptor put others in its place
_root = -1  # the pid of the process that made the pair; 0 where that is another one for certain
_start: Callable[[], object] | None = None  # in the root: have a keeper run
_given: dict[tuple[int, int], float] = {}  # inode -> until when it need not be given again
_slow_until = 0.0  # nobody waits for room before
_folders: dict[bytes, tuple[int, tuple[int, int]]] = {}  # path -> the process that told of it, inode


def pair() -> tuple[int, int]:
    """The two ends of a tree's sockets: everybody's and the keeper's."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    return ours.detach(), theirs.detach()


def connect(fd: int, root: int = 0, start: Callable[[], object] | None = None) -> None:
    """Use a descriptor as this process's end, which its forks share.

    Args:
        fd: The descriptor; not taken over.
        root: The pid of the process that made the pair.
        start: Makes sure, in the root, that a keeper runs.
    """
    global _fd, _inode, _root, _start
    status = os.fstat(fd)
    _fd, _inode, _root, _start = fd, (status.st_dev, status.st_ino), root, start
    _given.clear()


def disconnect() -> None:
    """Do without."""
    global _fd, _root
    _fd = _root = -1


def client_fd() -> int:
    """This process's end, to be handed on to those that it starts; -1 where there is none."""
    if _fd >= 0:
        try:
            status = os.fstat(_fd)
        except OSError:
            disconnect()
        else:
            if (status.st_dev, status.st_ino) == _inode:
                return _fd
            disconnect()
    return -1


def is_root() -> bool:
    """Whether this process made the pair, so that its zygote is the keeper."""
    return _root == os.getpid()


def _send(record: bytes, fd: int = -1) -> None:
    """Raises OSError where it cannot be sent now."""
    end = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, _fd)
    try:
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", fd))] if fd >= 0 else []
        end.sendmsg([record], rights, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
    finally:
        end.detach()


def _send_soon(record: bytes, fd: int) -> None:
    """Send, if need be when there is room: in the socket, or for one more descriptor in flight. Raises OSError."""
    global _slow_until
    began = time.monotonic()
    while True:
        try:
            _send(record, fd)
            return
        except OSError as error:
            now = time.monotonic()
            if error.errno not in {errno.EAGAIN, errno.ETOOMANYREFS} or now < _slow_until:
                raise
            if now >= began + _ROOM_SECONDS:
                _slow_until = now + _AGAIN_SECONDS
                raise
        select.poll().poll(1)


def tell_folder(path: bytes, inode: tuple[int, int]) -> None:
    """Have the keeper remove a folder at the tree's end. Where it cannot be told, nothing happens."""
    _folders[path] = os.getpid(), inode
    _tell_folder(path, inode)


def _tell_folder(path: bytes, inode: tuple[int, int]) -> None:
    if client_fd() >= 0:
        try:
            _send(_RECORD.pack(_FOLDER, 0, *inode) + path)
        except OSError:  # the keeper is slow, or gone
            pass


def told_folders() -> list[bytes]:
    """What this process itself has told of."""
    return [path for path, (teller, _) in _folders.items() if teller == os.getpid()]


def tell_folders_again() -> None:
    """In the root, once it has another zygote."""
    for path in told_folders():
        _tell_folder(path, _folders[path][1])


def keep(fd: int, size: int) -> None:
    """Have the keeper hold a descriptor that is about to be named in a pickle. Where that cannot be, nothing happens.

    Args:
        fd: A descriptor of a file in memory.
        size: Bytes that it holds.
    """
    if _fd < 0 or is_root():
        return
    status = os.fstat(fd)
    inode = (status.st_dev, status.st_ino)
    now = time.monotonic()
    if _given.get(inode, 0.0) > now or client_fd() < 0:
        return
    try:
        _send_soon(_RECORD.pack(_KEEP, size, 0, 0), fd)
    except OSError:  # the keeper is very slow, or gone: the sender alone must do
        return
    if len(_given) >= _MOST_REMEMBERED:
        _given.clear()
    _given[inode] = now + _AGAIN_SECONDS


def find(inode: tuple[int, int]) -> int:
    """A descriptor of what was kept; -1 where there is none."""
    if client_fd() < 0:
        return -1
    try:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    except OSError:
        return -1
    deadline = time.monotonic() + _ANSWER_SECONDS
    try:
        with_room = select.poll()
        with_room.register(_fd, select.POLLOUT)
        while True:
            try:
                _send(_RECORD.pack(_FIND, 0, *inode), theirs.fileno())
                break
            except BlockingIOError:
                if not with_room.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    return -1
        theirs.close()  # so that the keeper's death is the end of file
        answered = select.poll()
        answered.register(ours, select.POLLIN)
        while not answered.poll(_LOOK_SECONDS * 1000):
            if time.monotonic() >= deadline:
                return -1
            if is_root() and _start is not None:
                _start()
        _, fds = _receive(ours)
        return fds[0] if fds else -1
    except OSError:
        return -1
    finally:
        ours.close()
        theirs.close()


def _receive(source: _socket.socket) -> tuple[bytes, list[int]]:
    record, ancillary, _, _ = source.recvmsg(
        _RECORD.size + _MOST_PATH_BYTES, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC | _socket.MSG_DONTWAIT
    )
    fds = [
        struct.unpack("i", data)[0]
        for level, kind, data in ancillary
        if (level, kind, len(data)) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, 4)
    ]
    return record, fds


class Keeper:
    """The keeper's side, for the loop of a process that has other things to do.

    Args:
        fd: The keeper's end of the pair; taken over.
        clock: Seconds that only grow.

    Attributes:
        folders: What is to be removed at the tree's end: path -> inode.
    """

    def __init__(self, fd: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
        self._clock = clock
        self._held: dict[tuple[int, int], tuple[float, int, int]] = {}  # inode -> (until, fd, bytes), latest last
        self._bytes = 0
        self._next = 0.0  # nothing is to be dropped before
        self.fd = fd
        self.folders: dict[bytes, tuple[int, int]] = {}

    def serve(self) -> None:
        """Read what has come."""
        for _ in range(_MOST):  # then whoever called has its turn
            try:
                record, fds = _receive(self._socket)
            except OSError:  # nothing more
                return
            if not record:
                return
            try:
                if len(record) >= _RECORD.size:
                    kind, size, device, number = _RECORD.unpack_from(record)
                    if kind == _FOLDER:
                        self._note(record[_RECORD.size :], (device, number))
                    elif kind == _KEEP and fds:
                        self._hold(fds.pop(), size)
                    elif kind == _FIND and fds:
                        self._answer(fds[0], (device, number))
            finally:
                for fd in fds:
                    os.close(fd)

    def _note(self, path: bytes, inode: tuple[int, int]) -> None:
        if len(self.folders) >= _MOST:  # those that processes removed at their orderly ends
            self.folders = {path: inode for path, inode in self.folders.items() if os.path.exists(path)}
        if len(self.folders) < _MOST:
            self.folders[path] = inode

    def _hold(self, fd: int, size: int) -> None:
        status = os.fstat(fd)
        inode = (status.st_dev, status.st_ino)
        self._drop(inode)
        now = self._clock()
        until = now + (_SMALL_SECONDS if size <= _SMALL_BYTES else _LARGE_SECONDS)
        self._held[inode] = (until, fd, size)
        self._bytes += size
        self._next = min(self._next, until) if len(self._held) > 1 else until
        while len(self._held) > 1 and (len(self._held) > _MOST or self._bytes - size > _MOST_BYTES):
            self._drop(next(iter(self._held)))

    def _drop(self, inode: tuple[int, int]) -> None:
        held = self._held.pop(inode, None)
        if held is not None:
            os.close(held[1])
            self._bytes -= held[2]

    def _answer(self, where: int, inode: tuple[int, int]) -> None:
        held = self._held.get(inode)
        end = _socket.socket(fileno=where)
        rights = [] if held is None else [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", held[1]))]
        try:
            end.sendmsg([b"!"], rights, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except OSError:  # who asked is gone
            pass
        finally:
            end.detach()

    def expire(self) -> float | None:
        """Drop what was held long enough.

        Returns:
            Seconds until there is something to drop; None while nothing is held.
        """
        now = self._clock()
        if self._held and now >= self._next:
            for inode in [inode for inode, (until, _, _) in self._held.items() if until <= now]:
                self._drop(inode)
            self._next = min((until for until, _, _ in self._held.values()), default=0.0)
        return self._next - now if self._held else None

    def close(self) -> None:
        """Drop everything."""
        for inode in list(self._held):
            self._drop(inode)
        self._socket.close()
