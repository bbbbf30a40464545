"""Connections: pipes between processes, and listeners and clients over sockets.

The standard module's names. What a `Pipe` gives is safe for several threads of a process: each message is
sent, and received, under a lock of its own direction, so two threads never mix their bytes. It sends what
manycore's codec can: functions and classes of `__main__`, lambdas and closures too.

`Listener` and `Client` speak the standard library's protocol, with its authentication, and pickle as it
does, so that the other side may be a program of the standard library. Their connections have the locks too.

Invariants:
    the lock of a direction is held from a message's first byte to its last
    a forked child has locks of its own, so a thread that held one at the fork blocks nobody
If a process dies: its ends are closed by the kernel; the other side gets EOFError, or BrokenPipeError.
Unlike multiprocessing.connection: two threads may send on one connection, and two may receive.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from multiprocessing import connection as _standard
from multiprocessing import reduction as _reduction
from multiprocessing.connection import (  # type: ignore[attr-defined]  # names that its stub leaves out
    CONNECTION_TIMEOUT,
    ConnectionWrapper,
    SocketListener,
    XmlClient,
    XmlListener,
    address_type,
    answer_challenge,
    arbitrary_address,
    default_family,
    deliver_challenge,
    families,
    rebuild_connection,
    reduce_connection,
    wait,
)
from multiprocessing.context import AuthenticationError, BufferTooShort, assert_spawning
from typing import Any

from manycore._memory import codec

__all__ = [
    "CONNECTION_TIMEOUT",
    "AuthenticationError",
    "BufferTooShort",
    "Client",
    "Connection",
    "ConnectionWrapper",
    "Listener",
    "Pipe",
    "SocketClient",
    "SocketListener",
    "XmlClient",
    "XmlListener",
    "address_type",
    "answer_challenge",
    "arbitrary_address",
    "assert_spawning",
    "default_family",
    "deliver_challenge",
    "families",
    "rebuild_connection",
    "reduce_connection",
    "wait",
]


class _Locks:
    """The locks of one connection in one process."""

    __slots__ = ("pid", "receiving", "sending")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.sending = threading.Lock()
        self.receiving = threading.Lock()


class _Locked(_standard.Connection):
    """The standard connection, with a lock for each direction."""

    _own: _Locks | None = None

    def _locks(self) -> _Locks:
        own = self._own
        if own is None or own.pid != os.getpid():
            own = self.__dict__.setdefault("_own", _Locks()) if own is None else _Locks()
            self._own = own
        return own

    def send(self, obj: Any) -> None:
        """Send an object; it is pickled before the lock is taken."""
        self._check_closed()  # type: ignore[attr-defined]
        self._check_writable()  # type: ignore[attr-defined]
        data = self._dumps(obj)
        with self._locks().sending:
            self._send_bytes(data)  # type: ignore[attr-defined]

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        """Send bytes as one message."""
        with self._locks().sending:
            super().send_bytes(buf, offset, size)

    def recv(self) -> Any:
        """Receive an object; it is unpickled after the lock is given back."""
        self._check_closed()  # type: ignore[attr-defined]
        self._check_readable()  # type: ignore[attr-defined]
        with self._locks().receiving:
            buffer = self._recv_bytes()  # type: ignore[attr-defined]
        return self._loads(buffer.getbuffer())

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Receive one message as bytes."""
        with self._locks().receiving:
            return super().recv_bytes(maxlength)

    def recv_bytes_into(self, buf: Any, offset: int = 0) -> int:
        """Receive one message into a buffer."""
        with self._locks().receiving:
            return super().recv_bytes_into(buf, offset)

    @staticmethod
    def _dumps(obj: Any) -> Any:
        return _reduction.ForkingPickler.dumps(obj)

    @staticmethod
    def _loads(data: Any) -> Any:
        return _reduction.ForkingPickler.loads(data)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rebuild, (type(self), _reduction.DupFd(self.fileno()), self.readable, self.writable)


class Connection(_Locked):
    """One end of a pipe.

    Process-safety: any thread of a process may use it. It may be sent to other processes; two processes
        that use one end at a time mix their messages, as with the standard library.
    """

    @staticmethod
    def _dumps(obj: Any) -> bytes:
        return codec.dumps(obj, roots=("obj",))

    @staticmethod
    def _loads(data: Any) -> Any:
        return codec.loads(data)


def _rebuild(kind: Any, duplicate: Any, readable: bool, writable: bool) -> Any:
    return kind(duplicate.detach(), readable, writable)


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:  # noqa: N802
    """Two connections that are the ends of a pipe.

    Args:
        duplex: Both send and receive; else the first only receives and the second only sends.
    """
    if duplex:
        one, other = socket.socketpair()
        one.setblocking(True)
        other.setblocking(True)
        return Connection(one.detach()), Connection(other.detach())
    reader, writer = os.pipe()
    return Connection(reader, writable=False), Connection(writer, readable=False)


def _with_locks(connection: Any) -> Any:
    if type(connection) is _standard.Connection:
        connection.__class__ = _Locked
    return connection


def SocketClient(address: Any) -> Any:  # noqa: N802
    """A connection to the socket at `address`, without authentication."""
    return _with_locks(_standard.SocketClient(address))  # type: ignore[attr-defined]


def Client(address: Any, family: str | None = None, authkey: bytes | None = None) -> Any:  # noqa: N802
    """A connection to the listener at `address`. See `multiprocessing.connection.Client`."""
    return _with_locks(_standard.Client(address, family, authkey))


class Listener(_standard.Listener):
    """A bound socket that accepts connections. See `multiprocessing.connection.Listener`."""

    def accept(self) -> Any:
        """The next connection, authenticated when the listener has a key."""
        return _with_locks(super().accept())
