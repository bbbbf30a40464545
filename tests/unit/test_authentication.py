"""The handshake: who has not the key gets an error in bounded time, is not unpickled from, and delays nobody."""

from __future__ import annotations

import hmac
import multiprocessing.connection
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manycore import _authentication, connection, managers
from tests.unit.test_connection import in_threads

FAMILIES = ["AF_UNIX", "AF_INET"]
KEY = b"the key"
SOON = 5.0  # seconds; for what takes the handshake's timeout (0.3 s) or no time


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.path), "w")


def raw(address: Any) -> socket.socket:
    link = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    link.connect(address)
    return link


def wrong_key(address: Any, trap: Trap) -> Any:
    with pytest.raises(connection.AuthenticationError):
        connection.Client(address, authkey=b"another")


def no_key(address: Any, trap: Trap) -> Any:
    made = connection.Client(address)
    made.send(trap)
    return made


def garbage(address: Any, trap: Trap) -> Any:
    link = raw(address)
    link.sendall(b"GET / HTTP/1.1\r\n\r\n")
    return link


def oversized(address: Any, trap: Trap) -> Any:
    link = raw(address)
    link.sendall(b"\xff\xff\xff\xff" + (1 << 40).to_bytes(8, "big"))
    return link


def empty_frame(address: Any, trap: Trap) -> Any:
    link = raw(address)
    link.sendall(bytes(4))
    return link


def slow(address: Any, trap: Trap) -> Any:
    link = raw(address)
    link.sendall(b"\0")
    return link


def silent(address: Any, trap: Trap) -> Any:
    return raw(address)


ATTACKS = [wrong_key, no_key, garbage, oversized, empty_frame, slow, silent]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_whoever_has_not_the_key_is_refused(attack: Any, family: str, tmp_path: Path) -> None:
    trap = Trap(tmp_path / "unpickled")
    with connection.Listener(None, family, authkey=KEY, auth_timeout=0.3) as listener:
        kept: list[Any] = []
        thread = threading.Thread(target=lambda: kept.append(attack(listener.address, trap)))
        thread.start()
        began = time.monotonic()
        with pytest.raises(connection.AuthenticationError):
            listener.accept()
        assert time.monotonic() - began < SOON
        thread.join(SOON)
        assert not thread.is_alive()
        for link in kept:
            if link is not None:
                link.close()
    assert not trap.path.exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_that_leaves_amidst_is_an_end_of_file(family: str) -> None:
    with connection.Listener(None, family, authkey=KEY) as listener:
        raw(listener.address).close()
        with pytest.raises(EOFError):
            listener.accept()


@pytest.mark.parametrize("family", FAMILIES)
def test_others_are_served_while_one_is_slow(family: str) -> None:
    """Sixteen clients that never get on, and those that do are all accepted before any of these is given up."""
    with connection.Listener(None, family, backlog=32, authkey=KEY, auth_timeout=30) as listener:
        loris = [raw(listener.address) for _ in range(16)]
        for link in loris[::2]:
            link.sendall(b"\0")
        got: list[Any] = []

        def call() -> None:
            with connection.Client(listener.address, authkey=KEY) as made:
                made.send("served")
                made.recv_bytes()

        def accept() -> None:
            for _ in range(4):
                with listener.accept() as accepted:
                    got.append(accepted.recv())
                    accepted.send_bytes(b"")

        began = time.monotonic()
        in_threads(accept, call, call, call, call)
        assert got == ["served"] * 4
        assert time.monotonic() - began < SOON
        for link in loris:
            link.close()


def test_a_frame_may_come_a_byte_at_a_time() -> None:
    near, far = socket.socketpair()
    with near, far:
        server = _authentication.Handshake(near, KEY, listening=True, timeout=SOON)
        client = _authentication._both(KEY, listening=False)
        frame: bytes | None = None
        over = server.step()
        try:
            while True:
                out = client.send(frame)  # type: ignore[arg-type]  # the first must be None
                frame = None
                if out is None:
                    size = int.from_bytes(far.recv(4), "big")
                    frame = far.recv(size)
                    continue
                for byte in len(out).to_bytes(4, "big") + out:
                    assert not over
                    far.sendall(bytes([byte]))
                    over = server.step()
        except StopIteration:
            assert over


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ours", ["client", "listener"])
def test_the_standard_library_may_be_either_side(ours: str, family: str) -> None:
    standard = multiprocessing.connection
    make: Any = standard.Listener if ours == "client" else connection.Listener
    call: Any = connection.Client if ours == "client" else standard.Client
    with make(None, family, authkey=KEY) as listener:
        got: list[Any] = []

        def accept() -> None:
            with listener.accept() as accepted:
                got.append(accepted.recv())
                accepted.send("answer")

        def ask() -> None:
            with call(listener.address, authkey=KEY) as made:
                made.send("question")
                got.append(made.recv())

        in_threads(accept, ask)
        assert got == ["question", "answer"]

        def refuse() -> None:
            with pytest.raises(multiprocessing.AuthenticationError):
                listener.accept()

        def try_again() -> None:
            with pytest.raises(multiprocessing.AuthenticationError):
                call(listener.address, authkey=b"another")

        in_threads(refuse, try_again)


def test_the_form_of_python_3_11() -> None:
    challenge = os.urandom(20)
    steps = _authentication.answer(KEY)
    assert next(steps) is None
    assert steps.send(_authentication.CHALLENGE + challenge) == hmac.new(KEY, challenge, "md5").digest()
    steps = _authentication.deliver(KEY)
    message = next(steps)
    assert message is not None
    assert next(steps) is None
    reply = hmac.new(KEY, message[len(_authentication.CHALLENGE) :], "md5").digest()
    assert steps.send(reply) == _authentication.WELCOME


@pytest.mark.parametrize("digest", ["md5", "sha256", "sha384", "sha3_256", "sha3_384"])
def test_the_functions_go_over_any_connection(digest: str) -> None:
    one, other = connection.Pipe()
    in_threads(lambda: connection.deliver_challenge(one, KEY, digest), lambda: connection.answer_challenge(other, KEY))
    with pytest.raises(ValueError, match="bytes"):
        connection.answer_challenge(one, "text")  # type: ignore[arg-type]
    other.send_bytes(b"hello")
    with pytest.raises(connection.AuthenticationError):
        connection.answer_challenge(one, KEY)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_managers_server_refuses_them_too(family: str, tmp_path: Path) -> None:
    trap = Trap(tmp_path / "unpickled")
    address: Any = str(tmp_path / "socket") if family == "AF_UNIX" else ("127.0.0.1", 0)
    with managers.SyncManager(address, authkey=KEY) as manager:
        kept = [attack(manager.address, trap) for attack in ATTACKS]
        values = manager.list([1, 2])
        assert list(values) == [1, 2]
        for link in kept:
            if link is not None:
                link.close()
    assert not trap.path.exists()
