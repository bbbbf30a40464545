"""The handshake by which two ends of a connection show that they have the same key, without sending it.

      listener                                   client
      CHALLENGE, digest's name, random    -->
                                          <--    digest of that with the key
      WELCOME, or FAILURE                 -->
                                          <--    CHALLENGE, digest's name, random
      digest of that with the key         -->
                                          <--    WELCOME, or FAILURE

The bytes are the standard library's, in its present form and in that of 3.11 (MD5, without a name), so either side
may be a program of the standard library.

Each half is a generator, so that one thread can go on with many handshakes at once, each as far as its bytes have
come: a client that says nothing, or a byte at a time, keeps nobody waiting and is given up at its deadline.

Invariants:
    nothing is unpickled before the handshake is over
    no frame longer than LONGEST bytes is read, and not a byte beyond the handshake's last frame
If a process dies: the handshake ends with EOFError.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Generator
from multiprocessing.context import AuthenticationError
from typing import Any, Final

__all__ = ["CHALLENGE", "FAILURE", "WELCOME", "Handshake", "answer", "deliver", "run_blocking"]

CHALLENGE: Final = b"#CHALLENGE#"
WELCOME: Final = b"#WELCOME#"
FAILURE: Final = b"#FAILURE#"

LONGEST: Final = 256  # bytes of a frame; the standard library's bound, three times what is needed
_RANDOM_BYTES: Final = 40  # any number but 20, by which clients of 3.11's kind are told
_LEGACY: Final = (16, 20)  # bytes of an MD5 and of 3.11's challenge, which have no digest's name before them
_DIGESTS: Final = frozenset({b"md5", b"sha256", b"sha384", b"sha3_256", b"sha3_384"})

Steps = Generator[bytes | None, bytes, None]
"""Yields bytes to send as a frame, or None to be sent the next frame that comes."""


def _digest_of(message: bytes) -> str:
    """The digest that a message names; "md5" where it has the length of one without a name."""
    if len(message) in _LEGACY:
        return "md5"
    name, brace, _ = message[1:].partition(b"}")
    if message[:1] != b"{" or not brace or name not in _DIGESTS:
        raise AuthenticationError(f"the other side names no digest that is known: {message[:24]!r}")
    return name.decode()


def _hmac() -> Any:
    """The module. It costs some milliseconds, which a program without authentication does not pay."""
    import hmac

    return hmac


def _response(key: bytes, message: bytes) -> bytes:
    digest = _digest_of(message)
    mac: bytes = _hmac().digest(key, message, digest)
    return mac if len(message) in _LEGACY else b"{%s}%s" % (digest.encode(), mac)


def _is_right(key: bytes, message: bytes, response: bytes) -> bool:
    given = response if len(response) in _LEGACY else response.partition(b"}")[2]
    mac = _hmac().digest(key, message, _digest_of(response))
    return bool(_hmac().compare_digest(mac, given))


def deliver(key: bytes, digest: str = "sha256") -> Steps:
    """Ask the other side to show that it has the key.

    Raises:
        AuthenticationError: It has not.
    """
    message = b"{%s}%s" % (digest.encode(), os.urandom(_RANDOM_BYTES))
    yield CHALLENGE + message
    response = yield None
    try:
        right = _is_right(key, message, response)
    except AuthenticationError:
        yield FAILURE
        raise
    if not right:
        yield FAILURE
        raise AuthenticationError("digest received was wrong")
    yield WELCOME


def answer(key: bytes) -> Steps:
    """Show the other side that this one has the key.

    Raises:
        AuthenticationError: The other side says otherwise, or does not speak this protocol.
    """
    message = yield None
    if not message.startswith(CHALLENGE):
        raise AuthenticationError(f"a challenge was expected, not {message[:24]!r}")
    yield _response(key, message[len(CHALLENGE) :])
    if (yield None) != WELCOME:
        raise AuthenticationError("digest sent was rejected")


def run_blocking(steps: Steps, connection: Any) -> None:
    """Go through a half of the handshake over anything that has `send_bytes` and `recv_bytes`."""
    frame: bytes | None = None
    try:
        while True:
            out = steps.send(frame)  # type: ignore[arg-type]  # the first must be None
            frame = None
            if out is None:
                frame = connection.recv_bytes(LONGEST)
            else:
                connection.send_bytes(out)
    except StopIteration:
        pass


def _both(key: bytes, *, listening: bool) -> Steps:
    halves = [deliver(key), answer(key)]
    for half in halves if listening else reversed(halves):
        yield from half


class Handshake:
    """A whole handshake over a socket, which goes on as far as the bytes that are there allow.

    Args:
        link: A connected stream socket.
        key: The key.
        listening: Whether this side is the listener.
        timeout: Seconds that it may take; None is any time.

    Attributes:
        deadline: When it has taken too long, on `time.monotonic`; None is never.
    """

    def __init__(self, link: socket.socket, key: bytes, *, listening: bool, timeout: float | None) -> None:
        self.link = link
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self._timeout = timeout
        self._steps = _both(key, listening=listening)
        self._wanted = 0  # bytes that `_got` is to have; 0 = nothing is awaited
        self._sized = False  # the header is here, and `_wanted` counts the frame
        self._got = b""

    def step(self) -> bool:
        """Go on as far as possible without waiting; whether the handshake is over.

        Raises:
            AuthenticationError: The other side has not the key, or sends what is no handshake, or took too long.
            EOFError: It is gone.
            OSError: The connection is broken.
        """
        try:
            return self._step()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise EOFError("the other side is gone") from error

    def _step(self) -> bool:
        frame: bytes | None = None
        while True:
            if self._wanted:
                frame = self._receive()
                if frame is None:
                    self._check_time()
                    return False
            try:
                out = self._steps.send(frame)  # type: ignore[arg-type]  # the first must be None
            except StopIteration:
                return True
            frame = None
            if out is None:
                self._wanted, self._sized, self._got = 4, False, b""
            else:  # a fresh connection's buffer holds all that a handshake sends
                self.link.sendall(len(out).to_bytes(4, "big") + out)

    def _receive(self) -> bytes | None:
        while True:
            while len(self._got) < self._wanted:
                try:
                    more = self.link.recv(self._wanted - len(self._got), socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return None
                if not more:
                    raise EOFError("the other side is gone")
                self._got += more
            if self._sized:
                self._wanted = 0
                return self._got
            size = int.from_bytes(self._got, "big")
            if not 0 < size <= LONGEST:
                raise AuthenticationError(f"a frame of {size} bytes has no place in a handshake")
            self._wanted, self._sized, self._got = size, True, b""

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _check_time(self) -> None:
        if self.late:
            raise AuthenticationError(f"the other side has not shown its key within {self._timeout:g} s")

    def run(self) -> None:
        """Wait until the handshake is over; raises as `step`."""
        ready = select.poll()
        ready.register(self.link, select.POLLIN)
        while not self.step():
            left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            ready.poll(None if left is None else left * 1000 + 1)
