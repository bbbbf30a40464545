"""Connections: pipes between processes, and listeners and clients over sockets.

      send: pickle, one system call   ==>  the kernel's buffer  ==>   recv: looks for a while, then sleeps

The standard module's names, and the standard library's bytes (`c/wire.h`). What a `Pipe` gives is safe for several
threads of a process: each message is sent, and received, under a lock of its own direction, so two threads never mix
their bytes. It sends what manycore's codec can: functions and classes of `__main__`, lambdas and closures too.

`Listener` and `Client` speak the standard library's protocol, with its authentication, and pickle as it
does, so that the other side may be a program of the standard library. Their connections have the locks too.

What was sent is in the kernel's buffers, and outlives whoever has sent. So a connection can be waited for by its
descriptor, given to other processes and left to a fork like a standard one. Messages of 64 KiB and more go through
2 MiB of shared memory, with records in the socket (`c/lane.h`), where both ends are ours and the socket is a Unix one:
a duplex `Pipe`, or a `Listener` at a path. The first such message shows whether they are; a program of the standard
library at the other end notices nothing. An end that was read through manycore is not to be read by anything else
afterwards.

Invariants:
    the lock of a direction is held from a message's first byte to its last
    a forked child has locks of its own, so a thread that held one at the fork blocks nobody
    a bytes object arrives without having been pickled, where it goes that way: one copy in, one out
    nothing is read beyond a message, and none is left half sent or half read: where an interrupt (an exception of a
        signal handler) stops a send in its midst, the connection is closed; a receive goes on at the next call
If a process dies: its ends are closed by the kernel; the other side gets EOFError once it has received what was sent
    whole, or BrokenPipeError. Shared memory has no name, and goes with the ends. The file of a listener's socket goes
    with the program, where the library has chosen the address.
Unlike multiprocessing.connection: two threads may send on one connection, and two may receive; the waiting receiver
    spins before it sleeps, for as long as that pays.
"""

from __future__ import annotations

import io
import os
import pickle
import select
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing import connection as _standard
from multiprocessing import reduction as _reduction
from multiprocessing.connection import (  # type: ignore[attr-defined]  # names that its stub leaves out
    CONNECTION_TIMEOUT,
    ConnectionWrapper,
    address_type,
    default_family,
    families,
    rebuild_connection,
    reduce_connection,
    wait,
)
from multiprocessing.context import AuthenticationError, BufferTooShort, assert_spawning, get_spawning_popen
from typing import Any

from manycore import _authentication
from manycore._launch import folder
from manycore._memory import codec
from manycore._native.codec import is_plain
from manycore._native.wire import Wire

_LARGE = 1 << 16  # bytes from which on there is a faster way (c/lane.h)
AUTH_TIMEOUT = 10.0  # seconds that a client has for the handshake; slow networks need some tenths

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


class _Wired(_standard.Connection):
    """The standard connection over our `Wire`, pickling as the standard library does."""

    def __init__(self, handle: int, readable: bool = True, writable: bool = True) -> None:
        super().__init__(handle, readable, writable)
        self._wire = Wire()

    def _fd(self, allowed: bool, what: str) -> int:
        fd: int | None = self._handle  # type: ignore[attr-defined]
        if fd is None:
            raise OSError("handle is closed")
        if not allowed:
            raise OSError(f"connection is {what}-only")
        return fd

    def _send(self, data: Any, is_object: bool = False) -> None:
        fd = self._fd(self._writable, "read")  # type: ignore[attr-defined]
        try:
            self._wire.send(fd, data, is_object)
        except BaseException:
            self._close_if_torn()
            raise

    def _close_if_torn(self) -> None:
        if self._wire.torn:  # an interrupt amidst a message: what came next would be taken for its rest
            self.close()

    def send(self, obj: Any) -> None:
        """Send an object.

        Raises:
            TaskPicklingError: A part of it cannot be pickled; nothing was sent.
            BrokenPipeError: The other end is closed, or its process dead.
            OSError: This end is closed, or only receives.
        """
        self._fd(self._writable, "read")  # type: ignore[attr-defined]
        if type(obj) is bytes and len(obj) >= _LARGE:
            self._send(obj, is_object=True)  # no copy of it is pickled where the other side can tell
        else:
            self._send(self._dumps(obj))

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        """Send bytes as one message.

        Args:
            buf: Anything with a buffer.
            offset: Where in it to begin, in bytes.
            size: How many bytes; None is all that follow.
        """
        self._fd(self._writable, "read")  # type: ignore[attr-defined]
        if offset or size is not None or type(buf) is not bytes:
            view = memoryview(buf)
            if view.itemsize > 1:
                view = view.cast("B")
            if offset < 0:
                raise ValueError("offset is negative")
            if len(view) < offset:
                raise ValueError("buffer length < offset")
            if size is not None and size < 0:
                raise ValueError("size is negative")
            if size is not None and offset + size > len(view):
                raise ValueError("buffer length < offset + size")
            buf = view[offset:] if size is None else view[offset : offset + size]
        self._send(buf)

    def recv(self) -> Any:
        """Receive an object; waits for one.

        Raises:
            EOFError: The other end is closed, or its process dead, and nothing is left to receive.
        """
        fd = self._fd(self._readable, "write")  # type: ignore[attr-defined]
        try:
            return self._wire.recv_object(fd, self)
        except OSError:
            self._close_if_torn()
            raise

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Receive one message as bytes.

        Args:
            maxlength: A longer message is an OSError, and ends this connection.
        """
        if maxlength is not None and maxlength < 0:
            raise ValueError("negative maxlength")
        return self._receive(-1 if maxlength is None else maxlength)

    def _receive(self, most: int = -1) -> bytes:
        fd = self._fd(self._readable, "write")  # type: ignore[attr-defined]
        try:
            data = self._wire.recv(fd, most)
        except OSError:
            self._close_if_torn()
            raise
        if data is None:
            self._bad_message_length()  # type: ignore[attr-defined]
        return data  # type: ignore[return-value]

    def recv_bytes_into(self, buf: Any, offset: int = 0) -> int:
        """Receive one message into a buffer, from the byte `offset` on; its length in bytes.

        Raises:
            BufferTooShort: There is no room for it; the exception holds the message.
        """
        fd = self._fd(self._readable, "write")  # type: ignore[attr-defined]
        with memoryview(buf) as view:
            if offset < 0:
                raise ValueError("negative offset")
            if offset > view.nbytes:
                raise ValueError("offset too large")
        try:
            data = self._wire.recv_into(fd, buf, offset)
        except BaseException:
            self._close_if_torn()
            raise
        if isinstance(data, int):
            return data
        if data is None:
            self._bad_message_length()  # type: ignore[attr-defined]
        raise BufferTooShort(data)

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is something to receive, or the end, within `timeout` seconds; None is any time."""
        return self._wire.poll(self._fd(self._readable, "write"), timeout)  # type: ignore[attr-defined]

    # What the standard library's own code calls.

    def _send_bytes(self, buf: Any) -> None:
        self._send(buf)

    def _close(self) -> None:
        self._wire.release()
        super()._close()  # type: ignore[misc]

    def _recv_bytes(self, maxsize: int | None = None) -> Any:
        data = self._wire.recv(self.fileno(), -1 if maxsize is None else maxsize)
        return None if data is None else io.BytesIO(data)

    @staticmethod
    def _dumps(obj: Any) -> Any:
        return pickle.dumps(obj, 5) if is_plain(obj) else _reduction.ForkingPickler.dumps(obj)

    @staticmethod
    def _loads(data: Any) -> Any:
        return pickle.loads(data)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if get_spawning_popen() is None:
            folder.path()  # where the standard library listens for whoever loads this
        return _rebuild, (type(self), _reduction.DupFd(self.fileno()), self.readable, self.writable)


class Connection(_Wired):
    """One end of a pipe.

    Process-safety: any thread of a process may use it. It may be sent to other processes; two processes
        that use one end at a time mix their messages, as with the standard library.
    """

    @staticmethod
    def _dumps(obj: Any) -> bytes:
        return pickle.dumps(obj, 5) if is_plain(obj) else codec.dumps(obj, roots=("obj",), one_reader=True)

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


def deliver_challenge(connection: Any, authkey: bytes, digest_name: str = "sha256") -> None:
    """Ask the other end to show that it has the key; the first half of the handshake for a listener.

    Args:
        connection: Anything with `send_bytes` and `recv_bytes`.
        authkey: The key.
        digest_name: "sha256", "sha384", "sha3_256", "sha3_384" or "md5".

    Raises:
        AuthenticationError: It has another key, or none.
    """
    _authentication.run_blocking(_authentication.deliver(_checked_key(authkey), digest_name), connection)


def answer_challenge(connection: Any, authkey: bytes) -> None:
    """Show the other end that this one has the key; the first half of the handshake for a client.

    Raises:
        AuthenticationError: The other end says that it is the wrong one.
    """
    _authentication.run_blocking(_authentication.answer(_checked_key(authkey)), connection)


def _checked_key(authkey: Any) -> bytes:
    if not isinstance(authkey, bytes):
        raise ValueError(  # noqa: TRY004  (the standard library's)
            f"an authkey is bytes, not {type(authkey).__name__}"
        )
    return authkey


def SocketClient(address: Any) -> Any:  # noqa: N802
    """A connection to the socket at `address`, without authentication."""
    return Client(address)


def Client(  # noqa: N802
    address: Any, family: str | None = None, authkey: bytes | None = None, *, auth_timeout: float | None = None
) -> Any:
    """A connection to the listener at `address`.

    Args:
        address: What the listener's `address` says: a path, or a host and a port.
        family: "AF_UNIX" or "AF_INET"; None is as the address looks.
        authkey: The key that both sides have; None is no authentication.
        auth_timeout: Seconds to wait for the listener's part in the handshake; None is any time, since a listener
            answers once it accepts.

    Raises:
        AuthenticationError: The listener has another key.
        EOFError: The listener has gone.
        ConnectionRefusedError, FileNotFoundError: There is no listener.
    """
    family = family or address_type(address)
    _standard._validate_family(family)  # type: ignore[attr-defined]
    if authkey is not None and not isinstance(authkey, bytes):
        raise TypeError("authkey should be a byte string")
    with socket.socket(getattr(socket, family)) as link:
        link.connect(address)
        if authkey is not None:
            _authentication.Handshake(link, authkey, listening=False, timeout=auth_timeout).run()
        return _Wired(link.detach())


def arbitrary_address(family: str) -> Any:
    """An address for a listener that nobody else has: a path in this program's folder, or any port."""
    if family == "AF_UNIX":
        folder.path()  # so that it goes with this program however that ends
    return _standard.arbitrary_address(family)  # type: ignore[attr-defined]


class SocketListener(_standard.SocketListener):  # type: ignore[name-defined, misc]
    """A bound socket that accepts connections without authentication."""

    def accept(self) -> Any:
        """The next connection."""
        link, self._last_accepted = self._socket.accept()
        link.setblocking(True)
        return _Wired(link.detach())


class Listener(_standard.Listener):
    """A bound socket that accepts connections.

    Args:
        address: A path, or a host and a port; None is a path in a folder for temporary files.
        family: "AF_UNIX" or "AF_INET"; None is as the address looks.
        backlog: Clients that may wait to be accepted.
        authkey: The key that clients must have; None is no authentication.
        auth_timeout: Seconds that a client has for the handshake.

    Process-safety: several threads may call `accept`.
    """

    def __init__(
        self,
        address: Any = None,
        family: str | None = None,
        backlog: int = 1,
        authkey: bytes | None = None,
        *,
        auth_timeout: float = AUTH_TIMEOUT,
    ) -> None:
        if authkey is not None and not isinstance(authkey, bytes):
            raise TypeError("authkey should be a byte string")
        family = family or (address and address_type(address)) or default_family
        _standard._validate_family(family)  # type: ignore[attr-defined]
        self._listener: Any = SocketListener(address or arbitrary_address(family), family, backlog)
        self._authkey = authkey
        self._auth_timeout = auth_timeout
        self._turn = threading.Lock()  # held while a thread waits in `accept`; guards _pending
        self._pending: dict[int, _authentication.Handshake] = {}  # by descriptor

    def accept(self) -> Any:
        """The next connection, authenticated when the listener has a key.

        The handshakes of several clients go on side by side: one that is slow delays nobody.

        Raises:
            AuthenticationError: A client has not shown the key in time; the listener goes on with the next call.
            EOFError: A client has gone in the midst of it.
            OSError: The listener is closed, or there is no descriptor for a connection.
        """
        listener = self._listener
        if listener is None:
            raise OSError("listener is closed")
        if self._authkey is None:
            return listener.accept()
        with self._turn:
            return self._next_authenticated(listener, self._authkey)

    def _next_authenticated(self, listener: Any, key: bytes) -> Any:
        door, pending = listener._socket, self._pending
        while True:
            ready = select.poll()
            for fd in (door.fileno(), *pending):
                ready.register(fd, select.POLLIN)
            ends = [handshake.deadline for handshake in pending.values() if handshake.deadline is not None]
            left = max(0.0, min(ends) - time.monotonic()) * 1000 + 1 if ends else None
            for fd in {*pending} & {*dict(ready.poll(left))}:
                if (made := self._go_on(fd)) is not None:
                    return made
            for fd in [fd for fd in pending if pending[fd].late]:
                self._go_on(fd)  # raises
            door.settimeout(0)  # another process may be the one that gets the client
            try:
                link, listener._last_accepted = door.accept()
            except BlockingIOError:
                continue
            finally:
                door.settimeout(None)
            link.setblocking(True)
            pending[link.fileno()] = _authentication.Handshake(link, key, listening=True, timeout=self._auth_timeout)
            if (made := self._go_on(link.fileno())) is not None:
                return made

    def _go_on(self, fd: int) -> Any:
        """Go on with a handshake; the connection when it is over."""
        handshake = self._pending[fd]
        try:
            if not handshake.step():
                return None
        except BaseException:
            del self._pending[fd]
            handshake.link.close()
            raise
        del self._pending[fd]
        return _Wired(handshake.link.detach())

    def close(self) -> None:
        """Close the listener, and what is amidst a handshake."""
        super().close()
        pending, self._pending = self._pending, {}
        for handshake in pending.values():
            handshake.link.close()


class XmlListener(Listener):
    """A listener whose connections speak XML-RPC's encoding instead of pickle."""

    def accept(self) -> Any:
        """The next connection."""
        return _xml(super().accept())


def XmlClient(*args: Any, **kwds: Any) -> Any:  # noqa: N802
    """A connection to the `XmlListener` at an address; the arguments are those of `Client`."""
    return _xml(Client(*args, **kwds))


def _xml(connection: Any) -> Any:
    return ConnectionWrapper(connection, _xml_dumps, _xml_loads)


def _xml_dumps(value: Any) -> bytes:
    from xmlrpc import client  # brings an HTTP client along

    return client.dumps((value,), allow_none=True).encode()


def _xml_loads(data: bytes) -> Any:
    from xmlrpc import client

    (value,), _ = client.loads(data.decode())
    return value
