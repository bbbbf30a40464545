"""Large messages between two ends of ours: who may be at the other end, who may die, and what it costs in memory."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import random
import signal
import threading
import time
from multiprocessing import connection as standard
from typing import Any

import pytest

import manycore
from manycore import connection
from tests.chaos.test_connections import KILLS, SOON, exit_code, in_child

LEAST = 1 << 16  # bytes from which on a lane is used
CHUNK = 1 << 17
SIZES = [LEAST - 1, LEAST, LEAST + 1, CHUNK - 1, CHUNK, CHUNK + 1, 16 * CHUNK, 16 * CHUNK + 1, 5_000_000]


def message(number: int, size: int) -> bytes:
    return number.to_bytes(8, "big") * (size // 8) + b"x" * (size % 8)


def lanes(pid: int | str = "self") -> int:
    """How many lanes a process has mapped."""
    with open(f"/proc/{pid}/maps", encoding="ascii", errors="replace") as maps:
        return sum("manycore:lane" in line for line in maps)


def kept() -> tuple[int, int]:
    """Lanes that this process has mapped, and their descriptors."""
    gc.collect()
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += "manycore:lane" in os.readlink(f"/proc/self/fd/{fd}")
    return lanes(), found


def warm(one: Any, other: Any) -> None:
    """Has `one` send through a lane from here on."""
    before = lanes()
    for _ in range(2):
        one.send_bytes(bytes(LEAST))
        assert other.recv_bytes() == bytes(LEAST)
    assert lanes() == before + 2, "no lane is used"


def eventually(is_so: Any) -> bool:
    end = time.monotonic() + SOON
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def test_all_kinds_of_messages_of_all_sizes() -> None:
    here, there = connection.Pipe()
    warm(here, there)
    for size in SIZES:
        data = random.Random(size).randbytes(size)
        into = bytearray(size + 3)
        sends = [
            lambda data=data: here.send_bytes(data),
            lambda data=data: here.send(data),
            lambda data=data: here.send(bytearray(data)),
            lambda data=data: here.send_bytes(memoryview(data), 1),
            lambda data=data: here.send_bytes(data),
            lambda data=data: here.send(data),
            lambda data=data: here.send(data),
        ]

        def send(sends: Any = sends) -> None:
            for each in sends:
                each()

        sender = threading.Thread(target=send)
        sender.start()
        assert there.recv_bytes() == data
        assert there.recv() == data
        assert there.recv() == bytearray(data)
        assert there.recv_bytes(size) == data[1:]
        assert there.recv_bytes_into(into, 3) == size
        assert into[3:] == data
        assert pickle.loads(there.recv_bytes()) == data
        roomy = bytearray(size + 100)
        assert pickle.loads(roomy[: there.recv_bytes_into(roomy)]) == data
        sender.join()


def test_a_message_that_is_too_long_ends_the_connection() -> None:
    here, there = connection.Pipe()
    warm(here, there)
    with pytest.raises(connection.BufferTooShort) as caught:
        sender = threading.Thread(target=here.send_bytes, args=(message(1, LEAST),))
        sender.start()
        there.recv_bytes_into(bytearray(10))
    assert caught.value.args[0] == message(1, LEAST)
    sender.join()
    here.send_bytes(bytes(LEAST))
    with pytest.raises(OSError, match="bad message length"):
        there.recv_bytes(LEAST - 1)


@pytest.mark.parametrize("kind", ["reads", "writes"])
def test_the_standard_library_at_the_other_end(kind: str) -> None:
    here, there = connection.Pipe()
    other = standard.Connection(os.dup(there.fileno()))
    there.close()
    sender, receiver = (here, other) if kind == "reads" else (other, here)
    before = kept()

    def send() -> None:
        for number in range(40):
            sender.send(message(number, 300_000))

    thread = threading.Thread(target=send)
    thread.start()
    for number in range(40):
        assert receiver.recv() == message(number, 300_000)
    thread.join()
    assert kept() == before, "what it does not want is offered for ever"
    other.close()
    here.close()


def test_over_a_unix_listener_and_over_tcp() -> None:
    for family, used in (("AF_UNIX", 2), ("AF_INET", 0)):
        with connection.Listener(family=family, authkey=b"key") as listener:
            made: list[Any] = []
            client = threading.Thread(
                target=lambda made=made, to=listener.address: made.append(connection.Client(to, authkey=b"key"))
            )
            client.start()
            here = listener.accept()
            client.join()
        before = lanes()
        for number in range(5):
            sender = threading.Thread(target=made[0].send, args=(message(number, 200_000),))
            sender.start()
            assert here.recv() == message(number, 200_000)
            sender.join()
        assert lanes() - before == used
        here.close()
        made[0].close()


def test_the_memory_goes_with_the_ends() -> None:
    before = kept()
    for _ in range(3):
        here, there = connection.Pipe()
        warm(here, there)
        warm(there, here)
        here.close()
        with pytest.raises(EOFError):
            there.recv_bytes()
        there.close()
    assert kept() == before


def test_who_does_not_read_bounds_the_memory() -> None:
    here, there = connection.Pipe()
    warm(here, there)
    size = 200_000

    def send() -> None:
        there.close()
        for number in range(100):
            here.send_bytes(message(number, size))

    pid = in_child(send)
    here.close()

    def sleeps() -> bool:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "S"

    assert eventually(sleeps)
    for number in range(100):
        assert there.recv_bytes() == message(number, size)
    with pytest.raises(EOFError):
        there.recv_bytes()
    assert exit_code(pid) == 0


@pytest.mark.parametrize("given", ["inherited before", "inherited after", "pickled"])
def test_several_processes_take_turns_at_one_end(given: str) -> None:
    """Each reads whole messages under a lock; together they have all of them, once."""
    here, there = connection.Pipe()
    if given == "inherited after":
        warm(here, there)
    turn, seen = manycore.Lock(), manycore.SharedArray(90, int)
    if given == "pickled":
        readers = [manycore.Process(target=read_in_turn, args=(there, turn, seen)) for _ in range(3)]
        for reader in readers:
            reader.start()
        pids = []
    else:
        pids = [in_child(lambda: read_in_turn(there, turn, seen, here)) for _ in range(3)]
        readers = []
    there.close()
    for number in range(90):
        here.send_bytes(message(number, random.Random(number).randrange(1000, 400_000)))
    here.close()
    for reader in readers:
        reader.join(SOON)
        assert reader.exitcode == 0
    assert [exit_code(pid) for pid in pids] == [0] * len(pids)
    assert list(seen) == [1] * 90


def read_in_turn(end: Any, turn: Any, seen: Any, other: Any = None) -> None:
    if other is not None:
        other.close()
    while True:
        with turn:
            try:
                data = end.recv_bytes()
            except EOFError:
                return
        number = int.from_bytes(data[:8], "big")
        assert data == message(number, len(data))
        seen[number] += 1


def test_several_processes_send_through_one_end() -> None:
    here, there = connection.Pipe()
    warm(here, there)
    turn = manycore.Lock()

    def send(who: int) -> None:
        there.close()
        for number in range(20):
            with turn:
                here.send_bytes(message(who * 1000 + number, 300_000))

    pids = [in_child(lambda who=who: send(who)) for who in range(6)]
    here.close()
    last = [-1] * 6
    for _ in range(120):
        data = there.recv_bytes()
        who, number = divmod(int.from_bytes(data[:8], "big"), 1000)
        assert data == message(who * 1000 + number, 300_000)
        assert number == last[who] + 1
        last[who] = number
    with pytest.raises(EOFError):
        there.recv_bytes()
    assert [exit_code(pid) for pid in pids] == [0] * 6


@pytest.mark.timeout(60 + KILLS)
@pytest.mark.parametrize("victim", ["sender", "receiver"])
def test_a_death_at_any_moment(victim: str, rng: random.Random) -> None:
    """The other side gets what was sent whole, then the end; nothing is kept, and nobody is blocked."""
    before = kept()
    for _ in range(KILLS):
        here, there = connection.Pipe()
        if rng.random() < 0.5:
            warm(here, there)
        size = rng.choice(SIZES)

        def send(here: Any = here, there: Any = there, size: int = size) -> None:
            there.close()
            for number in range(1_000_000):
                here.send_bytes(message(number, size))

        def receive(here: Any = here, there: Any = there) -> None:
            here.close()
            while True:
                there.recv_bytes()

        pid = in_child(send if victim == "sender" else receive)
        killer = threading.Timer(rng.uniform(0, 0.02), os.kill, (pid, signal.SIGKILL))
        killer.start()
        began = time.monotonic()
        if victim == "sender":
            here.close()
            number = 0
            with pytest.raises(EOFError):
                while True:
                    assert there.recv_bytes() == message(number, size)
                    number += 1
        else:
            there.close()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                while True:
                    here.send_bytes(bytes(size))
        assert time.monotonic() - began < SOON
        killer.join()
        assert exit_code(pid) == -signal.SIGKILL
        here.close()
        there.close()
    assert kept() == before
