"""Lines that workers print: whole, and each in one piece."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from manycore._engine.lines import LONGEST, LineWriter


@contextmanager
def pipe() -> Iterator[tuple[int, LineWriter]]:
    read, write = os.pipe()
    try:
        yield read, LineWriter(write)
    finally:
        os.close(read)
        os.close(write)


def available(fd: int) -> bytes:
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""


def test_a_line_is_written_when_it_is_whole() -> None:
    with pipe() as (read, writer):
        assert writer.write(b"one ") == 4
        assert available(read) == b""
        writer.write(b"line\nand the next")
        assert available(read) == b"one line\n"
        writer.flush()
        assert available(read) == b"and the next"
        writer.flush()
        assert available(read) == b""


def test_a_line_without_end_goes_in_parts() -> None:
    with pipe() as (read, writer):
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(b"".join(iter(lambda: os.read(read, 65536), b""))))
        reader.start()
        writer.write(b"x" * (LONGEST + 1))
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer.fileno())
        reader.join(10)
        assert got == [b"x" * (LONGEST + 1)]


PROGRAM = """
import sys
import manycore

def lines(letter):
    for size in (10, 70_000, 100, 5000):
        print(letter * size)
        print(letter, letter, sep="", end="")
        print(letter * 30_000, file=sys.stdout)
        print(letter * 70_000, letter, sep="", file=sys.stderr)

with manycore.Pool(4) as pool:
    pool.map(lines, "abcdefghijkl", 1)
"""


@pytest.mark.parametrize("face", ["Pool(4)", "ProcessPoolExecutor(4)"])
def test_lines_of_workers_do_not_mix(face: str) -> None:
    program = PROGRAM.replace("Pool(4)", face)
    if face.startswith("Process"):
        program = program.replace('pool.map(lines, "abcdefghijkl", 1)', 'list(pool.map(lines, "abcdefghijkl"))')
    running = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    )
    parts: list[bytes] = []
    with running:
        assert running.stdout is not None
        while part := running.stdout.read(1500):  # slower than they write: the pipe is full nearly all the time
            parts.append(part)
    assert running.returncode == 0
    lines = b"".join(parts).splitlines()
    assert len(lines) == 12 * 4 * 3
    assert all(len(set(line)) == 1 for line in lines)
    assert sorted({len(line) for line in lines}) == [10, 100, 5000, 30_002, 70_000, 70_001]


def test_a_partial_line_is_written_at_the_end() -> None:
    program = "import manycore\nwith manycore.Pool(1) as pool:\n"
    program += "    pool.apply(print, ('no newline',), {'end': ''})\n    pool.close()\n    pool.join()\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"no newline"
