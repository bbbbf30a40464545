"""Initializers: those that take long, what a call may ask for, what reaches each worker."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import pytest

import manycore
from manycore._engine import local

FACES: list[Any] = [manycore.Pool, manycore.ProcessPoolExecutor]


@pytest.fixture(scope="module", autouse=True)
def no_standard_helpers_left() -> Iterator[None]:
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("timeout", "error"),
    [(0, ValueError), (-1, ValueError), (float("nan"), ValueError), (float("inf"), ValueError), ("1", TypeError)],
)
def test_what_is_no_time_is_said_at_the_call(face: Any, timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="initializer_timeout"):
        face(1, initializer_timeout=timeout)
    for function in (manycore.map, manycore.imap):
        with pytest.raises(error, match="initializer_timeout"):
            function(abs, [], initializer_timeout=timeout)


@pytest.mark.parametrize("face", FACES)
def test_one_that_is_done_in_time_is_left_alone(face: Any) -> None:
    with face(2, initializer=time.sleep, initargs=(0.05,), initializer_timeout=30) as pool:
        pids = {pool.submit(os.getpid).result() for _ in range(20)}
        assert pool.stats().workers_died == 0
        assert len(pids) <= 2


def test_a_map_ends_with_the_error() -> None:
    def hang(_: str) -> None:
        threading.Event().wait()

    for function in (manycore.map, manycore.imap):
        with pytest.raises(manycore.PoolBroken, match=r"hang had not returned after its timeout of 0\.05 s"):
            list(function(abs, [1], workers=1, initializer=hang, initargs=("x",), initializer_timeout=0.05))


class Telling(logging.Handler):
    """Sets an event when something is logged."""

    def __init__(self, told: threading.Event) -> None:
        super().__init__()
        self.told = told

    def emit(self, record: logging.LogRecord) -> None:
        assert record.name == "manycore"
        self.told.set()


def test_without_a_bound_it_is_told_once_where_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(local, "LONG_START_NS", 200_000_000)
    told = threading.Event()
    handler = Telling(told)
    logging.getLogger("manycore").addHandler(handler)
    go_on = tmp_path / "go on"
    os.mkfifo(go_on)
    with contextlib.closing(manycore.Pool(1, initializer=Path.read_bytes, initargs=(go_on,), name="slow")) as pool:
        assert told.wait(30)
        future = pool.submit(abs, -1)
        with pytest.raises(manycore.TimeoutError):
            future.get(0.5)  # twice as long again
        go_on.write_bytes(b"on")
        assert future.result(30) == 1
        pool.close()
        pool.join()
    logging.getLogger("manycore").removeHandler(handler)
    (record,) = [record for record in caplog.records if record.name == "manycore"]
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert "worker 0 of pool 'slow'" in text
    assert f"its initializer {Path.read_bytes.__qualname__} has not returned after 0.2 s" in text
    assert " in read_bytes" in text.partition("(most recent call first)")[2]


@pytest.mark.parametrize("method", ["zygote", "fork", "spawn", "forkserver"])
def test_each_worker_gets_the_connection_and_the_socket(method: str) -> None:
    reader, writer = manycore.Pipe(duplex=False)
    left, right = socket.socketpair()
    context = manycore.get_context(method)
    with context.Pool(2, keep, (writer, right)) as pool:
        writer.close()  # ours; those of the workers go on
        right.close()
        barrier = manycore.Barrier(2)
        pids = set(pool.map(tell, [barrier] * 2, chunksize=1))
        assert {reader.recv(), reader.recv()} == pids
        assert left.recv(2, socket.MSG_WAITALL) == b"xx"
        pool.terminate()
        pool.join()
    with pytest.raises(EOFError):
        reader.recv()  # nobody has the other end
    assert left.recv(1) == b""
    reader.close()
    left.close()


def keep(*ends: Any) -> None:
    keep.ends = ends  # type: ignore[attr-defined]


def tell(barrier: Any) -> int:
    barrier.wait(20)
    writer, right = keep.ends  # type: ignore[attr-defined]
    writer.send(os.getpid())
    right.send(b"x")
    return os.getpid()
