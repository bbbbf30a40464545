"""Pipes, listeners and clients: the standard meaning, safe for threads."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import pytest

import manycore
from manycore import connection, errors


@pytest.fixture(scope="module", autouse=True)
def _no_tracker_left() -> Iterator[None]:
    """Ends the standard library's process that comes with "spawn"."""
    yield
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def in_threads(*runs: Any) -> None:
    threads = [threading.Thread(target=run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_two_threads_send_and_two_receive() -> None:
    one, other = connection.Pipe()
    contents = [bytes([byte]) * 200_000 for byte in b"xy"]
    got: list[bytes] = []

    def send(content: bytes) -> None:
        for _ in range(30):
            one.send_bytes(content)

    def receive() -> None:
        got.extend(other.recv_bytes() for _ in range(30))

    in_threads(lambda: send(contents[0]), lambda: send(contents[1]), receive, receive)
    assert sorted(got) == sorted(contents * 30)


def test_what_the_codec_can_is_sent() -> None:
    one, other = connection.Pipe(duplex=False)
    variable = 5
    other.send(lambda: variable)
    assert one.recv()() == 5
    other.send([1, b"2", {3}])
    assert one.poll(10)
    assert one.recv() == [1, b"2", {3}]
    with pytest.raises(errors.TaskPicklingError, match=r"obj\[0\]"):
        other.send([threading.Lock()])
    with pytest.raises(OSError, match="read-only"):
        one.send(1)
    other.close()
    with pytest.raises(EOFError):
        one.recv()


def test_a_fork_leaves_the_lock_of_another_thread_behind() -> None:
    one, other = connection.Pipe()
    sender = threading.Thread(target=one.send_bytes, args=(bytes(1_000_000),))
    sender.start()
    assert other.poll(10)  # it has begun, and has no room for the rest
    pid = os.fork()
    if pid == 0:
        other.recv_bytes()
        one.send("from the child")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    sender.join(10)
    assert not sender.is_alive()
    assert other.recv() == "from the child"


def _answer(end: Any) -> None:
    end.send(end.recv() + 1)


@pytest.mark.parametrize("method", ["fork", "spawn", "zygote"])
def test_an_end_goes_to_a_child(method: str) -> None:
    context = manycore.get_context(method)
    one, other = context.Pipe()
    assert type(one) is connection.Connection
    process = context.Process(target=_answer, args=(other,))
    process.start()
    one.send(1)
    assert one.poll(30)
    assert one.recv() == 2
    process.join(30)
    assert process.exitcode == 0


@pytest.mark.parametrize("client", [connection.Client, multiprocessing.connection.Client])
def test_the_standard_library_may_be_the_other_side(client: Any) -> None:
    with connection.Listener(None, authkey=b"key") as listener:
        received: list[Any] = []

        def accept() -> None:
            with listener.accept() as accepted:
                received.append(accepted.recv())
                accepted.send("answer")

        def call() -> None:
            with client(listener.address, authkey=b"key") as made:
                made.send({"question": 1})
                received.append(made.recv())

        in_threads(accept, call)
        assert sorted(map(str, received)) == ["answer", "{'question': 1}"]


def test_a_wrong_key_is_refused() -> None:
    with connection.Listener(None, authkey=b"key") as listener:

        def accept() -> None:
            with pytest.raises(connection.AuthenticationError):
                listener.accept()

        def call() -> None:
            with pytest.raises(connection.AuthenticationError):
                connection.Client(listener.address, authkey=b"other")

        in_threads(accept, call)


def test_wait_takes_both_kinds() -> None:
    one, other = connection.Pipe()
    standard, end = multiprocessing.Pipe()
    other.send(1)
    end.send(2)
    assert set(connection.wait([one, standard], 10)) == {one, standard}
