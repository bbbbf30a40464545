"""The spool: what is put can be read by offset, and its pages go back with the last reference."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

import manycore
from manycore._engine.spool import Spool, read_exactly


def pages(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def test_what_is_put_is_read_by_offset() -> None:
    spool = Spool()
    try:
        places = [(spool.put(data), data) for data in (b"", b"a", b"b" * 4095, b"c" * 4096, b"d" * 100_001)]
        for place, data in places:
            assert read_exactly(spool.fd, place.length, place.offset) == data
    finally:
        spool.close()


def test_pages_go_back_with_the_last_reference() -> None:
    spool = Spool()
    try:
        place = spool.put(b"x" * (1 << 20))
        assert pages(spool.fd) >= 1 << 20
        del place
        assert pages(spool.fd) < 1 << 14
    finally:
        spool.close()


def test_a_range_outlives_its_spool() -> None:
    spool = Spool()
    place = spool.put(b"x" * 10_000)
    spool.close()
    spool.close()
    del place


def test_reading_beyond_the_end_is_an_error() -> None:
    spool = Spool()
    try:
        place = spool.put(b"abc")
        with pytest.raises(OSError, match="the spool ends"):
            read_exactly(spool.fd, 100, place.offset)
    finally:
        spool.close()


def test_threads_put_side_by_side() -> None:
    spool = Spool()
    found: list[bool] = []

    def put(letter: int) -> None:
        data = bytes([letter]) * 5000
        places = [spool.put(data) for _ in range(50)]
        found.append(all(read_exactly(spool.fd, place.length, place.offset) == data for place in places))

    threads = [threading.Thread(target=put, args=(letter,)) for letter in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spool.close()
    assert found == [True] * 8


def write_into_all_descriptors() -> int:
    written = 0
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2:
            try:
                os.set_blocking(number, False)
                os.write(number, b"\xff\x00garbage" * 20)
                written += 1
            except OSError:  # it takes nothing, as the spool
                continue
    return written


@pytest.mark.parametrize("face", [manycore.Pool, manycore.ProcessPoolExecutor])
def test_what_a_task_writes_into_all_descriptors_harms_no_other(face: Any) -> None:
    with face(2) as pool:
        for _ in range(3):
            assert pool.submit(write_into_all_descriptors).result(20) > 0
            assert pool.submit(abs, -1).result(20) == 1
            assert len(pool.submit(bytes, 1_000_000).result(20)) == 1_000_000
            assert list(pool.map(lambda n: n * n, range(100))) == [n * n for n in range(100)]


def test_workers_cannot_write_into_it() -> None:
    spool = Spool()
    spool.put(b"kept")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(spool.reader, b"lost")
    assert read_exactly(spool.reader, 4, 0) == b"kept"
    spool.close()
