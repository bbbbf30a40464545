"""Connections at their limits: interrupts, tiny buffers, no descriptors, all sizes, and a death in each midst."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import resource
import signal
import socket
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import manycore
from manycore import connection

KILLS = int(os.environ.get("MANYCORE_CONNECTION_KILLS", "25"))
LARGE = "MANYCORE_HUGE" in os.environ
SOON = 5.0  # seconds
SIZES = [0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 212_991, 212_992, 212_993, 5_000_000]


def in_child(run: Any) -> int:
    """Calls it in a forked child; its exit code, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def echo(end: Any) -> None:
    try:
        while True:
            end.send_bytes(end.recv_bytes())
    except EOFError:
        pass


@contextmanager
def echoing(duplex_ends: tuple[Any, Any]) -> Iterator[Any]:
    here, there = duplex_ends

    def run() -> None:
        here.close()
        echo(there)

    pid = in_child(run)
    there.close()
    try:
        yield here
    finally:
        here.close()
        assert exit_code(pid) == 0


def small_buffers() -> tuple[Any, Any]:
    """A pipe whose kernel buffers hold next to nothing, so that each write is a short one."""
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    return connection.Connection(ends[0].detach()), connection.Connection(ends[1].detach())


@pytest.mark.parametrize("ends", [connection.Pipe, small_buffers])
def test_all_sizes_arrive(ends: Any) -> None:
    with echoing(ends()) as here:
        for size in SIZES:
            data = random.Random(size).randbytes(min(size, 70_000)) + bytes(max(0, size - 70_000))
            here.send_bytes(data)
            assert here.recv_bytes() == data
            into = bytearray(size + 3)
            here.send_bytes(data)
            assert here.recv_bytes_into(into, 3) == size
            assert into[3:] == data


@pytest.mark.skipif(not LARGE, reason="6 GB of memory; MANYCORE_HUGE=1")
def test_more_than_two_gigabytes_arrive() -> None:
    here, there = connection.Pipe()
    data = bytes((1 << 31) + 1)
    sender = threading.Thread(target=here.send_bytes, args=(data,))
    sender.start()
    assert there.recv_bytes() == data
    sender.join()


def test_a_non_blocking_descriptor_waits_all_the_same() -> None:
    here, there = connection.Pipe()
    os.set_blocking(here.fileno(), False)
    os.set_blocking(there.fileno(), False)
    data = bytes(1_000_000)
    sender = threading.Thread(target=here.send_bytes, args=(data,))
    sender.start()
    assert there.recv_bytes() == data
    sender.join(SOON)
    assert not sender.is_alive()


@contextmanager
def storm(handler: Any) -> Iterator[None]:
    """A signal each millisecond, which interrupts system calls."""
    before = signal.signal(signal.SIGUSR1, handler)
    signal.siginterrupt(signal.SIGUSR1, True)
    over = threading.Event()
    me = threading.main_thread().ident
    assert me is not None

    def send() -> None:
        while not over.wait(0.001):
            signal.pthread_kill(me, signal.SIGUSR1)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("ends", [connection.Pipe, small_buffers])
def test_a_storm_of_interrupts_changes_nothing(ends: Any) -> None:
    count = 0

    def handler(_signum: int, _frame: object) -> None:
        nonlocal count
        count += 1

    with echoing(ends()) as here, storm(handler):
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline or count < 20:
            for size in (0, 10, 100_000):
                here.send_bytes(bytes(size))
                assert here.recv_bytes() == bytes(size)
        assert not here.poll(0.02)


class Interrupt(Exception):
    """What a handler raises."""


def test_an_interrupted_receive_goes_on_at_the_next_call() -> None:
    """The half that was received is not lost, wherever the half ends."""
    message = bytes(range(256)) * 1000
    raw = len(message).to_bytes(4, "big") + message

    def handler(_signum: int, _frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, handler)
    me = threading.main_thread().ident
    assert me is not None
    try:
        for half in (1, 3, 4, 5, 70_000):
            here, there = connection.Pipe()
            os.write(there.fileno(), raw[:half])

            def interrupt(fd: int = here.fileno()) -> None:
                left = bytearray(4)
                while fcntl.ioctl(fd, termios.FIONREAD, left) or any(left):
                    pass  # until the half is taken
                signal.pthread_kill(me, signal.SIGUSR1)

            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(Interrupt):
                here.recv_bytes()
            thread.join()
            rest = threading.Thread(target=os.write, args=(there.fileno(), raw[half:]))
            rest.start()
            assert here.recv_bytes() == message
            rest.join()
            here.close()
            there.close()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_interrupted_send_closes_the_connection() -> None:
    """Half a message is in the pipe: nothing may follow it, and the receiver is told."""
    here, there = connection.Pipe()

    def handler(_signum: int, _frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, handler)
    me = threading.main_thread().ident
    assert me is not None

    def interrupt() -> None:
        assert there.poll(SOON)  # the send has begun
        signal.pthread_kill(me, signal.SIGUSR1)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(Interrupt):
            here.send_bytes(bytes(5_000_000))
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert here.closed
    with pytest.raises(OSError, match="closed"):
        here.send_bytes(b"next")
    with pytest.raises(EOFError):
        there.recv_bytes()


def test_a_sender_killed_amidst_is_an_end_of_file(rng: random.Random) -> None:
    """What was sent whole arrives; the half message is EOFError, not bytes and not a hang."""
    for _ in range(KILLS):
        here, there = connection.Pipe(duplex=False)

        def send(here: Any = here, there: Any = there) -> None:
            here.close()
            for number in range(1_000_000):
                there.send_bytes(number.to_bytes(4, "big") * 20_000)

        pid = in_child(send)
        there.close()
        reader = threading.Timer(rng.uniform(0, 0.01), os.kill, (pid, signal.SIGKILL))
        reader.start()
        number = 0
        began = time.monotonic()
        with pytest.raises(EOFError):
            while True:
                assert here.recv_bytes() == number.to_bytes(4, "big") * 20_000
                number += 1
        assert time.monotonic() - began < SOON
        reader.join()
        assert exit_code(pid) == -signal.SIGKILL


def test_a_receiver_killed_amidst_is_a_broken_pipe() -> None:
    here, there = connection.Pipe()

    def receive() -> None:
        here.close()
        there.recv_bytes(10)
        time.sleep(60)

    pid = in_child(receive)
    there.close()
    here.send_bytes(b"begin")
    killer = threading.Timer(0.05, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while True:
            here.send_bytes(bytes(1_000_000))
    with pytest.raises(EOFError):
        here.recv_bytes()
    killer.join()
    assert exit_code(pid) == -signal.SIGKILL


def test_a_stopped_peer_blocks_no_poll_and_loses_nothing() -> None:
    here, there = connection.Pipe()
    process = manycore.Process(target=echo, args=(there,))
    process.start()
    there.close()
    here.send_bytes(b"before")
    assert here.recv_bytes() == b"before"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    here.send_bytes(b"while it is stopped")
    began = time.monotonic()
    assert not here.poll(0.1)
    assert time.monotonic() - began < SOON
    os.kill(process.pid, signal.SIGCONT)
    assert here.poll(SOON)
    assert here.recv_bytes() == b"while it is stopped"
    here.close()
    process.join(SOON)
    assert process.exitcode == 0


def test_without_descriptors_a_pipe_is_an_error_and_leaks_none() -> None:
    def run() -> None:
        listener = connection.Listener(backlog=100)
        used = len(os.listdir("/proc/self/fd"))
        complaints: list[OSError] = []
        for room in range(8):
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + room, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            kept: list[Any] = []
            try:
                while True:
                    kept.append(connection.Pipe())
            except OSError as error:
                complaints.append(error)
            del kept
            try:
                connection.Client(listener.address).close()
            except OSError as error:
                complaints.append(error)
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            assert len(os.listdir("/proc/self/fd")) == used
        assert {error.errno for error in complaints} == {errno.EMFILE}

    assert exit_code(in_child(run)) == 0


class Breaks:
    """Raises where it is pickled, or where it is unpickled."""

    def __init__(self, *, here: bool) -> None:
        self.here = here

    def __reduce__(self) -> Any:
        if self.here:
            raise RuntimeError("cannot be pickled")
        return int, ("no number",)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_cannot_be_pickled_leaves_the_connection_whole(kind: str) -> None:
    if kind == "pipe":
        one, other = connection.Pipe()
    else:
        with connection.Listener() as listener:
            one = connection.Client(listener.address)
            other = listener.accept()
    with pytest.raises((RuntimeError, manycore.TaskPicklingError)):
        one.send(Breaks(here=True))
    one.send(Breaks(here=False))
    one.send("next")
    with pytest.raises((ValueError, manycore.TaskPicklingError)):
        other.recv()
    assert other.recv() == "next"
    one.close()
    other.close()
